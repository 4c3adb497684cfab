"""The report of a comparison: what was compared, what differs, what each side costs, and the examples to look at.

Shapes: N examples, the same ones for every run; n runs of a side.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import significance
from pipeline.reports.tables import as_text, markdown_table, percent, points, scored_in_words
from pipeline.reports.verdicts import Side, Verdict

SHOWN = 8  # examples of a kind in the picture


def differences(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """Return each key whose values are not the same on all sides, with its value on each of them."""
    keys = dict.fromkeys(key for side in sides for key in side.values)
    differing = []
    for key in keys:
        values = [side.values.get(key, set()) for side in sides]
        if key != "seed" and any(other != values[0] for other in values):
            differing.append((key, [", ".join(sorted(side)) or "–" for side in values]))
    return differing


def disambiguate_names(sides: Sequence[Side]) -> list[Side]:
    """Return the same sides; those of equal names get the first values that differ added to theirs, two or more."""
    names, differing, named = Counter(side.name for side in sides), differences(sides), list(sides)
    for count in range(2, max(2, len(differing)) + 1):
        values = [" ".join(f"{key}={of_sides[i]}" for key, of_sides in differing[:count]) for i in range(len(sides))]
        named = [
            side._replace(name=f"{side.name} {added}") if names[side.name] > 1 else side
            for side, added in zip(sides, values, strict=True)
        ]
        if len({side.name for side in named}) == len(sides):
            break
    return named


def most_discordant_examples(a: Side, b: Side) -> dict[str, NDArray[np.int64]]:
    """Return the positions of the examples on which the sides differ most, each way, and that both get wrong."""
    share_a, share_b = a.correct.mean(0), b.correct.mean(0)  # of the side's runs that are correct, for each example
    better = np.maximum(share_a, share_b)
    scores = {
        f"{a.name} correct more often": share_a - share_b,
        f"{b.name} correct more often": share_b - share_a,
        "both wrong in most runs": np.where(better < 0.5, 1 - better, 0),
    }
    orders = {kind: np.argsort(-score, kind="stable")[:SHOWN] for kind, score in scores.items()}
    return {kind: order[scores[kind][order] > 0] for kind, order in orders.items()}


def markdown(sides: Sequence[Side], verdicts: Sequence[Verdict], confidence: float, split: str, scored: int) -> str:
    """Return the answer, what was compared, what differs, and what each side costs."""
    rows = [["", "n runs", f"mean {split} accuracy", f"{100 * confidence:g} % of the mean (t)"]]
    rows[0] += ["errors", "training time (s)", "parameters", "MACs"]
    for side in sides:
        size = side.correct.shape[1]
        errors = float(np.mean(size - side.correct.sum(1)))
        seconds = f"{np.median(side.seconds):,.0f}" if side.seconds else "–"
        costs = [f"{errors:,.1f} of {size:,}", seconds, f"{side.num_params:,}", f"{side.macs:,}"]
        cells = [side.n, *mean_cells(side.accuracies, confidence)[1:]]
        rows.append([side.name, *cells, *costs])
    looked = {
        "test": f"test examples: {scored_in_words(scored)}",
        "out-of-fold": "out-of-fold examples, training and validation examples together, each predicted by networks "
        "that had not been trained on it: the test examples were not read",
    }.get(split, "validation examples: not every run was evaluated on the test examples")
    parts = [f"**{as_text(verdict.sentence)}.**" for verdict in verdicts]
    parts += [
        markdown_table(rows),
        f"Compared on the {looked}. Accuracies of the epoch kept; seconds are medians, each on its run's hardware.",
    ]
    discordant = [
        f"- {as_text(verdict.a)} alone is correct on {verdict.test.only_a}, {as_text(verdict.b)} alone on "
        f"{verdict.test.only_b} examples"
        for verdict in verdicts
        if isinstance(verdict.test, significance.Pair)
    ]
    if discordant:
        parts.append("\n".join(discordant))
    parts += [over_folds(a, b, confidence) for a, b in itertools.combinations(sides, 2) if a.fold_accuracies]
    parts.append(differing_table(sides))
    return "\n\n".join(parts) + "\n"


def differing_table(sides: Sequence[Side]) -> str:
    """Return what differs, as a table; in words where nothing does."""
    if differing := [[key, *values] for key, values in differences(sides)]:
        return f"What differs:\n\n{markdown_table([['', *(side.name for side in sides)], *differing])}"
    return "Nothing differs but the seed."


def over_folds(a: Side, b: Side, confidence: float) -> str:
    """Return the difference over the folds of two cross-validations, in which other training examples count as well."""
    cuts = [(len(side.fold_accuracies), side.values.get("data.split_seed")) for side in (a, b)]
    if cuts[0] != cuts[1]:
        return f"{as_text(a.name)} and {as_text(b.name)} have other folds: no interval over folds."
    if sum(a.fold_accuracies) > sum(b.fold_accuracies):
        a, b = b, a
    gains = np.subtract(b.fold_accuracies, a.fold_accuracies).tolist()
    k, mean, low, high = significance.folds_interval(gains, confidence, least=-1)
    limits = "too few for an interval" if math.isnan(low) else f"{100 * confidence:g} % {points(low)} to {points(high)}"
    return (
        f"Over the {k} folds, the mean of the seeds in each: {points(mean)} points for {as_text(b.name)} against "
        f"{as_text(a.name)} ({limits}; Student's interval with the variance corrected by Nadeau and Bengio, 2003, as "
        "folds share training examples). It allows for other training examples and seeds; the test above does not."
    )


def mean_cells(accuracies: Sequence[float], confidence: float) -> list[str]:
    """Return how many there are, their mean and its interval; the values themselves for two."""
    n, mean, low, high = significance.mean_interval(accuracies, confidence)
    limits = f"{percent(low)} to {percent(high)}"
    if n == 1 or math.isnan(mean):
        limits = "–"
    elif n < significance.FEWEST:
        limits = f"{' and '.join(map(percent, accuracies))}: 2 seeds, too few for an interval"
    return [str(n), percent(mean), limits]


def as_json(sides: Sequence[Side], verdicts: Sequence[Verdict], split: str, scored: int) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "compared_on": split,
        "models_scored_on_test": scored,
        "sides": {side.name: {"accuracies": side.accuracies, "seconds": side.seconds} for side in sides},
        "verdicts": [
            {"a": verdict.a, "b": verdict.b, "sentence": verdict.sentence}
            | (verdict.test._asdict() | {"p_adjusted": verdict.p, "shown": verdict.shown} if verdict.test else {})
            for verdict in verdicts
        ],
    }
