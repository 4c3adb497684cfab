"""What the figures hold, read back from matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from conftest import generated_digits
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from pipeline.metrics.metrics import Calibration, Interval
from pipeline.reports import plots, sheets

IMAGES, _ = generated_digits(4, 0)
HISTORY = [
    {"epoch": 1.0, "train_loss": 0.5, "train_accuracy": 0.75, "val_loss": 0.25, "val_accuracy": 0.875},
    {"epoch": 2.0, "train_loss": 0.125, "train_accuracy": 1.0, "val_loss": 0.5, "val_accuracy": 0.5},
]
CONFUSION = np.array([[5, 0, 2], [0, 7, 0], [1, 3, 0]])
RELIABILITY = Calibration(
    np.array([0, 2, 0, 6]), np.array([math.nan, 0.4, math.nan, 0.9]), np.array([math.nan, 0.5, math.nan, 1.0]), 0.1
)
TESTS = {"published": (0.975, Interval(0.95, 0.98)), "small": (0.5, Interval(0.25, 0.875))}
HISTORIES = {"published": HISTORY[:1], "small": HISTORY}
FIGURES: dict[str, Callable[[], Figure]] = {
    "digits": lambda: sheets.plot_examples(IMAGES, ["a", "b", "c", "d"], 3, "some", [False, True, False, False]),
    "confusion": lambda: plots.plot_confusion_matrix(CONFUSION, ["a", "b", "c"], "counts"),
    "reliability": lambda: plots.plot_reliability(RELIABILITY, "sure"),
    "history": lambda: plots.plot_history(HISTORY, "learning"),
    "comparison": lambda: plots.plot_comparison(HISTORIES, TESTS, "published"),
}


OF_A_USER = {  # a matplotlibrc: each line alone changes a picture, and text.usetex needs a LaTeX
    "text.usetex": True,
    "font.family": "serif",
    "image.origin": "lower",
    "axes.grid": True,
    "axes.prop_cycle": matplotlib.cycler("color", ["r"]),
    "figure.facecolor": "black",
    "savefig.bbox": "tight",
    "savefig.transparent": True,
}


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_input_gives_the_same_png_whatever_matplotlibrc_says(name, tmp_path):
    files = [tmp_path / "plain.png", tmp_path / "odd.png"]
    for file, settings in zip(files, ({}, OF_A_USER), strict=True):
        with matplotlib.rc_context(settings):
            plots.save_figure(file, FIGURES[name]())
            assert matplotlib.rcParams["axes.grid"] == bool(settings)  # the user's own, in a notebook
    plain, odd = (file.read_bytes() for file in files)
    assert plain == odd and plain.startswith(b"\x89PNG")
    assert b"Software" not in plain and b"matplotlib" not in plain.lower()


def test_digits_are_upright_in_grey_under_their_titles():
    figure = FIGURES["digits"]()
    (axes,) = figure.axes
    assert figure.get_suptitle() == "some" and len(axes.images) == 4  # rows of 3 and 1
    assert axes.yaxis_inverted() and not axes.xaxis_inverted()
    places = [(0, 0), (0, 1), (0, 2), (1, 0)]
    for shown, image, title, text, (row, column) in zip(axes.images, IMAGES, "abcd", axes.texts, places, strict=True):
        np.testing.assert_array_equal(shown.get_array(), image)
        left, right, bottom, top = shown.get_extent()
        assert shown.origin == "upper" and column < left < right < column + 1 and 1.2 * row < top < bottom
        assert (right - left) / (bottom - top) == pytest.approx(image.shape[1] / image.shape[0])
        assert shown.get_cmap().name == "gray_r" and shown.get_clim() == (0, 255)  # paper white, ink black
        assert text.get_text() == title and text.get_position()[1] < top
    assert [same_color(text.get_color(), plots.ORANGE) for text in axes.texts] == [False, True, False, False]


def test_no_digits_are_an_empty_sheet():
    figure = sheets.plot_examples(IMAGES[:0], [], 6, "no mistakes")
    assert figure.get_suptitle() == "no mistakes" and not any(axes.images for axes in figure.axes)


def test_confusion_matrix_writes_every_count_and_colours_mistakes_alone():
    (axes,) = FIGURES["confusion"]().axes
    texts = {(text.get_position()[1], text.get_position()[0]): text for text in axes.texts}  # (true, predicted)
    assert {place: int(text.get_text()) for place, text in texts.items()} == {
        (0, 0): 5,
        (0, 2): 2,
        (1, 1): 7,
        (2, 0): 1,
        (2, 1): 3,
    }
    assert {place for place, text in texts.items() if text.get_color() == plots.GREY} == {(0, 0), (1, 1)}
    (colours,) = axes.images
    assert colours.get_array().tolist() == [[0, 0, 2], [0, 0, 0], [1, 3, 0]] and colours.get_clim()[0] == 0
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("counts", "predicted", "true")
    assert axes.get_xticks().tolist() == axes.get_yticks().tolist() == [0, 1, 2]


def test_reliability_shows_the_bins_as_given():
    upper, lower = FIGURES["reliability"]().axes
    diagonal, observed = upper.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    np.testing.assert_array_equal(observed.get_xydata(), np.stack([RELIABILITY.confidence, RELIABILITY.accuracy], 1))
    bars = [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in lower.patches]
    assert bars == [(0, 0.25, 0), (0.25, 0.25, 2), (0.5, 0.25, 0), (0.75, 0.25, 6)]
    assert upper.get_title() == "sure" and lower.get_xlabel() == "confidence"


def test_history_has_loss_and_accuracy_of_training_and_validation():
    figure = FIGURES["history"]()
    assert figure.get_suptitle() == "learning"
    for axes, metric in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert axes.get_xlabel() == "epoch" and axes.get_ylabel() == metric
        assert [line.get_label() for line in axes.lines] == [f"train_{metric}", f"val_{metric}"]
        for line in axes.lines:
            assert line.get_xydata().tolist() == [[row["epoch"], row[line.get_label()]] for row in HISTORY]


def test_comparison_draws_errors_in_points_and_leaves_out_an_error_of_0():
    train, val, test = FIGURES["comparison"]().axes
    assert [line.get_label() for line in train.lines] == ["published", "small"]
    np.testing.assert_array_equal(train.lines[1].get_xydata(), [[1, 25], [2, math.nan]])
    assert [line.get_label() for line in val.lines] == ["published: its test set", "small"]
    assert [line.get_linestyle() for line in val.lines] == [":", "-"]
    assert [line.get_linestyle() for line in train.lines] == ["-", "-"]
    np.testing.assert_array_equal(val.lines[1].get_xydata(), [[1, 12.5], [2, 50]])
    assert train.get_yscale() == val.get_yscale() == test.get_yscale() == "log"
    for of_recipe in range(2):  # the same colour throughout
        assert train.lines[of_recipe].get_color() == val.lines[of_recipe].get_color() == plots.COLOURS[of_recipe]


def test_comparison_has_the_test_errors_with_their_intervals():
    test = FIGURES["comparison"]().axes[2]
    assert [label.get_text() for label in test.get_xticklabels()] == ["published", "small"]
    assert [text.get_text() for text in test.texts] == ["97.50 %", "50.00 %"]
    assert [bars[0].get_color() for bars in test.containers] == list(plots.COLOURS[:2])
    for place, (bars, (share, interval)) in enumerate(zip(test.containers, TESTS.values(), strict=True)):
        point, _, (line,) = bars
        np.testing.assert_allclose(point.get_xydata(), [[place, 100 * (1 - share)]])
        (ends,) = line.get_segments()
        np.testing.assert_allclose(ends, [[place, 100 * (1 - interval.high)], [place, 100 * (1 - interval.low)]])


def test_comparison_draws_every_recipe_however_many():
    names = [f"recipe {number}" for number in range(9)]
    train, val, test = plots.plot_comparison(
        dict.fromkeys(names, HISTORY), dict.fromkeys(names, TESTS["small"]), "published"
    ).axes
    assert [line.get_label() for line in train.lines] == [line.get_label() for line in val.lines] == names
    assert len(test.containers) == len(test.get_xticklabels()) == 9
