"""The pictures of docs/benchmark.md, from figures computed elsewhere."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from benchmarks.run import RECIPES
from benchmarks.trial import PEERS
from pipeline.plots import COLOURS, styled

COLOUR = dict(zip((*PEERS, *RECIPES), COLOURS, strict=False))  # of a peer or recipe, the same in every picture
Sizes = dict[tuple[str, int, float], list[float]]  # name, digits and times the filters: seconds of an epoch, by round
Lines = dict[tuple[str, float], list[float]]  # the same by name and one size


def plot_error_against_seconds(points: Sequence[tuple[str, str, Sequence[float], Sequence[float]]]) -> Figure:
    """Test error in percent against seconds of training, on log axes.

    A point is (name, label, seconds by round, errors by seed): at their median and mean, with their ranges.
    """
    with styled():
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        for name, label, seconds, errors in points:
            x, y, colour = statistics.median(seconds), statistics.mean(errors), COLOUR[name]
            across, up = _arms(x, min(seconds), max(seconds)), _arms(y, min(errors), max(errors))
            axes.errorbar(x, y, up, across, fmt="o", color=colour, capsize=2)
            text = f"{label}\n{y:.2f} %, {x:.0f} s"
            axes.annotate(text, (x, y), (7, 7), textcoords="offset points", color=colour)
        axes.set(
            xscale="log", yscale="log", xlabel="seconds of training, log scale", ylabel="test error in %, log scale"
        )
        axes.margins(0.25, 0.2)
        _plain_ticks(axes.xaxis)
        _plain_ticks(axes.yaxis)
        axes.grid(which="both", alpha=0.2)
        return figure


def plot_seeds(rows: Sequence[tuple[str, str, Sequence[float], tuple[float, float, float]]]) -> Figure:
    """Test error of every seed in percent; a row is (name, label, errors, mean and its interval), NaN for none."""
    with styled():
        figure = Figure(figsize=(7.2, 0.8 + 0.6 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, (name, _, errors, mean) in enumerate(rows):
            # The seeds stand one above the other: equal errors do not hide one another.
            heights = [place - 0.3 + 0.4 * number / len(errors) for number in range(len(errors))]
            axes.plot(errors, heights, "o", color=COLOUR[name], markersize=3.5, alpha=0.7)
            axes.plot(mean[0], place + 0.25, "d", color="black", markersize=4)
            if not math.isnan(mean[1]):
                axes.errorbar(mean[0], place + 0.25, xerr=_arms(*mean), color="black", capsize=3)
        axes.set(
            xscale="log",
            xlabel="test error in %, log scale: every seed; the mean with its 95 % t-interval below",
            yticks=range(len(rows)),
            yticklabels=[label for _, label, _, _ in rows],
            ylim=(len(rows) - 0.5, -0.5),
        )
        _plain_ticks(axes.xaxis)
        axes.grid(axis="x", which="both", alpha=0.2)
        return figure


def plot_scaling(sizes: Sizes) -> Figure:
    """Median seconds of an epoch on log axes, against the digits, and on the fewest digits against the filters."""
    fewest = min(digits for _, digits, _ in sizes)
    by_digits: Lines = {(name, digits): took for (name, digits, times), took in sizes.items() if times == 1}
    by_filters: Lines = {(name, times): took for (name, digits, times), took in sizes.items() if digits == fewest}
    with styled():
        figure = Figure(figsize=(8.4, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        _plot_lines(left, by_digits)
        left.set(xlabel="digits trained on", ylabel="seconds an epoch")
        left.legend(frameon=False)
        _plot_lines(right, by_filters)
        right.set(xlabel=f"times the filters, {fewest:,} digits")
        return figure


def _plot_lines(axes: Axes, lines: Lines) -> None:
    for name in dict.fromkeys(name for name, _ in lines):
        line = {size: statistics.median(took) for (of, size), took in sorted(lines.items()) if of == name}
        axes.plot(list(line), list(line.values()), "o-", color=COLOUR[name], label=name)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks([size for _, size in lines])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain_ticks(axes.yaxis)


def _arms(middle: float, low: float, high: float) -> list[list[float]]:
    return [[middle - low], [high - middle]]


def _plain_ticks(axis: Axis) -> None:
    """Numbers instead of powers of ten, at 1, 2, 3 and 5."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "235" else "")
