"""Is A better than B? Tests and intervals for two runs on the same examples, for two groups of seeds, and for two
cross-validations.

Of two single runs McNemar's test says whether other examples of the same kind would favour the same run. Of two groups
of seeds the permutation test says whether other seeds would favour the same group, on these examples. Of two
cross-validations the sums of each example's errors over the seeds are paired: other examples, for these networks.

Shapes: N examples, n runs of a group. Accuracies are shares, 0 to 1; a difference is B's less A's. Groups are given as
counts of correct predictions: differences of counts that are equal compare as equal, those of shares are rounded apart.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from pipeline.metrics.metrics import Interval

POWER = 0.8  # the chance to show a difference that is there, for the number of seeds to train
TRIES = 1_000  # to choose the best of several on other examples
FEWEST = 3  # values that Student's intervals are given for
MOST_SEEDS = 10_000  # beyond which nobody would train


class Mean(NamedTuple):
    """The mean of a group of n, with its interval."""

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


class Sums(NamedTuple):
    """Two groups of runs, by the errors of each example."""

    difference: float
    low: float
    high: float
    p: float


class Groups(NamedTuple):
    """Two groups of runs, by their means."""

    difference: float
    low: float  # NaN, like high, where all runs of a group are alike, in both groups
    high: float
    p: float
    least_p: float  # that so few runs could have shown


def mean_interval(values: Sequence[float], confidence: float, least: float = 0, most: float = 1) -> Mean:
    """The mean of accuracies, or of other values from `least` to `most`, with Student's interval within these bounds.

    It is NaN for fewer than 3 values: that of two is 12.7 times as wide as they are apart, and says nothing.
    """
    interval = _students(values, confidence, math.sqrt(1 / len(values)), least, most)
    return Mean(len(values), float(np.mean(values)), *interval)


def folds_interval(values: Sequence[float], confidence: float, least: float = 0, most: float = 1) -> Mean:
    """The mean over K folds of a cross-validation, with Student's interval for a corrected variance.

    Folds are not independent: they share training examples. For values of standard deviation S, S²/K is too small for
    the variance of their mean; Nadeau and Bengio (2003, doi 10.1023/A:1024068626366) add S² times validation examples
    per training example, here 1/(K - 1). NaN for fewer than 3.
    """
    k = len(values)
    interval = _students(values, confidence, math.sqrt(1 / k + 1 / (k - 1)), least, most)
    return Mean(k, float(np.mean(values)), *interval)


def prediction_interval(accuracies: Sequence[float], confidence: float) -> Interval:
    """Where one more run of the group would lie, by Student's t; NaN for fewer than 3 runs."""
    return _students(accuracies, confidence, math.sqrt(1 + 1 / len(accuracies)), 0, 1)


