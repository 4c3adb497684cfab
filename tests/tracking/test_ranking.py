"""What a sweep's ranking says and how often it is renewed, and what a job of a sweep is told."""

from __future__ import annotations

import csv
import os
import pickle
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import hydra
import matplotlib.image
import numpy as np
import pytest
from conftest import ROOT
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure
from omegaconf import OmegaConf

from pipeline.base.errors import UserError
from pipeline.base.files import save_csv, save_json
from pipeline.base.project import Project, open_project
from pipeline.data import examples
from pipeline.experiments import ranking, sweep
from pipeline.experiments.children import Child, names_of_failed
from pipeline.experiments.sweep import FORWARDED_ENV, SweepStart, grid
from pipeline.metrics import significance
from pipeline.metrics.significance import Mean
from pipeline.tracking import fingerprint, queries, sweep_log
from pipeline.tracking.store import open_store


def test_a_ranking_is_renewed_now_and_then_and_always_at_the_end(tmp_path, monkeypatch):
    asked = []

    def sweep_runs(parent: str) -> list:
        asked.append(parent)
        time.sleep(0.5)
        return []

    monkeypatch.setattr(ranking, "_draw", lambda *_: Figure())
    monkeypatch.setattr(queries, "sweep_runs", sweep_runs)
    monkeypatch.setattr(sweep_log, "log_sweep", lambda *_, **__: None)
    project = Project(tmp_path, tmp_path)
    ranking.renew(project, "parent", ["seed"], tmp_path, partial=True)
    due = (tmp_path / ".next").stat().st_mtime - time.time()
    assert 1.5 < due < 60  # four times the half second, and what drawing took
    ranking.renew(project, "parent", ["seed"], tmp_path, partial=True)
    assert len(asked) == 1
    ranking.renew(project, "parent", ["seed"], tmp_path)
    assert len(asked) == 2
    os.utime(tmp_path / ".next", (0, time.time() - 1))
    ranking.renew(project, "parent", ["seed"], tmp_path, partial=True)
    assert len(asked) == 3 and (tmp_path / "ranking.csv").read_text().startswith("rank,seed,")


@pytest.mark.parametrize("digits", ["9447e1230643", "012345678901", "1e0000000000", "abcdef012345"])
def test_the_id_of_a_group_is_never_a_number(compose, tmp_path, monkeypatch, digits):
    """9447e1230643 was drawn by a real sweep: pandas and Hydra made infinity of it."""
    monkeypatch.setattr(fingerprint, "sha256_of", lambda _: digits.ljust(64, "0"))
    group = fingerprint.fingerprint(open_project(ROOT), compose(), []).group
    assert group == f"g{digits}"
    assert OverridesParser.create().parse_override(f"a={group}").value() == group
    save_csv(tmp_path / "ranking.csv", {"rank": [1, 2], "group": [group, group]})
    pandas = pytest.importorskip("pandas")
    assert pandas.read_csv(tmp_path / "ranking.csv")["group"].tolist() == [group, group]


def child(name: str, accuracy: float, status: str = "FINISHED", **values: str) -> Child:
    run = SimpleNamespace(info=SimpleNamespace(run_id=name), data=SimpleNamespace(tags={}, params={}))
    return Child(name, values, status, accuracy, 0.9, 1.0, 10, 1_000, "g0", name, run, accuracy)


def test_what_is_expected_of_the_best_stands_in_the_ranking_when_the_sweep_has_ended():
    two = [child("a", 0.99), child("b", 0.98)]
    assert "BBC-CV" not in ranking.markdown(two)
    assert (
        "The best of 2 was chosen on these 1,000 examples, so its accuracy on them is biased upward. Chosen on "
        "bootstrap samples and scored on the examples left out, the best has 98.50 % (95 % 98.00 % to 99.00 %; BBC-CV, "
        "from the predictions of 2).\n"
    ) in ranking.markdown(two, expected_of_best=Mean(2, 0.985, 0.98, 0.99))


def test_the_means_of_groups_of_seeds_stand_in_the_ranking():
    seeds = [child(f"s{n}", 0.98 + n / 100, filters="8", seed=str(n)) for n in range(2)]
    text = ranking.markdown([*seeds, child("other", 0.5, filters="16", seed="0")._replace(group="g1")])
    assert "| filters=8 group g0  |       2 | 98.50 % | 98.00 % and 99.00 %: 2 seeds, too few" in re.sub(
        " {9,}", " ", text
    )
    assert re.search(r"\| filters=16 group g1 \| +1 \| +50.00 % \| +– \|", text)


