"""Draw the figures of docs/benchmark.md and docs/robustness.md from stored results:  python -m benchmarks.figures"""

from __future__ import annotations

import math
import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import report
from benchmarks.report import SPLIT, Studies, Trial
from pipeline.base.files import load_json
from pipeline.metrics.significance import mean_interval
from pipeline.reports.plots import COLOURS, drawing, save_figure, show_plain_ticks

COLOUR = dict(zip(report.LABELS, COLOURS, strict=False))


def plot_error_against_time(studies: Studies) -> Figure:
    """Plot the test error (mean, range of the seeds) against the training time (median, range of the rounds)."""
    with drawing(7.2, 4.2) as figure:
        axes, times = figure.subplots(), report.by_name(studies["time"])
        for name, label, _, trials, suffix in (group for group in report.groups(studies) if group[2] == SPLIT):
            errors = _errors(trials, suffix)
            took = [report.seconds(trial, report.EPOCHS[name]) for trial in times[name]]
            x, y = statistics.median(took), statistics.mean(errors)
            across, up = ([[middle - min(all_)], [max(all_) - middle]] for middle, all_ in ((x, took), (y, errors)))
            style: dict[str, Any] = {"fillstyle": "none" if suffix else "full", "color": COLOUR[name], "capsize": 2}
            axes.errorbar(x, y, up, across, fmt="o", label=f"{label}: {y:.2f} %, {x:.0f} s", **style)
        axes.set(xscale="log", yscale="log", xlabel="training time (s), log scale", ylabel="test error (%), log scale")
        axes.grid(which="both", alpha=0.2)
        show_plain_ticks(axes.xaxis)
        show_plain_ticks(axes.yaxis)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
        return figure


def plot_seeds(studies: Studies) -> Figure:
    """Plot the test error of every seed, and the mean of each group with its 95 % t interval."""
    rows = list(report.groups(studies))
    with drawing(7.2, 0.8 + 0.6 * len(rows)) as figure:
        axes = figure.subplots()
        for row, (name, _, _, trials, suffix) in enumerate(rows):
            errors = _errors(trials, suffix)
            # One above the other: equal errors do not hide each other.
            heights = [row - 0.3 + 0.4 * number / len(errors) for number in range(len(errors))]
            axes.plot(errors, heights, "o", color=COLOUR[name], markersize=3.5, alpha=0.7)
            _, mean, low, high = mean_interval(errors, report.CONFIDENCE, 0, 100)
            arms = None if math.isnan(low) else [[mean - low], [high - mean]]
            axes.errorbar(mean, row + 0.25, xerr=arms, fmt="d", color="black", markersize=4, capsize=3)
        labels = [f"{label}\n{digits:,} digits, n = {len(trials)}" for _, label, digits, trials, _ in rows]
        axes.set(xscale="log", xlabel="test error (%), log scale: every seed, and the mean with its 95 % t interval")
        axes.set(yticks=range(len(rows)), yticklabels=labels, ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="x", which="both", alpha=0.2)
        show_plain_ticks(axes.xaxis)
        return figure


def plot_robustness(results: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Plot the accuracy of each recipe under each corruption, from its robustness.json."""
    kinds = list(results["accurate"]["corruptions"])
    with drawing(7, 0.28 * len(kinds) + 1) as figure:
        axes = figure.subplots()
        for (recipe, result), colour in zip(results.items(), COLOURS, strict=False):
            counts = [result["corruptions"][kind] for kind in kinds]
            shares = [100 * count["right"] / count["digits"] for count in counts]
            axes.plot(shares, range(len(kinds)), "o", color=colour, label=recipe)
        axes.set(xlabel="test accuracy (%)", xlim=(0, 101), yticks=range(len(kinds)), yticklabels=kinds)
        axes.invert_yaxis()
        axes.grid(axis="y", color="0.9")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        return figure


def _errors(trials: Sequence[Trial], suffix: str) -> list[float]:
    return [100 - 100 * accuracy for accuracy in report.accuracies(trials, suffix)]


if __name__ == "__main__":
    results = report.load(lambda name: Path(name).read_text(encoding="utf-8"))
    for plot in (plot_error_against_time, plot_seeds):
        save_figure(Path(f"docs/benchmark/{plot.__name__.removeprefix('plot_')}.png"), plot(results))
    stored = {name: load_json(Path(f"results/robustness/{name}/robustness.json")) for name in ("baseline", "accurate")}
    save_figure(Path("docs/robustness/accuracy.png"), plot_robustness(stored))
    for copied in ("corrupted.png", "suspects_test.png", "suspects_validation.png"):
        shutil.copyfile(Path("results/robustness/accurate", copied), Path("docs/robustness", copied))
