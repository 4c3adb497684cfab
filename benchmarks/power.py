"""Simulate how often a difference is shown on 5,000 digits and on the folds of a cross-validation, into
benchmarks/results/power.json.

    python -m benchmarks.power

A digit is drawn from the 15,000 that ten seeds of `fast` and ten of `accurate` were scored on (accuracy.json), with how
often each of the two has it wrong. These shares are raised to a power that brings their mean to the error rate asked
for: a digit that all seeds have wrong stays one. Each simulated seed then errs on its own.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from benchmarks.report import CONFIDENCE, SPLIT, Trial, interval, percent, table
from pipeline.base.files import load_json, save_json
from pipeline.metrics.metrics import wilson_interval
from pipeline.metrics.significance import compare_sums

TRIES, ALPHA = 4_000, 0.05
# Two configurations and their error rates: the correlation of their errors is that of real ones.
SIDES = {
    "0.34 against 0.30 % wrong, like `fast` and `accurate`": (("fast", 0.0034), ("accurate", 0.0030)),
    "0.34 against 0.30 % wrong, both like `accurate`": (("accurate", 0.0034), ("accurate", 0.0030)),
    "no difference: 0.32 % wrong, like `fast` and `accurate`": (("fast", 0.0032), ("accurate", 0.0032)),
}
DESIGNS = {"5,000 validation digits, 1 seed": (5_000, 1)} | {
    f"60,000 digits in 5 folds, {seeds} seed{'s' * (seeds > 1)}": (60_000, seeds) for seeds in (1, 3, 5)
}


def shares_wrong(trials: list[Trial], name: str) -> NDArray[np.float64]:
    """Return for each validation and test digit the share of the seeds of `name` that have it wrong."""
    seeds = [trial for trial in trials if (trial["what"], trial["train_digits"]) == (name, SPLIT)]
    counts = np.zeros(seeds[0]["val_digits"] + seeds[0]["test_digits"])
    for trial in seeds:
        counts[[*trial["val_wrong"], *(trial["val_digits"] + digit for digit in trial["test_wrong"])]] += 1
    return counts / len(seeds)


def at_rate(shares: NDArray[np.float64], rate: float) -> NDArray[np.float64]:
    """Return the shares to the power with which their mean is `rate`."""
    wrong = shares > 0
    power = brentq(lambda exponent: np.sum(shares[wrong] ** exponent) / len(shares) - rate, 0.01, 100)
    return np.where(wrong, shares**power, 0)


def shown(generator: np.random.Generator, a: NDArray[np.float64], b: NDArray[np.float64], digits: int, n: int) -> bool:
    """Draw digits, and n seeds a side that have them wrong with the chances `a` and `b`: is a difference shown?"""
    drawn = generator.integers(len(a), size=digits)
    open_digits = drawn[(a[drawn] > 0) | (b[drawn] > 0)]  # those that nobody has wrong do not change p
    a_right, b_right = (generator.random((n, len(open_digits))) >= chances[open_digits] for chances in (a, b))
    return compare_sums(a_right, b_right, 1 - ALPHA).p < ALPHA


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the correlation of the errors of one seed a side."""
    covariance = np.mean(a * b) - a.mean() * b.mean()
    return float(covariance / np.sqrt(a.mean() * (1 - a.mean()) * b.mean() * (1 - b.mean())))


def blocks(read: Callable[[str], str]) -> Mapping[str, str]:
    """Return the table for docs/comparing.md: a row for each design, a column for each two configurations."""
    trials: Sequence[Trial] = json.loads(read("benchmarks/results/power.json"))["trials"]
    columns = {trial["event"]: f"{trial['event']}, correlation {trial['correlation']:.2f}" for trial in trials}
    rows = [[name, *(_cell(one) for one in trials if one["what"] == name)] for name in DESIGNS]
    note = f"In brackets: 95 % Wilson intervals, n = {TRIES:,} simulations each."
    return {"power": f"{table(('compared on', *columns.values()), rows)}\n{note}\n"}


def _cell(trial: Trial) -> str:
    limits = wilson_interval(trial["count"], trial["tries"], CONFIDENCE)
    return f"{percent(trial['count'] / trial['tries'], 1)} ({interval(*limits, 1)})"


if __name__ == "__main__":
    measured: Any = load_json(Path("benchmarks/results/accuracy.json"))["trials"]
    trials: list[Trial] = []
    for event, sides in SIDES.items():
        a, b = (at_rate(shares_wrong(measured, name), rate) for name, rate in sides)
        for name, (digits, n) in DESIGNS.items():
            generator = np.random.default_rng(len(trials))
            count = sum(shown(generator, a, b, digits, n) for _ in range(TRIES))
            trial = {"what": name, "event": event, "count": count, "tries": TRIES}
            trials.append(trial | {"correlation": correlation(a, b)})
            print(trials[-1], flush=True)
    save_json(Path("benchmarks/results/power.json"), {"trials": trials})
