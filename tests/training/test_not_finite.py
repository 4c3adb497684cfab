"""Losses and weights that are no longer numbers, in the first, a middle and the last batch."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import generated_digits, pipeline, runs
from faults_report import record

from pipeline.base.errors import UserError
from pipeline.data.examples import Examples
from pipeline.model import build, inference
from pipeline.training import loop

pytestmark = pytest.mark.faults

PROMISE = "A training whose loss or weights are no longer finite stops within one step, and keeps nothing of it"
STEPS = 8  # an epoch
DIGITS = Examples(*generated_digits(5 * STEPS, 0), np.arange(5 * STEPS, dtype=np.int32))


FIRST, MIDDLE, LAST = 0, STEPS + 3, 2 * STEPS - 1
QUICK = [
    ("loss", math.nan, FIRST),
    ("loss", math.inf, MIDDLE),
    ("loss", math.nan, LAST),
    ("weights", -math.inf, MIDDLE),
    ("weights", math.nan, LAST),
]
ALL = itertools.product(["loss", "weights"], [math.nan, math.inf, -math.inf], [FIRST, MIDDLE, LAST])


@pytest.mark.parametrize(
    ("place", "value", "at"), [*QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in ALL if one not in QUICK)]
)
def test_it_stops_within_one_step(compose, monkeypatch, place, value, at):
    config = compose(
        "recipe=baseline", "model.filters=2", "train.epochs=2", "optimizer.batch_size=5", "optimizer.filter_groups=1"
    )
    inference.start(0)
    cnn = build.build_cnn(config.model, (28, 28), 10)
    steps = tf.Variable(0)
    sound = loop.Trainer._step

    def poisoned(trainer, images, labels, rate, strength, step):
        steps.assign_add(1)
        wrong = tf.where(step == at, value, 0.0)
        loss, correct = sound(trainer, images, labels, rate, strength, step)
        if place == "loss":
            return loss + wrong, correct
        for variable in trainer.variables:
            variable.assign_add(tf.fill(variable.shape, wrong))
        return loss, correct

    monkeypatch.setattr(loop.Trainer, "_step", poisoned)
    kept = []
    with pytest.raises(UserError, match=r"^the (loss|model) is not finite in epoch \d, step \d of 8 \(last") as error:
        for epoch, _, state in loop.fit(cnn, config, DIGITS, DIGITS, lambda *_: None):
            kept.append((epoch, state()))
    seen = at + (place == "weights" and at < 2 * STEPS - 1)  # the step whose loss shows it
    assert f"in epoch {seen // STEPS + 1}, step {seen % STEPS + 1} of" in str(error.value)
    assert steps.numpy() == seen + 1, "no step more was taken"
    assert len(kept) == at // STEPS, "the epochs before it alone"
    assert all(np.isfinite(weight).all() for _, state in kept for arrays in state for weight in arrays)
    record(PROMISE, 1, 1)


@pytest.mark.slow
def test_as_a_command_it_leaves_a_failed_run_and_neither_checkpoint_nor_model(clone):
    before = set((clone / "outputs").rglob("*"))
    known = {run.info.run_id for run in runs(clone)}
    words = ("recipe=baseline", "train.epochs=2", "optimizer.batch_size=4", "optimizer.weight_decay=0.99")
    done = pipeline(clone, "train", *words, "optimizer.learning_rate=10")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the loss is not finite in epoch 1, step ") and done.stderr.count("\n") == 1
    assert "lower optimizer.learning_rate=10" in done.stderr
    [failed] = [run for run in runs(clone) if run.info.run_id not in known]
    assert failed.info.status == "FAILED" and "model_sha256" not in failed.data.tags
    assert failed.data.params["optimizer.learning_rate"] == "10.0"
    left = {path.name for path in set((clone / "outputs").rglob("*")) - before}
    assert "config.yaml" in left and "model.keras" not in left and not [name for name in left if name.endswith(".ckpt")]
    record(PROMISE, 1, 1)
