"""One store copied into another: whole, once, back again, and after it was interrupted."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import PARENT, fresh_store, store
from mlflow.entities import Dataset, DatasetInput, InputTag, LoggedModelOutput, Metric, Param
from mlflow.tracking import MlflowClient

from pipeline.base.errors import UserError
from pipeline.base.project import Project, open_project
from pipeline.base.verb_schemas import SyncConfig
from pipeline.sync import sync
from pipeline.tracking import copying, registry, sweep_log
from pipeline.tracking.record import now
from pipeline.tracking.store import address, open_store


class Made(NamedTuple):
    project: Project
    parent: str
    children: list[str]
    found: str
    models: list[str]


@pytest.fixture
def made(tmp_path, monkeypatch) -> Made:
    """A sweep of two with their models, of which one is the champion, that found a third run finished."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fresh_store(tmp_path / "mlflow.db")
    project = open_project(tmp_path)
    client, experiment = open_store(project, "mnist")
    parent, _ = sweep_log.open_sweep(project, "mnist", "sweep seed=1,2", "command", "digest", ["seed"], {})
    children, models = [], []
    for seed in ("1", "2"):
        tags = sweep_log.child_tags(parent, {"seed": seed}) | {"content_sha256": f"c{seed}", "recipe": "baseline"}
        run_id = client.create_run(experiment, 1000 + int(seed), tags, f"seed={seed}").info.run_id
        metrics = [Metric("val_accuracy", 0.5 + step / 10, 2000 + step, step) for step in (1, 2, 3)]
        metrics += [Metric("train_loss", float("nan"), 2000, 1)]
        client.log_batch(run_id, metrics, [Param("seed", seed), Param("model.filters", "8")])
        data = Dataset("train", "abc", "code", "{}", "{}", "{}")
        client.log_inputs(run_id, [DatasetInput(data, [InputTag("mlflow.data.context", "train")])])
        client.log_text(run_id, "epoch,loss\n1,0.5\n", "history.csv")
        client.log_text(run_id, "a picture", "plots/curves.png")
        models.append(log_model(client, experiment, run_id, tmp_path / "model"))
        client.set_tag(run_id, "model_sha256", f"m{seed}")
        client.set_terminated(run_id, "FINISHED", 9000 + int(seed))
        children.append(run_id)
    found = client.create_run(experiment, 5, {"recipe": "baseline", "model_sha256": "m3"}, "alone").info.run_id
    client.set_terminated(found, "FAILED", 6)
    sweep_log.join_sweep(parent, client.get_run(found), {"seed": "3"})
    note = f"best: [seed=2](#/experiments/{experiment}/runs/{children[1]})"
    client.set_experiment_tag(experiment, "mlflow.note.content", note)
    client.log_text(parent, f"rank,run_id\n1,{children[1]}\n", "ranking.csv")
    sweep_log.log_sweep(parent, [], {"mlflow.note.content": note}, "FINISHED")
    first, second = (registry.register(project, client.get_run(one), "mnist", "card") for one in children)
    registry.point(project, registry.CHAMPION, "mnist", second)
    registry.point(project, registry.CHALLENGER, "mnist", first)
    client.delete_run(client.create_run(experiment, run_name="deleted").info.run_id)
    return Made(project, parent, children, found, models)


def log_model(client: MlflowClient, experiment: str, run_id: str, folder: Path) -> str:
    model = client.create_logged_model(experiment, "model", run_id, {"kind": "cnn"}, {"filters": "8"})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    text = f"artifact_path: {model.artifact_location}\nmodel_id: {model.model_id}\nrun_id: {run_id}\n"
    (folder / "MLmodel").write_text(text)
    (folder / "data/model.keras").write_bytes(run_id.encode())
    client.log_model_artifacts(model.model_id, str(folder))
    client.finalize_logged_model(model.model_id, "READY")
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 3)])
    return str(model.model_id)


