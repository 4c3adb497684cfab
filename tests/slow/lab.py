"""Small repositories, with a tracker of their own or a real server behind a proxy, and what they hold in the end."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from conftest import small_repository, write_composed
from harness import SLOW_IMPORTS, UNSET, UPLOADING, of_store
from proxy import Proxy

HERE = Path(__file__).resolve().parent
VARYING = ("MLmodel", "console.log")  # they have dates and speeds in them
READY = 2  # a logged model, in the store's table


class Ended(NamedTuple):
    code: int  # the exit code, or minus the signal
    stdout: str
    stderr: str
    seconds: float


class Forks:
    """forks.py, in a folder: a process that has imported what is slow, and runs modules in children of its own."""

    def __init__(self, folder: Path, *imports: str, **variables: str) -> None:
        self.scratch = folder.with_name(f"{folder.name}-output")
        self.scratch.mkdir(exist_ok=True)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(UNSET)}
        paths = {"PYTHONPATH": os.pathsep.join([str(folder), str(HERE)]), "PYTHONDONTWRITEBYTECODE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "forks.py"), *imports],
            cwd=folder,
            env=kept | paths | {"MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "3"} | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def close(self) -> None:
        assert self.process.stdin and self.process.stdout
        self.process.kill()  # it holds nothing
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def run(self, *requests: Mapping[str, Any]) -> list[Ended]:
        """Run modules at once: each of `module`, `words`, `variables` and `signals` to send (seconds, number)."""
        assert self.process.stdin and self.process.stdout
        full = []
        for number, request in enumerate(requests):
            files = [self.scratch / f"{name}-{number}" for name in ("stdout", "stderr")]
            for file in files:
                file.write_text("")
            full.append(
                {"words": [], "variables": {}, "signals": [], **request, "files": [str(file) for file in files]}
            )
        begin = time.perf_counter()
        print(json.dumps(full), file=self.process.stdin, flush=True)
        statuses = json.loads(self.process.stdout.readline())
        seconds = time.perf_counter() - begin
        return [
            Ended(os.waitstatus_to_exitcode(status), *(Path(file).read_text() for file in given["files"]), seconds)
            for status, given in zip(statuses, full, strict=True)
        ]


class Server:
    """`mlflow server` with one worker, SQLite and artifacts served, in `folder`."""

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        self.folder, self.store, self.artifacts = folder, store or folder / "server.db", folder / "served"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.start()

    def start(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(UNSET)}
        words = f"server -w 1 --host 127.0.0.1 --port {self.port} --backend-store-uri sqlite:///{self.store}".split()
        with (self.folder / "server.log").open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", *words, "--artifacts-destination", str(self.artifacts)],
                cwd=self.folder,
                env=kept | {"MLFLOW_DISABLE_TELEMETRY": "true"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2).close()
                return
            except OSError:
                time.sleep(0.2)
        raise AssertionError((self.folder / "server.log").read_text())

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Repository:
    """Trains and evaluates one tiny configuration, again and again from the same beginning; tracked in mlflow.db."""

    WORDS = ("recipe=baseline", "train.epochs=3", "optimizer.batch_size=100")
    WRITTEN = ("outputs", "models", "results")

    def __init__(self, folder: Path, digits: Path) -> None:
        self.folder, self.kept = folder / "repository", folder / "kept"
        self.folder.mkdir()
        small_repository(self.folder, digits)
        self.forks = Forks(self.folder, *SLOW_IMPORTS, MNIST_SOURCE=str(digits))
        self.store, self.tracker = self.folder / "mlflow.db", {}
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, Any]] = {}  # what is there after a verb that nothing happened to

    def __enter__(self) -> Repository:
        try:
            for verb in ("fetch", "preprocess"):
                self.finish(verb)
            self.begin()
            for verb in ("train", "evaluate"):
                self.seconds[verb] = self.finish(verb).seconds
                self.expected[verb] = state = self.state()
                assert state["run 0"] == ["baseline", "FINISHED", 1] and "run 1" not in state
                assert state["run 0: models"] == [["model", READY]]
                assert state["run 0: rows that are not in history.csv once"] == {} and state["left in outputs"] == []
            assert len(state["run 0: read"]) == 1
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.forks.close()

    def artifacts(self, experiment: str) -> Path:
        return self.folder / "mlruns"

    def begin(self, kept: Path | None = None) -> None:
        """Forget all runs, here and in the store, and begin with the files of an earlier try where it is given."""
        for name in self.WRITTEN:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if kept and (kept / name).is_dir():
                shutil.copytree(kept / name, self.folder / name)
        if self.store.exists():
            with closing(sqlite3.connect(self.store, timeout=30)) as store, store:
                store.execute("UPDATE runs SET lifecycle_stage = 'deleted'")
                store.execute("UPDATE experiments SET name = name || ' before ' || random() WHERE name = 'mnist'")

    def keep(self, name: str) -> Path:
        """Keep what is written here, to `begin` with."""
        folder = self.kept / name
        for written in self.WRITTEN:
            if (self.folder / written).is_dir():
                shutil.copytree(self.folder / written, folder / written)
        return folder

    def request(self, verb: str, *signals: tuple[float, int], **variables: str) -> dict[str, Any]:
        trained = verb in ("train", "evaluate")
        words = self.WORDS if trained else ()
        if verb != "sync":
            write_composed(self.folder, *words)
        stage = {"DVC_STAGE": f"{verb}@baseline" if trained else verb}
        return {
            "module": f"pipeline.{verb}",
            "words": words,
            "variables": ({} if verb == "sync" else stage) | self.tracker | variables,
            "signals": signals,
        }

    def run(self, verb: str, *signals: tuple[float, int], **variables: str) -> Ended:
        return self.forks.run(self.request(verb, *signals, **variables))[0]

    def finish(self, verb: str) -> Ended:
        ended = self.run(verb)
        assert (ended.code, ended.stderr) == (0, ""), ended
        return ended

    def wrong_after_sending(self, verb: str, repetitions: int = 0) -> list[str]:
        """Send what is left, twice: all that is then otherwise than it should be after `verb`, so often repeated."""
        found = []
        for _ in range(2):
            ended = self.run("sync")
            if ended.code or ended.stderr:
                return [f"sync: exit code {ended.code}: {ended.stderr[-500:]}"]
            found.append(self.state())
        expected = self.expected[verb] | {"repetitions": repetitions}
        wrong = [
            f"{key} is {found[0].get(key, 'absent')!s:.300}, not {expected.get(key, 'absent')!s:.300}"
            for key in {**expected, **found[0]}
            if found[0].get(key) != expected.get(key)
        ]
        return wrong + (["the second sync changed something"] if found[0] != found[1] else [])

    def state(self) -> dict[str, Any]:
        """All that the store holds but times and ids, and what the repository holds beside."""
        found: dict[str, Any] = {}
        if self.store.exists():
            with closing(sqlite3.connect(self.store, timeout=30)) as store:
                found |= self._of_runs(store)
        for name in ("models", "results"):
            found |= {f"{name}/{file}": value for file, value in files(self.folder / name).items()}
        left = [path for path in (self.folder / "outputs").glob("*/*") if path.suffix != ".lock"]
        return found | {"left in outputs": [str(path.relative_to(self.folder)) for path in left]}

    def _of_runs(self, store: sqlite3.Connection) -> dict[str, Any]:
        found, ids = of_store(store)
        query = "SELECT run_uuid, experiment_id FROM runs WHERE lifecycle_stage = 'active'"
        for run_id, experiment in store.execute(query).fetchall():
            label, root = ids[run_id], self.artifacts(str(experiment))
            found[f"{label}: rows that are not in history.csv once"] = self._uncounted(store, run_id)
            query = "SELECT value FROM tags WHERE run_uuid = ? AND key = 'test_scored'"
            found[f"{label}: read"] = store.execute(query, [run_id]).fetchall()
            models = [root / "models" / key for key, owner in ids.items() if owner == f"model of {label}"]
            for place in [root / run_id, *models]:
                for name, value in files(place / "artifacts").items():
                    if name not in VARYING and not name.startswith(UPLOADING):
                        found[f"{ids[place.name]}: {name}"] = value
        return found

    def _uncounted(self, store: sqlite3.Connection, run_id: str) -> Any:
        """Count each row of history.csv in the store: {(key, epoch, value): number} of those not there exactly once."""
        history = self.folder / "results/recipes/baseline/history.csv"
        if not history.exists():
            return "no history.csv"
        wanted = Counter(
            (name, int(row["epoch"]), float(value))
            for row in csv.DictReader(history.read_text().splitlines())
            for name, value in row.items()
            if name != "epoch"
        )
        assert set(wanted.values()) == {1}
        names = {name for name, *_ in wanted}
        query = "SELECT key, step, value FROM metrics WHERE run_uuid = ?"
        stored = Counter(row for row in store.execute(query, [run_id]) if row[0] in names)
        return {key: stored[key] for key in wanted | stored if stored[key] != wanted[key]}


class Lab(Repository):
    """A repository whose tracker is a real server behind `proxy`."""

    def __init__(self, folder: Path, digits: Path) -> None:
        (folder / "server").mkdir()
        self.server = Server(folder / "server")
        super().__init__(folder, digits)
        self.proxy = Proxy(self.server.port)
        self.store = self.server.store
        # A healthy server on a busy machine is no fault.
        self.tracker = {"MLFLOW_TRACKING_URI": self.proxy.uri, "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
        self.asked: dict[str, int] = {}  # requests of a verb that nothing happened to

    def __enter__(self) -> Lab:
        self.server.wait()
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.proxy.close()
        self.server.kill()

    def artifacts(self, experiment: str) -> Path:
        return self.server.artifacts / experiment

    def begin(self, kept: Path | None = None) -> None:
        super().begin(kept)
        self.proxy.heal()

    def finish(self, verb: str) -> Ended:
        self.proxy.heal()
        ended = super().finish(verb)
        self.asked.setdefault(verb, len(self.proxy.asked))
        return ended

    def wrong_after_sending(self, verb: str, repetitions: int = 0) -> list[str]:
        self.proxy.heal()
        return super().wrong_after_sending(verb, repetitions)


def files(folder: Path) -> dict[str, str]:
    """Files below a folder by their hash: of a logged model that of its weights, as the rest of it has a date."""
    return {str(path.relative_to(folder)): digest(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            content = archive.read("model.weights.h5")
    return hashlib.sha256(content).hexdigest()


def positions(last: int, tries: int) -> list[int]:
    """About so many of 1 to `last`, evenly."""
    return sorted({1 + round(step * (last - 1) / max(1, tries - 1)) for step in range(tries)})


def one_line(text: str) -> bool:
    return re.fullmatch(r"[^\n]+\n?", text) is not None
