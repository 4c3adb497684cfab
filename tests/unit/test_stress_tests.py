"""Stress tests: what is counted of which digits, and which labels are suspected."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import ROOT, generated_digits

from pipeline import robustness
from pipeline.apps import stress_tests
from pipeline.apps.corruptions import CORRUPTIONS
from pipeline.apps.predictor import Predictor
from pipeline.data.examples import Examples

STROKES = ROOT / "reference" / "strokes.json"


def always_three(images: np.ndarray) -> np.ndarray:
    """Instead of a model: a 3 with 90 %, with 60 % where there is more ink than paper."""
    highest = np.where(images.mean((1, 2)) > 127, 0.6, 0.9)[:, None]
    return np.where(np.arange(10) == 3, highest, (1 - highest) / 9)


@pytest.mark.slow
def test_correct_predictions_are_counted_by_corruption_style_and_source(compose, monkeypatch):
    pages, labels = stress_tests.scikit_learn()
    assert len(pages) == 1797 and labels[:4].tolist() == [0, 1, 2, 3] and max(page.max() for page in pages) == 255
    monkeypatch.setattr(stress_tests, "scikit_learn", lambda: (pages[:25], labels[:25]))
    monkeypatch.setattr(stress_tests, "FONTS", ("cmr10",))
    test = Examples(*generated_digits(40, seed=0), np.arange(40, dtype=np.int32))
    counts = stress_tests.counts(Predictor(always_three, 0.8, "a test's", compose().data), test, 0, STROKES)
    assert list(counts["corruptions"]) == list(CORRUPTIONS)
    assert all(count == {"right": 4, "digits": 40} for count in counts["corruptions"].values())
    styles = ["inverted", "inverted, prepared", "in odd colours", "in odd colours, prepared"]
    assert counts["guises"] == {style: {"right": 4, "digits": 40} for style in styles}
    digits = {name: (count["right"], count["digits"]) for name, count in counts["elsewhere"].items()}
    threes = int((labels[:25] == 3).sum())
    assert digits == {"scikit-learn": (threes, 25), "printed fonts": (1, 10)} | {
        f"drawn, {pen} pen": (3, 30) for pen in ("thin", "usual", "thick")
    }
    for (right, size), count in zip(digits.values(), counts["elsewhere"].values(), strict=True):
        # Prepared digits are white on black, so that the model is confident of all; the others are inverted likewise.
        assert (count["sure"], count["sure_right"], count["unprepared_right"]) == (size, right, right)


def test_of_other_classes_nothing_is_prepared_and_no_external_digits_are_counted(compose):
    test = Examples(*generated_digits(10, seed=0), np.arange(10, dtype=np.int32))
    other = Predictor(always_three, math.inf, "a test's", compose("data=fashion_mnist").data)
    counts = stress_tests.counts(other, test, 0, STROKES)
    assert list(counts) == ["corruptions", "guises"] and list(counts["guises"]) == ["inverted", "in odd colours"]


def test_odd_colours_are_grey_by_their_luminance_and_keep_the_order_of_ink():
    greys = stress_tests.odd_colours(np.arange(256, dtype=np.uint8)[None, None])[0, 0]
    assert (np.diff(greys.astype(int)) >= 0).all()
    # viridis begins at RGB 0.267, 0.005, 0.329 and ends at 0.993, 0.906, 0.144
    assert greys[0] == round(255 * (0.299 * 0.267 + 0.587 * 0.005 + 0.114 * 0.329))
    assert greys[255] == pytest.approx(255 * (0.299 * 0.993 + 0.587 * 0.906 + 0.114 * 0.144), abs=1)


def test_suspects_come_in_the_order_of_how_improbable_their_label_is(compose, tmp_path, monkeypatch):
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.01, 0.99], [0.5, 0.5]])
    examples = Examples(np.zeros((4, 28, 28), np.uint8), np.array([0, 0, 0, 1], np.uint8), np.arange(10, 14))
    monkeypatch.setattr(robustness, "SUSPECTS", 3)
    predictor = Predictor(lambda images: probabilities, math.inf, "a test's", compose().data)
    robustness._list_suspects(tmp_path, "test", examples, predictor)
    assert (tmp_path / "suspects_test.csv").read_text().splitlines() == [
        "index,label,prediction,probability_of_label",
        "12,0,1,0.01",
        "11,0,1,0.2",
        "13,1,0,0.5",
    ]
    assert (tmp_path / "suspects_test.png").stat().st_size > 1000
