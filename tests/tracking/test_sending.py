"""Records that wait for MLflow, sent to a real store: once, in order, whoever sends and whatever is wrong with one."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import PARENT, ROOT, fresh_store, start

from pipeline.base.errors import UserError
from pipeline.base.files import save_yaml
from pipeline.base.project import Project, open_project
from pipeline.base.verb_schemas import TrainConfig
from pipeline.experiments import completed, ranking, sweep
from pipeline.sync import sync
from pipeline.tracking import live, queries, sending, sweep_log
from pipeline.tracking.record import Record, add_pending, now, pending
from pipeline.tracking.store import open_store
from pipeline.training import checkpoint

RESULT = {"weights_sha256": "w", "model_sha256": "m"}


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fresh_store(tmp_path / "mlflow.db")
    return open_project(tmp_path)


def record(project: Project, name: str, start: int, **info: Any) -> Record:
    known = {"experiment": "mnist", "inputs": [], "params": {"a": "1"}, "status": "FINISHED", "end": 9, "name": name}
    one = Record.begin(project.root / "outputs" / name, known | {"tags": {"dvc_stage": "none"}, "start": start} | info)
    one.add_rows([{"step": 1, "time": now(), "values": {f"{name}_accuracy": 0.5}}])
    (one.folder / "note.txt").write_text(name)
    add_pending(project, one.folder)
    return one


def training(project: Project, start: int) -> Record:
    tags = {"dvc_stage": "train@baseline", "recipe": "baseline", "content_sha256": "c"}
    trained = record(project, "trained", start, tags=tags, result_tags=RESULT)
    save_yaml(trained.folder / "config.yaml", {"model": {}})
    return trained


def evaluation(project: Project, start: int, name: str = "test") -> Record:
    tags = {"recipe": "baseline"}
    one = record(project, name, start, tags=tags, evaluated_by="evaluate@baseline", evaluated_sha256="m", run=None)
    adopted = {"dvc_stage": "train@baseline", "recipe": "baseline", "adopted": "trained elsewhere"}
    info = {key: value for key, value in one.info.items() if not key.startswith("evaluated")}
    Record.begin(one.folder / "training", info | {"id": f"adopted {name}", "tags": adopted, "result_tags": RESULT})
    return one


def runs(project: Project) -> list[Any]:
    client, experiment = open_store(project, "mnist")
    return list(client.search_runs([experiment]))


def test_an_evaluation_goes_into_the_run_of_its_training_though_its_folder_is_older(project):
    evaluation(project, 2)
    training(project, 1)
    sent, left = sending.send_pending(project)
    assert len(sent) == 2 and left == [] == pending(project)
    [run] = runs(project)
    assert run.data.metrics == {"trained_accuracy": 0.5, "test_accuracy": 0.5}
    assert run.data.tags["test_scored"] == "m" and "adopted" not in run.data.tags


def test_a_model_without_a_run_gets_one_of_its_files_and_two_evaluations_are_both_kept(project):
    evaluation(project, 1), evaluation(project, 2, "again")
    assert len(sending.send_pending(project)[0]) == 2
    [run] = runs(project)
    assert run.data.tags["adopted"] == "trained elsewhere"
    assert run.data.metrics == {"test_accuracy": 0.5, "again_accuracy": 0.5}


def test_sending_again_changes_nothing(project):
    one = training(project, 1)
    sending.send_pending(project)
    [before] = runs(project)
    add_pending(project, one.folder)
    sending.send_pending(project)
    [after] = runs(project)
    assert before.to_dictionary() == after.to_dictionary() | {"info": before.to_dictionary()["info"]}
    history = open_store(project, "mnist")[0].get_metric_history(after.info.run_id, "trained_accuracy")
    assert len(history) == 1


SECOND = """
from pipeline.base.project import open_project
from pipeline.tracking import sending
print("begins", flush=True)
print(len(sending.send_pending(open_project())[0]), flush=True)
"""


@pytest.mark.slow
def test_two_that_send_at_once_make_no_second_run(project, monkeypatch):
    """The second begins when the first has made the run, but not said yet which model it holds."""
    training(project, 1), evaluation(project, 2)
    create, others = sending.create_or_update, []

    def create_slowly(client: Any, experiment: str, one: Record) -> str:
        run_id = create(client, experiment, one)
        others.append(start("python", "-c", SECOND, cwd=project.root, PYTHONPATH=str(ROOT)))
        assert others[0].stdout.readline() == "begins\n"
        with pytest.raises(subprocess.TimeoutExpired):  # it waits
            others[0].wait(1.5)
        return run_id

    monkeypatch.setattr(sending, "create_or_update", create_slowly)
    sent, left = sending.send_pending(project)
    assert others[0].communicate()[0].strip() == "0" and others[0].returncode == 0
    assert (len(sent), left) == (2, [])
    [run] = runs(project)
    assert run.data.metrics == {"trained_accuracy": 0.5, "test_accuracy": 0.5}


def test_one_that_mlflow_cannot_take_holds_up_its_own_evaluation_alone(project):
    broken = training(project, 1)
    (broken.folder / "model.keras").write_bytes(b"damaged")
    held, fine = evaluation(project, 2), record(project, "other", 3)
    sent, left = sending.send_pending(project)
    assert list(sent) == [fine.info["id"]]
    assert [one.folder for one in pending(project)] == [broken.folder, held.folder]
    assert str(broken.folder) in left[0] and "is damaged" in left[0]
    assert str(held.folder) in left[1] and "waits for its training" in left[1]


def test_while_mlflow_is_unreachable_it_is_asked_for_one_record_alone(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for number in range(3):
        record(project, f"r{number}", number)
    sent, left = sending.send_pending(project)
    assert not sent and len(left) == 1 and "failed" in left[0] and len(pending(project)) == 3


def test_a_record_of_a_deleted_experiment_holds_up_no_other(project, swept):
    """It was taken for an unreachable store: nothing was ever sent again."""
    client, _, parent = swept
    client.delete_experiment(open_store(project, "other")[1])
    gone = record(project, "gone", 1, experiment="other")
    tags = {**sweep_log.child_tags(parent, {"seed": "3"}), "content_sha256": "c", "group": "g"}
    record(project, "child", 2, tags=tags, result_tags=RESULT)
    sweep._close(project, parent, "FINISHED")
    assert client.get_run(parent).info.status == "FINISHED"
    assert [run.data.tags["model_sha256"] for run in queries.sweep_runs(parent)] == ["m"]
    assert [one.folder for one in pending(project)] == [gone.folder]
    sent, [left] = sending.send_pending(project)
    assert not sent and "experiment 'other' is deleted: restore it" in left


def test_a_run_that_ends_while_sync_begins_is_sent_without_its_name(project, monkeypatch, capsys):
    one = training(project, 1)
    monkeypatch.setattr(sending, "send_pending", lambda _: ({one.info["id"]: "abc", "late": "def"}, []))
    sync(project, SimpleNamespace(to=None))
    assert (
        capsys.readouterr().out == "sent: trained, MLflow run abc\nsent: a run that ended meanwhile, MLflow run def\n"
    )


def test_after_an_outage_the_next_one_is_told_and_tried_again_soon(project, monkeypatch, capsys):
    """The pause was doubled for ever, and a second outage in one run was silent."""
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    clock, away = [0.0], "http://127.0.0.1:9"
    one = record(project, "live", 1, status="RUNNING")
    log = live.LiveLog(project, one)

    def send(at: float, uri: str | None) -> str:
        clock[0] = at
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri) if uri else monkeypatch.delenv(
            "MLFLOW_TRACKING_URI", raising=False
        )
        log.send()
        return capsys.readouterr().out

    assert "Training goes on" in send(0, away)
    assert send(59, away) == "" == send(61, away) and log.next_try == 61 + 120
    assert send(100, None) == "" and log.sent == 0, "it is left alone meanwhile"
    assert send(182, None) == "" and log.sent == 1
    assert "Training goes on" in send(200, away) and log.next_try == 260
    for at in (261, 400, 700):
        send(at, away)
    assert log.next_try == 700 + 300, "others take it for dead after 900"


def test_a_file_of_ours_that_cannot_be_read_is_no_fault_of_the_store(project):
    one = training(project, 1)
    (one.folder / "metrics.jsonl").unlink()
    (one.folder / "metrics.jsonl").mkdir()
    with pytest.raises(IsADirectoryError):
        Record(one.folder).add_rows([{"step": 2, "time": 1, "values": {"a": 1.0}}])


@pytest.fixture
def swept(project, monkeypatch) -> tuple[Any, str, str]:
    """A sweep over the seed: the client, the experiment's id and the parent's."""
    client, experiment = open_store(project, "mnist")
    parent, _ = sweep_log.open_sweep(project, "mnist", "sweep", "command", "digest", ["seed"], {})
    values = {sweep.PARENT: parent, sweep.KEYS: "seed", sweep.EPOCHS: "3", sweep.MONITOR: "val_accuracy"}
    for key, value in (values | {sweep.FOLDER: str(project.sweeps / "now")}).items():
        monkeypatch.setenv(key, value)
    return client, experiment, parent


def identity(content: str) -> Any:  # Fingerprint
    return SimpleNamespace(content_sha256=content, resume_key={"processor": "p"})


def test_a_sweep_counts_what_another_command_has_trained_instead_of_its_own_unfinished_child(project, swept):
    client, experiment, parent = swept

    def run(status: str, **tags: str) -> str:
        known = {"content_sha256": "c", "group": "g", "recipe": "r", **tags}
        run_id = client.create_run(experiment, tags=known).info.run_id
        client.log_param(run_id, "seed", "3")
        client.set_terminated(run_id, status)
        return run_id

    killed = run("KILLED", **{PARENT: parent})
    trained = run("FINISHED", model_sha256="m")
    found = completed.find_completed(project, "mnist", parent, identity("c"), "seed=3")
    assert found.info.run_id == trained
    sweep_log.join_sweep(parent, found, {"seed": "3"})
    sweep._close(project, parent, "FINISHED")
    assert [run.info.run_id for run in queries.sweep_runs(parent)] == [trained]
    assert client.get_run(parent).info.status == "FINISHED"
    assert client.get_run(killed).info.lifecycle_stage == "deleted"


def test_a_child_that_another_machine_trains_is_waited_for_and_a_dead_one_is_replaced(
    project, swept, monkeypatch, capsys
):
    """The second machine of one tracking server deleted the first one's running child."""
    client, experiment, parent = swept

    def find(content: str) -> Any:  # Run
        return completed.find_completed(project, "mnist", parent, identity(content), "seed=1")

    def child(content: str, status: str, minutes: int) -> str:
        process = f"0123abcd 7 {now() - 60_000 * minutes}"
        run = client.create_run(experiment, tags={PARENT: parent, "content_sha256": content, "process": process})
        client.update_run(run.info.run_id, status)
        return run.info.run_id

    def stage(run_id: str) -> str:
        return client.get_run(run_id).info.lifecycle_stage

    dead = [child("a", "RUNNING", 16), child("a", "FAILED", 0), child("a", "KILLED", 0)]
    assert find("a") is None
    assert [stage(run_id) for run_id in dead] == ["deleted"] * 3

    alive, looks = child("b", "RUNNING", 14), []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        assert stage(alive) == "active"
        if len(looks) == 2:
            client.set_tag(alive, "model_sha256", "m")
            client.set_terminated(alive, "FINISHED")

    monkeypatch.setattr(completed.time, "sleep", sleep)
    found = find("b")
    assert found.info.run_id == alive and looks == [completed.POLL_SECONDS] * 2
    assert capsys.readouterr().out == "seed=1: another machine trains just this: waiting for it\n"

    twice = [child("b", "RUNNING", 0), child("b", "FAILED", 0)]  # finished by one, another is still at it
    assert find("b").info.run_id == alive
    assert [stage(run_id) for run_id in twice] == ["active", "deleted"]


