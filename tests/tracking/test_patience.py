"""Early stopping as a run holds it: the best epoch's model is written, also after a kill, and said to be that."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from conftest import FEW_DIGITS, ROOT

from pipeline.base.files import load_json, load_yaml
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.experiments import run as experiment_run
from pipeline.experiments.run import Split, Trained, train_tracked
from pipeline.model.files import weights_sha256
from pipeline.tracking import queries
from pipeline.tracking.fingerprint import fingerprint
from pipeline.training import loop

SMALL = ("recipe=baseline", "data.image_shape=[10,10]", "model.filters=2", "model.dropout=0.5")
SMALL += ("optimizer.filter_groups=1",)
SMALL += ("optimizer.name=sgd", "optimizer.args={momentum: 0.9, nesterov: true}", "optimizer.learning_rate=0.0001")
ACCURACIES = [0.5, 0.75, 0.625, 0.75]  # the second is the best, and patience ends after the fourth
WORDS = "epoch 2 of 4, the best by val_accuracy on the validation examples"


SPLIT = Split(*FEW_DIGITS)


def train(home: Path, config: Config, folder: str, killed_after: int = 0) -> Trained:
    """Train with validation accuracies as they are given above; killed when the checkpoint of an epoch is written."""

    def fit(*args: Any) -> Iterator[Any]:
        for epoch, seconds, state in loop.fit(*args):
            yield epoch._replace(val_accuracy=ACCURACIES[epoch.epoch - 1]), seconds, state
            if epoch.epoch == killed_after:
                raise KeyboardInterrupt

    project = Project(ROOT, home, job_folder=home / "outputs" / folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_run, "fit", fit)
        return train_tracked(project, config, SPLIT, fingerprint(project, config, [home / "train.npz"]), "patient")


@pytest.fixture(scope="module")
def stopped(home, compose) -> Trained:
    return train(home, compose(*SMALL, "train.patience=2", "train.epochs=9"), "stopped")


def test_training_stops_and_the_model_is_that_of_the_best_epoch(home, compose, stopped):
    assert [epoch.epoch for epoch in stopped.history] == [1, 2, 3, 4] and stopped.kept.epoch == 2
    with stopped.model_file.with_name("history.csv").open(newline="") as file:
        assert [float(row["val_accuracy"]) for row in csv.DictReader(file)] == ACCURACIES
    as_long = train(home, compose(*SMALL, "train.epochs=2"), "two epochs")
    assert weights_sha256(as_long.model_file) == weights_sha256(stopped.model_file)
    assert as_long.kept == as_long.history[-1]


def test_the_run_says_which_epoch_it_is_and_how_it_was_chosen(stopped):
    client = mlflow.MlflowClient()
    run = client.get_run(stopped.tracked.removeprefix("MLflow run "))
    assert run.data.tags["kept"] == WORDS and load_json(stopped.model_file.with_name("tags.json"))["kept"] == WORDS
    assert run.data.metrics["best_epoch"] == 2 and run.data.metrics["best_val_accuracy"] == 0.75
    assert run.data.metrics["best_train_loss"] == stopped.history[1].train_loss
    assert queries.final(run, "train_accuracy") == stopped.history[1].train_accuracy
    assert len(queries.curve(run, "val_accuracy")) == 4
    assert load_yaml(stopped.model_file.with_name("config.yaml"))["train"]["patience"] == 2


@pytest.mark.parametrize("epoch", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_killed_and_resumed_it_keeps_the_same_bits(home, compose, stopped, capsys, epoch):
    """After the fourth epoch no other is to come: only the results were not written."""
    config = compose(*SMALL, "train.patience=2", "train.epochs=9")
    with pytest.raises(KeyboardInterrupt):
        train(home, config, f"killed {epoch}", killed_after=epoch)
    resumed = train(home, config, f"resumed {epoch}")
    printed = capsys.readouterr().out
    assert f"patient: continues after epoch {epoch}" in printed and f"patient: keeps {WORDS}" in printed
    assert resumed.model_file.read_bytes() == stopped.model_file.read_bytes()
    assert [row[:4] for row in resumed.history] == [row[:4] for row in stopped.history]


def test_how_long_a_patient_training_may_last_is_part_of_what_it_is(home, compose):
    project = Project(ROOT, home)
    keys = [
        fingerprint(project, compose("recipe=baseline", *words), [home / "train.npz"]).resume_key["configuration"]
        for words in (
            ("train.epochs=3",),
            ("train.epochs=4",),
            ("train.epochs=3", "train.patience=2"),
            ("train.epochs=4", "train.patience=2"),
            ("train.epochs=3", "optimizer.schedule=cosine"),
            ("train.epochs=4", "optimizer.schedule=cosine"),
        )
    ]
    assert keys[0] == keys[1] and len(set(keys)) == 5
