"""What a run holds, in files first: MLflow gets it from there, now or later, and a killed training goes on from there.

A record is a folder: run.json (name, tags, parameters, times, status), rows.json (metrics with their steps and times),
artifacts/ (files, by their place in MLflow), model.keras, and the checkpoints while it trains. It stands in
outputs/unfinished/ until the results are written, then in outputs/unsent/ until MLflow has all of it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from pipeline.config import ROOT, PipelineError
from pipeline.files import HOST, load_json, replacing, save_json

MACHINE = hashlib.sha256(HOST.encode()).hexdigest()[:8]
SILENCE = 900  # seconds after which a training of another machine counts as dead: longer than an epoch takes
Row = dict[str, Any]  # {"step": int, "time": int, "values": {key: float}}; times in milliseconds since 1970


def user_root() -> Path:
    """The repository that the user works in; DVC's queue runs in checkouts that it throws away."""
    return Path(os.environ.get("DVC_ROOT", ROOT))


def home() -> Path:
    return user_root() / "outputs"


def now() -> int:
    """Milliseconds since 1970, as MLflow counts."""
    return int(time.time() * 1000)


def process_tag() -> str:
    """This process and the time, for other machines: the name of this one, which may be a person's, as a hash."""
    return f"{MACHINE} {os.getpid()} {now()}"


def lives(tag: str | None) -> bool:
    """Return whether the process of a `process_tag`, renewed each epoch, still trains; this one itself does not.

    One of another machine counts as living until SILENCE seconds after its last word.
    """
    if (found := re.fullmatch(r"(\w+) (\d{1,9}) (\d{13})", tag or "")) is None:  # earlier code wrote none
        return False
    machine, pid, last = found[1], int(found[2]), int(found[3])
    if now() - last > 1000 * SILENCE or (machine, pid) == (MACHINE, os.getpid()):
        return False
    if machine != MACHINE:
        return True
    with suppress(psutil.Error):  # gone; one that began later has only its number
        return psutil.Process(pid).create_time() * 1000 <= last
    return False


def link(file: Path, target: Path) -> None:
    """Give a file a second name, or a copy where that cannot be; our files are replaced, never changed."""
    with replacing(target) as temporary:
        try:
            temporary.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, temporary)


class Record:
    """One run's folder; what is not given to it at the beginning is added with `note`, `add_rows` and `add_file`."""

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        """Take up the record in `folder`, or begin one there that holds `about`."""
        self.folder = folder
        if about is None:
            self.about, rows = load_json(folder / "run.json"), load_json(folder / "rows.json")
            if not {"id", "start", "name", "tags"} <= self.about.keys() or "rows" not in rows:
                raise PipelineError(f"{folder} is damaged, no record of a run: remove it")
            self.rows: list[Row] = rows["rows"]
        else:
            self.about, self.rows = {"id": uuid.uuid4().hex, "start": now(), **about}, []
            save_json(folder / "rows.json", {"rows": self.rows})
            save_json(folder / "run.json", self.about)  # the last: a folder with it is whole

    def note(self, **values: Any) -> None:
        self.about.update(values)
        save_json(self.folder / "run.json", self.about)

    def add_rows(self, rows: list[Row]) -> None:
        """Add rows of metrics; what has been said of a step stays as it was said, time included."""
        known = {(row["step"], key) for row in self.rows for key in row["values"]}
        for row in rows:
            values = {key: value for key, value in row["values"].items() if (row["step"], key) not in known}
            if values:
                self.rows.append({**row, "values": values})
        save_json(self.folder / "rows.json", {"rows": self.rows})

    def add_text(self, name: str, text: str) -> None:
        file = self.folder / "artifacts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def add_file(self, file: Path, place: str = "artifacts") -> None:
        """Keep a file below the folder `place` of the record."""
        link(file, self.folder / place / file.name)

    def fail(self, error: BaseException) -> None:
        """Note how the run ended. A PipelineError would come again by the same command: then nothing goes on."""
        self.note(status="FAILED" if isinstance(error, Exception) else "KILLED", end=now())
        if isinstance(error, PipelineError):
            self.finish()

    def forget(self) -> None:
        """Remove a record that was begun for nothing; one that waits for MLflow stays."""
        if self.about["status"] == "RUNNING":
            shutil.rmtree(self.folder)

    def finish(self) -> None:
        """Put the record among those that wait for MLflow: the step after which nothing is done again."""
        target = home() / "unsent" / self.about["id"]
        target.parent.mkdir(parents=True, exist_ok=True)
        self.folder.rename(target)
        self.folder = target
        for checkpoint in target.glob("*.ckpt"):
            checkpoint.unlink()


