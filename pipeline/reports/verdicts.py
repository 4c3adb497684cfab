"""Which of two sides is better: tests of the metrics room, put into a sentence each.

Shapes: N examples, the same ones for every run; n runs of a side.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.files import REMAKE, load_csv
from pipeline.metrics import significance
from pipeline.reports.tables import p_value, percent, points


class Predictions(NamedTuple):
    """What one run predicts, one row per example."""

    example: NDArray[np.int64]  # [N], the position among the published ones
    labels: NDArray[np.int64]  # [N]
    predictions: NDArray[np.int64]  # [N]
    confidence: NDArray[np.float64]  # [N], the probability of the prediction, NaN where none was kept

    @property
    def accuracy(self) -> float:
        return float(np.mean(self.predictions == self.labels))


class Side(NamedTuple):
    """One configuration: a single run, or several that differ in their seed alone."""

    name: str
    values: dict[str, set[str]]  # by key, of configuration, code, data, versions and hardware: the values of its runs
    correct: NDArray[np.bool_]  # [n, N]
    seconds: list[float]  # in training, one per run
    num_params: int
    macs: int  # per example
    fold_accuracies: Sequence[float] = ()  # of a cross-validation, a run of which is all folds with one seed

    @property
    def n(self) -> str:
        """How many runs it has, in words."""
        return (
            f"{len(self.correct)} × {folds} folds" if (folds := len(self.fold_accuracies)) else str(len(self.correct))
        )

    @property
    def accuracies(self) -> list[float]:
        return [float(share) for share in self.correct.mean(1)]


Test = significance.Pair | significance.Sums | significance.Groups


class Verdict(NamedTuple):
    """B against A."""

    a: str
    b: str
    test: Test | None  # None for one seed against several; its interval holds jointly with those of the other tests
    p: float  # of the test, adjusted by Holm where there are several; NaN without one
    shown: bool  # whether there is a difference, by p: if so the interval lies on one side of 0, else it holds 0
    sentence: str


def read_predictions(path: Path) -> Predictions:
    """Read what data.save_predictions wrote; a damaged or empty table is a UserError."""
    keys = ("index", "label", "prediction")
    rows = load_csv(path, keys)
    if not all(row[key].is_integer() for row in rows for key in keys):
        raise UserError(f"{path} is damaged, {', '.join(keys)} are not whole numbers: {REMAKE}")
    probabilities = [key for key in rows[0] if key.startswith("probability_")]
    confidence = [max((row[key] for key in probabilities), default=math.nan) for row in rows]
    example, labels, predictions = (np.array([int(row[key]) for row in rows]) for key in keys)
    return Predictions(example, labels, predictions, np.array(confidence))


def same_examples(
    all_predictions: Mapping[str, Predictions], split: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return examples and labels [N] that all runs share; a UserError if some predicted others."""
    (first, reference), *others = all_predictions.items()
    for run, other in others:
        if not (np.array_equal(other.example, reference.example) and np.array_equal(other.labels, reference.labels)):
            raise UserError(
                f"{run} and {first} predicted other {split} examples: not comparable; train both on the same split"
            )
    return reference.example, reference.labels


def verdicts(sides: Sequence[Side], confidence: float, split: str) -> list[Verdict]:
    """Compare every two sides, adjusted for the number of tests.

    All intervals hold together with `confidence`, by Bonferroni's inequality. p is adjusted by Holm, which decides.
    """
    pairs = list(itertools.combinations(sides, 2))
    alike = [i for i, (a, b) in enumerate(pairs) if a.fold_accuracies or (len(a.correct) > 1) == (len(b.correct) > 1)]
    tests = {i: _test(*pairs[i], 1 - (1 - confidence) / len(alike)) for i in alike}
    adjusted = dict(zip(tests, significance.holm([test.p for test in tests.values()]), strict=True))
    return [
        _verdict(a, b, tests[i], adjusted[i], len(tests), confidence, split) if i in tests else _position(a, b, split)
        for i, (a, b) in enumerate(pairs)
    ]


