"""Which factor of an experiment mattered: what share of the variance of its results each explains.

Shapes: n runs, F factors. Levels are int [n, F]: which value of each factor a run has, counted from 0. Results are
float [n].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.metrics.significance import Mean

FEWEST_RUNS = 8  # that a forest is fitted to
TREES = 50
RESAMPLES = 40
MOST_CELLS = 4_000  # of the grid that a forest is asked about


class Shares(NamedTuple):
    """Of the variance of a full grid; together 1."""

    factors: list[float]  # of each by itself
    interactions: float  # of factors with each other; without repeats also chance
    repeats: float  # between runs that have all levels in common, as seeds do; 0 without


def variance_shares(levels: NDArray[np.int64], results: NDArray[np.float64]) -> Shares | None:
    """Return the analysis of variance of a full grid, in which every combination was run equally often.

    It is None for any other grid, whose factors cannot be told apart exactly, and where all results are equal.
    """
    cells, cell, counts = np.unique(levels, axis=0, return_inverse=True, return_counts=True)
    columns = [np.unique(column, return_inverse=True)[1] for column in levels.T]
    is_full = len(cells) == math.prod(int(column.max()) + 1 for column in columns)
    if not is_full or len(set(counts)) > 1 or not np.ptp(results):
        return None
    mean, total = results.mean(), np.sum((results - results.mean()) ** 2)

    def between(groups: NDArray[np.int64]) -> float:
        """The share of the variance that is one between the means of groups, given by number."""
        means = np.bincount(groups, results) / np.bincount(groups)
        return float(np.sum((means[groups] - mean) ** 2) / total)

    factors, all_cells = [between(column) for column in columns], between(cell.reshape(-1))
    repeats = max(1 - all_cells, 0.0) if counts[0] > 1 else 0.0
    return Shares(factors, max(1 - sum(factors) - repeats, 0.0), repeats)


def forest_shares(levels: NDArray[np.int64], results: NDArray[np.float64], confidence: float) -> list[Mean] | None:
    """Return the shares of runs that are no full grid, of the factors and last of interactions; None below 8 runs.

    It is the functional analysis of variance of Hutter, Hoos and Leyton-Brown (2014): that of a full grid, with what a
    random forest fitted to the runs predicts. The intervals are percentiles over runs drawn with replacement.
    """
    from sklearn.ensemble import RandomForestRegressor  # a second

    n, factors = levels.shape
    if n < FEWEST_RUNS:
        return None
    most = max(2, int(MOST_CELLS ** (1 / factors)))  # levels of a factor: of more, some in equal steps
    axes = [np.linspace(0, last, min(last + 1, most)).round().astype(int) for last in levels.max(axis=0)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, factors)

    def shares(runs: NDArray[np.int64]) -> list[float] | None:
        forest = RandomForestRegressor(TREES, random_state=0).fit(levels[runs], results[runs])
        found = variance_shares(grid, forest.predict(grid))
        return found and [*found.factors, found.interactions]

    generator = np.random.default_rng(0)
    resampled = [found for runs in generator.integers(n, size=(RESAMPLES, n)) if (found := shares(runs))]
    if not (means := shares(np.arange(n))):
        return None
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0).tolist()
    return [Mean(n, *of_one) for of_one in zip(means, low, high, strict=True)]
