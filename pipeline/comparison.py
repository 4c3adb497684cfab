"""Sides to compare, what differs between them, and which is better: pure figures and words.

Shapes: N examples, the same ones for every run; n runs of a side.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import statistics
from pipeline.config import PipelineError
from pipeline.files import REMAKE, load_csv
from pipeline.tables import as_text, markdown_table, models_scored, p_value, percent, points

SHOWN = 8  # examples of a kind in the picture


class Predictions(NamedTuple):
    """What one run predicts, one row an example."""

    example: NDArray[np.int64]  # [N], its place among the published ones
    labels: NDArray[np.int64]  # [N]
    predictions: NDArray[np.int64]  # [N]


class Side(NamedTuple):
    """One configuration: a single run, or several that differ in their seed alone."""

    name: str
    values: dict[str, set[str]]  # by key, of configuration, code, data, versions and hardware: what its runs have
    right: NDArray[np.bool_]  # [n, N]
    seconds: list[float]  # in training, a figure a run
    num_params: int
    multiply_adds: int  # of one example

    @property
    def accuracies(self) -> list[float]:
        return [float(share) for share in self.right.mean(1)]


Test = statistics.Pair | statistics.Groups


class Verdict(NamedTuple):
    """B against A."""

    a: str
    b: str
    test: Test | None  # none where one seed meets several; its interval holds together with those of the other tests
    p: float  # of the test, adjusted by Holm where there are several; NaN without one
    shown: bool  # whether there is a difference, by p: if so the interval lies on one side of 0, else it holds 0
    sentence: str


def read_predictions(path: Path) -> Predictions:
    """Read what data.save_predictions wrote; a damaged or empty table is a PipelineError."""
    keys = ("index", "label", "prediction")
    rows = load_csv(path, keys)
    if not all(row[key].is_integer() for row in rows for key in keys):
        raise PipelineError(f"{path} is damaged, {', '.join(keys)} are not whole numbers: {REMAKE}")
    return Predictions(*(np.array([int(row[key]) for row in rows]) for key in keys))


def same_examples(all_predictions: Mapping[str, Predictions], of: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Examples and labels [N] that all runs share; other examples are not comparable, a PipelineError."""
    (first, reference), *others = all_predictions.items()
    for run, given in others:
        if not (np.array_equal(given.example, reference.example) and np.array_equal(given.labels, reference.labels)):
            raise PipelineError(
                f"{run} and {first} predicted other {of} examples: not comparable; train both on the same split"
            )
    return reference.example, reference.labels


