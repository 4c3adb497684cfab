"""Records that wait for MLflow, sent to a real store: once, in order, whoever sends and whatever is wrong with one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PARENT, fresh_store, start

from pipeline import checkpoint, sending, sweep, tracking
from pipeline.record import Record, home, now, waiting
from pipeline.store import open_store

MADE = {"weights_sha256": "w", "model_sha256": "m"}


@pytest.fixture(autouse=True)
def repository(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fresh_store(tmp_path / "mlflow.db")
    return tmp_path


def record(name: str, end: int, **about: Any) -> Record:
    known = {"experiment": "mnist", "inputs": [], "params": {"a": "1"}, "status": "FINISHED", "end": end, "name": name}
    made = Record(home() / "unsent" / name, {**known, "tags": {"dvc_stage": "none"}, **about})
    made.add_rows([{"step": 1, "time": now(), "values": {f"{name}_accuracy": 0.5}}])
    made.add_text("note.txt", name)
    return made


def training(end: int) -> Record:
    tags = {"dvc_stage": "train@baseline", "recipe": "baseline", "content_sha256": "c"}
    return record("trained", end, tags=tags, made=MADE)


def evaluation(end: int) -> Record:
    made = record("test", end, evaluation="evaluate@baseline", recipe="baseline", model_sha256="m", run=None)
    tags = {"dvc_stage": "train@baseline", "recipe": "baseline", "adopted": "trained elsewhere"}
    Record(made.folder / "adopted", {**made.about, "tags": tags, "made": MADE}).add_text("note.txt", "adopted")
    return made


def runs() -> list[Any]:
    client, experiment = open_store("mnist")
    return list(client.search_runs([experiment]))


def test_an_evaluation_goes_into_the_run_of_its_training_though_its_folder_is_older():
    evaluation(2)
    training(1)
    assert len(sending.send_waiting()[0]) == 2 and waiting() == []
    [run] = runs()
    assert run.data.metrics == {"trained_accuracy": 0.5, "test_accuracy": 0.5}
    assert run.data.tags["test_scored"] == "m" and "adopted" not in run.data.tags


SECOND = """
from pipeline import sending
print("begins", flush=True)
print(len(sending.send_waiting()[0]), flush=True)
"""


def test_two_that_send_at_once_make_no_second_run(monkeypatch):
    """The second begins when the first has made the run, but not said yet which model it holds."""
    training(1), evaluation(2)
    begin, others = sending._begin, []

    def begin_slowly(client: Any, experiment: str, of: Record) -> str:
        run_id = begin(client, experiment, of)
        others.append(start("python", "-c", SECOND, DVC_ROOT=os.environ["DVC_ROOT"]))
        assert others[0].stdout.readline() == "begins\n"
        with pytest.raises(subprocess.TimeoutExpired):  # it waits
            others[0].wait(1.5)
        return run_id

    monkeypatch.setattr(sending, "_begin", begin_slowly)
    sent, left = sending.send_waiting()
    assert others[0].communicate()[0].strip() == "0" and others[0].returncode == 0
    assert (len(sent), left) == (2, [])
    [run] = runs()
    assert run.data.metrics == {"trained_accuracy": 0.5, "test_accuracy": 0.5}


def test_one_that_mlflow_cannot_take_holds_up_its_own_evaluation_alone():
    broken = training(1)
    (broken.folder / "model.keras").write_bytes(b"damaged")
    held, fine = evaluation(2), record("other", 3)
    sent, left = sending.send_waiting()
    assert list(sent) == [fine.about["id"]] and waiting() == [broken.folder, held.folder]
    assert [str(folder) in line for folder, line in zip(waiting(), left, strict=True)] == [True, True]
    assert "is damaged" in left[0] and "waits for its training" in left[1]


def test_while_mlflow_is_away_it_is_asked_for_one_record_alone(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for number in range(3):
        record(f"r{number}", number)
    sent, left = sending.send_waiting()
    assert not sent and "refused" in left[0] and [line[-13:] for line in left[1:]] == ["waits as well"] * 2


def test_a_sweep_counts_what_another_command_has_trained_instead_of_its_own_unfinished_child(monkeypatch, tmp_path):
    client, experiment = open_store("mnist")
    parent, _ = tracking.open_sweep("mnist", "sweep", "command", "digest", ["train.epochs"])
    values = {sweep.PARENT: parent, sweep.KEYS: "train.epochs", sweep.EPOCHS: "1 3", sweep.FOLDER: str(tmp_path)}
    monkeypatch.setattr(sweep, "LOCKS", tmp_path / "locks")
    for key, value in values.items():
        monkeypatch.setenv(key, value)

    def run(status: str, **tags: str) -> str:
        known = {"content_sha256": "c", "group": "g", "recipe": "r", **tags}
        made = client.create_run(experiment, tags=known).info.run_id
        client.log_param(made, "train.epochs", "3")
        client.set_terminated(made, status)
        return made

    killed = run("KILLED", **{PARENT: parent})
    trained = run("FINISHED", model_sha256="m")
    monkeypatch.setattr(sweep, "origin", lambda *_: {"processor": "p"})
    job = sweep.Job(parent, {"train.epochs": "3"})
    found = job._found(SimpleNamespace(data=SimpleNamespace(name="mnist")), SimpleNamespace(content_sha256="c"))
    assert found.info.run_id == trained
    tracking.join_sweep(parent, found, {"train.epochs": "3"})
    sweep._close(parent, "FINISHED")
    assert [run.info.run_id for run in tracking.of_sweep(parent)] == [trained]
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(killed).info.lifecycle_stage == "deleted"


def test_a_child_that_another_machine_trains_is_waited_for_and_a_dead_one_is_replaced(monkeypatch, capsys):
    """The second machine of one tracking server deleted the first one's running child."""
    client, experiment = open_store("mnist")
    parent, _ = tracking.open_sweep("mnist", "sweep", "command", "digest", ["seed"])
    monkeypatch.setattr(sweep, "origin", lambda *_: {"processor": "p"})
    job, config = sweep.Job(parent, {"seed": "1"}), SimpleNamespace(data=SimpleNamespace(name="mnist"))

    def child(content: str, status: str, minutes: int) -> str:
        process = f"0123abcd 7 {now() - 60_000 * minutes}"
        run = client.create_run(experiment, tags={PARENT: parent, "content_sha256": content, "process": process})
        client.update_run(run.info.run_id, status)
        return run.info.run_id

    def stage(run_id: str) -> str:
        return client.get_run(run_id).info.lifecycle_stage

    dead = [child("a", "RUNNING", 16), child("a", "FAILED", 0), child("a", "KILLED", 0)]
    assert job._found(config, SimpleNamespace(content_sha256="a")) is None
    assert [stage(run_id) for run_id in dead] == ["deleted"] * 3
    assert capsys.readouterr().out == "seed=1: left unfinished by an earlier try, trained again\n"

    living, looks = child("b", "RUNNING", 14), []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert stage(living) == "active"
        if len(looks) == 2:
            client.set_tag(living, "model_sha256", "m")
            client.set_terminated(living, "FINISHED")

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    found = job._found(config, SimpleNamespace(content_sha256="b"))
    assert found.info.run_id == living and looks == [sweep.LOOK_AGAIN] * 2
    assert capsys.readouterr().out == "seed=1: another machine trains just this: waiting for it\n"

    twice = [child("b", "RUNNING", 0), child("b", "FAILED", 0)]  # finished by one, another is still at it
    assert job._found(config, SimpleNamespace(content_sha256="b")).info.run_id == living
    assert [stage(run_id) for run_id in twice] == ["active", "deleted"]


def test_a_sweep_that_ends_while_mlflow_is_away_says_so_in_one_line(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for key in (sweep.PARENT, sweep.KEYS, sweep.FOLDER):
        monkeypatch.setenv(key, "x")
    with pytest.raises(SystemExit, match=r"\Aerror: the MLflow store [^\n]*\Z"), sweep.reported():
        sys.exit("interrupted")


def test_checkpoints_of_later_epochs_that_are_not_used_do_not_outlive_new_ones(tmp_path):
    state, folder = checkpoint.State([], [], []), tmp_path / "kept"

    def save(epoch: int) -> None:
        checkpoint.save(folder, {"processor": "p"}, checkpoint.Checkpoint([{"epoch": 0.0}] * epoch, state))

    for epoch in (1, 2, 3, 7, 8):
        save(epoch)
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-000007.ckpt", "epoch-000008.ckpt"]
    save(1)
    assert [path.name for path in folder.iterdir()] == ["epoch-000001.ckpt"]
    found = checkpoint.newest([folder], {"processor": "p"}, 15)
    assert found is not None and len(found.history) == 1
