"""What `clean` lists and removes: never the only copy, nor what a living process writes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import PARENT, copy_repository, fresh_store, pipeline, run, runs

from pipeline.base.project import Project, open_project
from pipeline.base.verb_schemas import CleanConfig
from pipeline.clean import clean
from pipeline.tracking import sending
from pipeline.tracking.record import Record, add_pending, now, pending
from pipeline.tracking.store import open_store


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    fresh_store(tmp_path / "mlflow.db")
    return open_project(tmp_path)


def record(project: Project, name: str, **info: Any) -> Record:
    known = {"experiment": "mnist", "inputs": [], "params": {"a": "1"}, "status": "FINISHED", "end": 9, "name": name}
    one = Record.begin(project.root / name, known | {"tags": {"dvc_stage": "none"}, "start": 1} | info)
    one.add_rows([{"step": step, "time": now(), "values": {"val_accuracy": step / 10}} for step in (1, 2)])
    (one.folder / "plots").mkdir()
    (one.folder / "plots/curves.png").write_text(name)
    add_pending(project, one.folder)
    return one


def sent(project: Project, name: str, **info: Any) -> Record:
    one = record(project, name, **info)
    assert one.info["id"] in sending.send_pending(project)[0]
    return Record(one.folder)


def listed(project: Project, capsys: pytest.CaptureFixture[str], yes: bool = False) -> dict[str, str]:
    """What is printed of each thing, by its name."""
    clean(project, CleanConfig.model_construct(yes=yes))
    lines = [line for line in capsys.readouterr().out.splitlines() if ": " in line]
    return {line.split("  ")[-1].partition(": ")[0]: " ".join(line.split()) for line in lines}


def test_a_run_goes_once_mlflow_holds_it_whole_and_only_then(project, capsys):
    whole, waits = sent(project, "outputs/whole"), record(project, "outputs/waits")
    before = sorted(project.root.rglob("*"))
    said = listed(project, capsys)
    assert "MLflow holds it whole" in said["outputs/whole"] and said["outputs/whole"].startswith("can go 0.")
    assert said["outputs/waits"].startswith("stays") and "python -m pipeline.sync" in said["outputs/waits"]
    assert sorted(project.root.rglob("*")) == before, "without yes nothing changes"
    listed(project, capsys, yes=True)
    assert not whole.folder.exists() and waits.folder.exists()
    assert [one.folder for one in pending(project)] == [waits.folder]


def test_what_mlflow_lacks_is_looked_for_in_mlflow_itself(project, capsys):
    folders = [sent(project, f"outputs/{name}").folder for name in ("file", "size", "rows", "run", "tracker", "model")]
    (folders[0] / "late.txt").write_text("of nobody else")
    (folders[1] / "plots/curves.png").write_text("of another size")
    Record(folders[2]).add_rows([{"step": 3, "time": 1, "values": {"val_accuracy": 0.9}}])
    client, experiment = open_store(project, "mnist")
    [run] = client.search_runs([experiment], f"tags.record = '{Record(folders[3]).info['id']}'")
    client.delete_run(run.info.run_id)
    (folders[4] / "tensorboard").mkdir()
    (folders[5] / "model.keras").write_bytes(b"weights")
    said = listed(project, capsys, yes=True)
    assert [said[f"outputs/{folder.name}"].rpartition("MLflow lacks ")[2] for folder in folders] == [
        "late.txt",
        "plots/curves.png",
        "figures",
        "its run",
        "what other trackers wrote",
        "its model",
    ]
    assert all(folder.is_dir() for folder in folders)


def test_a_model_goes_if_mlflow_has_it(project, capsys, tmp_path):
    one = sent(project, "outputs/trained")
    (one.folder / "model.keras").write_bytes(b"weights")
    client, experiment = open_store(project, "mnist")
    [run] = client.search_runs([experiment])
    model = client.create_logged_model(experiment, "model", run.info.run_id)
    (tmp_path / "logged/data").mkdir(parents=True)
    (tmp_path / "logged/data/model.keras").write_bytes(b"weights")
    client.log_model_artifacts(model.model_id, str(tmp_path / "logged"))
    assert "stays" in listed(project, capsys)["outputs/trained"], "half sent"
    client.finalize_logged_model(model.model_id, "READY")
    assert "can go" in listed(project, capsys)["outputs/trained"]


def test_an_unfinished_training_goes_as_far_as_mlflow_has_it_and_no_living_one(project, capsys):
    killed = sent(project, "outputs/killed", status="KILLED")
    (killed.folder / "epoch-000002.ckpt").write_bytes(b"1" * 2_000_000)
    further = sent(project, "outputs/further", status="KILLED")
    further.add_rows([{"step": 3, "time": 1, "values": {"val_accuracy": 0.9}}])
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        machine = sending.process_tag().split()[0]
        alive = sent(project, "outputs/alive", status="KILLED", process=f"{machine} {other.pid} {now() + 1000}")
        alive.update(status="RUNNING")
        said = listed(project, capsys, yes=True)
        other.communicate(b"\n")
    assert said["outputs/killed"].startswith("removed 2.0 MB") and not killed.folder.exists()
    assert said["outputs/further"].endswith("the same command continues it, and MLflow lacks figures")
    assert said["outputs/alive"].endswith("its process is still at work")
    assert {one.folder for one in pending(project)} == {further.folder, alive.folder}
    assert len(list((project.root / "outputs/.pending").iterdir())) == 2


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def old(path: Path) -> Path:
    os.utime(path, (time.time() - 1000,) * 2)
    return path


def test_empty_folders_go_and_what_other_commands_wrote_stays(project, capsys):
    for name in ("empty", "new", "predicted"):
        (project.root / "outputs" / name).mkdir(parents=True)
    (project.root / "outputs/predicted/digits.csv").write_text("a")
    old(project.root / "outputs/empty")
    said = listed(project, capsys, yes=True)
    assert said["outputs/new"].endswith("empty, and new") and "MLflow has none of it" in said["outputs/predicted"]
    assert names(project.root / "outputs") == ["new", "predicted"]


def test_a_comparison_goes_if_a_run_holds_its_files(project, capsys):
    client, experiment = open_store(project, "mnist")
    for name, text in (("logged", "**A is better**\n"), ("lost", "**B is better**\n")):
        (project.root / "outputs" / name).mkdir(parents=True)
        (project.root / "outputs" / name / "comparison.md").write_text(text)
    note = {"mlflow.note.content": "**A is better**\n\nRuns compared: a, b\n", "compared": "a b"}
    run_id = client.create_run(experiment, tags=note).info.run_id
    assert "stays" in listed(project, capsys)["outputs/logged"], "its file is not there yet"
    client.log_artifact(run_id, str(project.root / "outputs/logged/comparison.md"))
    said = listed(project, capsys, yes=True)
    assert said["outputs/logged"].endswith(f"a comparison that MLflow run {run_id} holds")
    assert names(project.root / "outputs") == ["lost"]


def test_a_sweep_goes_with_its_ranking_and_its_shared_checkpoints(project, capsys):
    client, experiment = open_store(project, "mnist")
    parent = client.create_run(experiment, tags={"sweep": "digest"}).info.run_id
    tags, folder = {PARENT: parent, "dvc_stage": "none"}, project.root / "multirun/today"
    sent(project, "multirun/today/0", tags=tags)
    left = record(project, "multirun/today/1", tags=tags, status="RUNNING", process="0123abcd 7 1")
    (folder / "ranking.csv").write_text("rank\n1\n")
    client.log_artifact(parent, str(folder / "ranking.csv"))
    shared = project.root / "multirun/.shared" / parent
    shared.mkdir(parents=True)
    old(shared)
    said = listed(project, capsys)
    assert "MLflow lacks its run" in said["multirun/today/1"] and "multirun/today" not in said
    assert said[f"multirun/.shared/{parent}"].startswith("stays")
    left.update(status="KILLED")
    sending.send_pending(project)
    said = listed(project, capsys, yes=True)
    assert said["multirun/today"].endswith("MLflow holds the ranking of the sweep")
    assert not (project.root / "multirun").exists()


def test_without_mlflow_all_runs_stay(project, capsys, monkeypatch):
    one = sent(project, "outputs/whole")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert "stays" in listed(project, capsys, yes=True)["outputs/whole"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (project.root / "mlflow.db").unlink()
    assert "stays" in listed(project, capsys, yes=True)["outputs/whole"]
    assert one.folder.is_dir() and not (project.root / "mlflow.db").exists()


@pytest.mark.slow
def test_deleted_runs_go_by_gc_with_their_files_but_not_a_registered_one(project, capsys):
    client, experiment = open_store(project, "mnist")
    ids = []
    for name in ("kept", "deleted", "registered"):
        run_id = client.create_run(experiment, run_name=name).info.run_id
        client.log_text(run_id, "x" * 200_000, "big.txt")
        model = client.create_logged_model(experiment, "model", run_id)
        client.finalize_logged_model(model.model_id, "READY")
        (project.root / "m").mkdir(exist_ok=True)
        (project.root / "m/model.keras").write_bytes(b"x" * 300_000)
        client.log_model_artifacts(model.model_id, str(project.root / "m"))
        ids.append(run_id)
    client.create_registered_model("mnist")
    client.create_model_version("mnist", model.model_uri, run_id, model_id=model.model_id)
    for run_id in ids[1:]:
        client.delete_run(run_id)
    clean(project, CleanConfig.model_construct(yes=False))
    out = capsys.readouterr().out
    assert "can go     0.5 MB  mlruns: 1 runs that were deleted in MLflow, by `mlflow gc`" in out, out
    assert "1 deleted runs: the registry names them, or they count" in out
    clean(project, CleanConfig.model_construct(yes=True))
    left = {run.info.run_id for run in client.search_runs([experiment], run_view_type=3)}
    assert left == {ids[0], ids[2]}
    assert len(list((project.root / "mlruns").rglob("big.txt"))) == 2
    assert len(list((project.root / "mlruns").rglob("model.keras"))) == 2
    assert not (project.root / "mlruns" / ids[1]).exists()


@pytest.mark.slow
def test_all_that_real_commands_leave_goes_and_they_work_without_it(clone):
    def fine(verb: str, *words: str) -> str:
        done = pipeline(clone, verb, *words)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    fine("train", "recipe=baseline", "seed=7", "train.patience=1")
    sweep = fine("train", "-m", "recipe=baseline", "seed=8,9", "train.epochs=1")
    [one] = [run.info.run_id for run in runs(clone, "params.seed = '8'")]
    fine("evaluate", f"run={one}")
    fine("evaluate", "recipe=baseline")
    fine("compare", "a=accurate", "b=baseline")
    said = fine("clean")
    assert not re.search("^stays", said, re.MULTILINE), said
    assert len(re.findall("MLflow holds it whole", said)) == 5 and "a comparison that MLflow run" in said
    assert "MLflow holds the ranking of the sweep" in said
    fine("clean", "yes=true")
    assert [path for path in (clone / "outputs").rglob("[!.]*") if path.is_file()] == []
    assert [path.name for path in (clone / "multirun").iterdir() if path.name[0] != "."] == []
    assert "2 jobs, 2 found finished" in fine("train", "-m", "recipe=baseline", "seed=8,9", "train.epochs=1"), sweep
    assert "identical bits" in fine("reproduce", f"run={one}")


@pytest.mark.slow
def test_demo_and_what_dvc_has_no_use_for_go(clone, capsys):
    project = open_project(clone)
    (clone / "demo/.dvc/tmp").mkdir(parents=True)
    (clone / "demo/dvc.yaml").write_text("")
    (clone / "demo/.dvc/tmp/rwlock").write_text('{"file": {"write": {"pid": 1}}}')
    extra = clone / ".dvc/cache/files/md5/00/00000000000000000000000000000a"
    extra.parent.mkdir(parents=True, exist_ok=True)
    extra.write_bytes(b"x" * 150_000)
    said = listed(project, capsys)
    assert "stays" in said["demo"] and said["DVC's cache"].startswith("can go 0.1 MB"), said
    (clone / "demo/.dvc/tmp/rwlock").write_text("{}")
    cached = {file for file in (clone / ".dvc/cache").rglob("*") if file.is_file()}
    listed(project, capsys, yes=True)
    assert not (clone / "demo").exists()
    assert {file for file in (clone / ".dvc/cache").rglob("*") if file.is_file()} == cached - {extra}
    done = run("dvc", "status", cwd=clone)
    assert "up to date" in done.stdout, done.stdout


@pytest.mark.slow
def test_commands_that_write_nothing_leave_no_folder(tmp_path):
    copy_repository(tmp_path)
    for command in ("clean", "clean yes=true", "sync", "promote"):
        name, *words = command.split()
        done = run("python", "-m", f"pipeline.{name}", *words, cwd=tmp_path)
        assert (done.stdout or done.stderr).count("\n") == 1 and not (tmp_path / "outputs").exists(), done
