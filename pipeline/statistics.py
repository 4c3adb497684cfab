"""Is A better than B? Tests and intervals for two runs on the same examples, and for two groups of seeds.

Two questions, two kinds of tests. Two single runs differ on certain examples: McNemar's test says whether other
examples of the same kind would favour the same run. Two groups of seeds differ in their means: the permutation test
says whether other seeds would favour the same group, on these examples. Neither answers the other's question.

Shapes: N examples, n runs of a group. Accuracies are shares, 0 to 1; a difference is B's less A's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.metrics import Interval

EXACT = 200_000  # orders a permutation test looks at: all of them up to 10 + 10 runs, random ones beyond
POWER = 0.8  # the chance to show a difference that is there, for the number of seeds to train
MOST_SEEDS = 10_000  # beyond which nobody would train


class Mean(NamedTuple):
    """Of a group, with Student's interval of it: NaN where there is one run."""

    n: int
    mean: float
    low: float
    high: float


class Pair(NamedTuple):
    """Two runs on the same examples."""

    only_a: int  # examples that A alone has right
    only_b: int
    difference: float
    low: float
    high: float
    p: float


class Groups(NamedTuple):
    """Two groups of runs: the difference of their means, and the least p that so few runs could have shown."""

    a: Mean
    b: Mean
    difference: float
    low: float
    high: float
    p: float
    least_p: float
    effect: (
        float  # the difference in standard deviations of a seed (Hedges's g); it and the interval are NaN without any
    )


def mean_interval(values: Sequence[float], confidence: float) -> Mean:
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Mean(1, mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(np.std(values, ddof=1)) / math.sqrt(n)
    return Mean(n, mean, mean - half, mean + half)


def prediction_interval(values: Sequence[float], confidence: float) -> Interval:
    """Where one more run of the group would lie, by Student's t; NaN of one run."""
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Interval(math.nan, math.nan)
    deviation = float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * deviation
    return Interval(mean - half, mean + half)


def compare_runs(a_right: NDArray[np.bool_], b_right: NDArray[np.bool_], confidence: float) -> Pair:
    """Two runs on the same N examples, by which of them each has right, bool [N] each.

    The test is McNemar's exact one (1947): of the examples that one alone has right, half would be each one's, were
    there no difference. The interval is Agresti and Min's (2005, doi 10.1002/sim.1781), half an example added to each
    cell of the two by two table.
    """
    only_a, only_b, n = int(np.sum(a_right & ~b_right)), int(np.sum(b_right & ~a_right)), len(a_right)
    discordant = only_a + only_b
    p = float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0
    middle = (only_b - only_a) / (n + 2)
    deviation = math.sqrt((discordant + 1) / (n + 2) - middle**2) / math.sqrt(n + 2)
    half = float(stats.norm.ppf((1 + confidence) / 2)) * deviation
    return Pair(only_a, only_b, (only_b - only_a) / n, middle - half, middle + half, p)


def compare_groups(a: Sequence[float], b: Sequence[float], confidence: float) -> Groups:
    """Two groups of at least two runs each, by their accuracies.

    The test permutes the runs between the groups (Fisher 1935): exact up to 10 + 10 runs, by 200,000 random orders
    beyond. The interval is Welch's (1947), the effect Hedges's g (1981).
    """
    n, m = len(a), len(b)
    difference = float(np.mean(b) - np.mean(a))
    # Differences that are equal but for the rounding of their sums count as equal: scipy allows 1e-14 of the value,
    # and accuracies of 10,000 examples are 1e-4 apart.
    found = stats.permutation_test(
        (np.asarray(a), np.asarray(b)), _difference, n_resamples=EXACT, batch=2_000, vectorized=True, rng=0
    )
    variances = float(np.var(a, ddof=1)), float(np.var(b, ddof=1))
    if not any(variances):
        effect = low = high = math.nan
    else:
        welch = stats.ttest_ind(b, a, equal_var=False).confidence_interval(confidence)
        low, high = float(welch.low), float(welch.high)
        pooled = math.sqrt(((n - 1) * variances[0] + (m - 1) * variances[1]) / (n + m - 2))
        effect = difference / pooled * (1 - 3 / (4 * (n + m) - 9))
    return Groups(
        mean_interval(a, confidence),
        mean_interval(b, confidence),
        difference,
        low,
        high,
        float(found.pvalue),
        min(1.0, 2 / math.comb(n + m, n)),
        effect,
    )


def _difference(a: NDArray[np.float64], b: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    return np.mean(b, axis) - np.mean(a, axis)


def seeds_needed(difference: float, deviations: tuple[float, float], significance: float) -> int | None:
    """Seeds a side that show such a difference of means in 80 % of tries; None for more than 10,000.

    By Student's two-sided test of two groups of one size, whose seeds have these standard deviations.
    """
    spread = math.sqrt((deviations[0] ** 2 + deviations[1] ** 2) / 2)
    if not spread:
        return 2 if difference else None
    for_sure = abs(difference) / spread
    sizes = np.unique(np.geomspace(2, MOST_SEEDS, 4_000).astype(int))
    freedom = 2 * sizes - 2
    limit = stats.t.ppf(1 - significance / 2, freedom)
    power = stats.nct.sf(limit, freedom, for_sure * np.sqrt(sizes / 2))
    enough = sizes[power >= POWER]
    return int(enough[0]) if len(enough) else None


def holm(values: Sequence[float]) -> list[float]:
    """Several p together, each adjusted for there being several (Holm 1979)."""
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1))
    return [float(value) for value in np.minimum(adjusted, 1)]
