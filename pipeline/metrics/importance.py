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

RESAMPLES = 40
FEWEST_RUNS = 8  # that a forest is fitted to


class Shares(NamedTuple):
    """Of the variance of a full grid; together 1."""

    factors: list[float]  # alone, each
    interactions: float  # of factors with each other; without repeats also chance
    repeats: float  # between runs that have all levels in common, as seeds do; 0 without


def variance_shares(levels: NDArray[np.int64], results: NDArray[np.float64]) -> Shares | None:
    """Return the analysis of variance of a full grid, in which every combination was run equally often.

    It is None for any other grid, whose factors cannot be told apart exactly, and where all results are equal.
    """
    cells, cell, counts = np.unique(levels, axis=0, return_inverse=True, return_counts=True)
    sizes = [len(np.unique(column)) for column in levels.T]
    total = float(np.sum((results - results.mean()) ** 2))
    if len(cells) != math.prod(sizes) or len(set(counts)) > 1 or not total:
        return None

    def between(group: NDArray[np.int64]) -> float:
        """The sum of squares of the means of groups, which number the runs."""
        means = np.bincount(group, results) / np.bincount(group)
        return float(np.sum((means[group] - results.mean()) ** 2)) / total

    factors, within_cells = [between(column) for column in levels.T], between(cell.reshape(-1))
    return Shares(factors, max(within_cells - sum(factors), 0), max(1 - within_cells, 0))


def fanova(levels: NDArray[np.int64], results: NDArray[np.float64], confidence: float) -> list[Mean] | None:
    """Return each factor's share of the variance that factors explain alone, in the function that a forest fits to the
    results: fANOVA (Hutter, Hoos and Leyton-Brown 2014), by Optuna; None without it, and for fewer than 8 runs.

    All levels weigh the same. The intervals are percentiles over runs drawn with replacement.
    """
    try:
        import optuna
        from optuna.importance import FanovaImportanceEvaluator, get_param_importances
    except ImportError:
        return None
    if len(results) < FEWEST_RUNS or not np.ptp(results):
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    uniform = getattr(optuna.distributions, "FloatDistribution", None) or optuna.distributions.UniformDistribution
    space = {str(factor): uniform(0.0, 1.0) for factor in range(levels.shape[1])}
    places = (levels + 0.5) / (levels.max(axis=0) + 1)  # of equal width

    def shares(runs: NDArray[np.int64]) -> list[float]:
        study = optuna.create_study()
        for run in runs:
            params = dict(zip(space, places[run].tolist(), strict=True))
            study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=results[run]))
        found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=0))
        return [found[factor] for factor in space]

    generator, n = np.random.default_rng(0), len(results)
    drawn = [runs for runs in generator.integers(n, size=(RESAMPLES, n)) if np.ptp(results[runs])]
    low, high = np.quantile([shares(runs) for runs in drawn], [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [Mean(n, *row) for row in zip(shares(np.arange(n)), low.tolist(), high.tolist(), strict=True)]
