"""The folder of a run is its record: all that MLflow gets stands there first, and is sent from there, now or later.

run.json holds experiment, name, tags, params, inputs, start, end and status, and of some runs more:
  resume_key, process     of a training: what its checkpoints fit, and who trains it (see `process_tag`)
  result_tags             hashes of the model: logged last, so an MLflow run that has them is whole
  sent                    a training that was killed is in MLflow as far as it came, and may still continue
  evaluated_sha256, run   of an evaluation: the model, and the id of its MLflow run
metrics.jsonl holds a row per step; every other file but model.keras and checkpoints is an artifact.

Until MLflow has all of a record, outputs/.pending/<id> points to its folder: it is pending. Of the pending ones, those
are waiting that can be sent now, and those unfinished that a process left in the middle: they continue.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from pipeline.base.errors import UserError
from pipeline.base.files import HOST, load_json, save_json, write_text
from pipeline.base.project import Project

MACHINE = hashlib.sha256(HOST.encode()).hexdigest()[:8]
SILENT_SECONDS = 900  # after which a training counts as dead: longer than an epoch takes
OWN_FILES = ("run.json", "metrics.jsonl", "model.keras")  # no artifacts; nor are hidden files, checkpoints, training/
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
        if not {"id", "start", "name", "tags"} <= self.info.keys():
            raise UserError(f"{folder} is damaged, no record of a run: remove it")
        self.rows: list[Row] = []
        if (folder / "metrics.jsonl").is_file():
            for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                with suppress(ValueError):  # the last line of a process that was killed
                    self.rows.append(json.loads(line))

    @classmethod
    def begin(cls, folder: Path, info: Mapping[str, Any]) -> Record:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)  # of an earlier run, where the user named the folder
        save_json(folder / "run.json", {"id": uuid.uuid4().hex, "start": now(), **info})
        return cls(folder)

    def update(self, **values: Any) -> None:
        self.info.update(values)
        save_json(self.folder / "run.json", self.info)

    def add_rows(self, rows: list[Row]) -> None:
        """Append rows of metrics; a step that is there already stays as it is, its time included."""
        known = {(row["step"], key) for row in self.rows for key in row["values"]}
        fresh = []
        for row in rows:
            values = {key: value for key, value in row["values"].items() if (row["step"], key) not in known}
            if values:
                fresh.append({**row, "values": values})
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            # The empty line: what a killed process left of its last line would join ours.
            file.writelines(f"\n{json.dumps(row)}" for row in fresh)
        self.rows += fresh

    def artifacts(self) -> list[Path]:
        """Return the files that MLflow gets as artifacts, relative to the folder."""
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return sorted(
            path
            for path in paths
            if str(path) not in OWN_FILES
            and path.suffix != ".ckpt"
            and path.parts[0] != "training"
            and not any(part.startswith(".") for part in path.parts)
        )

    def finish(self, status: str) -> None:
        """Set the final status: nothing of this run will be computed again."""
        self.update(status=status, end=now())
        for checkpoint in self.folder.glob("*.ckpt"):
            checkpoint.unlink()


def add_pending(project: Project, record: Record) -> None:
    """Remember that MLflow has not got all of a record."""
    _point_to(project, record.folder)


def remove_pending(project: Project, record: Record) -> None:
    _pointer(project, record.folder).unlink(missing_ok=True)


def pending(project: Project) -> list[Record]:
    """Return the records that MLflow has not got whole, the oldest first."""
    records = []
    for pointer in _pending(project).glob("[0-9a-f]*"):
        try:
            folder = project.home / pointer.read_text(encoding="utf-8")
            if (folder / "run.json").is_file():
                records.append(Record(folder))
            else:
                pointer.unlink(missing_ok=True)  # somebody has removed the folder
        except FileNotFoundError:  # another process has just sent it
            continue
        except UserError as error:
            print(f"{error}; not sent", flush=True)
    return sorted(records, key=lambda record: record.info["start"])


def waiting(project: Project) -> list[Record]:
    """Return the records to send: not those that run, nor those that were killed and sent, and may continue."""
    return [one for one in pending(project) if one.info["status"] != "RUNNING" and not one.info.get("sent")]


def _pending(project: Project) -> Path:
    return project.home / "outputs" / ".pending"


def _pointer(project: Project, folder: Path) -> Path:
    name = hashlib.sha256(os.path.relpath(folder, project.home).encode()).hexdigest()[:32]
    return _pending(project) / name


def _point_to(project: Project, folder: Path) -> None:
    write_text(_pointer(project, folder), os.path.relpath(folder, project.home))


def resume_or_create(project: Project, info: Mapping[str, Any]) -> Record:
    """Return the record of a training in the job's folder: one that a process left unfinished, or a new one."""
    for record in unfinished(project, info["name"], info["resume_key"]):
        same = ("dvc_stage", "mlflow.parentRunId", "content_sha256")
        if any(record.info["tags"].get(key) != info["tags"].get(key) for key in same):
            continue
        project.job_folder.parent.mkdir(parents=True, exist_ok=True)
        _point_to(project, project.job_folder)  # before it moves there: a process that is killed now loses nothing
        try:
            record.folder.rename(project.job_folder)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            continue  # another process has just taken it, or another disk
        record = Record(project.job_folder)
        record.update(status="RUNNING", end=None, sent=False, process=process_tag())
        add_pending(project, record)  # again: whoever looked before it had moved has removed the pointer
        return record
    _point_to(project, project.job_folder)
    record = Record.begin(project.job_folder, {**info, "status": "RUNNING", "process": process_tag()})
    add_pending(project, record)
    return record


def unfinished(project: Project, name: str, resume_key: Mapping[str, str]) -> Iterator[Record]:
    """Yield the trainings of this name and resume key that a process has left unfinished."""
    for record in pending(project):
        info = record.info
        same = (info["name"], info.get("resume_key")) == (name, resume_key)
        left = info["status"] == "KILLED" or (info["status"] == "RUNNING" and not is_alive(info.get("process")))
        if same and left:
            yield record


def process_tag() -> str:
    """Describe this process and the time, for other machines: the host, which may be a person's, as a hash."""
    return f"{MACHINE} {os.getpid()} {now()}"


def is_alive(tag: str | None) -> bool:
    """Return whether another process, that of a `process_tag`, still trains; False for the tag of this one.

    The tag is renewed each epoch. A process on another machine, which cannot be asked, counts as alive until
    SILENT_SECONDS after its time.
    """
    if (parts := re.fullmatch(r"(\w+) (\d{1,9}) (\d{13})", tag or "")) is None:  # earlier code wrote none
        return False
    machine, pid, last = parts[1], int(parts[2]), int(parts[3])
    if machine != MACHINE:
        return now() - last <= 1000 * SILENT_SECONDS
    if pid == os.getpid():
        return False
    with suppress(psutil.Error):  # gone; a process that began later only has its number
        return psutil.Process(pid).create_time() * 1000 <= last
    return False


def system_metrics() -> dict[str, float]:
    """Return processor and memory in use, since the last call, under the names that MLflow's page knows."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
    }