def test_what_is_expected_of_the_best_takes_the_predictions_that_are_left(tmp_path, monkeypatch):
    predictions = {"a": [1, 2, 0, 0], "b": [1, 2, 3, 4], "c": None, "d": [1, 2, 3, 0]}

    def artifact(run, name, folder):
        if predictions[run.info.run_id] is None:
            raise UserError("it is gone")
        rows = [f"{n},{n + 1},{given}" for n, given in enumerate(predictions[run.info.run_id])]
        (folder / name).write_text("\n".join(["index,label,prediction", *rows]) + "\n")
        return folder / name

    monkeypatch.setattr(queries, "artifact", artifact)
    children = [child("b", 1.0), child("d", 0.75), child("c", 0.75), child("a", 0.5, "FAILED")]
    found = ranking._expected_of_best(children)
    assert found == significance.best_of(np.array([[True] * 4, [True, True, True, False]]), 0.95) and found.n == 2
    assert ranking._expected_of_best(children[:1]) is None
    assert ranking._expected_of_best([one._replace(val_examples=0) for one in children]) is None


def test_a_job_is_told_of_its_sweep_and_store_and_of_no_secret(tmp_path, monkeypatch):
    told = ("SWEEP_PARENT", "SWEEP_KEYS", "MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT", "TF_XLA_FLAGS")
    secret = (
        *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        *("MLFLOW_CRYPTO_KEK_PASSPHRASE", "AWS_SECRET_ACCESS_KEY", "HOME", "TF_VAR_password"),
    )
    assert [key for key in (*told, *secret) if FORWARDED_ENV.match(key)] == list(told)
    opening = SweepStart(str(ROOT), {})
    opening.variables = {"SWEEP_PARENT": "of the one who launched"}
    travelled = pickle.dumps(opening)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEP_PARENT", "of a daemon")
    pickle.loads(travelled).on_job_start(None)
    assert os.environ["SWEEP_PARENT"] == "of the one who launched" and Path.cwd() == ROOT


NESTED = ["model.convolutions", "model.units"]
LAYER = "[{multiple:1,kernel_size:%d,strides:1,padding:valid,pool:1}]"


