"""The report of a comparison: what was compared, what differs, what each side costs, and the examples to look at.

Shapes: N examples, the same ones for every run; n runs of a side.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics import significance
from pipeline.reports.tables import as_text, markdown_table, models_scored, percent
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
    """Return the same sides; those of equal names get the first values that differ added to theirs."""
    names = Counter(side.name for side in sides)
    differing = differences(sides)[:2]
    return [
        side._replace(name=" ".join([side.name, *(f"{key}={values[position]}" for key, values in differing)]))
        if names[side.name] > 1
        else side
        for position, side in enumerate(sides)
    ]


def most_discordant_examples(a: Side, b: Side) -> dict[str, NDArray[np.int64]]:
    """Return the positions of the examples on which the sides differ most, each way, and that both get wrong."""
    share_a, share_b = a.correct.mean(0), b.correct.mean(0)  # of the side's runs that are correct, for each example
    if len(a.correct) == len(b.correct) == 1:
        kinds = [f"{a.name} correct, {b.name} wrong", f"{b.name} correct, {a.name} wrong", "both wrong"]
    else:
        kinds = [f"{a.name} correct more often", f"{b.name} correct more often", "both wrong in most runs"]
    scores = [
        share_a - share_b,
        share_b - share_a,
        np.where(np.maximum(share_a, share_b) < 0.5, 1 - np.maximum(share_a, share_b), 0),
    ]
    chosen = {}
    for kind, score in zip(kinds, scores, strict=True):
        order = np.argsort(-score, kind="stable")[:SHOWN]
        chosen[kind] = order[score[order] > 0]
    return chosen


def correct_counts(a: Side, b: Side, index: int) -> str:
    """Say how many runs of each side are correct on an example; nothing for two single runs."""
    if len(a.correct) == len(b.correct) == 1:
        return ""
    return " : ".join(f"{side.correct[:, index].sum()} of {len(side.correct)}" for side in (a, b))


def markdown(sides: Sequence[Side], verdicts: Sequence[Verdict], confidence: float, split: str, scored: int) -> str:
    """Return the answer, what was compared, what differs, and what each side costs."""
    rows = [
        [
            "",
            "n runs",
            f"mean {split} accuracy",
            f"{100 * confidence:g} % of the mean (t)",
            "errors",
            "training time (s)",
            "parameters",
            "MACs",
        ]
    ]
    for side in sides:
        errors = float(np.mean(side.correct.shape[1] - side.correct.sum(1)))
        seconds = f"{np.median(side.seconds):,.0f}" if side.seconds else "–"
        rows.append(
            [
                side.name,
                *mean_cells(side.accuracies, confidence),
                f"{errors:,.1f} of {side.correct.shape[1]:,}",
                seconds,
                f"{side.num_params:,}",
                f"{side.macs:,}",
            ]
        )
    differing = [["", *(side.name for side in sides)], *([key, *values] for key, values in differences(sides))]
    discordant = "\n".join(
        f"- {as_text(verdict.a)} alone is correct on {verdict.test.only_a}, {as_text(verdict.b)} alone on "
        f"{verdict.test.only_b} examples"
        for verdict in verdicts
        if isinstance(verdict.test, significance.Pair)
    )
    looked = (
        f"Compared on the test examples: {models_scored(scored)}."
        if split == "test"
        else "Compared on the validation examples: not every run was evaluated on the test examples."
    )
    return (
        "\n\n".join(
            [
                "\n\n".join(f"**{as_text(verdict.sentence)}.**" for verdict in verdicts),
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
    """Return how many there are, their mean and its interval; the values themselves for two."""
    n, mean, low, high = significance.mean_interval(accuracies, confidence)
    limits = f"{percent(low)} to {percent(high)}"
    if n < significance.FEWEST:
        limits = (
            "–"
            if n == 1 or math.isnan(mean)
            else " and ".join(map(percent, accuracies)) + ": 2 seeds, too few for an interval"
        )
    return [str(n), percent(mean), limits]


def as_json(sides: Sequence[Side], verdicts: Sequence[Verdict], split: str, scored: int) -> dict[str, Any]:
    """Return the same for programs."""
    return {
        "compared_on": split,
        "models_scored_on_test": scored,
        "sides": {side.name: {"accuracies": side.accuracies, "seconds": side.seconds} for side in sides},
        "verdicts": [
            {"a": verdict.a, "b": verdict.b, "sentence": verdict.sentence} | _test_figures(verdict)
            for verdict in verdicts
        ],
    }


def _test_figures(verdict: Verdict) -> dict[str, float]:
    if verdict.test is None:
        return {}
    figures = ("difference", "low", "high", "p")
    return {key: getattr(verdict.test, key) for key in figures} | {"p_adjusted": verdict.p, "shown": verdict.shown}