def compare_predictions(all_predictions: Mapping[str, Predictions], confidence: float, split: str) -> list[Verdict]:
    """Compare every two of single runs, by their names."""
    _, labels = same_examples(all_predictions, split)
    sides = [Side(name, {}, (one.predictions == labels)[None], [], 0, 0) for name, one in all_predictions.items()]
    return verdicts(sides, confidence, split)


def _test(a: Side, b: Side, confidence: float) -> Test:
    if len(a.correct) == len(b.correct) == 1:
        return significance.compare_runs(a.correct[0], b.correct[0], confidence)
    if a.fold_accuracies:
        return significance.compare_sums(a.correct, b.correct, confidence)
    a_counts, b_counts = (side.correct.sum(1).tolist() for side in (a, b))
    return significance.compare_groups(a_counts, b_counts, a.correct.shape[1], confidence)


def _verdict(a: Side, b: Side, test: Test, p: float, tests: int, confidence: float, split: str) -> Verdict:
    alpha = round(1 - confidence, 12)
    shown = round(p, 12) < alpha
    low, high = significance.agreeing(test.low, test.high, test.difference, shown)
    test = test._replace(low=low, high=high)
    worse, better = a.name, b.name
    if test.difference < 0:
        worse, better, low, high = better, worse, -high, -low
    sentence = f"{better} is better than {worse}: " if shown else f"no difference shown between {a.name} and {b.name}: "
    sentence += f"{points(abs(test.difference))} points" + (f" for {better}" if not shown and test.difference else "")
    least = "above 0" if shown and points(low) == points(0) else points(low)
    interval = "all runs of a side equal" if math.isnan(low) else f"{100 * confidence:g} % {least} to {points(high)}"
    n = f"n = {a.n} + {b.n}"
    sentence += f" ({interval}), {p_value(p)}{f', both adjusted for {tests} tests' if tests > 1 else ''}, {n}"
    sentence += f", {a.correct.shape[1]:,} {split} examples"
    if a.fold_accuracies:
        summed = ", errors summed by example over the seeds" if isinstance(test, significance.Sums) else ""
        sentence += f"{summed}; this holds for these networks on other examples, not for other seeds"
    elif isinstance(test, significance.Pair):
        sentence += "; this holds for these two runs, not for other seeds"
    elif isinstance(test, significance.Groups) and not shown:
        deviations = float(np.std(a.accuracies, ddof=1)), float(np.std(b.accuracies, ddof=1))
        needed = significance.seeds_needed(test.difference, deviations, alpha / tests)
        if test.least_p >= alpha:
            sentence += f"; so few runs cannot show one: the smallest p of {n} is {test.least_p:.2f}"
        count = f"about {float(f'{needed:.2g}'):,.0f}" if needed else f"more than {significance.MOST_SEEDS:,}"
        sentence += f"; {count} seeds per side would be needed to show a difference of this size"
    return Verdict(a.name, b.name, test, p, shown, sentence)


def _position(a: Side, b: Side, split: str) -> Verdict:
    """Say where one seed lies among several: it is not tested."""
    one, several = (a, b) if len(a.correct) == 1 else (b, a)
    [accuracy], low, high = one.accuracies, min(several.accuracies), max(several.accuracies)
    where = "inside" if low <= accuracy <= high else "above" if accuracy > high else "below"
    sentence = (
        f"{one.name} has one seed, which says nothing about other seeds: its {percent(accuracy)} lies {where} the "
        f"range of the {len(several.correct)} of {several.name}, {percent(low)} to {percent(high)} "
        f"({a.correct.shape[1]:,} {split} examples); train more seeds of it (sweep=seeds) for a test"
    )
    return Verdict(a.name, b.name, None, math.nan, False, sentence)
