"""What the page of MLflow is given: saved views, and the descriptions of an experiment and of a run."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from conftest import fresh_store
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from pipeline.base.project import Project, open_project
from pipeline.tracking import notes, queries, sweep_log, views
from pipeline.tracking.store import open_store


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fresh_store(tmp_path / "mlflow.db")
    return open_project(tmp_path)


def tags(project: Project) -> dict[str, str]:
    client, experiment = open_store(project, "mnist")
    return dict(client.get_experiment(experiment).tags)


def read(tag: str) -> tuple[str, Any]:
    """The name of a view, and what it shows, as the page reads its tag."""
    form = json.loads(tag)
    packed = form["state"].removeprefix("deflate;")
    return form["name"], json.loads(zlib.decompress(base64.b64decode(packed)))


def swept(project: Project, *keys: str) -> list[str]:
    """Open a sweep over these keys, and read what the view Sweep draws."""
    sweep_log.open_sweep(project, "mnist", "a sweep", "train -m", " ".join(keys), keys, {})
    charts = read(tags(project)[f"{views.SHARED}sweep"])[1]["compareRunCharts"]
    return next(chart["selectedParams"] for chart in charts if chart["type"] == "PARALLEL")


def test_a_new_experiment_has_the_views_and_opening_it_again_changes_nothing(project):
    first = tags(project)
    by_name = dict(read(value) for key, value in first.items() if key.startswith(views.SHARED))
    assert set(by_name) == {"Recipes", "Sweep", "Seeds", "Speed"}
    assert by_name["Recipes"]["selectedColumns"][:3] == [
        "tags.`recipe`",
        "metrics.`test_accuracy`",
        "metrics.`test_errors`",
    ]
    assert by_name["Speed"]["selectedColumns"][1] == "metrics.`speed/images_per_second`"
    assert first["mlflow.experiment.primaryMetric.name"] == "val_accuracy"
    assert tags(project) == first


def test_the_view_sweep_draws_the_keys_of_the_last_sweep(project):
    assert swept(project, "train.epochs", "model.filters") == ["train.epochs", "model.filters"]
    assert swept(project, "seed", "optimizer.learning_rate") == ["optimizer.learning_rate"]
    assert read(tags(project)[f"{views.SHARED}sweep"])[1]["selectedColumns"][0] == "params.`optimizer.learning_rate`"


def test_a_view_that_was_renamed_or_deleted_in_the_page_stays_so(project):
    client, experiment = open_store(project, "mnist")
    key, other = f"{views.SHARED}sweep", f"{views.SHARED}seeds"
    renamed = json.dumps(json.loads(tags(project)[key]) | {"name": "my sweeps"})
    client.set_experiment_tag(experiment, key, renamed)
    client.delete_experiment_tag(experiment, other)
    sweep_log.open_sweep(project, "mnist", "a sweep", "train -m", "1", ["optimizer.learning_rate"], {})  # another form
    assert tags(project)[key] == renamed and other not in tags(project)


def test_an_experiment_of_earlier_code_gets_them_beside_what_it_has(project):
    open_store(project, "mnist")
    own = {"mlflow.experiment.primaryMetric.name": "val_loss"}
    MlflowClient().create_experiment("older", tags=own)
    client, experiment = open_store(project, "older")
    after = client.get_experiment(experiment).tags
    assert own.items() <= after.items() and f"{views.SHARED}recipes" in after


def test_a_store_that_takes_no_views_is_used_without(project, monkeypatch):
    open_store(project, "mnist")
    identity = MlflowClient().create_experiment("older")

    def refuse(*_: object) -> None:
        raise MlflowException("permission denied")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refuse)
    assert open_store(project, "older")[1] == identity


def test_the_link_opens_on_the_recipes_where_the_store_has_the_experiment(project, monkeypatch):
    monkeypatch.chdir(project.root)
    assert views.link("mnist", "5001") == "http://127.0.0.1:5001"
    identity = open_store(project, "mnist")[1]
    expected = f"http://127.0.0.1:5001/#/experiments/{identity}/runs?viewStateShareKey=recipes"
    assert views.link("mnist", "5001") == expected
    (project.root / "mlflow.db").unlink()
    assert views.link("mnist", "5001") == "http://127.0.0.1:5001" and not (project.root / "mlflow.db").exists()


def described(client: MlflowClient, run_id: str) -> str:
    notes.describe_run(client, run_id)
    return str(client.get_run(run_id).data.tags[notes.NOTE])


def cells(note: str) -> dict[str, str]:
    rows = [line.strip("| ").split("|") for line in note.splitlines() if line.startswith("| ")]
    return {row[0].strip(): row[1].strip() for row in rows[2:]}


def test_the_figures_of_a_run_are_its_description_beside_what_somebody_wrote(project):
    client, experiment = open_store(project, "mnist")
    tags = {"hardware": "a CPU", "note": "first try"}
    run_id = client.create_run(experiment, run_name="fast", tags=tags).info.run_id
    values = {"val_accuracy": 0.987, "val_loss": 0.05, "val_f1": 0.91, "speed/training_seconds": 1234.56}
    for key, value in {"train.epochs": "2", "model.num_params": "174682"}.items():
        client.log_param(run_id, key, value)
    client.log_batch(run_id, [Metric(key, value, 1, 2) for key, value in values.items()])
    expected = {
        "validation accuracy": "98.70 %",
        "validation loss": "0.0500",
        "epochs": "2",
        "parameters": "174,682",
        "training time": "1,234.6 s, on a CPU",
        "note": "first try",
        "val_f1": "0.91",
    }
    assert cells(described(client, run_id)) == expected
    client.set_tag(run_id, notes.NOTE, f"Mine.\n\n{described(client, run_id)}")
    tested = {"test_accuracy": 0.99, "test_accuracy_low": 0.95, "test_accuracy_high": 0.995}
    tested |= {"test_errors": 100, "test_examples": 10_000, "test_errors_no_tta": 120}
    client.log_batch(run_id, [Metric(key, value, 1, 2) for key, value in tested.items()])
    note = described(client, run_id)
    assert note.startswith("Mine.\n\n") and note.count("| figure ") == 1 and "/artifacts/config.yaml" in note
    assert cells(note)["test accuracy"] == "99.00 % (95.00 % to 99.50 %)"
    assert cells(note)["test errors"] == "100 of 10,000" and cells(note)["test errors without TTA"] == "120"
    assert described(client, run_id) == note


def test_with_patience_the_figures_are_those_of_the_epoch_that_is_kept(project):
    client, experiment = open_store(project, "mnist")
    run_id = client.create_run(experiment, tags={"kept": "epoch 1 of 2, the best by val_loss"}).info.run_id
    values = {"val_accuracy": 0.5, "best_val_accuracy": 0.75, "best_epoch": 1}
    client.log_batch(run_id, [Metric(key, value, 1, 2) for key, value in values.items()])
    shown = cells(described(client, run_id))
    assert shown == {"validation accuracy": "75.00 %", "epochs": "epoch 1 of 2, the best by val_loss"}


def test_the_comparison_describes_the_experiment_beside_what_somebody_wrote(project):
    client, experiment = open_store(project, "mnist")
    client.set_experiment_tag(experiment, notes.NOTE, "Mine.")
    notes.describe_experiment(project, "mnist", "old")
    notes.describe_experiment(project, "mnist", "a better")
    note = tags(project)[notes.NOTE]
    assert "a better" in note and "old" not in note and note.endswith("\n\nMine.")
    assert f"[Sweep](#/experiments/{experiment}/runs?viewStateShareKey=sweep)" in note
    notes.describe_experiment(project, "mnist", "x" * 30_000)
    assert len(tags(project)[notes.NOTE]) <= 20_000


def test_seconds_of_earlier_code_are_the_sum_of_its_epochs(project):
    client, experiment = open_store(project, "mnist")
    run_id = client.create_run(experiment).info.run_id
    client.log_batch(run_id, [Metric("epoch_seconds", value, 1, step) for step, value in ((1, 2.5), (2, 4.0))])
    assert queries.training_seconds(client.get_run(run_id)) == 6.5
    client.log_batch(run_id, [Metric("speed/training_seconds", 9.0, 1, 2)])
    assert queries.training_seconds(client.get_run(run_id)) == 9.0
