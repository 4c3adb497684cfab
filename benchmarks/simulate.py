"""Simulate false-positive rate, power and coverage of the statistics, into benchmarks/results/statistics.json.

    python -m benchmarks.simulate

Seeds are drawn as counts of correct digits, ties included, with the mean and the spread of `accurate`: most digits are
right, or wrong, for every seed, and some are right in four of five.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pipeline.base.files import save_json
from pipeline.metrics import significance
from pipeline.metrics.metrics import Interval
from pipeline.metrics.significance import compare_groups
from pipeline.reports.verdicts import Side, verdicts

TRIES, DIGITS, MEAN = 4_000, 10_000, 9_970  # simulations; test digits, and how many are correct
OPEN, CHANCE = 100, 0.8  # digits that differ from seed to seed, and how often each is right: a deviation of 4 digits
CELLS = (0.9955, 0.0015, 0.0015, 0.0015)  # of two equal runs: both right, one alone, the other alone, none
CONFIDENCE = 0.95
POSITIVES, POWER, COVERED = "false positives", "differences found (power)", "intervals that hold the true value"
Bounds = significance.Mean | significance.Pair | significance.Sums | significance.Groups
Simulation = Callable[[np.random.Generator], bool]


def seeds(generator: np.random.Generator, n: int, better: int = 0, open_digits: int = OPEN) -> list[int]:
    """Return the correct digits of each of n seeds, whose mean is `better` than MEAN."""
    always = MEAN + better - round(open_digits * CHANCE)
    return [always + int(count) for count in generator.binomial(open_digits, CHANCE, n)]


def shares(generator: np.random.Generator, n: int) -> list[float]:
    return [count / DIGITS for count in seeds(generator, n)]


def holds(interval: Interval | Bounds, value: float) -> bool:
    return interval.low <= value <= interval.high


def pair(generator: np.random.Generator) -> significance.Pair:
    cells = generator.multinomial(DIGITS, CELLS)
    a, b = (np.repeat(right, cells) for right in ([True, True, False, False], [True, False, True, False]))
    return significance.compare_runs(a, b, CONFIDENCE)


def groups(n: int, m: int, better: int = 0) -> Simulation:
    """Return whether the permutation test shows a difference between n seeds and m seeds that are `better`."""
    return lambda g: compare_groups(seeds(g, n), seeds(g, m, better), DIGITS, CONFIDENCE).p <= 1 - CONFIDENCE


def all_hold(generator: np.random.Generator) -> bool:
    """Three groups of 5 seeds, two alike and one 5 digits better: all three intervals, as `compare` gives them."""
    counts = [seeds(generator, 5, better) for better in (0, 0, 5)]
    sides = [Side("", {}, np.arange(DIGITS) < np.array(count)[:, None], [], 0, 0) for count in counts]
    tests = [verdict.test for verdict in verdicts(sides, CONFIDENCE, "test")]
    return all(holds(test, value / DIGITS) for test, value in zip(tests, (0, 5, 5), strict=True) if test)


def simulations() -> Iterator[tuple[str, str, Simulation]]:
    """Yield a name, what is counted, and one simulation; each has the random numbers of its position."""
    level = CONFIDENCE
    for n, m in ((3, 3), (5, 5), (4, 7)):
        yield f"permutation test, {n} + {m} seeds", POSITIVES, groups(n, m)
    yield "McNemar's test, 10,000 digits", POSITIVES, lambda g: pair(g).p <= 1 - level
    yield "difference of two runs (Agresti and Min)", COVERED, lambda g: holds(pair(g), 0)
    mean, prediction = significance.mean_interval, significance.prediction_interval
    yield "mean of 10 seeds (Student)", COVERED, lambda g: holds(mean(shares(g, 10), level), MEAN / DIGITS)
    wide = 4 * OPEN  # the second group spreads twice as much
    welch: Simulation = lambda g: holds(compare_groups(seeds(g, 5), seeds(g, 5, 5, wide), DIGITS, level), 5 / DIGITS)  # noqa: E731
    yield "difference of 5 + 5 seeds (Welch)", COVERED, welch
    yield "all differences of 3 groups of 5 seeds", COVERED, all_hold
    next_seed: Simulation = lambda g: holds(prediction(shares(g, 10), level), shares(g, 1)[0])  # noqa: E731
    yield "prediction interval after 10 seeds", COVERED, next_seed
    deviation = (OPEN * CHANCE * (1 - CHANCE)) ** 0.5 / DIGITS
    for n in (5, significance.seeds_needed(5 / DIGITS, (deviation, deviation), 1 - level) or 0):
        yield f"permutation test, {n} + {n} seeds, 5 digits (0.05 points) apart", POWER, groups(n, n, better=5)


if __name__ == "__main__":
    trials = []
    for number, (name, event, happens) in enumerate(simulations()):
        generator = np.random.default_rng(number)
        count = sum(bool(happens(generator)) for _ in range(TRIES))
        trials.append({"what": name, "event": event, "count": count, "tries": TRIES})
        print(trials[-1], flush=True)
    save_json(Path("benchmarks/results/statistics.json"), {"trials": trials})
