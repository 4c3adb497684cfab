"""Cross-validation as typed: one sweep, one mean, and comparisons on all examples outside of the test set."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import children, parent_of, pipeline, store

SWEEP = ("sweep=folds", "recipe=baseline", "train.folds=3", "train.epochs=1")


@pytest.fixture(scope="module")
def swept(clone) -> subprocess.CompletedProcess[str]:
    """Three folds of two configurations, with the test digits taken away."""
    test = clone / "data/processed/test.npz"
    hidden = test.rename(test.with_name("hidden.npz"))
    done = pipeline(clone, "train", *SWEEP, "model.filters=2,3")
    hidden.rename(test)
    assert done.returncode == 0, done.stderr
    return done


def out_of_fold(clone: Path, parent: str) -> dict[str, list[dict[str, str]]]:
    """The rows of the files of the parent run, by configuration and seed."""
    client = store(clone)
    files = [item.path for item in client.list_artifacts(parent) if item.path.startswith("out_of_fold")]
    read = {name: Path(client.download_artifacts(parent, name)).read_text() for name in files}
    return {name: list(csv.DictReader(text.splitlines())) for name, text in read.items()}


@pytest.mark.slow
def test_every_example_is_validated_on_once_in_each_configuration(clone, swept):
    parent = parent_of(swept)
    assert "6 jobs" in swept.stdout and "BBC-CV" not in swept.stdout
    found, tables = children(clone, parent), out_of_fold(clone, parent)
    assert {run.data.params["data.val_examples"] for run in found} == {"133", "134"}
    assert len(tables) == 2 and {name.split("_")[3] for name in tables} == {run.data.tags["group"] for run in found}
    for name, rows in tables.items():
        assert [int(row["index"]) for row in rows] == list(range(400))
        for run in found:
            if run.data.tags["group"] in name:
                of_fold = [row for row in rows if row["fold"] == run.data.params["train.fold"]]
                share = sum(row["label"] == row["prediction"] for row in of_fold) / len(of_fold)
                assert share == pytest.approx(run.data.metrics["val_accuracy"], abs=1e-6)
    assert len(re.findall(r"^\| model.filters=[23] \| group g\w{12} +\| +1 × 3 \|", swept.stdout, re.MULTILINE)) == 2
    assert "best_run" not in store(clone).get_run(parent).data.tags, "a fold is no choice"


@pytest.mark.slow
@pytest.mark.sample
def test_cross_validations_are_compared_on_all_examples_but_those_of_the_test(clone, swept):
    done = pipeline(clone, "compare", f"a={parent_of(swept)}")
    assert done.returncode == 0, done.stderr
    assert "n = 1 × 3 folds + 1 × 3 folds, 400 out-of-fold examples; this holds for these networks" in done.stdout
    assert "Compared on the out-of-fold examples" in done.stdout and "Over the 3 folds" in done.stdout
    [run_id] = re.findall(r"MLflow run (\w{32})", done.stdout)
    answer = json.loads(Path(store(clone).download_artifacts(run_id, "comparison.json")).read_text())
    wrong = {
        sum(row["label"] != row["prediction"] for row in rows) for rows in out_of_fold(clone, parent_of(swept)).values()
    }
    assert {round(400 * (1 - side["accuracies"][0])) for side in answer["sides"].values()} == wrong
    assert answer["compared_on"] == "out-of-fold"
    mixed = pipeline(clone, "compare", f"a={parent_of(swept)}", "b=baseline")
    assert mixed.returncode == 1 and "one side is a cross-validation and another is not" in mixed.stderr


@pytest.mark.slow
def test_errors_are_summed_over_seeds_and_the_parent_holds_the_mean(clone, swept):
    words = (*SWEEP, "seed=range(0,3)")
    two, three = (pipeline(clone, "train", *words, f"model.filters={filters}") for filters in (2, 3))
    assert two.returncode == three.returncode == 0, two.stderr + three.stderr
    assert "9 jobs, 3 found finished" in two.stdout and len(out_of_fold(clone, parent_of(two))) == 3
    metrics = store(clone).get_run(parent_of(two)).data.metrics
    wrong = [row["label"] != row["prediction"] for of in out_of_fold(clone, parent_of(two)).values() for row in of]
    assert metrics["val_accuracy"] == pytest.approx(1 - sum(wrong) / len(wrong), abs=1e-3)
    assert metrics["val_accuracy_low"] < metrics["val_accuracy"] < metrics["val_accuracy_high"]
    again = pipeline(clone, "train", *words, "model.filters=2")
    assert again.returncode == 0 and "9 jobs, 9 found finished" in again.stdout
    assert len(store(clone).get_metric_history(parent_of(two), "val_accuracy")) == 1
    done = pipeline(clone, "compare", f"a={parent_of(two)}", f"b={parent_of(three)}")
    assert done.returncode == 0, done.stderr
    assert "n = 3 × 3 folds + 3 × 3 folds, 400 out-of-fold examples, errors summed by example" in done.stdout


@pytest.mark.slow
def test_a_fold_is_reproduced_to_the_bit(clone, swept):
    [run, *_] = children(clone, parent_of(swept))
    done = pipeline(clone, "reproduce", f"run={run.info.run_id}")
    assert done.returncode == 0 and "identical bits" in done.stdout, done.stderr
