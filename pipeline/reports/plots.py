"""Figures from arrays, and their PNG files: nothing is computed here but places on the page.

Shapes: N examples, H rows, W columns, K classes, M bins. Images are uint8 [N, H, W], 0 paper to 255 ink.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from pipeline.base.files import replacing
from pipeline.metrics.metrics import Calibration, Interval

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"  # Okabe and Ito, for all eyes
COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9")
STYLE: Any = {"font.size": 9, "font.family": "DejaVu Sans", "axes.spines.top": False, "axes.spines.right": False}

History = Sequence[Mapping[str, float]]  # rows of history.csv


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Give an empty figure, in STYLE on Matplotlib's own defaults, which no matplotlibrc of the user's changes."""
    with style.context(STYLE, after_reset=True):
        yield Figure(figsize=(width, height), layout="constrained")


def save_figure(path: Path, figure: Figure) -> None:
    """Write `figure` as PNG; the same figure gives the same bytes."""
    with style.context("default"), replacing(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})


def plot_confusion_matrix(confusion: NDArray[np.int64], names: Sequence[str], title: str) -> Figure:
    """Counts [K true, K predicted], by the names of the classes; colour shows mistakes alone, the diagonal is grey."""
    classes, labels = range(len(names)), [text(name) for name in names]
    with drawing(5.6, 5.2) as figure:
        axes = figure.subplots()
        axes.spines[:].set_visible(True)
        mistakes = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
        axes.imshow(mistakes, cmap="Oranges", vmin=0, vmax=max(1, mistakes.max()) * 1.5)
        for row, column in np.argwhere(confusion):
            colour = GREY if row == column else "black"
            axes.text(column, row, confusion[row, column], ha="center", va="center", color=colour)
        axes.set(title=title, xlabel="predicted", ylabel="true")
        axes.set_xticks(classes, labels, rotation=0 if max(map(len, labels)) <= 2 else 90)
        axes.set_yticks(classes, labels)
        return figure


def plot_reliability(calibration: Calibration, title: str) -> Figure:
    """Accuracy against confidence, by bin, with the number of examples in each bin below."""
    bins = len(calibration.size)
    with drawing(4.6, 5.0) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
        upper.plot(calibration.confidence, calibration.accuracy, "o-", color=BLUE, label="observed")
        upper.set(title=title, ylabel="accuracy in the bin", ylim=(-0.02, 1.02))
        upper.legend(frameon=False)
        lower.bar(np.arange(bins) / bins, calibration.size, width=1 / bins, align="edge", color=BLUE)
        lower.set(xlabel="confidence", ylabel="examples", yscale="symlog", xlim=(0, 1))
        return figure


def plot_history(history: History, title: str) -> Figure:
    """Loss and accuracy over the epochs, training (running figures) and validation."""
    with drawing(8.4, 3.6) as figure:
        figure.suptitle(title)
        for axes, metric in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
            for split, colour in (("train", BLUE), ("val", ORANGE)):
                _curve(axes, history, f"{split}_{metric}", color=colour, label=f"{split}_{metric}")
            axes.set(xlabel="epoch", ylabel=metric)
            axes.legend(frameon=False)
        return figure


def plot_comparison(
    histories: Mapping[str, History], tests: Mapping[str, tuple[float, Interval]], published: str
) -> Figure:
    """Error over the epochs in %, log scale, and the test error (accuracy and its interval) of the last epoch, by name.

    The run named `published` showed its test curve as validation curve, which is dotted, being unlike the others'.
    """
    with drawing(10.4, 4.2) as figure:
        train, val, test = figure.subplots(1, 3, sharey=True, width_ratios=[3, 3, 2])
        for colour, (name, history) in zip(cycle(COLOURS), histories.items(), strict=False):
            _curve(train, history, "train_accuracy", error=True, color=colour, label=name)
            label, line = (f"{name}: its test set", ":") if name == published else (name, "-")
            _curve(val, history, "val_accuracy", error=True, color=colour, label=label, linestyle=line)
        for place, (colour, (share, interval)) in enumerate(zip(cycle(COLOURS), tests.values(), strict=False)):
            error = 100 * (1 - share)
            reach = [[error - 100 * (1 - interval.high)], [100 * (1 - interval.low) - error]]
            test.errorbar([place], [error], yerr=reach, fmt="o", color=colour, capsize=3)
            test.annotate(f"{100 * share:.2f} %", (place, error), xytext=(7, 0), textcoords="offset points")
        train.set(title="training, running", xlabel="epoch", ylabel="error in %, log scale", yscale="log")
        val.set(title="validation", xlabel="epoch")
        test.set(title="test, last epoch", xticks=range(len(tests)), xlim=(-0.5, len(tests)))
        test.set_xticklabels(list(tests), rotation=20)
        show_plain_ticks(train.yaxis)
        train.legend(frameon=False)
        val.legend(frameon=False)
        return figure


