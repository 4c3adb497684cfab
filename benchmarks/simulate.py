"""Simulate what the statistics promise, and store how often it held in benchmarks/results/statistics.json.

    python -m benchmarks.simulate

Under no difference a test at .05 rejects in at most 5 % of tries; an interval of 95 % holds the truth in 95 %.
Seeds are drawn as counts of correct digits, ties included, with the mean and the spread of `accurate`: most digits are
right, or wrong, for every seed, and some are right in four of five.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.run import RESULTS
from pipeline import statistics
from pipeline.comparison import Side, verdicts
from pipeline.files import save_json

TRIES = 4_000
DIGITS = 10_000
OPEN, CHANCE = 100, 0.8  # digits that differ from seed to seed, and how often each is right: a deviation of 4 digits
MEAN = 9_970  # correct digits
CELLS = (0.9955, 0.0015, 0.0015, 0.0015)  # both right, one alone, the other alone, none: of two equal runs
CONFIDENCE = 0.95


def seeds(generator: np.random.Generator, n: int, mean: int = MEAN, open_digits: int = OPEN) -> list[int]:
    """Correct digits of each of n seeds."""
    always = mean - round(open_digits * CHANCE)
    return [always + int(count) for count in generator.binomial(open_digits, CHANCE, n)]


def permutation(n: int, m: int) -> Callable[[np.random.Generator], bool]:
    """Whether a difference is shown where there is none."""

    def rejects(generator: np.random.Generator) -> bool:
        a, b = seeds(generator, n), seeds(generator, m)
        return statistics.compare_groups(a, b, DIGITS, CONFIDENCE).p <= 1 - CONFIDENCE

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
    found = statistics.mean_interval(accuracies(generator), CONFIDENCE)
    return found.low <= MEAN / DIGITS <= found.high


def welch(generator: np.random.Generator) -> bool:
    """The second group is 5 digits better, and spreads twice as much."""
    a, b = seeds(generator, 5), seeds(generator, 5, MEAN + 5, 4 * OPEN)
    found = statistics.compare_groups(a, b, DIGITS, CONFIDENCE)
    return found.low <= 5 / DIGITS <= found.high


def together(generator: np.random.Generator) -> bool:
    """Three groups of 5 seeds, two alike and one 5 digits better: all three intervals, as `compare` gives them."""
    counts = [seeds(generator, 5, mean) for mean in (MEAN, MEAN, MEAN + 5)]
    sides = [Side("", {}, np.arange(DIGITS) < np.array(count)[:, None], [], 0, 0) for count in counts]
    tests = [verdict.test for verdict in verdicts(sides, CONFIDENCE, "test")]
    differences = [difference / DIGITS for difference in (0, 5, 5)]
    return all(test.low <= value <= test.high for test, value in zip(tests, differences, strict=True) if test)


def one_more(generator: np.random.Generator) -> bool:
    low, high = statistics.prediction_interval(accuracies(generator), CONFIDENCE)
    return low <= seeds(generator, 1)[0] / DIGITS <= high


def accuracies(generator: np.random.Generator) -> list[float]:
    return [count / DIGITS for count in seeds(generator, 10)]


SIMULATIONS: dict[str, tuple[str, Callable[[np.random.Generator], bool]]] = {
    "permutation test, 3 + 3 seeds": ("rejects, under no difference", permutation(3, 3)),
    "permutation test, 5 + 5 seeds": ("rejects, under no difference", permutation(5, 5)),
    "permutation test, 4 + 7 seeds": ("rejects, under no difference", permutation(4, 7)),
    "McNemar's test, 10,000 digits": ("rejects, under no difference", mcnemar),
    "difference of two runs (Agresti and Min), 10,000 digits": ("holds the truth", pair_interval),
    "mean of 10 seeds (Student)": ("holds the truth", mean_interval),
    "difference of 5 + 5 seeds (Welch)": ("holds the truth", welch),
    "all differences of 3 groups of 5 seeds": ("hold the truth", together),
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
