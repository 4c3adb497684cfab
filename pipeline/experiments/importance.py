"""Which value of a sweep mattered: a part of its ranking, and a picture.

A factor is a key that the sweep varies, or several that vary together, with commas between. The factor seed is left out
here: it shows what chance does. A level is what a factor may be: a value for each of its keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.metrics.importance import RESAMPLES, forest_shares, variance_shares
from pipeline.reports import plots
from pipeline.reports.tables import markdown_table, percent

MOST_LEVELS = 8  # of numbers, beyond which they are shown in groups
GROUPS = 4
Level = tuple[str, ...]


def explain(
    given: Sequence[Mapping[str, str]],
    results: Sequence[float],
    factors: Sequence[str],
    label: str,
    form: str,
    confidence: float,
) -> tuple[str, Figure] | None:
    """Return which factor mattered, in Markdown and as a picture, by the values `given` to runs and their results.

    `label` names what the results are, `form` formats one. It is None where a single factor was varied without
    repeats: the ranking itself says all.
    """
    factors = [factor for factor in factors if factor != "seed"]
    columns = [[level_of(values, factor) for values in given] for factor in factors]
    if not results or not factors or (len(factors) == 1 and len(set(columns[0])) == len(results)):
        return None
    orders = [levels(column) for column in columns]
    places = [[order.index(level) for level in column] for order, column in zip(orders, columns, strict=True)]
    effects: dict[str, dict[str, list[float]]] = {}  # results by factor and level
    for factor, order, column in zip(factors, orders, places, strict=True):
        labels, effects[factor] = _labels(order), {}
        for place, result in sorted(zip(column, results, strict=True)):
            effects[factor].setdefault(labels[place], []).append(result)
    rows = [["", "runs", f"mean {label}", "lowest", "highest"]]
    for factor, of_factor in effects.items():
        for level, found in of_factor.items():
            figures = (float(np.mean(found)), min(found), max(found))
            rows.append([f"{factor}={level}", str(len(found)), *(f"{figure:{form}}" for figure in figures)])
    shares = _shares(factors, np.array(places).T, np.array(results), confidence)
    return f"{shares}{markdown_table(rows)}\n", plots.plot_effects(effects, label)


def _shares(factors: Sequence[str], places: NDArray[np.int64], results: NDArray[np.float64], confidence: float) -> str:
    """Return in Markdown what share of the variance each factor explains; nothing where that cannot be said."""
    together = ["interactions"] if len(factors) > 1 else []
    rows = [["", "share of the variance"]]
    if exact := variance_shares(places, results):
        names = [*factors, *together, *(["seeds"] if exact.repeats else [])]
        shares = [*exact.factors, *([exact.interactions] if together else []), exact.repeats]
        rows += [[name, percent(share)] for name, share in zip(names, shares, strict=False)]
        chance = "" if exact.repeats else "; with one seed each, chance counts as interactions"
        how = f"analysis of variance of the full grid, {len(results)} runs{chance}"
    elif forest := forest_shares(places, results, confidence):
        rows[0].append(f"{100 * confidence:g} % of {RESAMPLES} resamples")
        for name, share in zip([*factors, *together], forest, strict=False):
            rows.append([name, percent(share.mean), f"{percent(share.low)} to {percent(share.high)}"])
        how = f"fANOVA, by a random forest fitted to these {len(results)} runs"
    else:
        return ""
    return f"Which value mattered ({how}):\n\n{markdown_table(rows)}\n\n"


def level_of(values: Mapping[str, str], factor: str) -> Level:
    """Return the level of a factor among values by key."""
    return tuple(values.get(key, "") for key in factor.split(","))


def levels(found: Iterable[Level]) -> list[Level]:
    """Return the different levels: numbers by their size, then texts."""
    return sorted(set(found), key=lambda level: [(_number(text), text) for text in level])


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.inf


def _labels(order: Sequence[Level]) -> list[str]:
    """Return how each level is shown: as it was given, or where there are many numbers, the group that it is in."""
    numbers = [_number(level[0]) for level in order]
    if len(order) <= MOST_LEVELS or len(order[0]) > 1 or not all(map(math.isfinite, numbers)):
        return [",".join(level) for level in order]
    groups = np.array_split(numbers, GROUPS)
    return [f"{group[0]:.3g} to {group[-1]:.3g}" for group in groups for _ in group]
