"""Which factor mattered: shares of variance worked out by hand, what a forest finds, and how a ranking says it."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.experiments.importance import explain, levels
from pipeline.metrics import importance
from pipeline.metrics.importance import forest_shares, variance_shares

FOUR = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])


def test_the_shares_of_a_full_grid_are_those_worked_out_by_hand():
    # Means 2 and 6 of the first factor, 3 and 5 of the second, of 4: sums of squares 16 and 4 of 20.
    assert variance_shares(FOUR, np.array([1.0, 3, 5, 7])) == (pytest.approx([0.8, 0.2]), pytest.approx(0), 0)
    # Both factors have means of 3; the cells' are 1, 5, 5, 1, two runs each, each 1 beside it: 32 and 8 of 40.
    twice, results = np.repeat(FOUR, 2, axis=0), np.array([0.0, 2, 4, 6, 4, 6, 0, 2])
    assert variance_shares(twice, results) == ([0, 0], pytest.approx(0.8), pytest.approx(0.2))
    order = np.random.default_rng(0).permutation(8)
    assert variance_shares(twice[order], results[order]) == variance_shares(twice, results)


@pytest.mark.parametrize(
    ("rows", "results"), [([0, 1, 2], [1, 2, 3]), ([0, 1, 2, 3, 3], [1, 2, 3, 4, 5]), ([0, 1, 2, 3], [1, 1, 1, 1])]
)
def test_no_exact_shares_where_a_cell_is_missing_or_heavier_or_all_is_alike(rows, results):
    assert variance_shares(FOUR[rows], np.array(results, float)) is None


def test_a_forest_finds_the_factor_that_mattered_without_a_full_grid(monkeypatch):
    monkeypatch.setattr(importance, "RESAMPLES", 10)
    generator = np.random.default_rng(0)
    runs = np.stack([generator.permutation(24), generator.permutation(24), generator.integers(0, 3, 24)], axis=1)
    results = runs[:, 1] + generator.normal(0, 0.5, 24)  # 24 values: no grid of them could be asked about
    first, second, third, together = found = forest_shares(runs, results, 0.95)
    assert second.low > 0.9 and max(first.high, third.high, together.high) < 0.1
    assert sum(share.mean for share in found) == pytest.approx(1)
    assert found == forest_shares(runs, results, 0.95), "the same runs say the same"
    assert forest_shares(runs[:7], results[:7], 0.95) is None
    assert forest_shares(runs, np.ones(24), 0.95) is None


def values(**by_key: object) -> dict[str, str]:
    return {key: str(value) for key, value in by_key.items()}


def test_a_grid_with_seeds_is_explained_by_shares_means_and_ranges():
    given = [values(filters=filters, seed=seed) for filters in (16, 8) for seed in (0, 1)]
    text, figure = explain(given, [96.0, 98.0, 92.0, 94.0], ["filters", "seed"], "accuracy in %", ".2f", 0.95)
    # The means are 93 and 97, of 95: 16 of 20; each seed is 1 beside its mean: 4 of 20.
    assert text.startswith("Which value mattered (analysis of variance of the full grid, 4 runs):\n")
    shares, effects = ([line.split("|")[1:-1] for line in part.splitlines()[2:]] for part in text.split("\n\n")[1:])
    assert [[cell.strip() for cell in row] for row in shares] == [["filters", "80.00 %"], ["seeds", "20.00 %"]]
    assert [[cell.strip() for cell in row] for row in effects] == [
        ["filters=8", "2", "93.00", "92.00", "94.00"],
        ["filters=16", "2", "97.00", "96.00", "98.00"],
    ]
    [axes] = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["8", "16"]
    assert axes.lines[-1].get_ydata().tolist() == [93, 97]


def test_keys_that_were_paired_are_one_factor():
    given = [values(a=a, b=b, c=c) for a, b in ((1, "x"), (2, "y")) for c in (1, 2)]
    text, figure = explain(given, [1.0, 2, 3, 4], ["a,b", "c"], "f1", ".4g", 0.95)
    assert "a,b=1,x" in text and "a,b=2,y" in text and "chance counts as interactions" in text
    assert [axes.get_xlabel() for axes in figure.axes] == ["a\nb", "c"]


def test_the_many_numbers_of_a_search_are_shown_in_four_groups(monkeypatch):
    monkeypatch.setattr(importance, "RESAMPLES", 2)
    given = [values(rate=n / 1000, units="[8]" if n % 2 else "[4,4]") for n in range(1, 13)]
    text, figure = explain(given, [float(n) for n in range(12)], ["rate", "units"], "f1", ".4g", 0.95)
    assert text.startswith("Which value mattered (fANOVA, by a random forest fitted to these 12 runs):")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == [
        *("0.001 to 0.003", "0.004 to 0.006", "0.007 to 0.009", "0.01 to 0.012"),
    ]
    assert figure.axes[0].lines[-1].get_ydata().tolist() == [1, 4, 7, 10]


def test_what_the_ranking_itself_says_is_not_said_again():
    assert explain([values(a=1), values(a=2)], [1.0, 2.0], ["a"], "f1", ".4g", 0.95) is None
    assert explain([values(seed=1), values(seed=2)], [1.0, 2.0], ["seed"], "f1", ".4g", 0.95) is None
    assert explain([], [], ["a", "b"], "f1", ".4g", 0.95) is None


def test_levels_are_in_the_order_of_their_numbers():
    assert levels([("16",), ("8",), ("none",), ("1e-3",), ("8",)]) == [("1e-3",), ("8",), ("16",), ("none",)]
