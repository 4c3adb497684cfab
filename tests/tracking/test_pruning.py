"""Which jobs of a sweep are hopeless, by hand; and what a job that was ended early leaves behind."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, fresh_store, generated_digits

from pipeline.base.project import Project
from pipeline.base.verb_schemas import TrainConfig
from pipeline.data.examples import Examples, save_arrays
from pipeline.experiments import pruning, ranking, sweep
from pipeline.experiments import run as experiment_run
from pipeline.experiments.children import rank
from pipeline.experiments.pruning import Sibling, is_due, why_hopeless
from pipeline.tracking import queries, sweep_log
from pipeline.tracking.fingerprint import fingerprint
from pipeline.tracking.record import Record, pending
from pipeline.tracking.store import open_store
from pipeline.training import loop


@pytest.mark.parametrize(
    ("rule", "epochs", "due"),
    [
        ("median", 1, []),
        ("median", 2, [1]),
        ("median", 8, [2, 3, 4, 5, 6, 7]),
        ("median", 15, list(range(4, 15))),
        ("halving", 1, []),
        ("halving", 3, [1, 2]),
        ("halving", 8, [1, 2, 4]),
        ("halving", 15, [2, 4, 8]),
    ],
)
def test_jobs_are_judged_after_a_warm_up_and_never_at_the_end(rule, epochs, due):
    assert [epoch for epoch in range(1, epochs + 1) if is_due(rule, epoch, epochs)] == due


def finished(*values: float) -> list[Sibling]:
    return [Sibling(value, True) for value in values]


def test_by_the_median_a_job_is_compared_with_those_that_have_finished():
    four = finished(0.9, 0.8, 0.7, 0.6)  # their median is 0.75
    assert why_hopeless("median", 0.74, four) == "is worse than the median of the 4 siblings that have finished"
    assert why_hopeless("median", 0.75, four) == ""
    assert why_hopeless("median", 0.1, four[:3]) == "", "three say nothing"
    running = [Sibling(0.99, False)] * 5
    assert why_hopeless("median", 0.76, [*four, *running]) == "" and why_hopeless("median", 0.1, running) == ""
    assert why_hopeless("median", float("nan"), four) == ""


def test_by_halving_a_job_has_to_be_in_the_better_half_of_all_that_came_so_far():
    siblings = [*finished(0.9, 0.8), Sibling(0.7, False), Sibling(0.6, False)]
    assert why_hopeless("halving", 0.75, siblings) == ""  # the third of five
    reason = "is not in the better half: 3 of 4 siblings were better"
    assert why_hopeless("halving", 0.65, siblings) == reason
    assert why_hopeless("halving", 0.7, siblings) == "", "a tie is no reason"
    assert why_hopeless("halving", 0.1, siblings[:1]) == ""


def test_siblings_are_those_of_the_same_sweep_and_length_in_whatever_try(tmp_path, compose):
    def record(folder: str, content: str, status: str, *values: float, parent: str = "p", epochs: int = 4) -> None:
        tags = {"mlflow.parentRunId": parent, "content_sha256": content}
        params = {"train.epochs": str(epochs)}
        made = Record.begin(tmp_path / folder, {"tags": tags, "params": params, "status": status})
        rows = enumerate(values, 1)
        made.add_rows([{"step": step, "time": 0, "values": {"val_loss": value}} for step, value in rows])

    record("now/0", "a", "FINISHED", 0.5, 0.25)
    record("now/1", "b", "RUNNING", 0.5)
    record("now/2", "own", "RUNNING", 0.5, 0.75)
    record("now/3", "c", "FINISHED", 0.5, 0.125, epochs=5)
    record("now/4", "d", "FINISHED", 0.5, 0.125, parent="q")
    record("before/0", "e", "PRUNED", 0.5, 1.5)
    record("before/1", "a", "KILLED", 0.5, 0.25)
    (tmp_path / "before/2").mkdir()
    (tmp_path / "before/2/run.json").write_text("{")
    config = compose("train.epochs=4", "train.monitor=val_loss")
    found = pruning.find_siblings("p", tmp_path / "now", config, "own", 2)
    assert sorted(found) == [Sibling(-1.5, False), Sibling(-0.25, True)]
    assert len(pruning.find_siblings("p", tmp_path / "now", config, "own", 1)) == 3


SMALL = ("recipe=baseline", "data.image_shape=[10,10]", "model.filters=2", "optimizer.filter_groups=1")
PRUNE = "sweep.prune=median"


@pytest.fixture
def swept(tmp_path, monkeypatch) -> tuple[Any, Project, str]:
    """A sweep over the seed with four finished siblings: the client, the project and the parent's id."""
    fresh_store(tmp_path / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = Project(ROOT, tmp_path)
    client, _ = open_store(project, "mnist")
    parent, _ = sweep_log.open_sweep(project, "mnist", "sweep", "command", "digest", ["seed"], {})
    folder = tmp_path / "multirun/now"
    variables = {sweep.PARENT: parent, sweep.KEYS: "seed", sweep.EPOCHS: "4", sweep.MONITOR: "val_accuracy"}
    for key, value in (variables | {sweep.FOLDER: str(folder)}).items():
        monkeypatch.setenv(key, value)
    for number in range(4):
        tags = {"mlflow.parentRunId": parent, "content_sha256": f"sibling {number}"}
        info = {"tags": tags, "params": {"train.epochs": "4"}, "status": "FINISHED"}
        rows = [{"step": step, "time": 0, "values": {"val_accuracy": 0.75}} for step in (1, 2)]
        Record.begin(folder / f"sibling{number}", info).add_rows(rows)
    return client, project, parent


def test_a_pruned_job_ends_with_its_figures_and_is_found_as_pruned_by_its_sweep_alone(
    swept, tmp_path, compose, monkeypatch, capsys
):
    client, project, parent = swept
    epochs: list[int] = []

    def fit(*args: Any) -> Iterator[Any]:
        for epoch, seconds, state in loop.fit(*args):
            epochs.append(epoch.epoch)
            yield epoch._replace(val_accuracy=0.8 if epoch.epoch == 1 else 0.5), seconds, state

    monkeypatch.setattr(experiment_run, "fit", fit)
    images, labels = generated_digits(20, 0)
    examples = Examples(images[:, ::3, ::3], labels, np.arange(20, dtype=np.int32))
    save_arrays(tmp_path / "train.npz", images=images)
    split = experiment_run.Split(examples, examples)
    config = compose(*SMALL, "train.epochs=4")
    identity = fingerprint(project, config, [tmp_path / "train.npz"])

    def job(number: int, *words: str) -> float:
        config = compose(*SMALL, "train.epochs=4", *words, schema=TrainConfig, name="train")
        folder = Path(tmp_path / f"multirun/now/{number}")
        one = dataclasses.replace(project, job_folder=folder, overrides=("recipe=baseline", "seed=0"))
        return sweep.train_job(one, config, split, identity)

    assert job(0, PRUNE) == 0.5 and epochs == [1, 2]
    assert "seed=0: pruned after epoch 2 of 4: val_accuracy 0.5 is worse than the median of the 4 siblings" in (
        capsys.readouterr().out
    )
    [run] = queries.sweep_runs(parent)
    assert (run.info.status, run.data.tags["pruned_at"]) == ("KILLED", "2")
    assert queries.curve(run, "val_accuracy") == [0.8, 0.5] and "model_sha256" not in run.data.tags
    assert not [key for key in run.data.params if key.startswith("sweep")]
    assert not pending(project) and not list(tmp_path.rglob("*.ckpt")), "it is whole, and not to be continued"
    assert not queries.find_trained(project, "mnist", content_sha256=identity.content_sha256)

    assert job(1, PRUNE) == 0.5 and epochs == [1, 2]
    assert f"seed=0: found pruned, MLflow run {run.info.run_id}" in capsys.readouterr().out
    [child] = rank(queries.sweep_runs(parent))
    assert child.status == "PRUNED" and "| pruned at 2 | seed=0 |" in " ".join(ranking.markdown([child]).split())
    sweep._close(project, parent, "FINISHED")
    assert client.get_run(parent).info.status == "FINISHED", "a pruned job is no failed one"

    assert job(2) == 0.5 and epochs == [1, 2, 1, 2, 3, 4]
    assert client.get_run(run.info.run_id).info.lifecycle_stage == "deleted"
    [again] = queries.sweep_runs(parent)
    assert again.info.status == "FINISHED" and "pruned_at" not in again.data.tags


def test_pruned_jobs_are_ranked_last():
    def run(name: str, status: str, accuracy: float, **tags: str) -> Any:
        common = {"swept": f'{{"seed": "{name}"}}', "content_sha256": name, "group": "g"}
        data = SimpleNamespace(params={}, tags=common | tags, metrics={"val_accuracy": accuracy})
        return SimpleNamespace(info=SimpleNamespace(status=status, run_id=name, run_name=name), data=data)

    runs = [run("a", "KILLED", 0.99, pruned_at="3"), run("b", "KILLED", 0.5), run("c", "FINISHED", 0.9)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queries, "curve", lambda *_: [])
        ranked = rank(runs)
    assert [(child.values["seed"], child.status) for child in ranked] == [
        ("c", "FINISHED"),
        ("b", "KILLED"),
        ("a", "PRUNED"),
    ]
