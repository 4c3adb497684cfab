"""The verbs called in Python, as a notebook does: executed by a real kernel; and two projects in one process."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat
import pytest
from conftest import copy, run, runs
from nbclient import NotebookClient

CELLS = [
    """
from pipeline.base.hydra import compose
from pipeline.base.project import open_project
from pipeline.base.verb_schemas import CompareConfig, RunConfig
from pipeline.train import train
from pipeline.evaluate import evaluate
from pipeline.compare import compare

project = open_project(".")
accuracy = train(project, compose(project, "recipe=baseline", "train.epochs=1", "seed=21"))
again = train(project, compose(project, "recipe=baseline", "train.epochs=1", "seed=22"))
print(accuracy, again)
""",
    """
evaluate(project, compose(project, "recipe=baseline", schema=RunConfig))
compare(project, compose(project, schema=CompareConfig))
""",
]
COMMAND = """
import sys
!"{sys.executable}" -m pipeline.train recipe=debug/one_batch train.examples=32 optimizer.batch_size=16
"""


def output_of(cell: dict) -> str:
    return "".join(one.get("text", "") for one in cell["outputs"] if one["output_type"] == "stream")


def execute(folder: Path, *cells: str) -> list[str]:
    """Execute the cells in a kernel, in this folder: what each printed."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    return [output_of(cell) for cell in notebook.cells]


@pytest.fixture
def own(clone, tmp_path) -> Path:
    return copy(clone, tmp_path)


def test_a_notebook_trains_evaluates_and_compares(own):
    before = {run.info.run_id for run in runs(own)}
    trained, evaluated = execute(own, *CELLS)
    accuracies = [float(word) for word in trained.splitlines()[-1].split()]
    new = [run for run in runs(own) if run.info.run_id not in before]
    baseline = [run for run in new if run.data.tags["recipe"] == "baseline"]
    assert {run.data.params["seed"]: run.data.metrics["val_accuracy"] for run in baseline} == {
        "21": accuracies[0],
        "22": accuracies[1],
    }
    metrics = json.loads((own / "results/recipes/baseline/metrics.json").read_text())
    assert f"baseline: test accuracy {100 * metrics['test_accuracy']:.2f} %" in evaluated
    assert "The published 99.7 % is accuracy on the training digits" in evaluated
    folders = [path for path in (own / "outputs").glob("2*") if (path / "run.json").is_file()]
    assert len(folders) == 3, "two trainings and an evaluation: a folder each"


@pytest.mark.slow
def test_a_command_of_a_notebook_trains(own):
    [command] = execute(own, COMMAND)
    assert "debug/one_batch" in command and "MLflow run" in command


TWO = """
import sys
from pipeline.base.hydra import compose
from pipeline.base.project import open_project
from pipeline.train import train
for folder, seed in zip(sys.argv[1:], (31, 32)):
    project = open_project(folder)
    train(project, compose(project, "recipe=baseline", "train.epochs=1", f"seed={seed}"))
"""


def test_two_projects_in_one_process_train_into_a_store_each(clone, tmp_path):
    folders = [copy(clone, tmp_path / name) for name in ("one", "two")]
    done = run("python", "-c", TWO, *map(str, folders), cwd=folders[0])
    assert done.returncode == 0, done.stderr
    seeds = [{found.data.params["seed"] for found in runs(folder)} & {"31", "32"} for folder in folders]
    assert seeds == [{"31"}, {"32"}]