def plot_curves(curves: Mapping[str, Sequence[float] | NDArray[np.float64]], label: str) -> Figure:
    """A metric over the epochs of several runs, by name."""
    with drawing(7.2, 4.2) as figure:
        axes = figure.subplots()
        for colour, (name, values) in zip(cycle(COLOURS), curves.items(), strict=False):
            axes.plot(range(1, len(values) + 1), values, marker=".", color=colour, label=text(name))
        axes.set(xlabel="epoch", ylabel=label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure


def plot_heat_map(
    cells: NDArray[np.float64], keys: Sequence[str], values: Sequence[Sequence[str]], title: str, form: str = ".2f"
) -> Figure:
    """Cells [R, C], NaN where there is none yet, by the values (R and C of them) of two keys."""
    rows, columns = cells.shape
    width = max(0.9, 0.1 * max(map(len, values[1])))
    with drawing(2 + width * columns, 1.6 + 0.6 * rows) as figure:
        axes = figure.subplots()
        axes.spines[:].set_visible(True)
        axes.imshow(cells, cmap="cividis", aspect="auto")
        middle = (np.nanmin(cells) + np.nanmax(cells)) / 2
        for row, column in np.argwhere(~np.isnan(cells)):
            colour = "black" if cells[row, column] > middle else "white"
            axes.text(column, row, f"{cells[row, column]:{form}}", ha="center", va="center", color=colour)
        axes.set(title=title, ylabel=keys[0], xlabel=keys[1])
        axes.set_yticks(range(rows), values[0])
        axes.set_xticks(range(columns), values[1])
        return figure


def plot_effects(effects: Mapping[str, Mapping[str, Sequence[float]]], label: str) -> Figure:
    """Results of runs, by factor and its level: every run as a dot, means as a line."""
    columns = min(len(effects), 3)
    rows = -(-len(effects) // columns)
    with drawing(1 + 3 * columns, 3.2 * rows) as figure:
        for axes, (factor, levels) in zip(
            figure.subplots(rows, columns, sharey=True, squeeze=False).flat, effects.items(), strict=False
        ):
            places = range(len(levels))
            for place, results in zip(places, levels.values(), strict=True):
                axes.plot([place] * len(results), results, "o", color=GREY, alpha=0.5, markersize=4)
            axes.plot(places, [np.mean(results) for results in levels.values()], "o-", color=BLUE)
            ticks = short_labels(list(levels), 24)
            axes.set_xticks(places, map(text, ticks), rotation=0 if sum(map(len, ticks)) < 30 else 30)
            axes.set(
                xlabel=text(factor.replace(",", "\n")), ylabel=label if axes.get_subplotspec().is_first_col() else ""
            )
        for axes in figure.axes[len(effects) :]:
            axes.set_visible(False)
        return figure


def plot_sides(accuracies: Mapping[str, Sequence[float]], of: str) -> Figure:
    """Every run of every side as a dot, in percent, and the mean of a side as a line."""
    with drawing(7.2, 1.2 + 0.6 * len(accuracies)) as figure:
        axes = figure.subplots()
        for row, (colour, shares) in enumerate(zip(cycle(COLOURS), accuracies.values(), strict=False)):
            axes.plot(100 * np.asarray(shares), [row] * len(shares), "o", color=colour, alpha=0.6)
            axes.plot([100 * np.mean(shares)] * 2, [row - 0.3, row + 0.3], color=colour)
        axes.set(xlabel=f"{of} accuracy in %; lines: means", ylim=(len(accuracies) - 0.5, -0.5))
        labels = [f"{text(name)}\nn = {len(of_side)}" for name, of_side in accuracies.items()]
        axes.set_yticks(range(len(accuracies)), labels)
        return figure


def plot_band(published: Sequence[float], curves: Sequence[Sequence[float]], bands: Sequence[Interval]) -> Figure:
    """Training error over the epochs, of accuracies: published, our seeds, and where one more would lie if not NaN."""
    epochs = range(1, len(published) + 1)
    with drawing(6.4, 4.2) as figure:
        axes = figure.subplots()
        for curve in curves:
            axes.plot(epochs, 100 * (1 - np.asarray(curve)), color=BLUE, linewidth=0.7, alpha=0.6)
        high, low = 100 * (1 - np.array(bands)).T
        axes.fill_between(epochs, np.maximum(low, 1e-3), high, color=BLUE, alpha=0.15, label="where one more would lie")
        axes.plot([], [], color=BLUE, label=f"baseline, n = {len(curves)} seeds")
        axes.plot(epochs, 100 * (1 - np.asarray(published)), "o-", color=ORANGE, markersize=4, label="published")
        axes.set(xlabel="epoch", ylabel="training error in %, running, log scale", yscale="log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend(frameon=False)
        return figure


def show_plain_ticks(axis: Axis) -> None:
    """Show numbers instead of powers of ten on a log scale, at 1, 2, 3 and 5."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")


def text(name: str) -> str:
    """A name from elsewhere, which is no formula."""
    return name.replace("$", r"\$")


def short_labels(texts: Sequence[str], longest: int) -> list[str]:
    """Return labels that fit beside a picture: if one is long, all from shortly before the first difference on."""
    if max(map(len, texts), default=0) <= longest:
        return list(texts)
    alike = len(os.path.commonprefix(texts)) if len(texts) > 1 else 0  # noqa: RUF071 - no paths
    start = max(0, alike - longest // 2)
    return [f"{'…' if start else ''}{text[start:][:longest]}{'…' if text[start:][longest:] else ''}" for text in texts]


def _curve(axes: Axes, history: History, key: str, error: bool = False, **line: Any) -> None:
    values = np.array([row[key] for row in history])
    if error:  # in %; an error of exactly 0 has no place on a log scale, and is left out
        values = np.where(values < 1, 100 * (1 - values), np.nan)
    axes.plot([row["epoch"] for row in history], values, marker=".", **line)
