"""The table of operations, and what is said of digits that were or were not memorised."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import generated_digits

from benchmarks.profile import profile
from pipeline.data.examples import Examples
from pipeline.model import inference
from pipeline.training import debug
from pipeline.training.loop import Epoch


@pytest.fixture(scope="module", autouse=True)
def started() -> None:
    inference.start(0)


def history(*figures: tuple[float, float]) -> list[Epoch]:
    return [Epoch(n, loss, accuracy, 0.0, 0.0, 0.1) for n, (loss, accuracy) in enumerate(figures, start=1)]


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([(2.3, 0.1), (0.1, 1.0), (0.2, 0.99), (0.1, 1.0), (0.1, 1.0)], "memorised all 64 examples, since epoch 4"),
        (
            [(2.3, 0.1), (2.31, 0.1), (2.29, 0.125)],
            "8 of 64 examples correct, loss 2.300 at first, 2.290 at best, 2.290 at last: it does not",
        ),
        (
            [(2.3, 0.1), (1.0, 0.5), (1.6, 0.25)],
            "16 of 64 examples correct, loss 2.300 at first, 1.000 at best, 1.600 at last: it rises",
        ),
        (
            [(2.3, 0.1), (1.0, 0.5), (0.9, 0.75)],
            "48 of 64 examples correct, loss 2.300 at first, 0.900 at best, 0.900 at last: it still",
        ),
    ],
)
def test_memorising_is_told_by_the_last_epoch_and_its_absence_by_the_loss(figures, expected):
    assert debug.memorization_report(history(*figures), 64).startswith(expected)


@pytest.mark.slow
def test_a_profile_counts_the_operations_of_a_step(compose):
    config = compose("recipe=accurate", "model.filters=2", "optimizer.batch_size=8")
    digits = Examples(*generated_digits(20, 0), np.arange(20, dtype=np.int32))
    rows = [line.split() for line in profile(config, digits, steps=3).splitlines()]
    calls = {row[0]: float(row[-1]) for row in rows[1:-2]}
    assert calls["ImageProjectiveTransformV3"] == 1  # a step
    assert (
        sum(count for kind, count in calls.items() if "Conv2DBackpropFilter" in kind) == 4 * 2
    )  # layers, ghost batches
    spent = [float(row[1]) for row in rows[1:-2]]
    assert spent == sorted(spent, reverse=True) and rows[-2][:1] == ["all,"] and float(rows[-2][-1]) >= sum(spent) - 0.2
