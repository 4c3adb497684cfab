"""Early stopping as typed: trained, evaluated, reproduced, swept."""

from __future__ import annotations

import json
import re

import pytest
from conftest import pipeline

WORDS = ("recipe=baseline", "train.epochs=12", "train.patience=1", "train.monitor=val_loss", "model.dropout=0.25")
WORDS += ("optimizer.filter_groups=1",)
WORDS += ("optimizer.name=sgd", "optimizer.args={momentum: 0.9, nesterov: true}", "optimizer.learning_rate=0.0001")


@pytest.mark.slow
def test_every_command_takes_the_kept_epoch_for_what_it_is(repository):
    done = pipeline(repository, "train", *WORDS)
    assert done.returncode == 0, done.stderr
    [(best, epochs)] = re.findall(r"keeps epoch (\d+) of (\d+), the best by val_loss on the validation", done.stdout)
    assert int(epochs) in (12, int(best) + 1)
    [run] = re.findall(r"MLflow run (\w{32})", done.stdout)
    evaluated = pipeline(repository, "evaluate", f"run={run}")
    assert evaluated.returncode == 0, evaluated.stderr
    [metrics_file] = repository.glob("outputs/*/metrics.json")
    metrics = json.loads(metrics_file.read_text())
    assert (metrics["best_epoch"], metrics["epochs"]) == (int(best), int(epochs))
    [history] = repository.glob("outputs/*/history.csv")
    row = history.read_text().splitlines()[int(best)].split(",")
    assert [float(value) for value in row[1:5]] == [
        metrics[key] for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
    ]
    card = (metrics_file.parent / "model_card.md").read_text()
    assert f"Its weights are those of epoch {best} of {epochs}, the best by val_loss" in card
    again = pipeline(repository, "reproduce", f"run={run}")
    assert again.returncode == 0 and "identical bits" in again.stdout, again.stdout + again.stderr


@pytest.mark.slow
def test_a_sweep_with_patience_ranks_by_the_kept_epochs(repository):
    done = pipeline(repository, "train", "-m", *WORDS[:3], "seed=0,1")
    assert done.returncode == 0, done.stderr
    assert "Best epoch, ranked by validation accuracy" in done.stdout
    assert len(re.findall(r"^seed=\d: keeps epoch", done.stdout, re.MULTILINE)) == 2