def rows(folder: Path) -> dict[str, Any]:
    """Everything that a store holds: the rows of its tables, and its files."""
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        tables = [name for [name] in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        content: dict[str, Any] = {
            name: sorted(map(repr, database.execute(f"SELECT * FROM {name}"))) for name in tables
        }
    files = [file for file in (folder / "mlruns").rglob("*") if file.is_file()]
    return content | {str(file.relative_to(folder)): file.read_bytes() for file in files}


def copied(project: Project, folder: Path) -> list[str]:
    return list(copying.copy_store(project, f"sqlite:///{folder / 'mlflow.db'}"))


@pytest.fixture
def other(tmp_path) -> Path:
    folder = tmp_path / "other place"
    folder.mkdir()
    fresh_store(folder / "mlflow.db")
    return folder


def test_a_sweep_with_its_models_and_the_champion_is_whole_in_another_store(made, other):
    *lines, last = copied(made.project, other)
    assert last == "4 of 4 runs copied, the others are there already"
    assert [line.split()[0] for line in lines] == ["copied:"] * 4 + ["registered:"] * 2
    here, there = store(made.project.root), store(other)
    experiment = there.get_experiment_by_name("mnist")
    copies = {run.data.tags["copied_from"]: run for run in there.search_runs([experiment.experiment_id])}
    assert set(copies) == {made.parent, *made.children, made.found}
    parent = copies[made.parent]
    assert parent.data.tags[f"found.{copies[made.found].info.run_id}"] == '{"seed": "3"}'
    second = copies[made.children[1]].info.run_id
    link = f"best: [seed=2](#/experiments/{experiment.experiment_id}/runs/{second})"
    assert parent.data.tags["mlflow.note.content"] == experiment.tags["mlflow.note.content"] == link
    ranking = there.download_artifacts(parent.info.run_id, "ranking.csv")
    assert Path(ranking).read_text() == f"rank,run_id\n1,{second}\n"
    for run_id in made.children:
        run, copy = here.get_run(run_id), copies[run_id]
        assert copy.data.tags[PARENT] == parent.info.run_id
        same = ("status", "start_time", "end_time", "run_name")
        assert [getattr(copy.info, key) for key in same] == [getattr(run.info, key) for key in same]
        assert copy.data.params == run.data.params and repr(copy.data.metrics) == repr(run.data.metrics)
        curve = [
            (one.step, one.value, one.timestamp) for one in there.get_metric_history(copy.info.run_id, "val_accuracy")
        ]
        assert curve == [(1, 0.6, 2001), (2, 0.7, 2002), (3, 0.8, 2003)]
        assert [one.to_dictionary() for one in copy.inputs.dataset_inputs] == [
            one.to_dictionary() for one in run.inputs.dataset_inputs
        ]
        files = Path(there.download_artifacts(copy.info.run_id, ""))
        assert files.is_relative_to(other / "mlruns")
        assert (files / "plots/curves.png").read_text() == "a picture"
        [model] = there.search_logged_models([experiment.experiment_id], f"source_run_id = '{copy.info.run_id}'")
        assert (model.name, model.status.name, model.params) == ("model", "READY", {"filters": "8"})
        assert [
            (one.model_id, one.step)
            for one in copy.outputs.model_outputs or there.get_run(copy.info.run_id).outputs.model_outputs
        ] == [(model.model_id, 3)]
        place = Path(model.artifact_location.removeprefix("file://").replace("%20", " "))
        assert (place / "data/model.keras").read_text() == run_id
        text = f"artifact_path: {model.artifact_location}\nmodel_id: {model.model_id}\nrun_id: {copy.info.run_id}\n"
        assert (place / "MLmodel").read_text() == text
    assert there.get_model_version_by_alias("mnist", "champion").run_id == second
    assert there.get_model_version_by_alias("mnist", "challenger").run_id == copies[made.children[0]].info.run_id
    assert there.get_model_version("mnist", "2").description == "card"
    assert copies[made.found].info.status == "FAILED"


def test_again_and_on_the_way_back_nothing_changes(made, other):
    home = made.project.root
    copied(made.project, other)
    before, after_first = rows(home), rows(other)
    assert copied(made.project, other) == ["0 of 4 runs copied, the others are there already"]
    assert rows(other) == after_first
    back = open_project(other)
    assert copied(back, home) == ["0 of 4 runs copied, the others are there already"]
    assert rows(home) == before
    assert str(other) in address() or str(home) in address()


def test_what_was_added_since_comes_after_and_what_was_deleted_there_stays_so(made, other):
    copied(made.project, other)
    there, here = store(other), store(made.project.root)
    experiment = there.get_experiment_by_name("mnist").experiment_id
    copies = {run.data.tags["copied_from"]: run.info.run_id for run in there.search_runs([experiment])}
    here.log_metric(made.children[0], "test_accuracy", 0.75, 7, 3)
    here.log_text(made.parent, "<html>", "report.html")
    there.delete_run(copies[made.children[1]])
    assert copied(made.project, other)[-1] == "2 of 3 runs copied, the others are there already"
    assert there.get_run(copies[made.children[0]]).data.metrics["test_accuracy"] == 0.75
    assert Path(there.download_artifacts(copies[made.parent], "report.html")).read_text() == "<html>"
    assert there.get_run(copies[made.children[1]]).info.lifecycle_stage == "deleted"
    assert len(there.search_runs([experiment])) == 3


@pytest.mark.parametrize("call", ["create_run", "finalize_logged_model", "log_outputs", "set_terminated"])
def test_a_copy_that_was_interrupted_is_completed_by_the_next(made, other, monkeypatch, call):
    real, calls = getattr(MlflowClient, call), iter(range(100))

    def fails_once(self: Any, *words: Any, **more: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return real(self, *words, **more)

    monkeypatch.setattr(MlflowClient, call, fails_once)
    with pytest.raises(KeyboardInterrupt):
        copied(made.project, other)
    copied(made.project, other)
    there = store(other)
    experiment = there.get_experiment_by_name("mnist").experiment_id
    copies = there.search_runs([experiment])
    assert sorted(run.info.status for run in copies) == ["FAILED", "FINISHED", "FINISHED", "FINISHED"]
    models = [one for one in there.search_logged_models([experiment]) if one.status.name == "READY"]
    assert len(models) == 2 == len({one.source_run_id for one in models})
    assert {one.model_id for run in copies for one in (run.outputs.model_outputs if run.outputs else [])} == {
        one.model_id for one in models
    }
    versions = there.search_model_versions("name = 'mnist'")
    assert len(versions) == 2
    assert copied(made.project, other) == ["0 of 4 runs copied, the others are there already"]


def test_a_run_that_still_trains_stays_out(made, other):
    client, experiment = open_store(made.project, "mnist")
    client.create_run(experiment, tags={"process": f"0123abcd 7 {now()}"})
    dead = client.create_run(experiment, tags={"process": f"0123abcd 7 {now() - 10**7}"}).info.run_id
    assert copied(made.project, other)[-1].startswith("5 of 5 runs")
    there = store(other)
    copies = there.search_runs([there.get_experiment_by_name("mnist").experiment_id], "attributes.status = 'RUNNING'")
    assert [run.data.tags["copied_from"] for run in copies] == [dead]


def test_an_address_that_is_no_store_or_this_one_is_an_error_in_one_line(made):
    for uri, words in (
        ("other/mlflow.db", "^to=other/mlflow.db is no store to copy to: give sqlite:///"),
        ("postgresql://me:secret@host/x", "^to=postgresql: is no store"),
        (f"sqlite:///{made.project.root}/mlflow.db", "^to= names the store of this repository itself"),
        ("http://127.0.0.1:9", "the MLflow store http://127.0.0.1:9 failed"),
    ):
        with pytest.raises(UserError, match=words) as error:
            sync(made.project, SyncConfig.model_construct(to=uri))
        assert "\n" not in str(error.value) and "secret" not in str(error.value)
    assert str(made.project.root) in address(), "it is this store again that is asked"
