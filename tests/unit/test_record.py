"""What a run holds in files: read back, gone on with, and finished."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import record
from pipeline.config import PipelineError

ORIGIN = {"processor": "p"}
ABOUT = {"name": "a run", "tags": {"dvc_stage": "none", "content_sha256": "c"}, "origin": ORIGIN}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path / "outputs"


def row(step: int, at: int, **values: float) -> record.Row:
    return {"step": step, "time": at, "values": values}


def test_a_record_left_unfinished_is_gone_on_with_and_what_was_said_of_a_step_stays():
    with record.unfinished("c", ABOUT) as (first, waited):
        first.add_rows([row(1, 100, loss=0.5)])
        first.add_text("config.yaml", "seed: 0")
    assert not waited and record.left_unfinished("c", "a run", ORIGIN) == first.folder
    assert not record.left_unfinished("c", "another", ORIGIN)
    assert not record.left_unfinished("c", "a run", {"processor": "q"})
    with record.unfinished("c", ABOUT) as (again, _):
        assert again.about == {**first.about, "status": "RUNNING", "end": None}
        again.add_rows([row(1, 900, loss=0.25, accuracy=1.0), row(2, 901, loss=0.125)])
        assert again.rows == [row(1, 100, loss=0.5), row(1, 900, accuracy=1.0), row(2, 901, loss=0.125)]
        again.finish()
    assert not record.left_unfinished("c", "a run", ORIGIN) and record.waiting() == [again.folder]
    assert record.Record(again.folder).rows == again.rows
    with record.unfinished("c", ABOUT) as (new, _):
        assert new.about["id"] != first.about["id"] and new.rows == []


@pytest.mark.parametrize(
    "other",
    [
        ("d", ABOUT),
        ("c", {**ABOUT, "name": "b"}),
        ("c", {**ABOUT, "tags": {**ABOUT["tags"], "mlflow.parentRunId": "p"}}),
        ("c", {**ABOUT, "origin": {"processor": "q"}}),
    ],
)
def test_other_content_name_sweep_and_processor_have_a_record_of_their_own(other):
    with record.unfinished("c", ABOUT) as (one, _), record.unfinished(*other) as (two, _):
        assert one.folder != two.folder and one.about["id"] != two.about["id"]


@pytest.mark.parametrize("name", ["run.json", "rows.json"])
@pytest.mark.parametrize("content", ["", '{"id"', "[]", "{}"])
def test_a_damaged_record_is_begun_anew_with_a_word(capsys, name, content):
    with record.unfinished("c", ABOUT) as (first, _):
        pass
    (first.folder / name).write_text(content)
    with record.unfinished("c", ABOUT) as (again, _):
        assert again.about["id"] != first.about["id"] and again.rows == []
    assert "begun anew" in capsys.readouterr().out


def test_an_error_that_would_come_again_finishes_the_record_and_any_other_leaves_it():
    with record.unfinished("c", ABOUT) as (kept, _):
        kept.fail(KeyboardInterrupt())
        assert kept.about["status"] == "KILLED" and record.waiting() == []
        kept.fail(PipelineError("not finite"))
    assert (
        record.waiting() == [kept.folder] and json.loads((kept.folder / "run.json").read_text())["status"] == "FAILED"
    )


def test_checkpoints_go_with_the_end_and_a_linked_file_survives_its_replacement(home, tmp_path):
    (tmp_path / "model.keras").write_bytes(b"first")
    with record.unfinished("c", ABOUT) as (kept, _):
        (kept.folder / "epoch-000001.ckpt").write_bytes(b"x")
        kept.add_file(tmp_path / "model.keras", "")
        (tmp_path / "new").write_bytes(b"second")
        (tmp_path / "new").replace(tmp_path / "model.keras")
        kept.finish()
    assert (kept.folder / "model.keras").read_bytes() == b"first" and not list(home.rglob("*.ckpt"))
    assert list((home / "unfinished").iterdir()) == [], "no lock is left either"


def test_what_a_killed_sender_left_is_removed_and_what_waits_stays(home):
    with record.unfinished("c", ABOUT) as (kept, _):
        kept.finish()
    left = home / "unsent" / "sent" / "artifacts"
    left.mkdir(parents=True)
    (left / "history.csv").touch()
    record.remove_sent()
    assert list((home / "unsent").iterdir()) == [kept.folder] == record.waiting()


def _hold(until: float) -> None:
    with record.unfinished("c", ABOUT) as (kept, _):
        time.sleep(max(0, until - time.time()))
        kept.finish()


def test_a_second_one_waits_says_for_whom_and_knows_that_it_did(home, capsys):
    other = multiprocessing.get_context("spawn").Process(target=_hold, args=(time.time() + 3,))
    other.start()
    while not list(home.glob("unfinished/*/run.json")):
        assert other.is_alive() or other.exitcode == 0
        time.sleep(0.01)
    with record.unfinished("c", ABOUT) as (_, waited):
        assert waited
    other.join()
    assert other.exitcode == 0
    assert f"a run: process {other.pid} is at just this: waiting for it" in capsys.readouterr().out


def test_the_lock_of_a_process_that_was_killed_is_taken_over_at_once():
    other = multiprocessing.get_context("spawn").Process(target=_hold, args=(time.time() + 60,))
    other.start()
    while not record.left_unfinished("c", "a run", ORIGIN):
        time.sleep(0.01)
    other.kill()
    other.join()
    with record.unfinished("c", ABOUT) as (_, waited):
        assert not waited


def test_a_training_lives_while_its_process_does_and_elsewhere_while_it_is_heard_of():
    minute = 60_000
    here, elsewhere = record.MACHINE, "0123abcd"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert record.lives(f"{here} {other.pid} {record.now()}")
        assert not record.lives(f"{here} {other.pid} {record.now() - minute}"), "another process has its number now"
    assert not record.lives(f"{here} {other.pid} {record.now()}"), "it has ended"
    assert not record.lives(f"{here} {os.getpid()} {record.now()}"), "this one trains nothing now"
    assert record.lives(f"{elsewhere} {other.pid} {record.now() - 14 * minute}")
    assert not record.lives(f"{elsewhere} {other.pid} {record.now() - 16 * minute}")
    assert not record.lives(None) and not record.lives("somebody typed this")
    machine, pid, last = record.process_tag().split()
    assert (machine, pid) == (here, str(os.getpid())) and abs(record.now() - int(last)) < minute
