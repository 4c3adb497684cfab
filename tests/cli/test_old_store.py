"""Runs that an earlier version recorded, read after a key was added to the configuration and others were renamed.

stores/2026-11-28_7bc5383.tar.xz holds two trainings of commit 7bc5383 on the digits of `repository`: mlflow.db and
mlruns, with `train.profile_steps` and the recipe's `name`, which are no keys any more.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from conftest import ROOT, copy, pipeline, runs

from pipeline.tracking import environment


@pytest.fixture(scope="module")
def old(repository, tmp_path_factory) -> Path:
    folder = copy(repository, tmp_path_factory.mktemp("old"))
    with tarfile.open(ROOT / "tests/stores/2026-11-28_7bc5383.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    schema = folder / "pipeline/base/schema.py"
    text = schema.read_text()
    later = text.replace("class Model(Section):\n", "class Model(Section):\n    dropout: float = 0.0\n")
    assert later != text
    schema.write_text(later)
    return folder


@pytest.fixture(scope="module")
def ids(old) -> list[str]:
    done = pipeline(old, "sync")  # lets the addresses of the artifacts follow the store
    assert done.returncode == 0, done.stderr
    return [run.info.run_id for run in runs(old, "tags.recipe = 'baseline'")]


def test_they_are_evaluated(old, ids):
    for run_id in ids:
        done = pipeline(old, "evaluate", f"run={run_id}")
        assert done.returncode == 0, done.stderr
        [run] = runs(old, f"attributes.run_id = '{run_id}'")
        assert f"{run.data.metrics['test_errors']:.0f} errors of 100" in done.stdout


def test_they_are_compared_by_what_differs(old, ids):
    done = pipeline(old, "compare", f"a={ids[0]}", f"b={ids[1]}")
    assert done.returncode == 0, done.stderr
    [file] = (old / "outputs").glob("*/comparison.json")
    sides = json.loads(file.read_text())["sides"]
    assert set(sides) == {f"baseline optimizer.learning_rate={rate}" for rate in ("0.001", "0.002")}
    assert all(side["seconds"][0] > 0 for side in sides.values())  # under their former name


@pytest.mark.slow
def test_they_are_trained_again_to_the_same_bits(old, ids):
    done = pipeline(old, "reproduce", f"run={ids[0]}")
    assert "code differs: the run's is of commit " in done.stdout, done.stderr
    [run] = runs(old, f"attributes.run_id = '{ids[0]}'")
    if environment.processor() in run.data.tags["hardware"]:
        assert f"identical bits: model.keras has the SHA-256 of the run, {run.data.tags['model_sha256']}" in done.stdout
    else:  # another processor may sum in another order
        assert "hardware differ: the run's AMD EPYC" in done.stdout
    assert done.returncode == 0
