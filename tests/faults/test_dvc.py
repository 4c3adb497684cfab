"""Real signals to real processes, the stage, `dvc` or both; then `dvc repro` again, as a user would type it."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import dvc, git, small_repository
from harness import UNSET, WORDS, Fault, build_library, changes, judge, positions, report, state

pytestmark = pytest.mark.pipeline

EPOCHS = 30
STAGE = "train@baseline"
QUICK = [("stage", "SIGKILL"), ("dvc", "SIGKILL"), ("both", "SIGINT")]
ALL = [(who, name) for who in ("stage", "dvc", "both") for name in ("SIGKILL", "SIGINT", "SIGTERM")]
RANDOM = 6


class Clone(NamedTuple):
    folder: Path
    kept: Path
    digits: Path
    expected: dict[str, object]
    lock: bytes
    seconds: float

    def put_back(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder, symlinks=True)


@pytest.fixture(scope="module")
def clone_for_kills(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Clone:
    """A clone with its data, whose training has not begun; and how it looks when that is never touched."""
    folder, kept = (tmp_path_factory.mktemp("kills") / name for name in ("clone", "kept"))
    folder.mkdir()
    small_repository(folder, digits)
    text = (folder / "params.yaml").read_text()
    (folder / "params.yaml").write_text(re.sub(r"epochs: \d+", f"epochs: {EPOCHS}", text))
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        git(folder, *words)
    done = dvc(folder, digits, "repro", "preprocess")
    assert done.returncode == 0, done.stderr
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "data")
    shutil.copytree(folder, kept, symlinks=True)
    begin = time.perf_counter()
    done = dvc(folder, digits, "repro", STAGE)
    assert done.returncode == 0, done.stderr
    return Clone(folder, kept, digits, state(folder), (folder / "dvc.lock").read_bytes(), time.perf_counter() - begin)


class Reproduction:
    """`dvc repro` of the training, in a session of its own as in a terminal. A context manager."""

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self.output = clone.folder.parent / "output"

    def __enter__(self) -> Reproduction:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(UNSET)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", STAGE],
                cwd=self.clone.folder,
                env=kept | {"PATH": path, "MNIST_SOURCE": str(self.clone.digits)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.wait()

    def wait_for(self, words: str) -> None:
        while words not in self.output.read_text() and self.process.poll() is None:
            time.sleep(0.02)

    def stage(self) -> psutil.Process | None:
        """The Python that trains: below `dvc`'s shell."""
        with suppress(psutil.Error):  # one may end meanwhile
            for child in psutil.Process(self.process.pid).children(recursive=True):
                if child.cmdline()[1:3] == ["-m", "pipeline.train"]:
                    return child
        return None

    def signal(self, who: str, number: int) -> None:
        if who == "both":
            os.killpg(self.process.pid, number)
        elif who == "dvc":
            self.process.send_signal(number)
        elif stage := self.stage():
            stage.send_signal(number)


def wrong_after_another(clone: Clone, left: psutil.Process | None) -> list[str]:
    """What is wrong after `dvc repro` at once, and once more where a stage that was left running held it up."""
    done = dvc(clone.folder, clone.digits, "repro", STAGE)
    if done.returncode and left:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        if len(errors) != 1 or str(left.pid) not in errors[0]:
            return [f"does not say who holds it: {done.stderr}"]
        left.wait()
        done = dvc(clone.folder, clone.digits, "repro", STAGE)
    if done.returncode:
        return [f"then exit code {done.returncode}: {done.stderr}"]
    lock = [] if (clone.folder / "dvc.lock").read_bytes() == clone.lock else ["dvc.lock is another"]
    return lock + judge(clone.folder, clone.expected)


def wrong_after(clone: Clone, who: str, name: str, epoch: int = 0, seconds: float = 0.0) -> list[str]:
    """Send a signal when an epoch has ended, or after some seconds, and go on: what is then wrong."""
    clone.put_back()
    with Reproduction(clone) as repro:
        if epoch:
            repro.wait_for(f"epoch {epoch}/{EPOCHS}")
        time.sleep(seconds)
        stage = repro.stage()
        repro.signal(who, signal.Signals[name])
    ended = repro.process.returncode == 0 and not judge(clone.folder, clone.expected)  # DVC hears no Ctrl-C of its own
    left = stage if stage and stage.is_running() and stage.status() != psutil.STATUS_ZOMBIE else None
    wrong = [] if ended else wrong_after_another(clone, left)
    return [f"{name} to {who} after epoch {epoch} or {seconds:.2f} s", *wrong] if wrong else []


