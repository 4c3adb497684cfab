"""Odd data through the verbs: all labels alike, a class missing, one example, a huge batch, none at all.

Each ends in a correct result, or in an error that says what to change.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, generated_digits
from faults_report import record

from pipeline import compare, evaluate, train
from pipeline.base.errors import UserError
from pipeline.base.hydra import compose
from pipeline.base.project import open_project
from pipeline.base.schema import Config
from pipeline.base.verb_schemas import CompareConfig, RunConfig
from pipeline.data.examples import Examples, save_arrays, split_record

pytestmark = pytest.mark.faults

PROMISE = "odd data end in a correct result, or in an error of one line"
SMALL = ("recipe=accurate", "model.filters=1", "train.epochs=1", "optimizer.ghost_batches=1")
TENS = [n % 10 for n in range(40)]
LABELS = {  # of the examples for training, validation and test
    "usual": (TENS, TENS, TENS),
    "all labels alike": ([3] * 40, [3] * 10, [3] * 10),
    "a class missing in training": ([n % 9 for n in range(40)], TENS, TENS),
    "a class missing in the test": (TENS, TENS, [n % 9 for n in range(40)]),
    "one example": ([5], [5], [5]),
    "no validation": (TENS, [], TENS),
    "no training": ([], TENS, TENS),
    "no test": (TENS, TENS, []),
}
QUICK = ["no validation"]
SLOW = ["one example", "usual", "all labels alike", "a class missing in training", "a class missing in the test"]


class Repository:
    """A project of its own, whose verbs are called in this process."""

    def __init__(self, folder: Path) -> None:
        for name in ("pipeline", "conf", "reference", "params.yaml"):
            (folder / name).symlink_to(ROOT / name)
        self.project = open_project(folder)
        self.data = compose(self.project).data

    def split(self, name: str) -> Repository:
        """Put generated images with these labels in place."""
        for part, labels in zip(("train", "val", "test"), LABELS[name], strict=True):
            count = len(labels)
            images = generated_digits(count, 0)[0].reshape(count, 28, 28)
            arrays = Examples(images, np.array(labels, np.uint8), np.arange(count, dtype=np.int32))
            save_arrays(self.project.processed / f"{part}.npz", **arrays._asdict())
        (self.project.processed / "split.json").write_text(json.dumps(split_record(self.data)))
        return self

    def config(self, *overrides: str, schema: type[Config] = Config) -> Any:
        return compose(self.project, *overrides, schema=schema)

    def trained(self, capsys: pytest.CaptureFixture[str], *overrides: str) -> str:
        """Return the id of the run that this trains."""
        train.train(self.project, self.config(*SMALL, *overrides))
        return capsys.readouterr().out.split()[-1]

    def evaluate(self, run: str) -> Path:
        """Return the folder where the evaluation of a run was written."""
        evaluate.evaluate(self.project, self.config(f"run='{run}'", schema=RunConfig))
        return max((self.project.root / "outputs").glob("*/metrics.json")).parent


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE"):
            patch.delenv(name, raising=False)
        yield Repository(tmp_path_factory.mktemp("odd"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_odd_data_are_trained_on_and_evaluated_correctly(repository, capsys, name):
    run = repository.split(name).trained(capsys, "optimizer.batch_size=1000")  # larger than the data
    folder = repository.evaluate(run)
    metrics, labels = json.loads((folder / "metrics.json").read_text()), LABELS[name][2]
    rows = (folder / "predictions.csv").read_text().splitlines()[1:]
    columns = [[int(field) for field in row.split(",")[1:3]] for row in rows]
    assert [label for label, _ in columns] == labels and metrics["test_examples"] == len(labels)
    wrong = sum(label != prediction for label, prediction in columns)
    assert metrics["test_errors"] == wrong and metrics["test_accuracy"] == pytest.approx(1 - wrong / len(labels))
    assert metrics["test_accuracy_low"] <= metrics["test_accuracy"] <= metrics["test_accuracy_high"]
    assert (metrics["val_accuracy"] is None) == (name == "no validation")
    record(PROMISE, 1, 1)


def test_no_examples_at_all_are_an_error(repository):
    with pytest.raises(UserError, match=r"data/processed/train\.npz is empty: give a larger data\.fraction"):
        train.train(repository.split("no training").project, repository.config(*SMALL))
    with pytest.raises(UserError, match=r"data/processed/test\.npz is empty: give a larger data\.fraction"):
        evaluate.evaluate(repository.split("no test").project, repository.config(schema=RunConfig))
    record(PROMISE, 2, 2)


def test_a_last_batch_of_fewer_examples_than_ghost_batches_is_an_error(repository):
    with pytest.raises(UserError, match=r"^1 examples leave a last batch smaller than optimizer\.ghost_batches=2"):
        train.train(repository.split("one example").project, repository.config(*SMALL, "optimizer.ghost_batches=2"))
    record(PROMISE, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["all labels alike", "one example"])
def test_odd_data_are_compared(repository, capsys, name):
    repository.split(name)
    sides = [
        f"{side}='{repository.trained(capsys, f'model.filters={filters}')}'" for side, filters in (("a", 1), ("b", 2))
    ]
    compare.compare(repository.project, repository.config(*sides, schema=CompareConfig))
    assert f"{len(LABELS[name][1])} validation examples" in capsys.readouterr().out
    record(PROMISE, 1, 1)


@pytest.mark.slow
def test_runs_without_validation_examples_are_compared_after_their_evaluation_alone(repository, capsys):
    repository.split("no validation")
    runs = [repository.trained(capsys, f"model.filters={filters}") for filters in (1, 2)]
    config = repository.config(f"a='{runs[0]}'", f"b='{runs[1]}'", schema=CompareConfig)
    with pytest.raises(UserError, match=r"^a run has no validation examples: evaluate all on the test examples"):
        compare.compare(repository.project, config)
    for run in runs:
        repository.evaluate(run)
    compare.compare(repository.project, config)
    assert "40 test examples" in capsys.readouterr().out
    record(PROMISE, 1, 1)
