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
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import ROOT, copy_repository, dvc, git, run, small_repository
from harness import UNSET, WORDS, Fault, build_library, changes, judge, positions, report, state

pytestmark = pytest.mark.faults

EPOCHS = 30
STAGE = "train@baseline"
QUICK = [pytest.param("stage", "SIGKILL", marks=pytest.mark.sample), ("dvc", "SIGKILL"), ("both", "SIGINT")]
ALL = [(who, name) for who in ("stage", "dvc", "both") for name in ("SIGKILL", "SIGINT", "SIGTERM")]
RANDOM = 6
REAL_KILLS = 4


class Clone(NamedTuple):
    """A clone with its data, whose training has not begun; and how it looks when that is never touched."""

    folder: Path
    kept: Path
    variables: dict[str, str]
    stage: str
    expected: dict[str, object]
    lock: bytes
    seconds: float

    @classmethod
    def prepare(cls, place: Path, stage: str, make: Callable[[Path], None], **variables: str) -> Clone:
        folder, kept = place / "clone", place / "kept"
        folder.mkdir()
        make(folder)
        for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
            git(folder, *words)
        done = repro(folder, "preprocess", variables)
        assert done.returncode == 0, done.stderr
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "data")
        shutil.copytree(folder, kept, symlinks=True)
        begin = time.perf_counter()
        done = repro(folder, stage, variables)
        assert done.returncode == 0, done.stderr
        seconds = time.perf_counter() - begin
        return cls(folder, kept, variables, stage, state(folder), (folder / "dvc.lock").read_bytes(), seconds)

    def put_back(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.kept, self.folder, symlinks=True)

    def repro(self) -> subprocess.CompletedProcess[str]:
        return repro(self.folder, self.stage, self.variables)


PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def repro(folder: Path, stage: str, variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "dvc", "repro", stage, cwd=folder, PATH=PATH, **variables)


@pytest.fixture(scope="module")
def small_clone(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Clone:
    def make(folder: Path) -> None:
        small_repository(folder, digits)
        text = (folder / "params.yaml").read_text()
        (folder / "params.yaml").write_text(re.sub(r"epochs: \d+", f"epochs: {EPOCHS}", text))

    return Clone.prepare(tmp_path_factory.mktemp("small"), STAGE, make, MNIST_SOURCE=str(digits))


class Reproduction:
    """`dvc repro` of the training, in a session of its own as in a terminal. A context manager."""

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self.output = clone.folder.parent / "output"

    def __enter__(self) -> Reproduction:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(UNSET)}
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "dvc", "repro", self.clone.stage],
                cwd=self.clone.folder,
                env=kept | {"PATH": PATH, **self.clone.variables},
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


def wrong_after_another(clone: Clone, left: psutil.Process | None, kills: int = 1) -> list[str]:
    """What is wrong after `dvc repro` at once, beside a stage that was left running.

    DVC knows of no stage that it has not seen end: each kill may cost one repetition.
    """
    done = clone.repro()
    if left:
        psutil.wait_procs([left])
    if done.returncode:
        return [f"then exit code {done.returncode}: {done.stderr}"]
    lock = [] if (clone.folder / "dvc.lock").read_bytes() == clone.lock else ["dvc.lock is another"]
    return lock + judge(clone.folder, clone.expected, repetitions=kills)


def wrong_after(clone: Clone, who: str, name: str, epoch: int = 0, seconds: float = 0.0) -> list[str]:
    """Send a signal when an epoch has ended, or after some seconds, and continue: what is then wrong."""
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
def test_dvc_repro_continues_after_a_signal(small_clone: Clone, who: str, name: str) -> None:
    wrong = wrong_after(small_clone, who, name, random.Random(who).randint(1, EPOCHS - 1))
    report(f"dvc repro, {name} to {who} in training", 1, [wrong] if wrong else [])


@pytest.mark.parametrize(("who", "name"), ALL)
def test_dvc_repro_continues_after_any_signal_to_anyone(small_clone: Clone, who: str, name: str) -> None:
    epochs = random.Random(f"{who} {name}").sample(range(1, EPOCHS), 2)
    wrong = [found for epoch in epochs if (found := wrong_after(small_clone, who, name, epoch))]
    report(f"dvc repro, {name} to {who} in training", len(epochs), wrong)


def test_dvc_repro_continues_after_a_kill_at_any_moment(small_clone: Clone) -> None:
    drawn = random.Random(0)
    tries = [(drawn.choice(["stage", "dvc", "both"]), drawn.uniform(0, small_clone.seconds)) for _ in range(RANDOM)]
    wrong = [found for who, after in tries if (found := wrong_after(small_clone, who, "SIGKILL", seconds=after))]
    report("dvc repro, SIGKILL to stage, dvc or both at a random moment", len(tries), wrong)


def test_a_real_training_continues_after_kills_at_random_moments(tmp_path: Path) -> None:
    """Fifteen epochs of `accurate` on the real digits, from an earlier download or the network."""

    def make(folder: Path) -> None:
        copy_repository(folder)
        if (downloads := ROOT / "data" / "downloads").is_dir():
            shutil.copytree(downloads, folder / "data" / "downloads")

    variables = {"MNIST_SOURCE": source} if (source := os.environ.get("MNIST_SOURCE")) else {}
    clone = Clone.prepare(tmp_path, "train@accurate", make, **variables)
    assert len((clone.folder / "results/recipes/accurate/history.csv").read_text().splitlines()) == 1 + 15
    clone.put_back()
    drawn, kills = random.Random(15), 0
    for _ in range(REAL_KILLS):
        with Reproduction(clone) as repro:
            time.sleep(drawn.uniform(0, clone.seconds / 2))
            repro.signal(drawn.choice(["stage", "both"]), signal.SIGKILL)
        kills += repro.process.returncode != 0
    wrong = wrong_after_another(clone, None, kills)
    report(f"dvc repro, 15 epochs of real digits, killed {kills} times at random moments", 1, [wrong] if wrong else [])
    assert kills > 1


SAVING = ["data/raw/mnist.npz", "data/processed/train.npz", "data/processed/split.json", "dvc.lock"]


def wrong_after_fault(folder: Path, library: Path, expected: dict[str, bytes], fault: Fault, digits: Path) -> list[str]:
    """Let a change of a file go wrong in `dvc repro preprocess`, dvc or its stages; try again: what is wrong then."""
    count = folder.parent / "count"
    count.unlink(missing_ok=True)
    variables = {"LD_PRELOAD": str(library), "PYTHONDONTWRITEBYTECODE": "1", **fault.variables(folder, count)}
    dvc(folder, digits, "repro", "preprocess", **variables)
    said = f"{fault.kind} at {fault.at}: {changes(count)[1]}"
    done = dvc(folder, digits, "repro", "preprocess")
    if "Unable to read RWLock-file" in done.stderr:  # DVC empties its list of locks before it writes it again
        (folder / ".dvc/tmp/rwlock").unlink()  # as `make repro` does, and README says
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
    [("kill", 2), *(pytest.param(kind, 20, marks=pytest.mark.slow) for kind in ("kill", "half"))],
)
def test_dvc_survives_a_kill_at_any_write_of_its_own(
    tmp_path: Path, digits: Path, small_clone: Clone, kind: str, tries: int
) -> None:
    library, folder = build_library(tmp_path), small_clone.folder

    def begin() -> None:
        small_clone.put_back()
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
