"""List, with sizes, what can go, and what stays as it may be the only copy; yes=true removes what can go.

These go: folders of runs that MLflow holds whole, also of unfinished trainings and comparisons; empty folders; what
MLflow keeps of deleted runs (by `mlflow gc`); demo/; and what no branch, tag or experiment needs of DVC's cache (by
`dvc gc`).
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
from filelock import FileLock

from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.verb_schemas import CleanConfig
from pipeline.tracking.record import PARENT, SILENT_SECONDS, Record, is_alive, pending, pending_folder, pointer

if TYPE_CHECKING:
    from pipeline.tracking.leftovers import Held


class Entry(NamedTuple):
    """A folder, or something else that takes room on the disk."""

    name: str
    why: str
    size: int  # bytes
    remove: Callable[[], object] | None  # None: it stays


def clean(project: Project, config: CleanConfig) -> None:
    pointers = pending_folder(project)
    # Nobody sends meanwhile. Where nothing was ever recorded, the lock would be all that stands there.
    with FileLock(f"{pointers}.lock") if config.yes and pointers.is_dir() else nullcontext():
        entries = list(_entries(project))
        for heading, can_go in (("stays", False), ("removed" if config.yes else "can go", True)):
            for name, why, size, remove in entries:
                if bool(remove) == can_go:
                    if config.yes and remove:
                        remove()
                    print(f"{heading:7} {_readable(size):>9}  {name}: {why}", flush=True)
    total = _readable(sum(size for *_, size, remove in entries if remove))
    if not any(one.remove for one in entries):
        print("nothing can go")
    elif config.yes:
        print(f"{total} removed")
    else:
        print(f"{total} in all: `python -m pipeline.clean yes=true` removes it")


def _entries(project: Project) -> Iterator[Entry]:
    held: Held | None = None
    if (project.home / "mlflow.db").is_file() or "MLFLOW_TRACKING_URI" in os.environ:
        with quiet_import():
            from pipeline.tracking import leftovers
        try:
            held = leftovers.Held(project)
        except UserError as error:
            print(f"{error}; what only MLflow could tell stays", flush=True)
    yield from _folders(project, held)
    if held:
        deleted, registered = held.deleted()
        size, count = sum(map(_size, deleted.folders)), f"{len(deleted.runs)} runs that were deleted in MLflow"
        if registered:
            why = "the registry names them, or they count as scored on the test set"
            yield Entry("mlruns", f"{registered} deleted runs: {why}", 0, None)
        if deleted.runs and held.store.file:
            yield Entry("mlruns", f"{count}, by `mlflow gc`", size, lambda: held.collect(deleted))
        elif deleted.runs:
            yield Entry("MLflow's server", f"{count}: run `mlflow gc` there", 0, None)
    demo = project.root / "demo"
    if (demo / "dvc.yaml").is_file():
        busy = _is_dvc_busy(demo) or any(map(_is_busy, pending(replace(project, root=demo, home=demo))))
        why = "something runs there" if busy else "`make demo` makes it again"
        yield Entry("demo", why, _size(demo), None if busy else lambda: shutil.rmtree(demo))
    if (project.root / ".dvc").is_dir() and (project.root / ".git").exists():
        yield from _dvc_cache(project)


class Folder(NamedTuple):
    path: Path
    why: str
    goes: bool
    size: int
    sweep: str = ""  # the MLflow run of the sweep that it is a job of


def _folders(project: Project, held: Held | None) -> Iterator[Entry]:
    """Yield the folders in outputs and multirun: of runs, of comparisons, of other commands, empty ones."""
    outputs, sweeps = project.home / "outputs", sorted(project.sweeps.glob("[!.]*"))
    unsent = {record.folder.resolve() for record in pending(project)}
    paths = [path for parent in (outputs, outputs / "stages", *sweeps) for path in sorted(parent.glob("[!.]*"))]
    others = (outputs / "stages", project.job_folder.absolute())
    folders = [_judge(path, path.resolve() in unsent, held) for path in paths if path.is_dir() and path not in others]
    for sweep in sweeps:
        jobs = [folder for folder in folders if folder.path.parent == sweep]
        files = [path for path in sweep.glob("[!.]*") if path.is_file()]
        files = [path.relative_to(sweep) for path in files if path.name != "multirun.yaml"]  # Hydra's, of the command
        if held and jobs and files and all(job.goes for job in jobs):
            lacks = held.lacks_files(max(job.sweep for job in jobs), sweep, files)
            why = f"MLflow lacks {lacks} of the sweep" if lacks else "MLflow holds the ranking of the sweep"
            folders.append(Folder(sweep, why, not lacks, sum(_size(sweep / file) for file in files)))
    for shared in (project.sweeps / ".shared").glob("*"):
        stays = _is_recent(shared) or any(one.sweep == shared.name and not one.goes for one in folders)
        folders.append(Folder(shared, "checkpoints that an unfinished sweep shares", not stays, _size(shared)))
    for folder in folders:
        remove = functools.partial(_remove, project, folder.path) if folder.goes else None
        yield Entry(os.path.relpath(folder.path, project.home), folder.why, folder.size, remove)


def _judge(path: Path, is_pending: bool, held: Held | None) -> Folder:
    """Say why a folder can go or stays, and which."""
    sweep = ""
    try:
        if (path / "run.json").is_file():
            record = Record(path)
            sweep = record.info["tags"].get(PARENT, "")
            why, goes = _judge_record(record, is_pending, held)
        elif not any(path.iterdir()):
            why, goes = ("empty, and new", False) if _is_recent(path) else ("empty", True)
        elif held and (path / "comparison.md").is_file() and (run_id := held.comparison(path)):
            why, goes = f"a comparison that MLflow run {run_id} holds", True
        else:
            why, goes = "no run: MLflow has none of it", False
    except UserError as error:  # it is damaged, or MLflow went away
        why, goes = str(error), False
    return Folder(path, why, goes, _size(path), sweep)


def _judge_record(record: Record, is_pending: bool, held: Held | None) -> tuple[str, bool]:
    is_unfinished = record.info["status"] in ("KILLED", "RUNNING")
    if _is_busy(record):
        return "its process is still at work", False
    if held is None or (is_pending and not is_unfinished):
        return "MLflow has not got it: `python -m pipeline.sync` sends what waits", False
    lacks = held.lacks(record)
    if is_unfinished:
        if lacks:
            return f"unfinished; the same command continues it, and MLflow lacks {lacks}", False
        return "unfinished; MLflow has it as far as it came, and the same command would continue it", True
    return (f"MLflow lacks {lacks}", False) if lacks else ("MLflow holds it whole", True)


def _remove(project: Project, folder: Path) -> None:
    with suppress(FileNotFoundError):  # a training that continues has just taken it
        shutil.rmtree(folder)
    pointer(project, folder).unlink(missing_ok=True)
    with suppress(OSError):  # until one is not empty
        for parent in folder.parents:
            parent.rmdir()


def _is_busy(record: Record) -> bool:
    """Return whether a process may still write a record: a training's is known, and of others when they last wrote."""
    process = record.info.get("process")
    return is_alive(process) or (process is None and record.info["status"] == "RUNNING" and _is_recent(record.folder))