@pytest.mark.parametrize(("who", "name"), QUICK)
def test_dvc_repro_goes_on_after_a_signal(clone_for_kills: Clone, who: str, name: str) -> None:
    wrong = wrong_after(clone_for_kills, who, name, random.Random(who).randint(1, EPOCHS - 1))
    report(f"dvc repro, {name} to {who} in training", 1, [wrong] if wrong else [])


@pytest.mark.faults
@pytest.mark.parametrize(("who", "name"), ALL)
def test_dvc_repro_goes_on_after_any_signal_to_anyone(clone_for_kills: Clone, who: str, name: str) -> None:
    epochs = random.Random(f"{who} {name}").sample(range(1, EPOCHS), 2)
    wrong = [found for epoch in epochs if (found := wrong_after(clone_for_kills, who, name, epoch))]
    report(f"dvc repro, {name} to {who} in training", len(epochs), wrong)


@pytest.mark.faults
def test_dvc_repro_goes_on_after_a_kill_at_any_moment(clone_for_kills: Clone) -> None:
    drawn = random.Random(0)
    tries = [(drawn.choice(["stage", "dvc", "both"]), drawn.uniform(0, clone_for_kills.seconds)) for _ in range(RANDOM)]
    wrong = [found for who, after in tries if (found := wrong_after(clone_for_kills, who, "SIGKILL", seconds=after))]
    report("dvc repro, SIGKILL to stage, dvc or both at a random moment", len(tries), wrong)


SAVING = ["data/raw/mnist.npz", "data/processed/train.npz", "data/processed/split.json", "dvc.lock"]


def wrong_after_fault(folder: Path, library: Path, expected: dict[str, bytes], fault: Fault, digits: Path) -> list[str]:
    """Let a change of a file go wrong in `dvc repro preprocess`, dvc or its stages; try again: what is wrong then."""
    count = folder.parent / "count"
    count.unlink(missing_ok=True)
    variables = {"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1", **fault.variables(folder, count)}
    dvc(folder, digits, "repro", "preprocess", **variables)
    said = f"{fault.kind} at {fault.at}: {changes(count)[1]}"
    done = dvc(folder, digits, "repro", "preprocess")
    if done.returncode:
        return [said, f"then exit code {done.returncode}: {done.stderr}"]
    wrong = [name for name, content in expected.items() if (folder / name).read_bytes() != content]
    shutil.rmtree(folder / "data" / "processed")  # what DVC's cache holds is whole too
    done = dvc(folder, digits, "checkout")
    wrong += [f"{name} in the cache" for name, content in expected.items() if (folder / name).read_bytes() != content]
    return [said, *wrong, done.stderr] if wrong else []


@pytest.mark.parametrize(
    ("kind", "tries"),
    [("kill", 2), *(pytest.param(kind, 20, marks=pytest.mark.faults) for kind in ("kill", "half"))],
)
def test_dvc_survives_a_kill_at_any_write_of_its_own(
    tmp_path: Path, digits: Path, clone_for_kills: Clone, kind: str, tries: int
) -> None:
    library, folder = build_library(tmp_path), clone_for_kills.folder

    def begin() -> None:
        clone_for_kills.put_back()
        for name in ("dvc.lock", "data", ".dvc/cache", ".dvc/tmp"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    begin()
    count = tmp_path / "count"
    variables = {"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1", **Fault(kind, 0).variables(folder, count)}
    done = dvc(folder, digits, "repro", "preprocess", **variables)
    assert done.returncode == 0, done.stderr
    expected = {name: (folder / name).read_bytes() for name in SAVING}
    wrong, tried = [], positions(changes(count)[0], tries, kind)
    for at in tried:
        begin()
        if found := wrong_after_fault(folder, library, expected, Fault(kind, at), digits):
            wrong.append(found)
    report(f"dvc repro of the data, {WORDS[kind]} the Nth change of a file, DVC's own too", len(tried), wrong)
