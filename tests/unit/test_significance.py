"""Tests and intervals against hand-computed and published values, and by simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from pipeline.metrics import significance


def runs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    order = np.random.default_rng(0).permutation(len(a))
    return a[order], b[order]


@pytest.mark.parametrize(("only_a", "only_b", "p"), [(10, 25, 0.017), (15, 25, 0.15), (0, 0, 1.0), (0, 5, 2 / 32)])
def test_mcnemar_by_published_values_and_by_hand(only_a, only_b, p):
    pair = significance.compare_runs(*runs(1000 - only_a - only_b - 7, only_a, only_b, 7), 0.95)
    assert (pair.only_a, pair.only_b) == (only_a, only_b)
    assert pair.difference == pytest.approx((only_b - only_a) / 1000)
    assert pair.p == pytest.approx(p, abs=0.005)
    by_hand = 2 * sum(math.comb(only_a + only_b, k) for k in range(min(only_a, only_b) + 1)) / 2 ** (only_a + only_b)
    assert pair.p == pytest.approx(min(by_hand, 1))


def test_mcnemars_interval_by_hand():
    # 86 + 150 discordant of 1,600, as in Agresti's approval ratings: with half a digit more in each cell,
    # (150.5 - 86.5) / 1602 +- 1.96 sqrt((237 - 64 ** 2 / 1602) / 1602 ** 2).
    pair = significance.compare_runs(*runs(794, 86, 150, 570), 0.95)
    assert (pair.low, pair.high) == (pytest.approx(0.02122, abs=1e-4), pytest.approx(0.05868, abs=1e-4))
    other = significance.compare_runs(*runs(794, 150, 86, 570), 0.95)
    assert (other.low, other.high, other.p) == (pytest.approx(-pair.high), pytest.approx(-pair.low), pair.p)


def test_permutation_by_hand():
    # All of b above all of a is 1 of the 20 ways to choose 3 of 6, and 2 of 20 either way round.
    groups = significance.compare_groups([10, 20, 30], [40, 50, 60], 100, 0.95)
    assert groups.p == groups.least_p == pytest.approx(0.1)
    assert groups.difference == pytest.approx(0.3)
    # Welch: equal variances of .01, so 4 degrees of freedom, t = 2.7764, and a standard error of sqrt(.02 / 3).
    half = 2.7764 * math.sqrt(0.02 / 3)
    assert (groups.low, groups.high) == (pytest.approx(0.3 - half, abs=1e-5), pytest.approx(0.3 + half, abs=1e-5))
    # .2 + .3 or .1 + .6 are as far from the middle as .1 + .2: by hand, 6 of 6.
    assert significance.compare_groups([10, 40], [20, 30], 100, 0.95).p == 1.0
    # Of the 10 ways to choose 2 of 5: 0 and 1 have a mean 5.5 below the rest, 5 and 9 one 5.33 above it, less far.
    unequal = significance.compare_groups([0, 1], [4, 5, 9], 100, 0.95)
    assert unequal.p == unequal.least_p == pytest.approx(1 / 10)


@pytest.mark.parametrize(
    ("a", "b", "orders"),
    [
        ([9967, 9972, 9963, 9963, 9967], [9976, 9977, 9971, 9973, 9967], 14),
        ([9970, 9956, 9962, 9962, 9965], [9965, 9965, 9967, 9967, 9972], 54),
    ],
)
def test_orders_that_tie_with_the_observed_one_are_counted(a, b, orders):
    """In floats 12 and 30 of the 252 were: .0476 and .119."""
    assert significance.compare_groups(a, b, 10_000, 0.95).p == pytest.approx(orders / 252, rel=1e-12)
    assert significance.compare_groups(b, a, 10_000, 0.95).p == pytest.approx(orders / 252, rel=1e-12)


@pytest.mark.parametrize(("n", "m", "draws"), [(2, 2, 50), (3, 5, 150), (5, 5, 100), (4, 7, 60), (7, 4, 40)])
def test_p_is_the_share_of_all_orders_that_differ_at_least_as_much(n, m, draws):
    """By enumeration in whole numbers: a difference of means times n * m is one."""
    generator = np.random.default_rng([n, m])
    for _ in range(draws):
        counts = [int(count) for count in 9_890 + generator.binomial(100, 0.8, n + m)]
        total = sum(counts)
        distances = [abs(n * total - (n + m) * sum(chosen)) for chosen in itertools.combinations(counts, n)]
        orders = sum(distance >= distances[0] for distance in distances)
        groups = significance.compare_groups(counts[:n], counts[n:], 10_000, 0.95)
        assert groups.p == pytest.approx(orders / math.comb(n + m, n), rel=1e-12)
        assert groups.p >= groups.least_p * (1 - 1e-12)


@pytest.mark.parametrize("n", [10, 11, 40])
def test_the_permutation_test_is_exact_for_any_number_of_runs(n):
    groups = significance.compare_groups(list(range(n)), list(range(n, 2 * n)), 10_000, 0.95)
    assert groups.p == pytest.approx(2 / math.comb(2 * n, n), rel=1e-9) and groups.least_p == pytest.approx(groups.p)
    few = significance.compare_groups([0, 1], list(range(2, 100 * n)), 10_000, 0.95)
    assert few.p == pytest.approx(2 / math.comb(100 * n, 2), rel=1e-9)  # the highest two are as far out


def test_groups_that_do_not_vary_have_no_interval():
    groups = significance.compare_groups([50, 50], [60, 60], 100, 0.95)
    assert groups.difference == pytest.approx(0.1) and groups.p == pytest.approx(1 / 3)
    assert math.isnan(groups.low) and math.isnan(groups.high)
    # One that varies is enough: a standard error of sqrt(2 / 2) with 1 degree of freedom, t = 12.7062.
    groups = significance.compare_groups([50, 50], [59, 61], 100, 0.95)
    assert (groups.low, groups.high) == (pytest.approx(0.1 - 0.127062, abs=1e-6), pytest.approx(0.227062, abs=1e-6))


def test_an_interval_agrees_with_its_test():
    agreeing = significance.agreeing
    assert agreeing(0.1, 0.3, 0.2, True) == (0.1, 0.3) and agreeing(-0.3, -0.1, -0.2, True) == (-0.3, -0.1)
    assert agreeing(-0.1, 0.3, 0.1, True) == (0, 0.3) and agreeing(-0.3, 0.1, -0.1, True) == (-0.3, 0)
    assert agreeing(0.1, 0.3, 0.2, False) == (0, 0.3) and agreeing(-0.3, -0.1, -0.2, False) == (-0.3, 0)
    assert agreeing(-3, 2, 0, False) == (-1, 1) and agreeing(-3, 2, -0.1, True) == (-1, 0)
    for shown in (True, False):
        assert all(map(math.isnan, agreeing(math.nan, math.nan, 0.1, shown)))


def test_mean_and_prediction_intervals_by_hand():
    # Of .990, .992, .994: standard deviation .002, t(.975, 2) = 4.3027.
    mean = significance.mean_interval([0.990, 0.992, 0.994], 0.95)
    assert (mean.n, mean.mean) == (3, pytest.approx(0.992))
    assert (mean.low, mean.high) == (pytest.approx(0.987032, abs=1e-6), pytest.approx(0.996968, abs=1e-6))
    one_more = significance.prediction_interval([0.970, 0.972, 0.974], 0.95)
    half = 4.3027 * 0.002 * math.sqrt(4 / 3)
    assert one_more == (pytest.approx(0.972 - half, abs=1e-6), pytest.approx(0.972 + half, abs=1e-6))
    for few in ([0.5], [0.5, 0.6]):
        assert math.isnan(significance.mean_interval(few, 0.95).low)
        assert math.isnan(significance.prediction_interval(few, 0.95).high)
    # The same spread at the edges: within 0 to 1, or within the bounds of what is no accuracy.
    assert significance.mean_interval([0.996, 0.998, 1.0], 0.95)[2:] == (pytest.approx(0.993032, abs=1e-6), 1)
    assert significance.prediction_interval([0.0, 0.002, 0.004], 0.95).low == 0
    assert significance.mean_interval([-0.002, 0.0, 0.002], 0.95, -1).low == pytest.approx(-0.004968, abs=1e-6)


def test_the_best_of_equal_networks_is_no_better_than_the_others():
    """24 of them, each with a truth of 99.677 %: the best of them seems to have 99.8 % and more."""
    generator, apparent, expected = np.random.default_rng(0), [], []
    for _ in range(4):
        right = generator.random((24, 5_000)) < 0.99677
        best = significance.best_of(right, 0.95)
        apparent.append(right.mean(1).max())
        expected.append(best.mean)
        assert best.n == 24 and best.low <= 0.99677 <= best.high and best.low >= 0 and best.high <= 1
        assert best == significance.best_of(right, 0.95), "the same each time"
    assert np.mean(apparent) > 0.998 and np.mean(expected) == pytest.approx(0.99677, abs=0.0004)


def test_the_best_of_several_is_itself_where_there_is_nothing_to_choose():
    generator = np.random.default_rng(1)
    right = generator.random((5, 2_000)) < np.array([[0.97], [0.5], [0.5], [0.5], [0.5]])
    assert significance.best_of(right, 0.95).mean == pytest.approx(right[0].mean(), abs=0.001)
    assert significance.best_of(np.array([[True] * 50, [False] * 50]), 0.95)[1:] == (1, 1, 1)
    # Right in one half each: whichever has more of those drawn has fewer of the others.
    halves = np.arange(100) < 50
    assert significance.best_of(np.array([halves, ~halves]), 0.95).mean < 0.48


@pytest.mark.parametrize(("effect", "n"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17)])
def test_the_seeds_needed_are_cohens(effect, n):
    """Cohen 1988, table 2.4.1: two-sided .05, power .80."""
    assert significance.seeds_needed(effect * 3, (3.0, 3.0), 0.05) == n
    assert significance.seeds_needed(-effect, (math.sqrt(0.5), math.sqrt(1.5)), 0.05) == n


def test_seeds_needed_where_there_is_nothing_to_tell_by():
    assert significance.seeds_needed(0.0, (1.0, 1.0), 0.05) is None
    assert significance.seeds_needed(1e-4, (1.0, 1.0), 0.05) is None
    # 4 + 4 seeds are the fewest whose least p, 2 / 70, is below .05; 6 + 6, 2 / 924, below .005.
    assert significance.seeds_needed(0.1, (0.0, 0.0), 0.05) == significance.seeds_needed(9.0, (1.0, 1.0), 0.05) == 4
    assert significance.seeds_needed(0.1, (0.0, 0.0), 0.005) == significance.seeds_needed(9.0, (1.0, 1.0), 0.005) == 6


def test_holm_by_hand():
    # In order: .005 * 4, .01 * 3, .03 * 2, and .04 no less than the one before.
    assert significance.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert significance.holm([0.9, 0.6]) == [1.0, 1.0] and significance.holm([]) == []


def test_under_no_difference_a_permutation_test_rejects_in_at_most_one_of_twenty():
    """Of counts with ties, so in fewer than the 12 of 252 orders that .05 holds at most."""
    generator = np.random.default_rng(1)
    groups = (generator.binomial(100, 0.8, (2, 5)).tolist() for _ in range(1_000))
    rejected = np.mean([significance.compare_groups(a, b, 100, 0.95).p <= 0.05 for a, b in groups])
    assert 0.02 <= rejected <= 12 / 252 + 0.02  # three standard deviations of 1,000 tries


def test_intervals_hold_the_truth_in_nineteen_of_twenty():
    generator = np.random.default_rng(2)
    held = {"mean": 0, "one more": 0, "difference": 0, "pair": 0}
    for _ in range(1_000):
        a, b = generator.binomial(200, 0.8, 6), generator.binomial(400, 0.9, 9) - 190  # means 160 and 170
        accuracies = (a / 1_000).tolist()
        mean, one_more = (of(accuracies, 0.95) for of in (significance.mean_interval, significance.prediction_interval))
        held["mean"] += mean.low <= 0.16 <= mean.high
        held["one more"] += one_more.low <= generator.binomial(200, 0.8) / 1_000 <= one_more.high
        groups = significance.compare_groups(a.tolist(), b.tolist(), 1_000, 0.95)
        held["difference"] += groups.low <= 0.01 <= groups.high
        cells = generator.multinomial(2_000, [0.97, 0.006, 0.012, 0.012])
        pair = significance.compare_runs(*runs(*cells), 0.95)
        held["pair"] += pair.low <= 0.006 <= pair.high
    assert {key: value / 1_000 for key, value in held.items()} == {key: pytest.approx(0.95, abs=0.021) for key in held}
