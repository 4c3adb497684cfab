"""No room, no permission, no files to open: one line, nothing lost, and the same command then completes."""

from __future__ import annotations

import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import run, write_composed
from disks import Disk, limited, mounts, read_only
from harness import Bench, Ended, copy_steps, judge, lost, report, state

pytestmark = pytest.mark.faults

MANY = 20  # sizes of a disk
FILES = (5, 7, 9, 11)  # that may be opened beyond those of a stage that begins
ULIMITS = (7, 8, 12, 16)  # open files in all


class SmallBench(Bench):
    """A repository on a disk of its own."""

    def __init__(self, folder: Path, digits: Path, disk: Disk) -> None:
        super().__init__(folder, digits)
        self.disk = disk

    def few_files(self, more: int) -> AbstractContextManager[None]:
        """Let the process, whose children are the stages, open so many files beyond those that it has."""
        opened = len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return limited(self.process.pid, resource.RLIMIT_NOFILE, opened + more)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[SmallBench]:
    folder = tmp_path_factory.mktemp("bench")
    with Disk(folder / "repository") as disk, SmallBench(folder, digits, disk) as bench:
        disk.writer = bench.process.pid
        yield bench


class Done(NamedTuple):
    """A command on a bench to which nothing happened."""

    bench: SmallBench
    command: Sequence[str]
    kept: Path  # what stages wrote before
    before: dict[str, Any]
    after: dict[str, Any]
    peak: int  # bytes of room that it takes at most

    def put_back(self) -> None:
        copy_steps(self.kept, self.bench.folder)

    def wrong_within(self, limit: AbstractContextManager[object], what: str) -> list[str]:
        """Run the command within a limit and then again: what the limit was, and all that is not as if untouched."""
        with limit:
            ended = self.bench.run(*self.command)
        return self.wrong_after(ended, what)

    def wrong_after(self, ended: Ended, what: str) -> list[str]:
        """What is wrong with what a limit ended, and when the command is run again without. Where only MLflow had no
        room, its record is sent: no more is due."""
        said = f"{self.command[0]}, {what}: exit code {ended.code} {ended.stderr[:300]}"
        if wrong := unexpected(ended) or lost(self.bench.folder, self.before, self.after):
            return [said, *wrong]
        again = self.bench.run(*(["sync"] if ended.code == 0 else self.command))
        if (again.code, again.stderr) != (0, ""):
            return [said, f"then exit code {again.code}: {again.stderr}"]
        return [said, *judge(self.bench.folder, self.after, repetitions=1)]


def unexpected(ended: Ended) -> list[str]:
    """What is wrong with the end of a command that had too little: it does all, or says in one line what it lacks."""
    if ended.code == 0 and not ended.stderr:
        return []
    if ended.code == 1 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1:
        return []
    return [f"exit code {ended.code}: {ended.stderr[-3000:]}"]


def told(promise: str, tries: Sequence[Sequence[str]], exit_codes: str) -> None:
    """Report tries, of which some must have ended with each of these exit codes: else there was nothing to survive."""
    report(promise, len(tries), [found for found in tries if found[1:]])
    said = "\n".join(found[0] for found in tries)
    assert all(f"exit code {code}" in said for code in exit_codes.split()), said


def done(bench: SmallBench, command: Sequence[str], after: Sequence[Sequence[str]] = ()) -> Done:
    kept = bench.scratch / f"kept for {command[0]}"
    copy_steps(bench.kept, bench.folder)
    for words in after:
        bench.finish(*words)
    copy_steps(bench.folder, kept)
    before = state(bench.folder)
    with peak(bench.disk) as most:
        bench.finish(*command)
    result = Done(bench, command, kept, before, state(bench.folder), most[-1])
    result.put_back()
    return result


