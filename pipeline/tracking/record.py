"""The folder of a run is its record: all that MLflow gets stands there first, and is sent from there, now or later.

run.json holds experiment, name, tags, params, inputs, start, end and status, which is MLflow's, or PRUNED where a sweep
ended its job early, for good. Of some runs it holds more:
  resume_key, process     of a training: what its checkpoints fit, and who trains it (see `process_tag`)
  progress                of a training: the last epoch, and while it runs the time that is left
  result_tags             hashes of the model: logged last, so an MLflow run that has them is whole
  sent                    a training that was killed is in MLflow as far as it came, and may still continue
  trackers                whether others than MLflow are told: the folder stays, of a stage too, for what they write
  evaluated_sha256, run   of an evaluation: the model, and the id of its MLflow run
  evaluated_by            of an evaluation: DVC's stage, or the command
metrics.jsonl holds a row per step; an artifact is every other file but model.keras, checkpoints, hidden files, what is
TensorBoard's, and the record of a training in an evaluation's folder training/. console.log is what it printed.

A file `stop` that somebody puts there ends the training after its epoch; the next start removes it.

Until MLflow has all of a record, a file in outputs/.pending, named by the hash of its folder's path, points to that
folder: it is pending. `waiting` are those that can be sent now; `unfinished` those that a process left in the middle,
and that continue. One that was killed and not yet sent is both; one that trains is neither.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.base.errors import UserError
from pipeline.base.files import HOST, load_json, save_json, write_text
from pipeline.base.project import Project
from pipeline.base.verb_schemas import OUR_TAGS

PARENT = "mlflow.parentRunId"  # a tag of MLflow's; experiments.sweep.PARENT is a variable of the environment
MACHINE = hashlib.sha256(HOST.encode()).hexdigest()[:8]
SILENT_SECONDS = 900  # after which a training counts as dead: longer than an epoch takes
CONSOLE, STOP = "console.log", "stop"
NO_ARTIFACT = re.compile(r"(run\.json|stop|tensorboard/.*|metrics\.jsonl|model\.keras|training/.*|.*\.ckpt|(.*/)?\..*)")
PRUNED_AT = "pruned_at"  # tag of a run that its sweep ended early: after which epoch
Row = dict[str, Any]  # {"step": int, "time": int, "values": {key: float}}; times in milliseconds since 1970


def now() -> int:
    """Return milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


class Record:
    """The record of one run."""

    def __init__(self, folder: Path) -> None:
        """Load the record in `folder`; a damaged one is a UserError."""
        self.folder = folder
        self.info: dict[str, Any] = load_json(folder / "run.json")
        self.rows: list[Row] = []
        if (folder / "metrics.jsonl").is_file():
            for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # the last line of a process that was killed
                    self.rows.append(json.loads(line))

    @classmethod
    def begin(cls, folder: Path, info: Mapping[str, Any]) -> Record:
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", CONSOLE):  # of an earlier run, where the user named the folder
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "images", ignore_errors=True)
        save_json(folder / "run.json", {"id": uuid.uuid4().hex, "start": now(), **info})
        return cls(folder)

    def update(self, **values: Any) -> None:
        self.info.update(values)
        save_json(self.folder / "run.json", self.info)

    def add_rows(self, rows: list[Row]) -> None:
        """Append rows of metrics, without NaN; a step that is there already stays as it is, its time included."""
        known = {(row["step"], key) for row in self.rows for key in row["values"]}
        fresh = []
        for row in rows:
            finite = {key: value for key, value in row["values"].items() if math.isfinite(value)}
            if values := {key: value for key, value in finite.items() if (row["step"], key) not in known}:
                fresh.append({**row, "values": values})
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            # The empty line: what a killed process left of its last line would join ours.
            file.writelines(f"\n{json.dumps(row)}" for row in fresh)
        self.rows += fresh

    def artifacts(self) -> list[Path]:
        """Return the files that MLflow gets as artifacts, relative to the folder."""
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(path for path in paths if not NO_ARTIFACT.fullmatch(path.as_posix()))

    def finish(self, status: str) -> None:
        """Set the final status: nothing of this run will be computed again."""
        self.update(status=status, end=now())
        for checkpoint in self.folder.glob("*.ckpt"):
            checkpoint.unlink()


