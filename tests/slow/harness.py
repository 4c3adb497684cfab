"""Runs the stages many times with a fault in each, and says what is wrong afterwards.

`Bench` is a small repository that is put back between tries; `state` is all that one holds, `judge` compares it with
that of one that was never touched. faulty.c makes the faults; forks.py makes a try cost seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from conftest import small_repository, write_composed
from faults_report import record

HERE = Path(__file__).resolve().parent
WORDS = {"kill": "killed before", "half": "killed within", "once": "no space at", "always": "no space from"}
KINDS = tuple(WORDS)  # of faulty.c
SLOW_IMPORTS = (
    "pipeline.experiments.run",
    "pipeline.training.debug",
    "pipeline.reports.plots",
    "pipeline.experiments.sweep",
    "hydra.main",
)
STEPS = ("mlflow.db", "mlruns", "data", "models", "results", "outputs")  # what stages write
UNSET = ("DVC_", "MLFLOW_", "MNIST_", "FAULTY_")  # as for a user


class Fault(NamedTuple):
    """The `at`th change of a file goes wrong; none does for 0."""

    kind: str
    at: int

    def variables(self, root: Path, count: Path) -> dict[str, str]:
        names = {"ROOT": root.resolve(), "COUNT": count, "KIND": self.kind, "AT": self.at}
        return {f"FAULTY_{name}": str(value) for name, value in names.items()}


NO_FAULT = Fault("kill", 0)


class Ended(NamedTuple):
    code: int  # the exit code, or minus the signal
    stdout: str
    stderr: str
    seconds: float
    changes: int  # calls that faulty.c counted
    faulty: str  # the one that went wrong

    @classmethod
    def read(cls, status: int, seconds: float, stdout: Path, stderr: Path, count: Path) -> Ended:
        written = [file.read_text(errors="replace") for file in (stdout, stderr)]
        return cls(os.waitstatus_to_exitcode(status), *written, seconds, *changes(count))


def changes(count: Path) -> tuple[int, str]:
    """What faulty.c wrote down: how many changes there were, and which went wrong."""
    counted = count.read_bytes()
    return int.from_bytes(counted[:8], sys.byteorder), counted[8:].split(b"\0")[0].decode(errors="replace")


def build_library(folder: Path) -> Path:
    library = folder / "faulty.so"
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", library, HERE / "faulty.c"], check=True)
    return library


class Bench:
    """A small repository with digits and an earlier training, of another seed, which must lose nothing."""

    WORDS = ("recipe=baseline", "train.epochs=4", "optimizer.batch_size=100")

    def __init__(self, folder: Path, digits: Path) -> None:
        self.scratch, self.digits = folder, digits
        self.folder, self.kept = folder / "repository", folder / "kept"
        self.folder.mkdir(exist_ok=True)
        small_repository(self.folder, digits)
        self.library = build_library(folder)

    def __enter__(self) -> Bench:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(UNSET)} | {
            "LD_PRELOAD": str(self.library),
            "PYTHONPATH": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",  # it would count as a change
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "forks.py"), *SLOW_IMPORTS],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            for verb, *words in (["fetch"], ["preprocess"], ["train", *self.WORDS, "seed=7"]):
                self.finish(verb, *words)
            copy_steps(self.folder, self.kept)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, verb: str, *words: str, fault: Fault = NO_FAULT, signals: Sequence[tuple[float, int]] = ()) -> Ended:
        """Run a stage; `signals` are sent after so many seconds each, unless it has ended by then."""
        [ended] = self.run_at_once([(verb, *words)], fault, [signals])
        return ended

    def run_at_once(
        self,
        commands: Sequence[Sequence[str]],
        fault: Fault = NO_FAULT,
        signals: Sequence[Sequence[tuple[float, int]]] = ((), ()),
    ) -> list[Ended]:
        """Start several stages at once, and wait for all."""
        assert self.process.stdin and self.process.stdout
        requests, files = [], []
        for number, ((verb, *words), times) in enumerate(zip(commands, signals, strict=False)):
            outputs = [self.scratch / f"{name}.{number}" for name in ("stdout", "stderr", "count")]
            for file in outputs:
                file.unlink(missing_ok=True)
            stage = f"{verb}@baseline" if verb in ("train", "evaluate") else verb
            if verb != "sync":
                write_composed(self.folder, *words)
            requests.append(
                {
                    "module": f"pipeline.{verb}",
                    "words": words,
                    "variables": fault.variables(self.folder, outputs[2])
                    | {"DVC_STAGE": stage, "MNIST_SOURCE": str(self.digits)},
                    "files": [str(file) for file in outputs[:2]],
                    "signals": times,
                }
            )
            files.append(outputs)
        begin = time.perf_counter()
        print(json.dumps(requests), file=self.process.stdin, flush=True)
        statuses = json.loads(self.process.stdout.readline())
        seconds = time.perf_counter() - begin
        return [Ended.read(status, seconds, *outputs) for status, outputs in zip(statuses, files, strict=True)]

    def finish(self, verb: str, *words: str, kind: str = "kill") -> Ended:
        """Run a stage that nothing happens to."""
        ended = self.run(verb, *words, fault=Fault(kind, 0))
        assert (ended.code, ended.stderr) == (0, ""), ended
        return ended


class Untouched:
    """A command that nothing happened to: how its repository looks in the end, and how many changes of files it took.

    Each try begins as the bench was prepared, with the commands `after` run too.
    """

    def __init__(self, bench: Bench, *command: str, after: Sequence[Sequence[str]] = ()) -> None:
        self.bench, self.command = bench, command
        self.kept = bench.scratch / f"kept after {len(after)}"
        copy_steps(bench.kept, bench.folder)
        for before in after:
            bench.finish(*before)
        copy_steps(bench.folder, self.kept)
        self.before = state(bench.folder)
        self.changes, self.seconds = {}, 0.0
        for kind in ("kill", "once"):
            self.put_back()
            ended = bench.finish(*command, kind=kind)
            self.changes[kind], self.seconds = ended.changes, ended.seconds
        self.changes |= {"half": self.changes["kill"], "always": self.changes["once"]}
        self.state = state(bench.folder)

    def put_back(self) -> None:
        copy_steps(self.kept, self.bench.folder)

    def wrong_after(self, *faults: Fault) -> list[str]:
        """Run the command with each of the faults and then with none: all that is not as if untouched."""
        self.put_back()
        said = []
        for fault in faults:
            ended = self.bench.run(*self.command, fault=fault)
            said.append(f"{fault.kind} at {fault.at}: {ended.faulty}")
            if wrong := unexpected(ended, fault) or lost(self.bench.folder, self.before, self.state):
                return [*said, *wrong]
        return self.wrong_after_another(*said, synced=ended.code == 0)

    def wrong_after_signals(self, *signals: tuple[float, int]) -> list[str]:
        """Run the command with a signal after so many seconds, for each of these, and then without."""
        self.put_back()
        said = []
        for after, number in signals:
            ended = self.bench.run(*self.command, signals=[(after, number)])
            said.append(f"{signal.Signals(number).name} after {after:.2f} s")
            if wrong := self.wrong_after_signal(ended, number, repetitions=len(said) - 1):
                return [*said, *wrong]
        return self.wrong_after_another(*said)

    def wrong_after_signal(self, ended: Ended, number: int, repetitions: int) -> list[str]:
        wrong = lost(self.bench.folder, self.before, self.state)
        if ended.code == 0:  # it had ended before, or MLflow's own code swallowed the signal: then that part waits
            if "pipeline.sync" in ended.stdout:
                self.bench.run("sync")
            wrong += judge(self.bench.folder, self.state, repetitions)
        elif number != signal.SIGKILL and "RUNNING" in str(state(self.bench.folder)):
            wrong += [f"left as running in MLflow: {ended}"]
        return wrong

    def wrong_after_another(self, *said: str, synced: bool = False) -> list[str]:
        """Run the command again, unless the fault came when all was done, or only send what was said to be left.

        Gives what is then wrong, after what is said. A fault after the command had finished its record costs one
        repetition: DVC has not seen it end.
        """
        if judge(self.bench.folder, self.state):
            ended = self.bench.run(*(["sync"] if synced else self.command))
            if ended.code:
                return [*said, f"then exit code {ended.code}: {ended.stderr}"]
        wrong = judge(self.bench.folder, self.state, repetitions=0 if synced else len(said))
        return [*said, *wrong] if wrong else []


def unexpected(ended: Ended, fault: Fault) -> list[str]:
    """What is wrong with the end of a faulty try."""
    if not ended.faulty:  # there were fewer changes
        fine = (0, 0)
    elif fault.kind in ("kill", "half"):
        fine = (-signal.SIGKILL, 0)
    elif ended.code == 0:  # the tracker alone had no place: what is kept where, in one line
        fine = (0, min(1, ended.stderr.count("\n")))
    else:
        fine = (1, 1)
    if (ended.code, ended.stderr.count("\n")) == fine:
        return []
    return [f"exit code {ended.code}: {ended.stderr[-2000:]}"]


def positions(changes: int, tries: int, seed: str) -> list[int]:
    """Which of so many changes to try: about so many of them, or every STRIDEth where the environment names one."""
    stride = int(os.environ.get("STRIDE", max(1, changes // tries)))
    return list(range(random.Random(seed).randint(1, stride), changes + 1, stride))


def copy_steps(source: Path, target: Path) -> None:
    """Copy what stages write, and remove what else of it is there."""
    target.mkdir(exist_ok=True)
    for name in STEPS:
        for left in target.glob(f"{name}*"):  # mlflow.db has its journal beside it
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        for found in source.glob(f"{name}*"):
            (shutil.copytree if found.is_dir() else shutil.copy2)(found, target / found.name)


def judge(folder: Path, expected: Mapping[str, Any], repetitions: int = 0) -> list[str]:
    """Return what differs from `expected`, the state of a repository that was never touched: empty for nothing.

    So many repetitions of a training or an evaluation are no difference.
    """
    try:
        found = state(folder)
    except sqlite3.Error as error:
        return [f"mlflow.db: {error}"]
    if found["repetitions"] <= repetitions:
        found["repetitions"] = 0
    return [
        difference(key, found.get(key), expected.get(key))
        for key in {**expected, **found}
        if found.get(key) != expected.get(key)
    ]


def lost(folder: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """What of the state `before` is neither as it was nor as it will be, or a row less: empty for nothing."""
    try:
        found = state(folder)
    except sqlite3.Error as error:
        return [f"mlflow.db: {error}"]
    return [
        difference(key, found.get(key), value)
        for key, value in before.items()
        if found.get(key) not in (value, after.get(key))
        and not (isinstance(value, list) and set(map(str, value)) <= set(map(str, found.get(key, []))))
    ]


def difference(key: str, found: Any, expected: Any) -> str:
    if isinstance(found, list) and isinstance(expected, list):
        left, surplus = Counter(map(str, expected)), Counter(map(str, found))
        return f"{key}: missing {list((left - surplus).elements())}, surplus {list((surplus - left).elements())}"
    return f"{key}: {found}, not {expected}"


OF_TIME = (
    "speed/epoch_seconds",
    "speed/training_seconds",
    "speed/images_per_second",
)  # logged once an epoch like the others, but never the same twice
UPLOADING = ".artifact.uploading."  # what MLflow leaves of a file that it was killed in
DIFF = "git.diff"  # there or not: what DVC wrote before it was killed is an uncommitted change to the training after
OWN = ("tags.json", "MLmodel", "model.keras", "console.log")  # artifacts with dates, ids or speeds in them


def state(folder: Path) -> dict[str, Any]:
    """Everything that a repository holds but times and ids: the store row by row, and files by their hash."""
    with tempfile.TemporaryDirectory() as copies:
        for path in folder.glob("mlflow.db*"):  # with its journal: opening rolls back what was not committed
            shutil.copy2(path, copies)
        with closing(sqlite3.connect(Path(copies) / "mlflow.db")) as store:
            found, ids = of_store(store)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name.startswith(STEPS) and name != "mlflow.db" and path.suffix != ".lock":
            if path.name.startswith(UPLOADING) or path.name == DIFF:
                continue
            known = re.sub(r"(m-)?[0-9a-f]{32}", lambda match: ids.get(match[0], "unknown " + match[0]), name)
            content = "" if path.name in OWN and name.startswith("mlruns") else sha256(path)
            if found.setdefault(known, content) != content:
                found[f"{known}, another"] = content
    return found


def of_store(store: sqlite3.Connection) -> tuple[dict[str, Any], dict[str, str]]:
    """Its runs that are not deleted, the oldest first; and names for the ids of runs and models.

    Runs that hold the same count once, as do rows of the test examples, which are logged by each evaluation; how often
    they were repeated is counted.
    """

    def rows(query: str, run_id: str = "") -> list[tuple[Any, ...]]:
        return store.execute(query, [run_id] if run_id else []).fetchall()

    runs: list[dict[str, Any]] = []
    ids, repetitions = {}, 0
    active = rows(
        "SELECT run_uuid, name, status, end_time > 0 FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time"
    )
    for run_id, *about in active:
        models = rows(
            "SELECT model_id, name, status FROM logged_models WHERE source_run_id = ? AND lifecycle_stage = 'active'",
            run_id,
        )
        metrics = rows("SELECT key, step, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY key, step", run_id)
        metrics = [row[:2] if row[0] in OF_TIME else row for row in metrics if not row[0].startswith("system/")]
        tested = Counter(row for row in metrics if row[0].startswith("test_"))
        repetitions += max(tested.values(), default=1) - 1
        run = {
            "": about,
            ": models": [about for _, *about in models],
            ": metrics": [*(row for row in metrics if row not in tested), *tested],
            ": params": rows("SELECT key, value FROM params WHERE run_uuid = ? ORDER BY key", run_id),
            ": tags": rows("SELECT key FROM tags WHERE run_uuid = ? ORDER BY key", run_id),
            ": inputs": rows(
                "SELECT datasets.name, digest, value FROM inputs JOIN datasets ON source_id = dataset_uuid "
                "JOIN input_tags USING (input_uuid) WHERE destination_id = ? ORDER BY 1",
                run_id,
            ),
        }
        if run in runs:
            repetitions += 1
        else:
            runs.append(run)
        ids[run_id] = label = f"run {runs.index(run)}"
        ids |= {model_id: f"model of {label}" for model_id, *_ in models}
    found: dict[str, Any] = {"integrity": rows("PRAGMA integrity_check"), "repetitions": repetitions}
    for number, run in enumerate(runs):
        found |= {f"run {number}{part}": value for part, value in run.items()}
    return found, ids


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def report(promise: str, tries: int, wrong: Sequence[Sequence[str]]) -> None:
    """Tell docs/reliability.md of the tries, and fail if any of them left something wrong."""
    lines = [line[:300] for found in wrong for line in found[:6]]
    record(promise, tries, tries - len(wrong), "; ".join(lines) or "nothing")
    assert not wrong, "\n".join(lines)
