"""Sweeps on Ray, with real nodes, one of which dies."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from conftest import children, copy, parent_of, pipeline, store

pytest.importorskip("ray")
SEEDS, EPOCHS = 8, 60  # so many that a job is found in its midst on a fast machine as well
WORDS = ("-m", "recipe=baseline", f"train.epochs={EPOCHS}", f"seed=range(0,{SEEDS})")
ON_RAY = "hydra/launcher=ray"
RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
UNSET = ("DVC_", "MLFLOW_", "MNIST_", "RAY_", "SWEEP_")
PATIENCE = 600  # seconds
LACKING = [
    pytest.param("data/processed", "{}/data/processed/split.json is missing", id="data"),
    pytest.param(
        ".", "No module named 'pipeline'): bring this repository, its data and .venv to {} on", id="repository"
    ),
]


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    seconds: float


class Typed:
    """A command that runs, and what it has printed so far."""

    def __init__(self, folder: Path, *words: str, **variables: str) -> None:
        self.files = [folder / f"{name}.log" for name in ("out", "err")]
        self.begin = time.monotonic()
        kept = {key: value for key, value in os.environ.items() if not key.startswith(UNSET)}
        with self.files[0].open("w") as out, self.files[1].open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.train", *words],
                cwd=folder, stdout=out, stderr=err, env=kept | (RAY if "RAY_ADDRESS" in variables else {}) | variables,
                start_new_session=True,
            )  # fmt: skip

    def out(self) -> str:
        return self.files[0].read_text()

    def wait_for(self, seen: Callable[[str], bool]) -> None:
        while not seen(self.out()):
            assert self.process.poll() is None, self.out() + self.files[1].read_text()
            assert time.monotonic() < self.begin + PATIENCE, self.out()
            time.sleep(0.02)

    def end(self) -> Ended:
        try:
            code = self.process.wait(PATIENCE)
        finally:
            kill([self.process.pid])
        return Ended(code, self.out(), self.files[1].read_text(), time.monotonic() - self.begin)


def kill(pids: list[int]) -> None:
    """Kill processes and all that they started."""
    found: list[psutil.Process] = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found += [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(found, timeout=30)


class Cluster:
    """Nodes of `ray start` on this machine, of two processors by their own count: each runs one job at a time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.started: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        text = self.start("--head", "--port=0", "--include-dashboard=false", f"--temp-dir={self.folder}/ray")
        [self.address] = set(re.findall(r"--address='([\d.:]+)'", text))

    def start(self, *words: str, before: tuple[str, ...] = ()) -> str:
        log = self.folder / f"{len(self.started)}.log"
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--node-ip-address=127.0.0.1", *words]
        with log.open("w") as file:
            process = subprocess.Popen(
                [*before, *ray, "--num-cpus=2", "--object-store-memory=100000000", "--block"],
                cwd=self.folder, stdout=file, stderr=file, env=os.environ | RAY, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        begin = time.monotonic()
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < begin + PATIENCE, log.read_text()
            time.sleep(0.1)
        return log.read_text()

    def join(self, *words: str, before: tuple[str, ...] = ()) -> None:
        self.start(f"--address={self.address}", *words, before=before)

    def newest(self) -> psutil.Process:
        """The process that a node consists of, and whose end it is."""
        for process in psutil.Process(self.started[-1].pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # of the others, some are short
                if process.name() == "raylet":
                    return process
        raise AssertionError("the node has ended by itself")

    def newest_is_amid(self, folder: Path) -> bool:
        """Whether a training of the newest node has written a checkpoint, and has epochs to go."""
        workers = {str(process.pid) for process in self.newest().children()}
        for record in (folder / "multirun").rglob("run.json"):
            epochs = [int(file.stem.partition("-")[2]) for file in record.parent.glob("epoch-*.ckpt")]
            process = json.loads(record.read_text())["process"].split()[1]
            if process in workers and 1 <= max(epochs, default=0) <= EPOCHS // 2:
                return True
        return False

    def kill_newest(self) -> None:
        self.newest().kill()

    def end_newest(self) -> None:
        kill([self.started[-1].pid])

    def end(self) -> None:
        kill([process.pid for process in self.started])
        for process in self.started:
            process.wait()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="ray"))  # a short path: Ray's sockets are named below it
    made = Cluster(folder)
    try:
        made.begin()
        yield made
    finally:
        made.end()
        shutil.rmtree(folder)


def found(folder: Path, parent: str) -> dict[str, tuple[str, str]]:
    """The model's hash and the accuracy of each child, all that is asserted of each beside."""
    result = {}
    for child in children(folder, parent):
        assert child.info.status == "FINISHED"
        for key in ("val_accuracy", "val_loss", "train_accuracy", "speed/epoch_seconds"):
            rows = store(folder).get_metric_history(child.info.run_id, key)
            assert sorted(row.step for row in rows) == list(range(1, EPOCHS + 1)), (child.info.run_name, key)
        assert child.info.run_name not in result, "a run is double"
        accuracies = str([child.data.metrics[key] for key in ("val_accuracy", "train_accuracy")])
        result[child.info.run_name] = (child.data.tags["model_sha256"], accuracies)
    assert sorted(result) == [f"seed={seed}" for seed in range(SEEDS)], "a run is lost"
    return result


@pytest.fixture(scope="module")
def alone(repository, tmp_path_factory) -> dict[str, tuple[str, str]]:
    """The same sweep without Ray."""
    folder = copy(repository, tmp_path_factory.mktemp("alone"))
    done = pipeline(folder, "train", *WORDS)
    assert done.returncode == 0, done.stderr
    trained = found(folder, parent_of(done))
    assert len(set(trained.values())) == SEEDS
    return trained


