"""The pictures of docs/benchmark.md, from figures computed elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure

from pipeline.plots import COLOURS, GREY, STYLE

Spread = tuple[float, float, float]  # middle, lowest, highest


def plot_error_against_seconds(points: Mapping[str, tuple[Spread, Spread]]) -> Figure:
    """Test error in percent against seconds of training, both on log axes: a name gives (seconds, error)."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        for (name, (seconds, error)), colour in zip(points.items(), COLOURS, strict=False):
            axes.errorbar(seconds[0], error[0], _arms(error), _arms(seconds), fmt="o", color=colour, capsize=2)
            axes.annotate(name, (seconds[0], error[0]), (6, 6), textcoords="offset points", color=colour)
        axes.set(xscale="log", yscale="log", xlabel="seconds of training", ylabel="test error, %")
        axes.margins(0.15)
        axes.grid(which="both", alpha=0.2)
        return figure


def plot_seeds(groups: Mapping[str, tuple[Sequence[float], Spread]]) -> Figure:
    """Test accuracy of every seed in percent, a row each group, with the mean and its interval."""
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 0.8 + 0.55 * len(groups)), layout="constrained")
        axes = figure.subplots()
        for row, ((_, (values, mean)), colour) in enumerate(zip(groups.items(), COLOURS, strict=False)):
            axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.5)
            axes.errorbar(mean[0], row - 0.25, xerr=_arms(mean), fmt="|", color="black", capsize=3)
        axes.set(yticks=range(len(groups)), yticklabels=list(groups), xlabel="test accuracy, %")
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.axvline(99.7, color=GREY, linewidth=0.8, linestyle=":")
        return figure


def plot_scaling(panels: Mapping[str, Mapping[str, Mapping[float, float]]]) -> Figure:
    """A panel for each axis of size: seconds an epoch of every name against it, on log axes."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        for axes, (label, names) in zip(
            figure.subplots(1, len(panels), squeeze=False).flat, panels.items(), strict=True
        ):
            for (name, line), colour in zip(names.items(), COLOURS, strict=False):
                axes.plot(list(line), list(line.values()), "o-", color=colour, label=name)
            axes.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds an epoch")
            axes.legend(frameon=False)
        return figure


def _arms(spread: Spread) -> list[list[float]]:
    return [[spread[0] - spread[1]], [spread[2] - spread[0]]]