def _is_recent(folder: Path) -> bool:
    return time.time() - max((one.st_mtime for one in _stats(folder)), default=0) < SILENT_SECONDS


def _size(path: Path) -> int:
    """Return the bytes of a file, or of those in a folder."""
    return sum(one.st_size for one in _stats(path) if stat.S_ISREG(one.st_mode))


def _stats(path: Path) -> Iterator[os.stat_result]:
    for one in (path, *path.rglob("*")):  # which follows no link
        with suppress(FileNotFoundError):  # temporary
            yield one.lstat()


def _readable(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _dvc_cache(project: Project) -> Iterator[Entry]:
    """Yield what DVC finds unused in its cache."""
    command = [sys.executable, "-m", "dvc", "gc", "--workspace", "--all-branches", "--all-tags", "--all-experiments"]

    def gc(option: str) -> str:
        done = subprocess.run([*command, option], cwd=project.root, capture_output=True, text=True)
        if done.returncode:
            raise UserError((done.stderr.strip() or "dvc gc failed").splitlines()[-1])
        return done.stdout + done.stderr

    try:
        unused = [Path(name) for name in re.findall("^Removing (.+)$", gc("--dry"), re.MULTILINE)]
    except UserError as error:
        yield Entry("DVC's cache", str(error), 0, None)
        return
    if any(not path.resolve().is_relative_to(project.root) for path in unused):
        yield Entry("DVC's cache", "it is outside of this repository, and others may share it", 0, None)
    elif unused:
        why = f"{len(unused)} files that no branch, tag or experiment needs, by `dvc gc`"
        yield Entry("DVC's cache", why, sum(map(_size, unused)), lambda: gc("--force"))


def _is_dvc_busy(root: Path) -> bool:
    """Return whether a stage of DVC runs in a repository; one that was killed has left its process in the list."""
    lock = root / ".dvc" / "tmp" / "rwlock"
    pids = re.findall(r'"pid": *(\d+)', lock.read_text(encoding="utf-8")) if lock.is_file() else []
    return any(psutil.pid_exists(int(pid)) for pid in pids)


if __name__ == "__main__":
    main(clean)
