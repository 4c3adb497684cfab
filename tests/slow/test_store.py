"""The local store: made by many at once, some killed meanwhile; locked, read and damaged."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import small_repository
from faults_report import record
from lab import Ended, Forks, Repository, Server

pytestmark = pytest.mark.faults

QUICK, MANY = 1, 20  # fresh starts of eight
METRICS = [(f"m{number % 10}", number // 10, float(number)) for number in range(200)]  # of metrics_writer.py


@pytest.fixture(scope="module")
def writers(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Writers]:
    writers = Writers(tmp_path_factory.mktemp("writers") / "repository", digits)
    yield writers
    writers.forks.close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Repository]:
    with Repository(tmp_path_factory.mktemp("local"), digits) as repository:
        yield repository


class Writers:
    """Processes that open the same mlflow.db by different names, and log."""

    def __init__(self, folder: Path, digits: Path) -> None:
        self.folder = folder
        folder.mkdir()
        small_repository(folder, digits)
        self.forks = Forks(folder, "pipeline.tracking.store")
        relative, absolute = "sqlite:///mlflow.db", f"sqlite:///{folder}/mlflow.db"
        self.spellings = [{}, *({"MLFLOW_TRACKING_URI": uri} for uri in (relative, absolute, "sqlite:///./mlflow.db"))]

    def clear(self) -> None:
        for path in self.folder.glob("mlflow.db*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write(self, begins: list[float], kills: dict[int, float]) -> list[str]:
        """Write by processes that begin after so many seconds, some killed: what is wrong with what is stored then."""
        requests = []
        for number, begin in enumerate(begins):
            temporary = self.folder / f"tmp{number % 3}"
            temporary.mkdir(exist_ok=True)
            variables = {**self.spellings[number % len(self.spellings)], "TMPDIR": str(temporary)}
            signals = [(kills[number], signal.SIGKILL)] if number in kills else []
            requests.append(
                {"module": "metrics_writer", "words": [str(begin)], "variables": variables, "signals": signals}
            )
        wrong, logged = [], []
        for number, ended in enumerate(self.forks.run(*requests)):
            if ended.code == 0 and ended.stderr == "":
                logged += re.findall(r"^logged (\w{32})$", ended.stdout, re.MULTILINE)
            elif number not in kills:
                wrong.append(f"process {number}: exit code {ended.code}: {ended.stderr[-500:]}")
        for run_id in logged:
            if (found := self.stored(run_id)) != METRICS:
                wrong.append(f"{len(found)} of {len(METRICS)} metrics of {run_id}")
        if not wrong and len(logged) < len(begins) - len(kills):
            wrong.append(f"only {len(logged)} runs")
        return wrong

    def stored(self, run_id: str) -> list[tuple[str, int, float]]:
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as store:
            query = "SELECT key, step, value FROM metrics WHERE run_uuid = ? ORDER BY value"
            return store.execute(query, [run_id]).fetchall()


def fresh_starts(writers: Writers, turns: int) -> None:
    chance, lost = random.Random(turns), []
    for turn in range(turns):
        writers.clear()
        kills = {number: chance.uniform(0.1, 3) for number in range(2)}
        # In every other turn the two that are killed come first, so that they are killed while making it.
        begins = [0.0] * 8 if turn % 2 else [0.0] * 2 + [0.3] * 6
        again = [kill + 0.1 for kill in kills.values()]
        lost += [f"turn {turn}, killed at {kills}: {wrong}" for wrong in writers.write([*begins, *again], kills)]
    failed = len({wrong.split(",")[0] for wrong in lost})
    record("8 processes on a fresh database, 2 of them killed", turns, turns - failed, "; ".join(lost) or "nothing")
    assert not lost, "\n".join(lost)


@pytest.mark.sample
def test_eight_processes_begin_a_database_together_and_two_are_killed(writers: Writers) -> None:
    fresh_starts(writers, QUICK)


def test_eight_processes_begin_a_database_together_many_times(writers: Writers) -> None:
    fresh_starts(writers, MANY)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(random.Random(0).randbytes(100))


def spoil_pages(path: Path) -> None:
    with path.open("r+b") as file:
        for page in (20, 40, 60):
            file.seek(page * 4096)
            file.write(random.Random(page).randbytes(4096))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "somebody's").write_text("file")


def tables(path: Path) -> list[str]:
    with (
        contextlib.suppress(sqlite3.OperationalError),
        closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as store,
    ):
        return [name for (name,) in store.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    return []


@pytest.mark.parametrize("damage", [truncate, spoil_header, empty])
def test_a_database_that_sqlite_cannot_open_is_set_aside_and_a_fresh_one_begun(writers: Writers, damage) -> None:
    _, before, ended = damaged(writers, damage)
    said = [line for line in ended.stdout.splitlines() if "mlflow.db" in line]
    wrong = [] if (ended.code, ended.stderr) == (0, "") else [f"exit code {ended.code}: {ended.stderr[-500:]}"]
    kept = [other for other in writers.folder.glob("mlflow.db.*") if other.suffix not in (".lock", ".making")]
    if damage is empty:  # it held nothing
        wrong += [f"said {said}"] if said or kept else []
    elif [other.read_bytes() for other in kept] != [before] or len(said) != 1 or kept[0].name not in said[0]:
        wrong.append(f"kept {kept}, and said {ended.stdout!r}")
    run_id = (re.findall(r"^logged (\w{32})$", ended.stdout, re.MULTILINE) or [""])[0]
    if not wrong and writers.stored(run_id) != METRICS:
        wrong.append("not all logged in the fresh one")
    record(f"a damaged mlflow.db is set aside: {damage.__name__}", 1, int(not wrong), "; ".join(wrong) or "nothing")
    writers.clear()
    assert not wrong


@pytest.mark.parametrize("damage", [spoil_pages, replace_by_a_folder])
def test_another_damage_is_said_in_one_line_and_nothing_of_it_touched(writers: Writers, damage) -> None:
    """SQLite opens such a file, and MLflow is the first to meet the damage."""
    path, before, ended = damaged(writers, damage)
    wrong = [] if ended.code == 1 and "mlflow.db" in ended.stderr.splitlines()[-1] else [f"ended {ended}"]
    if content(path) != before:
        wrong.append("it is changed")
    record(f"another damage of mlflow.db is said: {damage.__name__}", 1, int(not wrong), "; ".join(wrong) or "nothing")
    writers.clear()
    assert not wrong


def damaged(writers: Writers, damage: Callable[[Path], None]) -> tuple[Path, Any, Ended]:
    """Damage a database and open it: where it is, what it held before that, how opening it ended."""
    path = writers.folder / "mlflow.db"
    if not tables(path):
        writers.clear()
        assert writers.write([0.0], {}) == []
    damage(path)
    before = content(path)
    [ended] = writers.forks.run({"module": "metrics_writer", "words": ["0"]})
    return path, before, ended


def content(path: Path) -> Any:
    return path.read_bytes() if path.is_file() else sorted(path.iterdir())


@pytest.mark.parametrize("seconds", [30, 60])
def test_a_writer_that_holds_the_lock_for_long_loses_nobody_a_row(repository: Repository, seconds: int) -> None:
    repository.begin()
    release = threading.Event()
    holding = threading.Event()

    def hold() -> None:
        with closing(sqlite3.connect(repository.store, isolation_level=None, timeout=30)) as store:
            store.execute("BEGIN EXCLUSIVE")
            holding.set()
            release.wait(seconds)
            store.rollback()

    holder = threading.Thread(target=hold)
    holder.start()
    assert holding.wait(30)
    begin = time.monotonic()
    ended = repository.run("train")
    took = time.monotonic() - begin
    release.set()
    holder.join()
    wrong = [] if (ended.code, ended.stderr) == (0, "") else [f"exit code {ended.code}: {ended.stderr[-500:]}"]
    wrong += repository.wrong_after_sending("train")
    promise = f"training while another holds the database for {seconds} s"
    print(f"{promise}: {took:.1f} s, otherwise {repository.seconds['train']:.1f} s")
    record(promise, 1, int(not wrong), "; ".join(wrong) or "nothing")
    assert not wrong


@contextlib.contextmanager
def page_open(repository: Repository, folder: Path) -> Iterator[list[int]]:
    """`mlflow ui` on the repository's store, read again and again: how many runs each answer held."""
    server = Server(folder, repository.store)
    seen: list[int] = []
    stop = threading.Event()

    def read() -> None:
        asked = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/api/2.0/mlflow/runs/search",
            json.dumps({"experiment_ids": [str(number) for number in range(20)], "max_results": 100}).encode(),
            {"Content-Type": "application/json"},
        )
        while not stop.wait(0.1):
            with urllib.request.urlopen(asked, timeout=60) as answer:
                seen.append(len(json.load(answer).get("runs", [])))

    reader = threading.Thread(target=read)
    try:
        server.wait()
        reader.start()
        yield seen
    finally:
        stop.set()
        if reader.ident:
            reader.join()
        server.kill()