def pending_folder(project: Project) -> Path:
    """Return the folder of the pointers; whoever sends locks it, by a file of its name with .lock added."""
    return project.home / "outputs" / ".pending"


def pointer(project: Project, folder: Path) -> Path:
    """Return the file that says, while it exists, that MLflow has not got all of the record in `folder`."""
    name = hashlib.sha256(os.path.relpath(folder, project.home).encode()).hexdigest()[:32]
    return pending_folder(project) / name


def add_pending(project: Project, folder: Path) -> None:
    """Remember that MLflow has not got all of the record in `folder`."""
    write_text(pointer(project, folder), os.path.relpath(folder, project.home))


def pending(project: Project) -> list[Record]:
    """Return the records that MLflow has not got whole, the oldest first."""
    records = []
    for file in pending_folder(project).glob("[0-9a-f]*"):
        try:
            folder = project.home / file.read_text(encoding="utf-8")
            if (folder / "run.json").is_file():
                records.append(Record(folder))
            else:
                file.unlink(missing_ok=True)  # somebody has removed the folder
        except FileNotFoundError:  # another process has just sent it
            continue
        except UserError as error:
            print(f"{error}; not sent", flush=True)
    return sorted(records, key=lambda record: record.info["start"])


def waiting(project: Project) -> list[Record]:
    """Return the records to send: not those that run, nor those that were killed and sent, and may continue."""
    return [one for one in pending(project) if one.info["status"] != "RUNNING" and not one.info.get("sent")]


def resume_or_create(project: Project, info: Mapping[str, Any]) -> Record:
    """Return the record of a training in the job's folder: one that a process left unfinished, or a new one."""
    folder, same = project.job_folder, ("dvc_stage", PARENT, "content_sha256")
    candidates = unfinished(project, info["name"], info["resume_key"])
    add_pending(project, folder)  # before anything is there: a process that is killed now loses nothing
    for left in candidates:
        if any(left.info["tags"].get(key) != info["tags"].get(key) for key in same):
            continue
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            left.folder.rename(folder)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            continue  # another process has just taken it, or another disk
        record = Record(folder)
        given = {key: value for key, value in info["tags"].items() if key == "note" or not OUR_TAGS.fullmatch(key)}
        tags = record.info["tags"] | given
        record.update(status="RUNNING", end=None, sent=False, progress=None, process=process_tag(), tags=tags)
        break
    else:
        record = Record.begin(folder, {**info, "status": "RUNNING", "process": process_tag()})
    (folder / STOP).unlink(missing_ok=True)
    add_pending(project, folder)  # again: whoever looked before it was there has removed the pointer
    return record


def unfinished(project: Project, name: str, resume_key: Mapping[str, str]) -> list[Record]:
    """Return the trainings of this name and resume key that a process has left unfinished."""
    same = [one for one in pending(project) if (one.info["name"], one.info.get("resume_key")) == (name, resume_key)]
    killed = [one for one in same if one.info["status"] == "KILLED"]
    return killed + [one for one in same if one.info["status"] == "RUNNING" and not is_alive(one.info.get("process"))]


def process_tag() -> str:
    """Describe this process and the time, for other machines: the host, which may be a person's, as a hash."""
    return f"{MACHINE} {os.getpid()} {now()}"


def is_alive(tag: str | None) -> bool:
    """Return whether another process, that of a `process_tag`, still trains; False for the tag of this one.

    The tag is renewed each epoch. A process on another machine, which cannot be asked, counts as alive until
    SILENT_SECONDS after its time.
    """
    if tag is None:  # earlier code wrote none
        return False
    machine, pid, last = tag.split()
    if machine != MACHINE:
        return now() - int(last) <= 1000 * SILENT_SECONDS
    with suppress(psutil.Error):  # gone; a process that began later only has its number
        return int(pid) != os.getpid() and psutil.Process(int(pid)).create_time() * 1000 <= int(last)
    return False


def system_metrics() -> dict[str, float]:
    """Return processor and memory in use, since the last call, under the names that MLflow's page knows."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
    }