def _students(values: Sequence[float], confidence: float, scale: float, least: float, most: float) -> Interval:
    n, mean = len(values), float(np.mean(values))
    if n < FEWEST:
        return Interval(math.nan, math.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * float(np.std(values, ddof=1)) * scale
    return Interval(max(mean - half, least), min(mean + half, most))


def compare_runs(a_right: NDArray[np.bool_], b_right: NDArray[np.bool_], confidence: float) -> Pair:
    """Compare two runs by which of the same N examples each has right, bool [N] each.

    The test is McNemar's exact one (1947): were there no difference, half of the examples that one alone has right
    would be each one's. The interval is Agresti and Min's (2005, doi 10.1002/sim.1781).
    """
    only_a, only_b, n = int(np.sum(a_right & ~b_right)), int(np.sum(b_right & ~a_right)), len(a_right)
    discordant = only_a + only_b
    p = float(stats.binomtest(only_a, discordant).pvalue) if discordant else 1.0
    middle = (only_b - only_a) / (n + 2)
    deviation = math.sqrt((discordant + 1) / (n + 2) - middle**2) / math.sqrt(n + 2)
    half = float(stats.norm.ppf((1 + confidence) / 2)) * deviation
    return Pair(only_a, only_b, (only_b - only_a) / n, middle - half, middle + half, p)


def compare_sums(a: NDArray[np.bool_], b: NDArray[np.bool_], confidence: float) -> Sums:
    """Compare two groups of runs by which of the same N examples each run has right, bool [n, N] and [m, N].

    The test is Fisher's for pairs (1935): p is the share of all ways to swap the sides of single examples, with all
    their runs, that differ at least as much. For one run each it is McNemar's, and the interval Agresti and Min's.
    """
    (n, size), m = a.shape, len(b)
    gains = n * b.sum(0, dtype=np.int64) - m * a.sum(0, dtype=np.int64)  # whole numbers, which tie exactly
    total, squares = int(gains.sum()) / (n * m), float(np.sum(gains**2)) / (n * m) ** 2
    middle = total / (size + 2)
    deviation = math.sqrt((squares + 1) / (size + 2) - middle**2) / math.sqrt(size + 2)
    half = float(stats.norm.ppf((1 + confidence) / 2)) * deviation
    return Sums(total / size, middle - half, middle + half, _swapped_p(gains))


def _swapped_p(gains: NDArray[np.int64]) -> float:
    """The share of all signs of `gains` whose sum is at least as far from 0, from the sum's exact distribution."""
    gains = gains // max(int(np.gcd.reduce(gains)), 1)  # with n runs a side all are multiples of n
    chances = np.ones(1)  # of each sum of those gains that come out positive
    for gain, count in zip(*np.unique(np.abs(gains[gains != 0]), return_counts=True), strict=True):
        of_gain = np.zeros(gain * count + 1)
        of_gain[::gain] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        chances = np.convolve(chances, of_gain)
    distance = np.abs(2 * np.arange(len(chances)) - (len(chances) - 1))
    return float(min(chances[distance >= abs(int(gains.sum()))].sum(), 1))


def compare_groups(a: Sequence[int], b: Sequence[int], examples: int, confidence: float) -> Groups:
    """Compare two groups of at least two runs each by how many of the same `examples` each run has right.

    The test permutes the runs between the groups (Fisher 1935): p is the share of all orders whose means differ at
    least as much as those observed, either way. The interval is Welch's (1947).
    """
    n, m = len(a), len(b)
    difference = (n * sum(b) - m * sum(a)) / (n * m * examples)
    low = high = math.nan
    errors = [float(np.var(counts, ddof=1)) / len(counts) for counts in (a, b)]  # squared standard errors of the means
    if squared := sum(errors):
        freedom = squared**2 / (errors[0] ** 2 / (n - 1) + errors[1] ** 2 / (m - 1))
        half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * math.sqrt(squared) / examples
        low, high = difference - half, difference + half
    least_p = (1 + (n == m)) / math.comb(n + m, n)  # groups of one size can change places
    return Groups(difference, low, high, _permutation_p(a, b), least_p)


def _permutation_p(a: Sequence[int], b: Sequence[int]) -> float:
    """The share of all orders that differ at least as much, from the exact distribution of a group's sum (in the manner
    of Streitberg and Roehmel 1986): were each run drawn by itself, draws of `n` runs would all be equally probable."""
    n, size = len(a), len(a) + len(b)
    counts = np.array([*a, *b]) - min(*a, *b)
    most = int(np.sort(counts)[-n:].sum())
    chances = np.zeros((n + 1, most + 1))  # of so many runs drawn, with this sum
    chances[0, 0] = 1
    for count in counts:
        drawn = chances[:-1, : most + 1 - count] * n / size
        chances *= (size - n) / size
        chances[1:, count:] += drawn
    # |difference of means| * n * m, by the sum of the group: whole numbers, which tie exactly.
    distance = np.abs(n * int(counts.sum()) - size * np.arange(most + 1))
    return float(chances[n, distance >= distance[counts[:n].sum()]].sum() / chances[n].sum())


def agreeing(low: float, high: float, difference: float, shown: bool) -> Interval:
    """An interval of a difference, with its limit moved to 0 where it and the test would disagree about 0; NaN stay.

    Where a difference is shown the limit 0 is not part of the interval ("above 0"), else it is.
    """
    if not shown:
        return Interval(max(min(low, 0), -1), min(max(high, 0), 1))
    return Interval(max(low, 0), min(high, 1)) if difference > 0 else Interval(max(low, -1), min(high, 0))


def best_of(right: NDArray[np.bool_], confidence: float) -> Mean:
    """The accuracy to expect of the best of n networks, by bool [n, N], when it was chosen by these N examples.

    BBC-CV (Tsamardinos, Greasidou and Borboudakis 2018, doi 10.1007/s10994-018-5714-4): the choice is made on examples
    drawn with replacement, its accuracy is taken on the third that was not drawn; mean and percentiles of many tries.
    """
    n, size = right.shape
    generator, scores, counted = np.random.default_rng(0), [], right.astype(np.float32)
    for _ in range(TRIES):
        drawn = np.bincount(generator.integers(size, size=size), minlength=size)
        best = int((counted @ drawn.astype(np.float32)).argmax())  # whole numbers, exact up to 16 million
        if not drawn.all():
            scores.append(counted[best, drawn == 0].mean())
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Mean(n, float(np.mean(scores)), float(low), float(high))


def seeds_needed(difference: float, deviations: tuple[float, float], significance: float) -> int | None:
    """Seeds a side that show such a difference of means in 80 % of tries; None for more than 10,000.

    By Student's two-sided test, for seeds of these standard deviations, and as many as the permutation test needs.
    """
    fewest = next(n for n in itertools.count(2) if 2 / math.comb(2 * n, n) < significance)
    spread = math.sqrt((deviations[0] ** 2 + deviations[1] ** 2) / 2)
    if not spread:
        return fewest if difference else None
    sizes = np.unique(np.geomspace(fewest, MOST_SEEDS, 4_000).astype(int))
    freedom = 2 * sizes - 2
    limit = stats.t.ppf(1 - significance / 2, freedom)
    power = stats.nct.sf(limit, freedom, abs(difference) / spread * np.sqrt(sizes / 2))
    enough = sizes[power >= POWER]
    return int(enough[0]) if len(enough) else None


def holm(values: Sequence[float]) -> list[float]:
    """Several p together, each adjusted for there being several (Holm 1979)."""
    order = np.argsort(values, kind="stable")
    adjusted = np.empty(len(values))
    adjusted[order] = np.maximum.accumulate(np.asarray(values)[order] * np.arange(len(values), 0, -1))
    return np.minimum(adjusted, 1).tolist()