@pytest.fixture
def nested(tmp_path, monkeypatch):
    """A sweep over two nested keys: its parent, and child(status, accuracy, content, **tags) that makes a child."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'own.db'}")
    monkeypatch.chdir(tmp_path)  # where a store of that address has its artifacts
    project = Project(ROOT, tmp_path)
    client, experiment = open_store(project, "mnist")
    parent, _ = sweep_log.open_sweep(project, "mnist", "sweep", "command", "digest", NESTED, {})

    def child(status: str, accuracy: float, content: str, **tags: str):
        known = {"content_sha256": content, "group": f"g{content}", "recipe": "baseline", **tags}
        run = client.create_run(experiment, tags=known, run_name=f"run {content}")
        client.log_param(run.info.run_id, "model.convolutions.0.kernel_size", "3")  # as flatten makes them
        client.log_param(run.info.run_id, "model.units", "[8]")
        client.log_metric(run.info.run_id, "val_accuracy", accuracy)
        client.set_terminated(run.info.run_id, status)
        return client.get_run(run.info.run_id)

    return parent, child


def test_a_sweep_over_nested_keys_is_ranked_and_drawn_by_what_was_typed(nested, tmp_path):
    """It ended in a KeyError after its first child, and for ever: no parameter is called model.convolutions."""
    parent, child = nested
    for number, (kernel, units, accuracy) in enumerate(((3, "[8]", 0.25), (5, "[8]", 0.5), (5, "[4,4]", 0.75))):
        values = {"model.convolutions": LAYER % kernel, "model.units": units}
        if number:
            child("FINISHED", accuracy, str(number), **sweep_log.child_tags(parent, values))
        else:  # trained by another command before
            sweep_log.join_sweep(parent, child("FINISHED", accuracy, str(number)), values)
    children, _ = ranking.renew(Project(tmp_path, tmp_path), parent, NESTED, tmp_path)
    with (tmp_path / "ranking.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model.convolutions"], row["model.units"], row["val_accuracy"]) for row in rows] == [
        (LAYER % 5, "[4,4]", "0.75"),
        (LAYER % 5, "[8]", "0.5"),
        (LAYER % 3, "[8]", "0.25"),
    ]
    assert children[2].name == f"model.convolutions={LAYER % 3} model.units=[8]"
    axes = ranking._draw(children, NESTED).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        f"…kernel_size:{kernel},strides:1,…" for kernel in (3, 5)
    ]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["[4,4]", "[8]"]
    assert sorted(text.get_text() for text in axes.texts) == ["25.00", "50.00", "75.00"]
    assert matplotlib.image.imread(tmp_path / "sweep.png").shape[0] > 100


def test_what_two_machines_have_trained_both_counts_once(nested, tmp_path):
    parent, child = nested
    tags = sweep_log.child_tags(parent, {"model.convolutions": "[]", "model.units": "[8]"})
    for status in ("FINISHED", "KILLED", "FINISHED"):
        child(status, 0.5, "same", **tags)
    child("RUNNING", 0.5, "other", **tags)
    children, _ = ranking.renew(Project(tmp_path, tmp_path), parent, NESTED, tmp_path)
    assert [(child.status, child.group) for child in children] == [("FINISHED", "gsame"), ("RUNNING", "gother")]


def test_one_that_was_stopped_from_outside_is_named_as_such(nested, tmp_path):
    parent, child = nested
    for content, status, progress in (
        ("stopped", "KILLED", "stopped after epoch 1/3"),
        ("killed", "KILLED", "epoch 1/3"),
        ("resumed", "RUNNING", "stopped after epoch 1/3"),
        ("done", "FINISHED", "epoch 3/3"),
    ):
        tags = sweep_log.child_tags(parent, {"model.convolutions": "[]", "model.units": content})
        child(status, 0.5, content, **tags, progress=progress)
    children, text = ranking.renew(Project(tmp_path, tmp_path), parent, NESTED, tmp_path)
    names = [f"model.convolutions=[] model.units={name}" for name in ("stopped, stopped", "killed", "resumed")]
    assert sorted(names_of_failed(children)) == sorted(names)
    assert re.findall(r"^\| (\w+) +\| +model.convolutions=\[\] model.units=(\w+)", text, re.MULTILINE)[0] == (
        "1",
        "done",
    )
    assert "| stopped |" in text


def opened(project: Project, *overrides: str) -> None:
    """Open a sweep as Hydra does for these overrides."""
    basic = {"_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"}
    values = {"overrides": {"task": list(overrides), "hydra": []}, "sweeper": basic, "sweep": {"dir": "multirun"}}
    with hydra.initialize_config_dir(str(project.conf), version_base="1.3"):
        sweep._open(project, OmegaConf.create(values))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=baseline", "evaluate.tta_shifts=1,5"], "evaluate.tta_shifts changes nothing in training"),
        (["seed=1,2", "model.filters=2,0"], "seed=1 model.filters=0: model.filters=0: input should be greater"),
        (["recipe=baseline", "model.filters=2", "seed=1,-1"], "seed=-1: seed=-1: input should be greater"),
        (
            ["recipe=glob(*)", "model.units=[4],[0]"],
            "recipe=accurate model.units=[0]: model.units.0=0: input should be greater",
        ),
        (["data.val_size=50,60"], "data.val_size=60: data.val_size=60, but the split in "),
        (["seed=glob(*)"], ": 0 jobs, expected 1 to 1,000"),
        (["recipe=glob(debug/*)"], ": 0 jobs, expected 1 to 1,000"),
    ],
)
def test_a_sweep_that_cannot_be_trained_whole_names_the_job_before_the_first(
    compose, tmp_path, monkeypatch, words, message
):
    monkeypatch.setattr(sweep_log, "open_sweep", None)  # nothing is begun
    project = Project(tmp_path, tmp_path)
    for name in ("conf", "pipeline"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    save_json(project.processed / "split.json", examples.split_record(compose("data.val_size=50").data))
    for name in ("train", "val"):
        (project.processed / f"{name}.npz").touch()
    words = [*words, "data.val_size=50"] if "data.val_size=50,60" not in words else words
    with pytest.raises(UserError, match=rf"\A[^\n]*{re.escape(message)}[^\n]*\Z"):
        opened(project, *words)


def test_hydras_glob_makes_a_job_of_each_recipe():
    conf = ROOT / "conf"
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        keys, jobs = grid(["recipe=glob(*)", "seed=1"])
        some = grid(["recipe=glob([a*,f*])"])[1]
    recipes = sorted(path.stem for path in (conf / "recipe").glob("*.yaml"))
    assert keys == ["recipe"] and jobs == [[f"recipe={recipe}", "seed=1"] for recipe in recipes]
    assert some == [["recipe=accurate"], ["recipe=fast"]]


def test_labels_beside_a_picture_are_short_and_begin_before_they_differ():
    assert ranking.short_labels(["seed=0", "seed=1"], 24) == ["seed=0", "seed=1"]
    assert ranking.short_labels([], 24) == []
    assert ranking.short_labels([LAYER % 3], 24) == ["[{multiple:1,kernel_size…"]
    assert ranking.short_labels(["a" * 30 + "b" + "c" * 30, "a" * 30 + "d"], 24) == [
        "…" + "a" * 12 + "b" + "c" * 11 + "…",
        "…" + "a" * 12 + "d",
    ]
