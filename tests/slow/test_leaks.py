"""What leaves the machine, and what of its user ends in a run, a model or a result: nothing."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT
from faults_report import record

pytestmark = pytest.mark.faults

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalr-this-is-secret-0",
    "MLFLOW_TRACKING_TOKEN": "token-this-is-secret-1",
    "SOME_PASSWORD": "password-this-is-secret-2",
    "HTTPS_PROXY": "http://someone:this-is-secret-3@127.0.0.1:9",
    "LOGNAME": "known-by-this-name",
    "USER": "known-by-this-name",
    "HOME": "home-of-a-person",
}
# Of every Python that is started, children included: what it asks the network for.
HOOK = """
import os, sys
def hook(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        told = arguments[1]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        told = arguments[:1]
    else:
        return
    with open(os.environ["TOLD"], "a") as file:
        file.write(f"{event} {told!r}\\n")
sys.addaudithook(hook)
"""
LOOPBACK = re.compile(r"'(127\.0\.0\.1|::1|localhost)'|\(None,\)|None$|^socket\.connect '|^socket\.connect b'")
TO_INTERNET = re.compile(r'AF_INET6?,(?!.*("127\.0\.0\.1"|"::1"))|htons\(53\)')


class Traced(NamedTuple):
    returncode: int
    output: str
    started: int  # processes of Python that were listened to, and system calls that were seen
    left: list[str]  # what asked for more than this machine


def traced(folder: Path, scratch: Path, *words: str, **variables: str) -> Traced:
    """Run a command with nothing of this process's environment, cut off from the network where that can be done.

    Python is asked in any case; native code as well where strace is there.
    """
    scratch.mkdir(parents=True)
    (scratch / "hook").mkdir()
    (scratch / "hook" / "sitecustomize.py").write_text(HOOK)
    told, calls = scratch / "told", scratch / "calls"
    told.touch()
    calls.touch()
    before: list[str] = []
    for tool in (
        ["unshare", "--map-root-user", "--net"],
        [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-qq",
            "-e",
            "trace=connect,sendto,sendmsg,sendmmsg",
            "-e",
            "signal=none",
            "-o",
            str(calls),
        ],
    ):
        if shutil.which(tool[0]) and subprocess.run([*before, *tool, "true"], capture_output=True).returncode == 0:
            before += tool
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "HOME": str(scratch), "PYTHONPATH": str(scratch / "hook"), "TOLD": str(told)}
    done = subprocess.run([*before, *words], cwd=folder, env=own | variables, capture_output=True, text=True)
    asked, called = told.read_text().splitlines(), calls.read_text().splitlines()
    left = [line for line in asked if not LOOPBACK.search(line)] + [line for line in called if TO_INTERNET.search(line)]
    return Traced(done.returncode, done.stdout + done.stderr, len(asked) + len(called), left)


def test_an_attempt_to_leave_is_seen(tmp_path):
    asks = (
        "import socket; socket.getaddrinfo('192.0.2.1', 80, flags=socket.AI_NUMERICHOST)\n"
        "try: socket.socket(type=socket.SOCK_DGRAM).connect(('192.0.2.1', 80))  # sends nothing\n"
        "except OSError: pass"
    )
    seen = traced(tmp_path, tmp_path / "scratch", sys.executable, "-c", asks)
    events = [line.split()[0] for line in seen.left if line.startswith("socket.")]
    assert events == ["socket.getaddrinfo", "socket.connect"], seen


# MLflow's makers hear of a run when it is begun, from a thread.
BEGIN = """
import time
from pipeline.base.project import open_project
from pipeline.tracking.store import open_store
client, experiment = open_store(open_project(), "mnist")
client.set_terminated(client.create_run(experiment).info.run_id)
time.sleep(1)
"""


@pytest.mark.sample
def test_importing_everything_and_a_run_ask_nothing_of_the_network(tmp_path):
    files = [file for file in sorted((ROOT / "pipeline").rglob("*.py")) if file.stem != "__init__"]
    modules = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    code = "\n".join([*(f"import {name}" for name in modules), BEGIN])
    seen = traced(ROOT, tmp_path / "scratch", sys.executable, "-B", "-c", code, DVC_ROOT=str(tmp_path))
    assert seen.returncode == 0, seen.output
    assert seen.left == []
    record("importing every module and beginning a run reach for nothing outside of the machine", 1, 1)


@pytest.fixture(scope="module")
def trained(clone, digits, tmp_path_factory) -> Iterator[tuple[Traced, Path, dict[str, str]]]:
    """Train with secrets in the environment, as somebody with a name and a home."""
    folder = tmp_path_factory.mktemp("somebody")
    variables = SECRETS | {"HOME": str(folder / SECRETS["HOME"]), "MNIST_SOURCE": str(digits)}
    (folder / SECRETS["HOME"]).mkdir()
    words = [sys.executable, "-m", "pipeline.train", "recipe=baseline", "train.epochs=1", "seed=77"]
    (clone / "params.yaml").write_text((clone / "params.yaml").read_text() + "# an uncommitted change\n")
    yield traced(clone, folder / "scratch", *words, **variables), clone, variables
    subprocess.run(["git", "restore", "params.yaml"], cwd=clone, check=True)


def test_training_and_dvc_ask_nothing_of_the_network(trained, digits, tmp_path):
    seen, clone, _ = trained
    assert seen.returncode == 0, seen.output
    assert seen.left == []
    for number, words in enumerate((["status"], ["repro"], ["exp", "show"])):
        done = traced(clone, tmp_path / str(number), sys.executable, "-m", "dvc", *words, MNIST_SOURCE=str(digits))
        assert done.returncode == 0 and done.left == [], done
    record("a training, `dvc status`, `dvc repro` and `dvc exp show` reach for nothing outside of the machine", 4, 4)


def inside(path: Path) -> Iterator[tuple[str, bytes]]:
    """A file's bytes, and those of the members of a .keras file."""
    content = path.read_bytes()
    if path.name == "MLmodel":  # which says its own address
        content = re.sub(rb"(?m)^artifact_path: .*", b"", content)
    yield str(path), content
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f"{path}: {name}", archive.read(name)


def rows(database: Path) -> Iterator[tuple[str, bytes]]:
    """Every value of a data base but the addresses of artifacts, which MLflow keeps absolute."""
    with closing(sqlite3.connect(database)) as opened:
        tables = [name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            selected = opened.execute(f'SELECT * FROM "{table}"')
            columns = [column for column, *_ in selected.description]
            for values in selected:
                for column, value in zip(columns, values, strict=True):
                    if column not in ("artifact_location", "artifact_uri", "storage_location"):
                        yield f"{table}.{column}", str(value).encode()


def test_no_secret_name_or_home_ends_in_a_run_a_model_or_a_result(trained):
    seen, clone, _ = trained
    assert seen.returncode == 0, seen.output
    searched = [*rows(clone / "mlflow.db"), ("the terminal", seen.output.encode())]
    kept = [path for name in ("mlruns", "outputs", "models", "results") for path in (clone / name).rglob("*")]
    for path in [*kept, clone / "dvc.lock"]:
        if path.is_file():
            searched += inside(path)
    assert any("seed" in value.decode(errors="ignore") for _, value in searched), "the run is among them"
    assert any(": config.json" in place for place, _ in searched) and any("git.diff" in place for place, _ in searched)
    # A repository mostly lies below somebody's home: its own path is as bad.
    words = ["this-is-secret", SECRETS["USER"], SECRETS["HOME"], str(clone)]
    leaks = {(word, place) for place, value in searched for word in words if word.encode() in value}
    assert leaks <= {(str(clone), "the terminal")}, "where it says what it wrote"
    record("no secret, user name or home ends in a run, a model or a result", len(searched), len(searched))
