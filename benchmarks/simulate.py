"""Simulate what the statistics promise, and store how often it held in benchmarks/results/statistics.json.

    python -m benchmarks.simulate

Under no difference a test at .05 rejects in at most 5 % of tries; an interval of 95 % holds the truth in 95 %.
Accuracies of seeds are drawn as the sum of many small causes, from a normal distribution with the spread of `accurate`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.run import RESULTS
from pipeline import statistics
from pipeline.files import save_json

TRIES = 4_000
MEAN, SEEDS = 0.997, 0.0004  # of accuracies: their mean, and the standard deviation over seeds
DIGITS = 10_000
CELLS = (0.9955, 0.0015, 0.0015, 0.0015)  # both right, one alone, the other alone, none: of two equal runs
CONFIDENCE = 0.95


def permutation(n: int, m: int) -> Callable[[np.random.Generator], bool]:
    """Whether a difference is shown where there is none."""

    def rejects(generator: np.random.Generator) -> bool:
        a, b = generator.normal(MEAN, SEEDS, n), generator.normal(MEAN, SEEDS, m)
        return statistics.compare_groups(a.tolist(), b.tolist(), CONFIDENCE).p <= 1 - CONFIDENCE

    return rejects


def pair(generator: np.random.Generator) -> statistics.Pair:
    both, only_a, only_b, neither = generator.multinomial(DIGITS, CELLS)
    a = np.repeat([True, True, False, False], [both, only_a, only_b, neither])
    b = np.repeat([True, False, True, False], [both, only_a, only_b, neither])
    return statistics.compare_runs(a, b, CONFIDENCE)


def mcnemar(generator: np.random.Generator) -> bool:
    return pair(generator).p <= 1 - CONFIDENCE


def pair_interval(generator: np.random.Generator) -> bool:
    found = pair(generator)
    return found.low <= 0 <= found.high


def mean_interval(generator: np.random.Generator) -> bool:
    found = statistics.mean_interval(generator.normal(MEAN, SEEDS, 10).tolist(), CONFIDENCE)
    return found.low <= MEAN <= found.high


def welch(generator: np.random.Generator) -> bool:
    a, b = generator.normal(MEAN, SEEDS, 5), generator.normal(MEAN + 0.0005, 2 * SEEDS, 5)
    found = statistics.compare_groups(a.tolist(), b.tolist(), CONFIDENCE)
    return found.low <= 0.0005 <= found.high


def one_more(generator: np.random.Generator) -> bool:
    found = statistics.prediction_interval(generator.normal(MEAN, SEEDS, 10).tolist(), CONFIDENCE)
    return found.low <= generator.normal(MEAN, SEEDS) <= found.high


SIMULATIONS: dict[str, tuple[str, Callable[[np.random.Generator], bool]]] = {
    "permutation test, 3 + 3 seeds": ("rejects, under no difference", permutation(3, 3)),
    "permutation test, 5 + 5 seeds": ("rejects, under no difference", permutation(5, 5)),
    "permutation test, 4 + 7 seeds": ("rejects, under no difference", permutation(4, 7)),
    "McNemar's test, 10,000 digits": ("rejects, under no difference", mcnemar),
    "difference of two runs (Agresti and Min), 10,000 digits": ("holds the truth", pair_interval),
    "mean of 10 seeds (Student)": ("holds the truth", mean_interval),
    "difference of 5 + 5 seeds (Welch)": ("holds the truth", welch),
    "one more seed after 10": ("holds the truth", one_more),
}


def main() -> None:
    trials: list[dict[str, Any]] = []
    for number, (what, (event, happens)) in enumerate(SIMULATIONS.items()):
        generator = np.random.default_rng(number)
        count = sum(happens(generator) for _ in range(TRIES))
        trials.append({"what": what, "event": event, "count": int(count), "tries": TRIES})
        print(f"{what}: {event} in {count} of {TRIES:,}", flush=True)
    save_json(RESULTS / "statistics.json", {"trials": trials})


if __name__ == "__main__":
    main()
