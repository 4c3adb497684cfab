"""What a run holds, read back through MLflow's own client from a real store in a temporary folder."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import matplotlib.image
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, fresh_store, generated_digits

from pipeline.base.errors import UserError
from pipeline.base.files import load_yaml, sha256
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.base.validation import flatten, validate
from pipeline.base.verb_schemas import RunConfig
from pipeline.data.examples import Examples, save_arrays
from pipeline.experiments import described
from pipeline.experiments import run as experiment_run
from pipeline.experiments.evaluated import Evaluated, find_model, log_evaluation
from pipeline.experiments.run import Split, train_tracked
from pipeline.model import inference
from pipeline.model.build import build_cnn, count_macs
from pipeline.model.files import load_model, save_model
from pipeline.reports import tables
from pipeline.tracking import queries, record, sweep_log
from pipeline.tracking.environment import NOT_SOURCE, git
from pipeline.tracking.fingerprint import fingerprint, training_values
from pipeline.tracking.store import open_store
from pipeline.training.checkpoint import State
from pipeline.training.loop import Epoch

HISTORY = [
    Epoch(1, 0.9, 0.5, 0.8, 0.6, 0.001),
    Epoch(2, 0.4, 0.75, math.nan, math.nan, 0.0005),
]


class Trained(NamedTuple):
    run: mlflow.entities.Run
    config: Config
    model_file: Path
    split: Split


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Iterator[Project]:
    """Our code and git, with a store of its own."""
    home = tmp_path_factory.mktemp("store")
    fresh_store(home / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Project(ROOT, home, job_folder=home / "outputs" / "kept")


def train(project: Project, config: Config, split: Split, name: str, fit: Any) -> experiment_run.Trained:
    """Train as a stage of DVC does, with a stand-in for the loop."""
    files = [project.home / "train.npz"]
    save_arrays(files[0], **split.train._asdict())
    tags = {"dvc_stage": "train@accurate"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_run, "fit", fit)
        # So that the two halves of the sheet can be told apart.
        patch.setattr(described, "random_affine", lambda images, *_: tf.constant(255 - images))
        return train_tracked(project, config, split, fingerprint(project, config, files), name, tags)


@pytest.fixture(scope="module")
def trained(project, compose) -> Trained:
    config = compose("recipe=accurate", "model.filters=2", "seed=3", "train.epochs=2")
    split = Split(*(Examples(*generated_digits(n, n), np.arange(n, dtype=np.int32)) for n in (40, 20)))

    def fit(*_: object) -> Iterator[Any]:
        for epoch in HISTORY:
            yield epoch, 0.5, lambda: State([], [])

    done = train(project, config, split, "accurate", fit)
    run = mlflow.MlflowClient().get_run(done.tracked.removeprefix("MLflow run "))
    return Trained(run, config, done.model_file, split)


def test_parameters_are_every_value_of_the_configuration(trained):
    params = trained.run.data.params
    assert params["seed"] == "3" and params["train.epochs"] == "2"
    assert params["model.convolutions.0.pool"] == "2" and params["model.units"] == "[]"
    assert params["data.sha256.test_labels"] == trained.config.data.sha256["test_labels"]
    assert params["data.train_examples"] == "40" and params["data.val_examples"] == "20"
    model = load_model(trained.model_file)
    assert params["model.num_params"] == str(model.count_params()) and params["model.macs"] == str(count_macs(model))
    settings = trained.config.model_dump()
    for key in ("evaluate", "recipes", "dataset", "name", "trackers"):  # of the evaluation, or of no result
        settings.pop(key)
    settings["train"].pop("pictures_every")
    assert set(flatten(settings)) < set(params) and "recipes" not in params
    assert not any(key.startswith("evaluate.") for key in params)


def test_metrics_stand_at_their_epoch_and_absent_ones_are_left_out(trained):
    client, run_id = mlflow.MlflowClient(), trained.run.info.run_id

    def history(key: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]

    assert history("train_accuracy") == [(1, 0.5), (2, 0.75)]
    assert history("val_accuracy") == [(1, 0.6)]
    assert history("learning_rate") == [(1, 0.001), (2, 0.0005)]
    assert history("speed/epoch_seconds") == [(1, 0.5), (2, 0.5)]
    assert history("speed/training_seconds") == [(1, 0.5), (2, 1.0)]
    assert history("speed/images_per_second") == [(1, 80.0), (2, 80.0)]


def test_tags_name_code_data_model_and_machine_but_no_person(trained):
    tags = trained.run.data.tags
    assert trained.run.info.status == "FINISHED" and trained.run.info.run_name == "accurate"
    assert tags["recipe"] == "accurate" and tags["dvc_stage"] == "train@accurate"
    assert tags["model_sha256"] == sha256(trained.model_file)
    assert tags["git_commit"] == (git(ROOT, "rev-parse", "HEAD") or "none")
    assert len(tags["config_sha256"]) == len(tags["data_sha256"]) == 64
    assert "2.2" in tags["versions"] and "cores" in tags["hardware"]
    assert tags["mlflow.user"] == "pipeline" and tags["mlflow.source.name"] == "pipeline.train"
    home = str(Path.home())
    assert not [key for key, value in tags.items() if home in value and key != "mlflow.log-model.history"]
    [logged] = mlflow.MlflowClient().search_logged_models([trained.run.info.experiment_id])
    assert logged.tags["mlflow.user"] == "pipeline" and not [value for value in logged.tags.values() if "/" in value]


def test_inputs_carry_digests_of_the_digits(trained):
    inputs = trained.run.inputs.dataset_inputs
    assert [[tag.value for tag in given.tags] for given in inputs] in ([["train"], ["val"]], [["val"], ["train"]])
    by_name = {given.dataset.name: given.dataset for given in inputs}
    images, labels = generated_digits(40, 40)
    import hashlib

    assert by_name["train"].digest == hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()[:32]
    assert json.loads(by_name["train"].source) == {"tags": {"file": "data/processed/train.npz"}}


def test_artifacts_are_readable_and_lie_below_mlruns(project, trained, tmp_path):
    client, run_id = mlflow.MlflowClient(), trained.run.info.run_id
    names = {item.path for item in client.list_artifacts(run_id)}
    assert {"config.yaml", "history.csv", "val_predictions.csv", "packages.txt"} <= names
    assert trained.run.info.artifact_uri.startswith((project.home / "mlruns").as_uri())
    # Black digits on white above, the same inverted below.
    sheet = matplotlib.image.imread(client.download_artifacts(run_id, "augmented.png", str(tmp_path)))
    top, below = np.array_split(sheet, 2)
    assert top.mean() > below.mean() + 0.15
    with Path(client.download_artifacts(run_id, "history.csv", str(tmp_path))).open() as file:
        assert [row["train_loss"] for row in csv.DictReader(file)] == ["0.9", "0.4"]
    packages = Path(client.download_artifacts(run_id, "packages.txt", str(tmp_path))).read_text()
    assert f"\nhydra-core=={__import__('hydra').__version__}\n" in packages


def test_the_logged_model_takes_raw_digits_and_gives_the_same_logits(trained):
    import mlflow.pyfunc

    found = mlflow.MlflowClient().search_logged_models([trained.run.info.experiment_id])
    loaded = mlflow.pyfunc.load_model(found[0].model_uri)
    assert str(loaded.metadata.signature.inputs.inputs[0].type) == "uint8"
    logits = loaded.predict(trained.split.val.images)
    expected = inference.predict(load_model(trained.model_file), trained.split.val.images)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_the_run_of_a_model_is_found_by_content(project, trained, tmp_path):
    digest = sha256(trained.model_file)
    [found] = queries.find_trained(project, "mnist", model_sha256=digest, dvc_stage="train@accurate")
    assert found.info.run_id == trained.run.info.run_id
    assert queries.training_seconds(found) == 1.0 and queries.curve(found, "speed/epoch_seconds") == [0.5, 0.5]
    assert queries.find_trained(project, "mnist", model_sha256=digest, dvc_stage="train@baseline") == []
    other = tmp_path / "other.keras"
    other.write_bytes(trained.model_file.read_bytes() + b" ")
    assert queries.find_trained(project, "mnist", model_sha256=sha256(other)) == []


def evaluated(project: Project, trained: Trained, config: Config, model_file: Path, accuracy: float) -> str:
    project = dataclasses.replace(project, job_folder=project.home / "outputs" / f"evaluated {accuracy}")
    model = Evaluated(config, model_file, sha256(model_file), trained.model_file.with_name("history.csv"), None)
    return log_evaluation(
        project, model, {"model.num_params": 7, "model.macs": 9}, trained.split.val, {"test_accuracy": accuracy}, 2, []
    )


def test_evaluation_goes_into_the_run_and_with_other_settings_into_a_child(project, trained, compose):
    client, run_id = mlflow.MlflowClient(), trained.run.info.run_id
    said = evaluated(project, trained, trained.config, trained.model_file, 0.9)
    assert said == f"MLflow run {run_id}; 1 model of this store was scored on these test examples"
    read = client.get_run(run_id)
    assert read.data.metrics["test_accuracy"] == 0.9 and read.data.params["evaluate.confidence"] == "0.95"
    assert {given.dataset.name for given in read.inputs.dataset_inputs} == {"train", "val", "test"}
    assert client.get_metric_history(run_id, "test_accuracy")[0].step == 2

    other = compose("recipe=accurate", "evaluate.confidence=0.9")
    assert evaluated(project, trained, other, trained.model_file, 0.8) == said, "the same model tells nothing new"
    children = client.search_runs([read.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert [child.data.metrics["test_accuracy"] for child in children] == [0.8]
    assert [child.data.params["evaluate.confidence"] for child in children] == ["0.9"]
    assert client.get_run(run_id).data.metrics["test_accuracy"] == 0.9


def test_a_model_without_a_run_gets_one_from_its_files(project, trained, tmp_path):
    cnn = build_cnn(trained.config.model, (28, 28), 10)
    save_model(tmp_path / "model.keras", cnn)
    predictions = trained.model_file.with_name("val_predictions.csv")
    predictions.write_text("index,label,prediction\n7,3,3\n")
    said = evaluated(project, trained, trained.config, tmp_path / "model.keras", 0.7)
    assert said.endswith("2 different models of this store were scored on these test examples")
    [found] = queries.find_trained(project, "mnist", model_sha256=sha256(tmp_path / "model.keras"))
    assert found.data.tags["dvc_stage"] == "train@accurate" and found.data.metrics["test_accuracy"] == 0.7
    steps = mlflow.MlflowClient().get_metric_history(found.info.run_id, "train_loss")
    assert [(metric.step, metric.value) for metric in steps] == [(1, 0.9), (2, 0.4)]
    recorded = validate(Config, load_yaml(queries.artifact(found, "config.yaml", tmp_path)))
    assert training_values(recorded) == training_values(trained.config)
    assert queries.recorded_model(found, tmp_path).is_file(), "of the weights that it was adopted with"
    brought = queries.artifact(found, "val_predictions.csv", tmp_path)
    assert brought.read_bytes() == predictions.read_bytes(), "it can be compared and promoted"
    sizes = {key: found.data.params[key] for key in ("model.num_params", "model.macs", "data.val_examples")}
    assert sizes == {"model.num_params": "7", "model.macs": "9", "data.val_examples": "1"}


def test_a_history_without_losses_is_called_damaged_before_anything_is_drawn(compose, tmp_path):
    place, config = Project(tmp_path, tmp_path), validate(RunConfig, compose().model_dump() | {"run": None})
    for file, text in (
        (place.model("baseline"), "model"),
        (place.recipe_results("baseline") / "history.csv", "epoch,train_accuracy,val_accuracy\n1,0.5,0.5\n"),
    ):
        file.parent.mkdir(parents=True)
        file.write_text(text)
    with pytest.raises(UserError, match=r"history\.csv is damaged, not a table of epoch, train_loss, "):
        find_model(place, config, tmp_path)


def test_different_models_that_were_scored_on_the_test_examples_are_counted(project, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'count.db'}")
    monkeypatch.chdir(tmp_path)  # where a store of that address has its artifacts
    client, experiment = open_store(project, "mnist")

    def run(weights: str, **tags: str) -> Any:
        made = client.create_run(experiment, tags={"weights_sha256": weights, "model_sha256": weights, **tags})
        return client.get_run(made.info.run_id)

    run("not scored")
    assert queries.models_scored(project, "mnist") == 0
    first = run("a")
    (tmp_path / "files").mkdir()
    for _ in range(2):
        queries.log_test_files(first, tmp_path / "files", "robustness", {"corrupted_accuracy": 0.5})
    assert queries.models_scored(project, "mnist") == 1
    run("a", test_scored="a"), run("a", test_set_reads="3")  # trained again to the same bits
    assert queries.models_scored(project, "mnist") == 1
    run("b", test_set_reads="2")  # by the code of before
    client.delete_run(run("c", test_scored="c").info.run_id)
    assert queries.models_scored(project, "mnist") == 3
    assert queries.models_scored(project, "fashion_mnist") == 0
    assert [tables.scored_in_words(count).split(" of ")[0] for count in (1, 1_000)] == [
        "1 model",
        "1,000 different models",
    ]


@pytest.mark.parametrize(
    ("error", "status", "continues"),
    [(UserError("no"), "FAILED", 0), (OSError(28, "full"), "KILLED", 1), (KeyboardInterrupt(), "KILLED", 1)],
)
def test_a_run_that_ends_by_an_error_says_so_and_continues_unless_it_would_come_again(
    project, trained, tmp_path, monkeypatch, error, status, continues
):
    name, told = f"a name {status} {error}", []
    monkeypatch.setattr(experiment_run.Trackers, "epoch", lambda self, row: told.append(row["step"]))
    monkeypatch.setattr(experiment_run.Trackers, "end", lambda self, status: told.append(status))

    def fit(*_: object) -> Iterator[Any]:
        yield HISTORY[0], 0.5, lambda: State([], [])
        raise error

    first = dataclasses.replace(project, job_folder=tmp_path / "first")
    with pytest.raises(type(error)):
        train(first, trained.config, trained.split, name, fit)
    newest = mlflow.MlflowClient().search_runs(
        [trained.run.info.experiment_id], order_by=["attributes.start_time DESC"], max_results=1
    )[0]
    assert newest.info.status == status and newest.info.run_name == name
    assert newest.data.metrics["train_accuracy"] == 0.5
    key = record.Record(tmp_path / "first").info["resume_key"]
    assert len(list(record.unfinished(project, name, key))) == continues and told == [1, status]


def test_a_set_tracking_uri_wins(project, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    client, experiment = open_store(project, "mnist")
    assert client.get_experiment(experiment).name == "mnist" and (tmp_path / "own.db").is_file()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert open_store(project, "mnist")[1] == trained.run.info.experiment_id


def test_a_deleted_experiment_and_a_broken_store_are_refused_in_one_line(project, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh_store(tmp_path / 'deleted.db')}")
    client, experiment = open_store(project, "mnist")
    client.delete_experiment(experiment)
    with pytest.raises(UserError, match="is deleted: restore it with"):
        open_store(project, "mnist")
    (tmp_path / "broken.db").write_text("no database at all, and long enough to be read as one" * 20)
    for place in ("a?b.db", "a%20b.db", "x.db?timeout=5"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / place}")
        with pytest.raises(UserError, match=r"\Athe MLflow store [^\n]* has \? or % in its path[^\n]*\Z"):
            open_store(project, "mnist")
        assert sorted(path.name for path in tmp_path.glob("[ax]*")) == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "mysql+nosuch://somebody:secret@127.0.0.1/x")
    with pytest.raises(UserError, match=r"\Athe MLflow store mysql\+nosuch://…@127.0.0.1/x failed \([^\n]*\Z"):
        open_store(project, "mnist")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'broken.db'}")
    with pytest.raises(UserError, match=r"\Athe MLflow store [^\n]*broken.db failed \([^\n]*not a database[^\n]*\Z"):
        open_store(project, "mnist")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    open_store(project, "mnist")


def test_a_sweep_of_several_pages_is_whole_and_every_page_is_small(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh_store(tmp_path / 'pages.db')}")
    client, experiment = open_store(project, "mnist")
    parent = client.create_run(experiment).info.run_id
    tags = {queries.PARENT: parent, "group": "0" * 12, "model_sha256": "x"}
    children = [client.create_run(experiment, tags={**tags, "content_sha256": str(n)}).info.run_id for n in range(5)]
    other = client.create_run(experiment).info.run_id
    sweep_log.join_sweep(parent, client.get_run(other), {})
    for run_id in children:
        client.set_terminated(run_id)
    search, asked = type(client).search_runs, []

    def counted(self: object, *words: object, max_results: int = 1000, **named: object):
        asked.append(max_results)
        return search(self, *words, max_results=max_results, **named)

    monkeypatch.setattr(queries, "PAGE", 2)
    monkeypatch.setattr(type(client), "search_runs", counted)
    assert sorted(run.info.run_id for run in queries.sweep_runs(parent)) == sorted([*children, other])
    assert asked == [2, 2, 2, 2]
    assert [len(runs) for runs in queries.find_runs(project, "0" * 12, "mnist").values()] == [5]
    client.set_tag(children[0], "group", "g9447e1230643")
    [[today]] = queries.find_runs(project, "g9447e1230643", "mnist").values()
    assert today.info.run_id == children[0]


@pytest.mark.parametrize("what", ["0" * 32, "fast"])
def test_no_refusal_shows_the_password_of_a_server(project, what, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh_store(tmp_path / 'own.db')}")
    open_store(project, "mnist")
    shown = "http://somebody:secret@127.0.0.1:1"
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: shown)
    with pytest.raises(UserError, match=r"http://…@127.0.0.1:1") as refusal:
        queries.find_runs(project, what, "mnist")
    assert "secret" not in str(refusal.value)
    monkeypatch.undo()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shown)
    with pytest.raises(UserError, match=r"http://…@127.0.0.1:1 failed") as refusal:
        queries.find_runs(project, what, "mnist")
    assert "secret" not in str(refusal.value)


def test_a_store_of_another_mlflow_is_refused_and_left_as_it_is(project, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{fresh_store(tmp_path / 'ours.db')}")
    open_store(project, "mnist")
    newer = shutil.copy(tmp_path / "ours.db", tmp_path / "newer.db")
    with closing(sqlite3.connect(newer)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    before = newer.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{newer}")
    with pytest.raises(UserError, match=r"\Aanother version of MLflow than [\d.]+ wrote [^\n]*newer.db[^\n]*\Z"):
        open_store(project, "mnist")
    assert newer.read_bytes() == before


def test_a_file_that_is_no_database_is_set_aside_where_it_is_the_repositorys_own(tmp_path, capsys):
    (tmp_path / "mlflow.db").write_text("no database at all, and long enough to be read as one" * 20)
    client, experiment = open_store(Project(tmp_path, tmp_path), "mnist")
    assert client.get_experiment(experiment).name == "mnist"
    [aside] = tmp_path.glob("mlflow.db.damaged-*")
    assert aside.read_text().startswith("no database") and "is damaged (file is not" in capsys.readouterr().out


def test_two_projects_in_one_process_have_a_store_each(project, tmp_path):
    one, two = (Project(tmp_path / name, tmp_path / name) for name in ("one", "two"))
    for project in (one, two, one):
        project.root.mkdir(exist_ok=True)
        fresh_store(project.root / "mlflow.db") if not (project.root / "mlflow.db").exists() else None
        client, experiment = open_store(project, "mnist")
        client.create_run(experiment)
    counts = []
    for project in (one, two):
        client, experiment = open_store(project, "mnist")
        counts.append(len(client.search_runs([experiment])))
    assert counts == [2, 1]


def test_what_trained_no_model_is_named(project, trained):
    client, experiment = open_store(project, "mnist")
    empty = client.create_run(experiment, run_name="a sweep").info.run_id
    with pytest.raises(UserError, match="'a sweep', running\\) holds no trained model"):
        queries.find_run(project, empty, trained.config.data)
    other = client.create_run(client.create_experiment("of something else")).info.run_id
    with pytest.raises(UserError, match="is a run of 'of something else': give data=of something else, or"):
        queries.find_runs(project, other, "mnist")
    client.delete_run(empty)
    with pytest.raises(UserError, match=f"{empty} is deleted: `mlflow runs restore"):
        queries.find_run(project, empty, trained.config.data)


def test_a_sweep_has_its_children_and_what_it_found_but_nothing_deleted(project, trained):
    client, experiment = open_store(project, "mnist")
    parent, again = sweep_log.open_sweep(project, "mnist", "sweep", "python", "digest", ["seed"], {})
    assert not again and sweep_log.open_sweep(project, "mnist", "sweep", "python", "digest", ["seed"], {}) == (
        parent,
        True,
    )
    child = client.create_run(experiment, tags={queries.PARENT: parent})
    found, deleted = (client.create_run(experiment) for _ in range(2))
    for run in (child, found, deleted):
        sweep_log.join_sweep(parent, run, {})
    client.delete_run(deleted.info.run_id)
    assert [run.info.run_id for run in queries.sweep_runs(parent)] == [child.info.run_id, found.info.run_id]


def test_runs_that_are_named_twice_count_once_and_seeds_named_apart_join_their_group():
    def run(run_id: str, **tags: str) -> Any:  # MLflow's Run
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id), data=SimpleNamespace(tags=tags))

    known = [run(str(seed), group="g", content_sha256=f"c{seed}") for seed in range(3)]
    found = queries.by_group([*known, run("again", group="g", content_sha256="c1"), run("old"), known[2]])
    assert {group: [one.info.run_id for one in runs] for group, runs in found.items()} == {
        "g": ["0", "1", "2"],
        "old": ["old"],
    }


def test_flatten_keeps_lists_of_plain_values_whole():
    assert flatten({"a": {"b": [1, 2]}, "c": [{"d": 1}, {"d": 2}]}) == {
        "a.b": "[1, 2]",
        "c.0.d": "1",
        "c.1.d": "2",
    }


def test_results_and_lock_do_not_make_a_tree_dirty():
    assert git(ROOT, "status", "--porcelain", "--", "results", "dvc.lock", *NOT_SOURCE) in ("", None)
    assert (ROOT / "pipeline").is_dir()