def differences(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """Each key whose values are not the same on all sides, and its value on each of them."""
    keys = dict.fromkeys(key for side in sides for key in side.values)
    found = []
    for key in keys:
        values = [side.values.get(key, set()) for side in sides]
        if key != "seed" and any(of != values[0] for of in values):
            found.append((key, [", ".join(sorted(of)) or "–" for of in values]))
    return found


def told_apart(sides: Sequence[Side]) -> list[Side]:
    """The same sides, those of one name told apart by the first values that differ."""
    taken = Counter(side.name for side in sides)
    differing = differences(sides)[:2]
    return [
        side._replace(name=" ".join([side.name, *(f"{key}={values[place]}" for key, values in differing)]))
        if taken[side.name] > 1
        else side
        for place, side in enumerate(sides)
    ]


def verdicts(sides: Sequence[Side], confidence: float, split: str) -> list[Verdict]:
    """Every two sides, adjusted for there being several tests.

    All intervals hold together with `confidence`, by Bonferroni's inequality. p is adjusted by Holm, which decides.
    """
    pairs = list(itertools.combinations(sides, 2))
    count = sum(map(_testable, pairs))
    tests = [_test(a, b, 1 - (1 - confidence) / count) if _testable((a, b)) else None for a, b in pairs]
    adjusted = iter(statistics.holm([test.p for test in tests if test]))
    return [
        _verdict(a, b, test, next(adjusted), count, confidence, split) if test else _placed(a, b, split)
        for (a, b), test in zip(pairs, tests, strict=True)
    ]


def compare_predictions(all_predictions: Mapping[str, Predictions], confidence: float, split: str) -> list[Verdict]:
    """Every two of single runs, by their names."""
    _, labels = same_examples(all_predictions, split)
    sides = [Side(name, {}, (given.predictions == labels)[None], [], 0, 0) for name, given in all_predictions.items()]
    return verdicts(sides, confidence, split)


def _testable(pair: tuple[Side, Side]) -> bool:
    return len({len(side.right) > 1 for side in pair}) == 1


def _test(a: Side, b: Side, confidence: float) -> Test:
    if len(a.right) == 1:
        return statistics.compare_runs(a.right[0], b.right[0], confidence)
    a_counts, b_counts = (side.right.sum(1).tolist() for side in (a, b))
    return statistics.compare_groups(a_counts, b_counts, a.right.shape[1], confidence)


def _verdict(a: Side, b: Side, test: Test, p: float, tests: int, confidence: float, split: str) -> Verdict:
    significance = round(1 - confidence, 12)
    shown = round(p, 12) < significance
    low, high = statistics.agreeing(test.low, test.high, test.difference, shown)
    test = test._replace(low=low, high=high)
    worse, better = (a.name, b.name) if test.difference > 0 else (b.name, a.name)
    if test.difference < 0:
        low, high = -high, -low
    sentence = f"{better} is better than {worse}: " if shown else f"no difference shown between {a.name} and {b.name}: "
    sentence += f"{points(abs(test.difference))} points" + (f" for {better}" if not shown and test.difference else "")
    least = "above 0" if shown and points(low) == points(0) else points(low)
    interval = f"{100 * confidence:g} % {least} to {points(high)}"
    n, examples = f"n = {len(a.right)} + {len(b.right)}", f"{a.right.shape[1]:,} {split} examples"
    sentence += f" ({'all runs of a side alike' if math.isnan(low) else interval}), {p_value(p)}"
    sentence += (f", both adjusted for {tests} tests" if tests > 1 else "") + f", {n}, {examples}"
    if isinstance(test, statistics.Pair):
        sentence += "; of these two runs, not of other seeds"
    elif not shown:
        deviations = float(np.std(a.accuracies, ddof=1)), float(np.std(b.accuracies, ddof=1))
        needed = statistics.seeds_needed(test.difference, deviations, significance / tests)
        if test.least_p >= significance:
            sentence += f"; so few runs cannot show any: the least p of {n} is {test.least_p:.2f}"
        many = f"about {float(f'{needed:.2g}'):,.0f}" if needed else f"more than {statistics.MOST_SEEDS:,}"
        sentence += f"; {many} seeds a side would be needed to show a difference of this size"
    return Verdict(a.name, b.name, test, p, shown, sentence)


def _placed(a: Side, b: Side, split: str) -> Verdict:
    """Where one seed stands among several: it is not tested."""
    one, several = (a, b) if len(a.right) == 1 else (b, a)
    [accuracy], many = one.accuracies, several.accuracies
    where = "inside" if min(many) <= accuracy <= max(many) else "above" if accuracy > max(many) else "below"
    return Verdict(
        a.name,
        b.name,
        None,
        math.nan,
        False,
        f"{one.name} has one seed, which shows nothing of other seeds: its {percent(accuracy)} lies {where} the "
        f"range of the {len(many)} of {several.name}, {percent(min(many))} to {percent(max(many))} "
        f"({a.right.shape[1]:,} {split} examples); train more seeds of it (sweep=seeds) for a test",
    )


def telling_examples(a: Side, b: Side) -> dict[str, NDArray[np.int64]]:
    """Places of the examples that tell the two apart the most, each way, and of those that both have wrong."""
    of_a, of_b = a.right.mean(0), b.right.mean(0)  # of each example, the share of the side's runs that have it right
    if len(a.right) == len(b.right) == 1:
        kinds = [f"{a.name} right, {b.name} wrong", f"{b.name} right, {a.name} wrong", "both wrong"]
    else:
        kinds = [f"{a.name} right more often", f"{b.name} right more often", "both wrong in most runs"]
    scores = [of_a - of_b, of_b - of_a, np.where(np.maximum(of_a, of_b) < 0.5, 1 - np.maximum(of_a, of_b), 0)]
    chosen = {}
    for kind, score in zip(kinds, scores, strict=True):
        order = np.argsort(-score, kind="stable")[:SHOWN]
        chosen[kind] = order[score[order] > 0]
    return chosen


def hits(a: Side, b: Side, place: int) -> str:
    """How many runs of each side have an example right; nothing where a side is one run."""
    if len(a.right) == len(b.right) == 1:
        return ""
    return " : ".join(f"{side.right[:, place].sum()} of {len(side.right)}" for side in (a, b))


def markdown(sides: Sequence[Side], found: Sequence[Verdict], confidence: float, of: str, scored: int) -> str:
    """The answer, what was compared, what differs, and what each side costs."""
    rows = [
        [
            "",
            "n runs",
            f"mean {of} accuracy",
            f"{100 * confidence:g} % of the mean (t)",
            "errors",
            "s in training",
            "parameters",
            "multiply-adds",
        ]
    ]
    for side in sides:
        errors = float(np.mean(side.right.shape[1] - side.right.sum(1)))
        seconds = f"{np.median(side.seconds):,.0f}" if side.seconds else "–"
        rows.append(
            [
                side.name,
                *mean_cells(side.accuracies, confidence),
                f"{errors:,.1f} of {side.right.shape[1]:,}",
                seconds,
                f"{side.num_params:,}",
                f"{side.multiply_adds:,}",
            ]
        )
    differing = [["", *(side.name for side in sides)], *([key, *values] for key, values in differences(sides))]
    discordant = "\n".join(
        f"- {as_text(verdict.a)} alone is right on {verdict.test.only_a}, {as_text(verdict.b)} alone on "
        f"{verdict.test.only_b} examples"
        for verdict in found
        if isinstance(verdict.test, statistics.Pair)
    )
    looked = (
        f"Compared on the test examples: {models_scored(scored)}."
        if of == "test"
        else "Compared on the validation examples: not every run was evaluated on the test examples."
    )
    return (
        "\n\n".join(
            [
                "\n\n".join(f"**{as_text(verdict.sentence)}.**" for verdict in found),
                markdown_table(rows),
                f"{looked} Accuracies of the last epoch; seconds are medians, each on the hardware of its run.",
                *([discordant] if discordant else []),
                "What differs:" if len(differing) > 1 else "Nothing differs but the seed.",
                *([markdown_table(differing)] if len(differing) > 1 else []),
            ]
        )
        + "\n"
    )


def mean_cells(accuracies: Sequence[float], confidence: float) -> list[str]:
    """How many there are, their mean and its interval; the values themselves where there are two."""
    n, mean, low, high = statistics.mean_interval(accuracies, confidence)
    limits = f"{percent(low)} to {percent(high)}"
    if n < statistics.FEWEST:
        limits = (
            "–"
            if n == 1 or math.isnan(mean)
            else " and ".join(map(percent, accuracies)) + ": 2 seeds, too few for an interval"
        )
    return [str(n), percent(mean), limits]


def as_json(sides: Sequence[Side], found: Sequence[Verdict], of: str, scored: int) -> dict[str, Any]:
    """The same, to be read by programs."""
    return {
        "compared_on": of,
        "models_scored_on_test": scored,
        "sides": {side.name: {"accuracies": side.accuracies, "seconds": side.seconds} for side in sides},
        "verdicts": [
            {"a": verdict.a, "b": verdict.b, "sentence": verdict.sentence} | _figures(verdict) for verdict in found
        ],
    }


def _figures(verdict: Verdict) -> dict[str, float]:
    if verdict.test is None:
        return {}
    figures = ("difference", "low", "high", "p")
    return {key: getattr(verdict.test, key) for key in figures} | {"p_adjusted": verdict.p, "shown": verdict.shown}
