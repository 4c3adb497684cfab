"""What a run's folder holds: read back, continued, finished, and remembered until MLflow has it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.base.errors import UserError
from pipeline.base.project import Project, open_project
from pipeline.tracking import record

KEY = {"processor": "p"}
INFO = {"name": "a run", "tags": {"dvc_stage": "none", "content_sha256": "c"}, "resume_key": KEY}


@pytest.fixture
def project(tmp_path) -> Project:
    return open_project(tmp_path)


def in_folder(project: Project, name: str) -> Project:
    """The project of another job."""
    return dataclasses.replace(project, job_folder=project.root / "outputs" / name)


def row(step: int, at: int, **values: float) -> record.Row:
    return {"step": step, "time": at, "values": values}


def killed(project: Project, info=INFO) -> record.Record:
    """The record of a training whose process was killed: it has another's number, of before this machine started."""
    left = record.resume_or_create(project, info)
    left.update(process=f"{record.MACHINE} {os.getpid()} 1000000000000")
    return left


def test_a_killed_training_continues_in_the_new_jobs_folder_and_steps_stay_as_they_were(project):
    first = killed(project)
    first.add_rows([row(1, 100, loss=0.5)])
    (first.folder / "epoch-000001.ckpt").write_bytes(b"checkpoint")
    (first.folder / "console.log").write_text("epoch 1\n")
    (first.folder / "stop").touch()
    again = record.resume_or_create(in_folder(project, "second"), INFO)
    assert again.folder == project.root / "outputs/second" and not first.folder.exists()
    assert (again.folder / "epoch-000001.ckpt").read_bytes() == b"checkpoint"
    assert (again.folder / "console.log").read_text() == "epoch 1\n" and not (again.folder / "stop").exists()
    assert again.info["id"] == first.info["id"] and again.info["status"] == "RUNNING"
    again.add_rows([row(1, 900, loss=0.25, accuracy=1.0), row(2, 901, loss=0.125)])
    assert again.rows == [row(1, 100, loss=0.5), row(1, 900, accuracy=1.0), row(2, 901, loss=0.125)]
    assert record.Record(again.folder).rows == again.rows
    again.finish("FINISHED")
    assert not list(again.folder.glob("*.ckpt"))
    assert [one.folder for one in record.pending(project)] == [again.folder], "until MLflow has it"
    new = record.resume_or_create(in_folder(project, "third"), INFO)
    assert new.info["id"] != first.info["id"] and new.rows == []


def test_a_note_that_is_given_when_it_continues_is_taken_and_what_we_write_stays(project):
    first = killed(project, INFO | {"tags": INFO["tags"] | {"owner": "me", "git_commit": "a"}})
    tags = INFO["tags"] | {"owner": "you", "note": "why", "git_commit": "b"}
    again = record.resume_or_create(in_folder(project, "second"), INFO | {"tags": tags})
    assert again.info["id"] == first.info["id"]
    assert again.info["tags"] == INFO["tags"] | {"owner": "you", "note": "why", "git_commit": "a"}


def test_one_that_still_runs_is_left_alone(project):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        first = killed(project)
        first.update(process=f"{record.MACHINE} {other.pid} {record.now()}")
        second = record.resume_or_create(in_folder(project, "second"), INFO)
        assert second.info["id"] != first.info["id"] and first.folder.exists()


@pytest.mark.parametrize(
    "other",
    [
        {"name": "b"},
        {"tags": {**INFO["tags"], "content_sha256": "d"}},
        {"tags": {**INFO["tags"], "mlflow.parentRunId": "p"}},
        {"tags": {**INFO["tags"], "dvc_stage": "train@baseline"}},
        {"resume_key": {"processor": "q"}},
    ],
)
def test_other_content_name_sweep_stage_and_processor_do_not_continue_it(project, other):
    first = killed(project)
    second = record.resume_or_create(in_folder(project, "second"), INFO | other)
    assert second.info["id"] != first.info["id"] and first.folder.exists()


def test_a_line_that_was_cut_short_loses_its_own_row_alone(project):
    first = killed(project)
    first.add_rows([row(1, 100, loss=0.5)])
    with (first.folder / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 2, "ti')
    again = record.resume_or_create(in_folder(project, "second"), INFO)
    again.add_rows([row(2, 200, loss=0.25)])
    assert record.Record(again.folder).rows == [row(1, 100, loss=0.5), row(2, 200, loss=0.25)]


@pytest.mark.parametrize("content", ["", '{"id"'])
def test_a_damaged_record_is_passed_over_with_a_word(project, capsys, content):
    first = killed(project)
    (first.folder / "run.json").write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        record.Record(first.folder)
    second = record.resume_or_create(in_folder(project, "second"), INFO)
    assert second.info["id"] != first.info["id"] and "is damaged" in capsys.readouterr().out


def test_artifacts_are_all_files_but_our_own(project):
    one = record.resume_or_create(project, INFO)
    one.add_rows([row(1, 100, loss=0.5)])
    names = (
        "config.yaml",
        "plots/a.png",
        "model.keras",
        "epoch-000001.ckpt",
        ".a.partial",
        "training/history.csv",
        "stop",
    )
    for name in names:
        (one.folder / name).parent.mkdir(exist_ok=True)
        (one.folder / name).touch()
    assert one.artifacts() == [Path("config.yaml"), Path("plots/a.png")]


def test_a_folder_that_the_user_removed_waits_no_longer(project):
    one = record.resume_or_create(project, INFO)
    assert len(record.pending(project)) == 1
    (one.folder / "run.json").unlink()
    assert record.pending(project) == [] and not list((project.root / "outputs/.pending").iterdir())


def test_the_oldest_waits_first_and_dvcs_queue_keeps_it_in_the_users_repository(tmp_path):
    checkout = Project(tmp_path / "checkout", tmp_path, "train@a", job_folder=tmp_path / "outputs/stages/1")
    for name, start in (("1", 300), ("2", 100), ("3", 200)):
        one = record.Record.begin(tmp_path / "outputs" / name, INFO | {"start": start, "status": "FINISHED"})
        record.add_pending(checkout, one.folder)
    assert [one.folder.name for one in record.pending(open_project(tmp_path))] == ["2", "3", "1"]


def test_a_training_is_alive_while_its_process_is_and_elsewhere_while_it_is_heard_of():
    minute = 60_000
    here, elsewhere = record.MACHINE, "0123abcd"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert record.is_alive(f"{here} {other.pid} {record.now()}")
        assert not record.is_alive(f"{here} {other.pid} {record.now() - minute}"), "another process has its number now"
    assert not record.is_alive(f"{here} {other.pid} {record.now()}"), "it has ended"
    assert not record.is_alive(f"{here} {os.getpid()} {record.now()}"), "this one trains nothing now"
    assert record.is_alive(f"{elsewhere} {other.pid} {record.now() - 14 * minute}")
    assert not record.is_alive(f"{elsewhere} {other.pid} {record.now() - 16 * minute}")
    assert not record.is_alive(None)
    machine, pid, last = record.process_tag().split()
    assert (machine, pid) == (here, str(os.getpid())) and abs(record.now() - int(last)) < minute
