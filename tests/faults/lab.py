"""A small repository whose tracker is a real server behind a proxy, and a judge of what the server holds in the end."""

from __future__ import annotations

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
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from conftest import small_repository
from harness import of_store
from proxy import Proxy

HERE = Path(__file__).resolve().parent
UNSET = ("DVC_", "MLFLOW_", "MNIST_", "FAULTY_")  # as for a user
HISTORY = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
OWN = ("tags.json", "MLmodel", "model.keras")  # artifacts with dates or ids in them


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
    """`mlflow server` with one worker, SQLite and artifacts served, all in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.artifacts = folder, folder / "server.db", folder / "served"
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


class Lab:
    """Trains and evaluates one tiny configuration, tracked through `proxy`, again and again from the same beginning."""

    WORDS = ("recipe=baseline", "train.epochs=3", "optimizer.batch_size=100")
    WRITTEN = ("outputs", "models", "results")

    def __init__(self, folder: Path, digits: Path) -> None:
        self.folder, self.kept = folder / "repository", folder / "kept"
        self.folder.mkdir()
        (folder / "server").mkdir()
        self.server = Server(folder / "server")
        self.proxy = Proxy(self.server.port)
        self.asked: dict[str, int] = {}  # requests of a verb, with a tracker that is well
        self.seconds: dict[str, float] = {}
        self.expected: dict[str, dict[str, Any]] = {}
        small_repository(self.folder, digits)
        self.forks = Forks(
            self.folder,
            "pipeline.training",
            "pipeline.debug",
            "pipeline.plots",
            "pipeline.sweep",
            MNIST_SOURCE=str(digits),
        )

    def __enter__(self) -> Lab:
        try:
            for verb in ("fetch", "preprocess"):
                self.finish(verb)
            self.server.wait()
            self.begin()
            for verb in ("train", "evaluate"):  # with a tracker that is well
                self.proxy.heal()
                self.seconds[verb] = self.finish(verb).seconds
                self.expected[verb], self.asked[verb] = self.state(), len(self.proxy.asked)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.forks.close()
        self.proxy.close()
        self.server.kill()

    def begin(self, kept: Path | None = None) -> None:
        """Forget all runs, here and on the server, and begin with the files of an earlier try where it is given."""
        for name in self.WRITTEN:
            shutil.rmtree(self.folder / name, ignore_errors=True)
            if kept and (kept / name).is_dir():
                shutil.copytree(kept / name, self.folder / name)
        self.proxy.heal()
        with closing(sqlite3.connect(self.server.store, timeout=30)) as store, store:
            store.execute("UPDATE runs SET lifecycle_stage = 'deleted'")
            store.execute("UPDATE experiments SET name = name || ' before ' || random() WHERE name = 'mnist'")

    def keep(self, name: str) -> Path:
        """Keep what is written here, to `begin` with."""
        folder = self.kept / name
        for written in self.WRITTEN:
            if (self.folder / written).is_dir():
                shutil.copytree(self.folder / written, folder / written)
        return folder

    def run(self, verb: str, *signals: tuple[float, int], patience: int | None = 1) -> Ended:
        """Run a verb; `patience` with a hanging tracker, in seconds: None for that of a user who sets nothing."""
        tracker = {"MLFLOW_TRACKING_URI": self.proxy.uri}
        if patience:
            tracker["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(patience)
        trained = verb in ("train", "evaluate")
        stage = {"DVC_STAGE": f"{verb}@baseline"} if verb != "sync" else {}
        return self.forks.run(
            {
                "module": f"pipeline.{verb}",
                "words": self.WORDS if trained else (),
                "variables": tracker | stage,
                "signals": signals,
            }
        )[0]

    def finish(self, verb: str) -> Ended:
        ended = self.run(verb)
        assert (ended.code, ended.stderr) == (0, ""), ended
        return ended

    def wrong_after_sending(self, verb: str) -> list[str]:
        """Heal the tracker and send what is left, twice: all that is then otherwise than it should be after `verb`."""
        self.proxy.heal()
        found = []
        for _ in range(2):
            ended = self.run("sync")
            if ended.code or ended.stderr:
                return [f"sync: exit code {ended.code}: {ended.stderr[-500:]}"]
            found.append(self.state())
        expected = self.expected[verb]
        wrong = [
            f"{key} is {found[0].get(key, 'absent')!s:.300}, not {expected.get(key, 'absent')!s:.300}"
            for key in {**expected, **found[0]}
            if found[0].get(key) != expected.get(key)
        ]
        return wrong + (["the second sync changed something"] if found[0] != found[1] else [])

    def state(self) -> dict[str, Any]:
        """All that the server holds but times and ids, and what the repository holds beside."""
        with closing(sqlite3.connect(self.server.store, timeout=30)) as store:
            found, ids = of_store(store)
            runs = store.execute(
                "SELECT run_uuid, experiment_id FROM runs WHERE lifecycle_stage = 'active' ORDER BY start_time"
            ).fetchall()
            for number, (run_id, experiment) in enumerate(runs):
                found[f"run {number}: rows that are not in history.csv once"] = self._uncounted(store, run_id)
                found[f"run {number}: read"] = store.execute(
                    "SELECT value FROM tags WHERE run_uuid = ? AND key = 'test_set_reads'", [run_id]
                ).fetchall()
                models = [key for key, label in ids.items() if label == f"model of run {number}"]
                places = [self.server.artifacts / str(experiment) / run_id / "artifacts"]
                places += [self.server.artifacts / str(experiment) / "models" / name / "artifacts" for name in models]
                for place in places:
                    found |= {f"{ids[place.parent.name]}: {name}": value for name, value in files(place).items()}
        for name in ("models", "results"):
            found |= {f"{name}/{file}": value for file, value in files(self.folder / name).items()}
        left = [
            path.relative_to(self.folder) for path in (self.folder / "outputs").glob("*/*") if path.suffix != ".lock"
        ]
        return found | {"left in outputs": [str(path) for path in left]}

    def _uncounted(self, store: sqlite3.Connection, run_id: str) -> Any:
        """Count each row of history.csv in the store: {(key, epoch): number} of those not there exactly once."""
        rows = (self.folder / "results/recipes/baseline/history.csv").read_text().splitlines()
        names, table = rows[0].split(","), [row.split(",") for row in rows[1:]]
        wanted = Counter(
            (name, int(row[0]), float(value))
            for row in table
            for name, value in zip(names, row, strict=True)
            if name != "epoch"
        )
        marks = ", ".join("?" * len(HISTORY))
        query = f"SELECT key, step, value FROM metrics WHERE run_uuid = ? AND key IN ({marks})"
        stored = Counter(store.execute(query, [run_id, *HISTORY]).fetchall())
        assert len(wanted) == len(HISTORY) * len(table) and set(wanted.values()) == {1}
        return {key: stored[key] for key in wanted | stored if stored[key] != wanted[key]}


def files(folder: Path) -> dict[str, str]:
    """Files below a folder by their hash; those that hold dates or ids by their name alone."""
    return {
        str(path.relative_to(folder)): "" if path.name in OWN and "models" not in folder.parts[-1:] else sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def positions(last: int, tries: int) -> list[int]:
    """About so many of 1 to `last`, evenly."""
    return sorted({1 + round(step * (last - 1) / max(1, tries - 1)) for step in range(tries)})


def one_line(text: str) -> bool:
    return re.fullmatch(r"[^\n]*\n?", text) is not None