def parent(out: str) -> str:
    [run_id] = re.findall(r"^sweep .*MLflow run (\w{32})", out, re.MULTILINE)
    return run_id


def sweep_whose_node_dies(cluster: Cluster, folder: Path, *words: str) -> Ended:
    """Kill one of two nodes, when a job has finished and the node's own is in its midst."""
    cluster.join()
    first = Typed(folder, *words, RAY_ADDRESS=cluster.address)
    try:
        first.wait_for(lambda out: f"epoch {EPOCHS}/{EPOCHS} " in out and cluster.newest_is_amid(folder))
        cluster.kill_newest()
    finally:
        ended = first.end()
    return ended


def test_jobs_of_a_node_that_dies_go_on_after_their_last_epoch_on_another(cluster, repository, alone, tmp_path):
    folder = copy(repository, tmp_path)
    ended = sweep_whose_node_dies(cluster, folder, *WORDS, ON_RAY)
    assert ended.code == 0, ended
    assert re.search(r"seed=\d: continues after epoch [1-9]", ended.out), ended.out
    assert found(folder, parent(ended.out)) == alone


def test_a_sweep_that_failed_with_its_node_is_completed_by_the_same_command(cluster, repository, alone, tmp_path):
    folder = copy(repository, tmp_path)
    words = (*WORDS, ON_RAY, "+hydra.launcher.ray.remote.max_retries=0")
    ended = sweep_whose_node_dies(cluster, folder, *words)
    assert ended.code == 1, ended
    assert re.search(r"^error: \d of \d jobs did not finish \(seed=\d.*\): the same command again", ended.err, re.M), (
        ended.err
    )
    again = Typed(folder, *words, RAY_ADDRESS=cluster.address).end()
    assert again.code == 0, again
    done = re.search(rf"{SEEDS} jobs, (\d) found finished; .* begun before$", again.out, re.MULTILINE)
    assert done and 1 <= int(done[1]) < SEEDS, again.out
    assert re.search(r"seed=\d: continues after epoch [1-9]", again.out), again.out
    assert len(re.findall(r"found finished, MLflow run", again.out)) == int(done[1])
    assert parent(again.out) == parent(ended.out) and found(folder, parent(again.out)) == alone


@pytest.mark.parametrize(("lacking", "message"), LACKING)
def test_a_node_that_lacks_what_a_job_needs_fails_by_its_name(cluster, repository, tmp_path, lacking, message):
    folder, nothing = copy(repository, tmp_path), tmp_path / "nothing"
    nothing.mkdir()
    # A mount that this node alone sees.
    hidden = f'mount --bind "{nothing}" "{folder / lacking}" && exec "$@"'
    bare = ("unshare", "--map-root-user", "--mount", "sh", "-c", hidden, "sh")
    if subprocess.run([*bare, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount, not even in a name space of its own")
    cluster.join('--resources={"bare": 1}', before=bare)
    words = ("-m", "recipe=baseline", "train.epochs=1", "seed=0,1", ON_RAY)
    try:
        ended = Typed(
            folder, *words, "+hydra.launcher.ray.remote.resources={bare: 0.1}", RAY_ADDRESS=cluster.address
        ).end()
    finally:
        cluster.end_newest()
    assert ended.code == 1
    ours = re.findall("^error: .*", ended.err, re.MULTILINE)  # what begins with (…) is a worker's
    assert len(ours) == 1 and message.format(folder) in ours[0], ended.err
    assert not children(folder, parent(ended.out))


@pytest.mark.sample
def test_ray_on_this_machine_listens_to_this_machine_alone(repository, tmp_path):
    folder, alone = copy(repository, tmp_path / "ray"), copy(repository, tmp_path / "alone")
    sweep = ("-m", "recipe=baseline", "train.epochs=10", "seed=0,1")
    typed = Typed(folder, *sweep, ON_RAY)
    try:
        typed.wait_for(lambda out: "epoch 1/" in out)
        listening, told = [], set()
        for process in psutil.Process(typed.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):  # some are short
                connections = [one for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN]
                listening += [one.laddr.ip.removeprefix("::ffff:") for one in connections]
                if process.name() == "raylet":
                    variables = process.environ()
                    told.add((variables.get("RAY_AUTH_MODE"), variables.get("RAY_USAGE_STATS_ENABLED")))
    finally:
        ended = typed.end()
    assert len(listening) >= 5 and set(listening) <= {"127.0.0.1", "::1"} and told == {("token", "0")}
    assert ended.code == 0, ended
    done = pipeline(alone, "train", *sweep)
    assert done.returncode == 0, done.stderr
    with_ray, without = (
        {run.info.run_name: run.data.tags["model_sha256"] for run in children(place, sweep_id)}
        for place, sweep_id in ((folder, parent(ended.out)), (alone, parent_of(done)))
    )
    assert set(with_ray) == {"seed=0", "seed=1"} and with_ray == without


def test_an_address_where_nothing_answers_is_an_error_before_the_sweep_begins(repository, tmp_path):
    folder = copy(repository, tmp_path)
    ended = Typed(folder, *WORDS, ON_RAY, RAY_ADDRESS="127.0.0.1:1").end()
    assert ended.code == 1 and ended.err.startswith("error: RAY_ADDRESS=127.0.0.1:1: no Ray answers")
    assert ended.err.count("\n") == 1 and not ended.out and not (folder / "mlflow.db").exists()