def remove_sent() -> None:
    """Remove what is left of records that MLflow had whole when their sender was killed."""
    for folder in (home() / "unsent").glob("*"):
        if not (folder / "run.json").is_file():
            shutil.rmtree(folder, ignore_errors=True)  # another process may be at it


def waiting() -> list[Path]:
    """The folders of the records that MLflow has not got whole, the oldest first."""
    ends = {file.parent: _end(file) for file in (home() / "unsent").glob("*/run.json")}
    return sorted(ends, key=lambda folder: ends[folder])


def _end(file: Path) -> int:
    with suppress(PipelineError):  # damaged, or sent just now by another process
        end = load_json(file).get("end")
        return end if isinstance(end, int) else 0
    return 0


@contextmanager
def unfinished(content: str, about: Mapping[str, Any], anew: bool = False) -> Iterator[tuple[Record, bool]]:
    """The record of this content and origin: the one an earlier try left, or a new one of `about`; and whether this
    process had to wait for another that made just this.

    The block is to `finish` it; one that does not leaves it, to go on from. One that only waits for MLflow is FINISHED.
    """
    who = [content, about["name"], about["tags"]["dvc_stage"], about["tags"].get("mlflow.parentRunId", "")]
    who += about.get("origin", {}).values()  # another processor goes on with none of its rows
    folder = home() / "unfinished" / hashlib.sha256("\n".join(who).encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _held(folder.with_suffix(".lock"), about["name"]) as waited:
        if anew:
            shutil.rmtree(folder, ignore_errors=True)
        yield _made(folder.name) or _taken_up(folder, {**about, "key": folder.name}), waited


def left_unfinished(content: str, name: str, origin: Mapping[str, str]) -> Path | None:
    """The record that a training of this content and origin under this name goes on with, where there is one."""
    for file in (home() / "unfinished").glob("*/run.json"):
        with suppress(PipelineError, KeyError, TypeError):  # one that is damaged is begun anew
            about = load_json(file)
            if (about["name"], about["tags"]["content_sha256"], about["origin"]) == (name, content, origin):
                return file.parent
    return None


def _made(key: str) -> Record | None:
    """The record of an earlier try that made all and only waits for MLflow."""
    for folder in reversed(waiting()):
        with suppress(PipelineError):  # damaged, or sent meanwhile
            record = Record(folder)
            if (record.about.get("key"), record.about.get("status")) == (key, "FINISHED"):
                return record
    return None


def _taken_up(folder: Path, about: Mapping[str, Any]) -> Record:
    if (folder / "run.json").is_file():
        try:
            record = Record(folder)
            record.note(status="RUNNING", end=None)
            return record
        except PipelineError as error:
            print(f"{error}; begun anew", flush=True)
    shutil.rmtree(folder, ignore_errors=True)  # of one killed before it was whole
    return Record(folder, {**about, "status": "RUNNING"})


@contextmanager
def _held(path: Path, name: str) -> Iterator[bool]:
    """Hold a lock, whose file says who does; whoever is killed holds it no longer. Gives whether it was awaited."""
    lock, waited = FileLock(path), False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waited = True
        who = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        print(f"{name}: process {who or '?'} is at just this: waiting for it", flush=True)
        lock.acquire()
    try:
        path.write_text(f"{os.getpid()}\n", encoding="utf-8")
        yield waited
    finally:
        with suppress(OSError):
            path.unlink()
        lock.release()


class SystemSamples:
    """Samples processor and memory once a second while the block runs; `rows` gives those since it was asked last.

    Steps are seconds since `start`, in milliseconds since 1970.
    """

    def __init__(self, start: int) -> None:
        self.start = start

    def __enter__(self) -> SystemSamples:
        self._rows: list[Row] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def rows(self) -> list[Row]:
        rows, self._rows = self._rows, []
        return rows

    def _sample(self) -> None:
        with suppress(OSError):
            psutil.cpu_percent()  # the first one means nothing
        while not self._ended.wait(1):
            try:
                memory, busy = psutil.virtual_memory(), psutil.cpu_percent()
            except (OSError, MemoryError):  # no file can be opened just now: then a sample is missing
                continue
            values = {  # under the names that MLflow's page knows
                "system/cpu_utilization_percentage": busy,
                "system/system_memory_usage_megabytes": memory.used / 1e6,
                "system/system_memory_usage_percentage": memory.percent,
            }
            at = now()
            self._rows.append({"step": (at - self.start) // 1000, "time": at, "values": values})