def test_eight_at_once_on_one_repository_with_its_page_open(repository: Repository, tmp_path: Path) -> None:
    repository.begin()
    wrong = []
    with page_open(repository, tmp_path) as seen:
        others = []
        for seed in range(8):
            request = repository.request("train")
            del request["variables"]["DVC_STAGE"]
            others.append({**request, "words": [*request["words"], f"seed={seed}"]})
        for seed, one in enumerate(repository.forks.run(*others)):
            if one.code or one.stderr:
                wrong.append(f"seed {seed}, exit code {one.code}: {one.stderr[-500:]}")
        sent = repository.run("sync")
        wrong += [] if sent.code == 0 else [sent.stderr]
    wrong += wrong_seeds(repository)
    assert len(seen) > 10 and seen[-1] == 8, seen
    record(
        "8 trainings at once on one repository, its page open",
        8,
        8 - len(wrong),
        "; ".join(wrong) or "nothing",
    )
    assert not wrong


def wrong_seeds(repository: Repository) -> list[str]:
    """What of eight runs of eight seeds is not there once."""
    expected = repository.expected["train"]
    found = {key: value for key, value in repository.state().items() if key.startswith("run ")}
    wrong = [] if len({key.split(":")[0] for key in found}) == 8 else ["not 8 runs"]
    keys = sorted(row[:2] for row in expected["run 0: metrics"])
    for number in range(8):
        label = f"run {number}"
        if found[label][1:] != ["FINISHED", 1] or found[f"{label}: models"] != expected["run 0: models"]:
            wrong.append(f"{label} is {found[label]}, its models {found[f'{label}: models']}")
        if sorted(row[:2] for row in found[f"{label}: metrics"]) != keys:
            wrong.append(f"{label} has not each row once")
    seeds = {dict(found[f"run {number}: params"])["seed"] for number in range(8)}
    return wrong + ([] if len(seeds) == 8 else [f"seeds {seeds}"])