def test_a_job_that_was_found_finished_does_not_fail_with_mlflow(project, swept, compose, monkeypatch, capsys):
    data = SimpleNamespace(metrics={"val_accuracy": 0.5}, tags={})
    run = SimpleNamespace(info=SimpleNamespace(run_id="abc"), data=data)

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("the store failed")

    monkeypatch.setattr(sweep, "find_completed", lambda *_: run)
    monkeypatch.setattr(sweep_log, "join_sweep", fail)
    monkeypatch.setattr(ranking, "renew", fail)
    config: Any = compose("recipe=baseline", schema=TrainConfig, name="train")
    assert sweep.train_job(project, config, None, identity("c")) == 0.5
    assert "the store failed: the sweep goes on\nall the same: found finished" in capsys.readouterr().out


def test_a_sweep_that_ends_while_mlflow_is_unreachable_says_so_in_one_line(project, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for key in (sweep.PARENT, sweep.KEYS, sweep.FOLDER, sweep.MONITOR):
        monkeypatch.setenv(key, "x")
    with pytest.raises(SystemExit, match=r"\Aerror: the MLflow store [^\n]*\Z"), sweep.reported(project):
        sys.exit("interrupted")


def test_checkpoints_of_later_epochs_that_are_not_used_do_not_outlive_new_ones(tmp_path):
    state, folder = checkpoint.State([], []), tmp_path / "kept"

    def save(epoch: int) -> None:
        checkpoint.save(folder, {"processor": "p"}, checkpoint.Checkpoint([{"epoch": 0.0}] * epoch, state))

    for epoch in (1, 2, 3, 7, 8):
        save(epoch)
    assert sorted(path.name for path in folder.iterdir()) == ["epoch-000007.ckpt", "epoch-000008.ckpt"]
    save(1)
    assert [path.name for path in folder.iterdir()] == ["epoch-000001.ckpt"]
    found = checkpoint.newest([folder], {"processor": "p"}, 15)
    assert found is not None and len(found.history) == 1


def test_what_trackers_wrote_into_the_folder_of_a_stage_stays_when_it_is_sent(project):
    for name, told in (("told", True), ("plain", False)):
        record(project, f"stages/{name}.1", 1, trackers=told)
    assert len(sending.send_pending(project)[0]) == 2
    outputs = project.root / "outputs"
    assert [path.name for path in outputs.rglob("note.txt")] == ["note.txt"]
    assert (outputs / "told.1/note.txt").read_text() == "stages/told.1"