@contextmanager
def peak(disk: Disk) -> Iterator[list[int]]:
    """Bytes that are used more at once, at most, while the block runs: the last of the list."""
    begin, most, ended = disk.used(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            most.append(max(most[-1], disk.used() - begin))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def stages(bench: SmallBench) -> Callable[[str], Done]:
    """The stages by their name, each of which begins where those before it have ended."""
    known: dict[str, Done] = {}
    commands = {
        "fetch": (["fetch"], []),
        "preprocess": (["preprocess"], []),
        "train": (["train", *bench.WORDS], []),
        "evaluate": (["evaluate", "recipe=baseline"], [["train", *bench.WORDS]]),
        "compare": (["compare", "recipes=[baseline]"], [["train", *bench.WORDS], ["evaluate", "recipe=baseline"]]),
    }

    def stage(name: str) -> Done:
        if name not in known:
            known[name] = done(bench, *commands[name])
        return known[name]

    return stage


STAGES = ("fetch", "preprocess", "train", "evaluate", "compare")


def sizes(most: int, count: int) -> list[int]:
    """So many, from none on, of which each is less than what is needed."""
    return [most * number // count for number in range(count)]


def wrong_on_small_disks(stage: Done, rooms: Sequence[int]) -> list[list[str]]:
    tries = []
    for size in rooms:
        stage.put_back()
        tries.append(stage.wrong_within(stage.bench.disk.room(size), f"{size:,} bytes of room"))
    return tries


@pytest.mark.parametrize("name", ["fetch", "preprocess", "train"])
def test_a_stage_survives_a_full_disk(stages: Callable[[str], Done], name: str) -> None:
    stage = stages(name)
    told(f"{name}, disk full", wrong_on_small_disks(stage, [stage.peak // 2]), "1")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_survives_disks_of_twenty_sizes(stages: Callable[[str], Done], name: str) -> None:
    stage = stages(name)
    told(f"{name}, disk full, of {MANY} sizes", wrong_on_small_disks(stage, sizes(stage.peak, MANY)), "1")


STORE = {"mlflow.db": 60_000, "mlruns": 200_000}  # bytes that a run takes there


@contextmanager
def full_store(stage: Done, name: str, size: int) -> Iterator[AbstractContextManager[None]]:
    """Put MLflow's rows, or its artifacts, on a disk of their own: gives the limit of its room. For a user who may not
    mount they may only be read."""
    found = stage.bench.folder / name
    if not mounts():
        yield read_only(found)
        return
    place = stage.bench.scratch / "store" if name == "mlflow.db" else found
    with Disk(place) as disk:
        if name == "mlflow.db":
            shutil.copy2(stage.kept / name, place / name)
            found.unlink()
            found.symlink_to(place / name)
        else:
            shutil.copytree(stage.kept / name, place, dirs_exist_ok=True)
        yield disk.room(size)


def wrong_with_full_stores(stage: Done, name: str, count: int) -> list[list[str]]:
    """Fill the disk of MLflow alone: what the stage itself has to write must be there, and MLflow's part later."""
    tries, folder = [], stage.bench.folder
    for size in sizes(STORE[name], count):
        stage.put_back()
        with full_store(stage, name, size) as limit:
            with limit:
                ended = stage.bench.run(*stage.command)
            made, kept = of_files(state(folder)), list((folder / "outputs" / ".pending").glob("*"))
            wrong = [] if made == of_files(stage.after) and ended.code == 0 else [f"not made: {ended}"]
            if size == 0 and not kept:
                wrong.append(f"not kept for later: {ended}")
            tries.append([*stage.wrong_after(ended, f"{size:,} bytes of room for {name}"), *wrong])
    return tries


def of_files(found: dict[str, Any]) -> dict[str, Any]:
    """What of a state is in files of the stages' own."""
    return {key: value for key, value in found.items() if key.startswith(("models", "results"))}


@pytest.mark.sample
def test_a_full_disk_of_mlflow_costs_a_training_nothing(stages: Callable[[str], Done]) -> None:
    told("train, disk of mlflow.db full", wrong_with_full_stores(stages("train"), "mlflow.db", 1), "0")


@pytest.mark.parametrize("name", STORE)
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_full_disk_of_mlflow_costs_nothing(stages: Callable[[str], Done], stage: str, name: str) -> None:
    told(
        f"{stage}, disk of {name} full, of {MANY // 2} sizes",
        wrong_with_full_stores(stages(stage), name, MANY // 2),
        "0",
    )


READ_ONLY = {
    "fetch": ("data", "."),
    "preprocess": ("data", "results", "."),
    "train": ("models", "results", "outputs", "."),
    "evaluate": ("results", "outputs", "."),
    "compare": ("results", "."),
}


def wrong_where_only_read(stage: Done, folders: Sequence[str]) -> list[list[str]]:
    tries = []
    for folder in folders:
        stage.put_back()
        tries.append(stage.wrong_within(read_only(stage.bench.folder / folder), f"{folder} may only be read"))
    return tries


def test_a_folder_that_may_only_be_read_is_an_error(stages: Callable[[str], Done]) -> None:
    tries = wrong_where_only_read(stages("preprocess"), ["data", "."])
    told("preprocess, a folder that may only be read", tries, "1")


@pytest.mark.parametrize("name", STAGES)
def test_every_folder_that_may_only_be_read_is_an_error(stages: Callable[[str], Done], name: str) -> None:
    tries = wrong_where_only_read(stages(name), READ_ONLY[name])
    assert all("exit code 1" in found[0] for found in tries), tries
    told(f"{name}, a folder that may only be read", tries, "1")


@pytest.mark.parametrize("name", STORE)
def test_a_store_that_may_only_be_read_costs_a_training_nothing(stages: Callable[[str], Done], name: str) -> None:
    tries = wrong_where_only_read(stages("train"), [name])
    told(f"train, {name} may only be read", tries, "0")


def test_too_few_open_files_are_said(bench: SmallBench, stages: Callable[[str], Done]) -> None:
    stage = stages("preprocess")
    stage.put_back()
    tries = [stage.wrong_within(bench.few_files(FILES[0]), "few files")]
    told("preprocess, too few open files", tries, "1")
    assert "ulimit -n" in tries[0][0]


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_stage_survives_a_quota_on_open_files(bench: SmallBench, stages: Callable[[str], Done], name: str) -> None:
    stage, tries = stages(name), []
    for more in FILES:
        stage.put_back()
        tries.append(stage.wrong_within(bench.few_files(more), f"{more} files more"))
    told(f"{name}, too few open files", tries, "1")


def as_a_user(stage: Done, *words: str, **variables: str) -> Ended:
    """Run the command in a process of its own, behind `words`."""
    bench, (verb, *rest) = stage.bench, stage.command
    command = [*words, sys.executable, "-m", f"pipeline.{verb}", *rest]
    write_composed(bench.folder, *rest)
    done = run(*command, cwd=bench.folder, DVC_STAGE=f"{verb}@baseline", **variables)
    return Ended(done.returncode, done.stdout, done.stderr, 0.0, 0, "")


def test_a_training_survives_limits_from_its_beginning(stages: Callable[[str], Done]) -> None:
    stage, tries = stages("train"), []
    for limit in ULIMITS:
        stage.put_back()
        ended = as_a_user(stage, "sh", "-c", f'ulimit -n {limit} && exec "$@"', "sh")
        tries.append(stage.wrong_after(ended, f"ulimit -n {limit}"))
    told("train, ulimit of open files", tries, "1")


NO_TMP = """
for folder in /tmp /var/tmp; do mount --rbind $folder $folder; mount -o remount,bind,ro $folder; done
cd {repository}  # which is a disk of its own
exec "$@"
"""


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_stage_needs_no_tmp(stages: Callable[[str], Done], name: str) -> None:
    """In a mount namespace where none can be written to, or for who may not mount, TMPDIR at a folder that is not."""
    stage = stages(name)
    stage.put_back()
    words: list[str] = []
    if mounts():
        script = NO_TMP.format(repository=stage.bench.folder)
        words = ["unshare", "--mount", "sh", "-ec", script, "sh"]
    ended = as_a_user(stage, *words, TMPDIR=str(stage.bench.scratch / "absent"))
    told(f"{name} without /tmp", [stage.wrong_after(ended, "no /tmp")], "0")
