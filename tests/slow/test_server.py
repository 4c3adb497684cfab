"""A tracking server as compose.yaml starts it, on a real PostgreSQL and with artifacts that it serves itself."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import PARENT, dvc, git, parent_of, ran, run, small_repository, store
from servers import Postgres, TrackingServer, postgres_programs

pytest.importorskip("psycopg2")
PROGRAMS = postgres_programs()
pytestmark = [
    pytest.mark.skipif(PROGRAMS is None, reason="no PostgreSQL here: on Debian, apt-get install postgresql"),
]

CHILDREN, AT_ONCE, EPOCHS = 32, 8, 2
# With the tracker of the environment: each model as MLflow hands it out, and as the file that training wrote.
PREDICTIONS = """
import json, sys, keras, mlflow.pyfunc, numpy as np
images = np.load(sys.argv[1])["images"]
for uri, file in json.loads(sys.argv[2]).items():
    ours = keras.saving.load_model(file).predict(images, verbose=0)  # in MLflow's batches, whose size decides the bits
    print(uri, float(np.abs(mlflow.pyfunc.load_model(uri).predict(images) - ours).max()))
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    assert PROGRAMS
    database = Postgres(PROGRAMS)
    yield database
    database.remove()


@pytest.fixture(scope="module")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    server = TrackingServer(tmp_path_factory.mktemp("server"), postgres.variables)
    yield server
    server.kill()


class Repository:
    """A small repository whose tracker is the server, and what the server says of it."""

    def __init__(self, folder: Path, digits: Path, uri: str) -> None:
        self.folder, self.digits, self.variables = folder, digits, {"MLFLOW_TRACKING_URI": uri}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))}
        self.environment = kept | self.variables
        self.client = store(uri)

    def verb(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        return run("python", "-m", f"pipeline.{name}", *words, cwd=self.folder, **self.variables)

    def fine(self, name: str, *words: str) -> str:
        done = self.verb(name, *words)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def runs(self, query: str = "") -> list[Any]:
        experiment = self.client.get_experiment_by_name("mnist").experiment_id
        return list(self.client.search_runs([experiment], query, max_results=1000))

    def uncounted(self, run_id: str, history: Path) -> dict[Any, int]:
        """The rows of a history.csv that the server has not exactly once, and rows of its keys that it has beside."""
        with history.open() as file:
            wanted = Counter(
                (key, int(row["epoch"]), float(value))
                for row in csv.DictReader(file)
                for key, value in row.items()
                if key != "epoch"
            )
        assert wanted and set(wanted.values()) == {1}
        stored = Counter(
            (key, metric.step, metric.value)
            for key in {key for key, *_ in wanted}
            for metric in self.client.get_metric_history(run_id, key)
        )
        return {row: stored[row] for row in wanted | stored if stored[row] != wanted[row]}


@pytest.fixture(scope="module")
def repository(server: TrackingServer, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    """Run through once by DVC, as a git clone. Whatever happens, its own mlflow.db is never made."""
    folder = tmp_path_factory.mktemp("tracked")
    small_repository(folder, digits)
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        git(folder, *words)
    done = dvc(folder, digits, "repro", MLFLOW_TRACKING_URI=server.uri)
    assert done.returncode == 0 and len(ran(done)) == 10, done.stdout + done.stderr
    yield Repository(folder, digits, server.uri)
    assert not [*folder.glob("mlflow.db"), *folder.glob("mlflow.db-*"), *(folder / "mlruns").glob("[0-9]*")]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.sample
def test_the_stages_of_dvc_are_tracked_on_the_server(repository: Repository, tmp_path: Path) -> None:
    for recipe in ("baseline", "accurate"):
        [found] = repository.runs(f"tags.dvc_stage = 'train@{recipe}'")
        results = repository.folder / "results/recipes" / recipe
        figures = json.loads((results / "metrics.json").read_text())
        assert found.info.status == "FINISHED" and found.info.artifact_uri.startswith("mlflow-artifacts:/")
        assert repository.uncounted(found.info.run_id, results / "history.csv") == {}
        assert found.data.metrics["test_accuracy"] == figures["test_accuracy"]
        assert found.data.tags["model_sha256"] == sha256(repository.folder / "models" / recipe / "model.keras")
        for name in ("history.csv", "predictions.csv"):
            downloaded = repository.client.download_artifacts(found.info.run_id, name, str(tmp_path))
            assert Path(downloaded).read_bytes() == (results / name).read_bytes()
    done = dvc(repository.folder, repository.digits, "repro", **repository.variables)
    assert (done.returncode, ran(done)) == (0, [])


@pytest.fixture(scope="module")
def swept(repository: Repository) -> subprocess.CompletedProcess[str]:
    words = ("recipe=baseline", f"seed=range(0,{CHILDREN})", "train.examples=200", f"train.epochs={EPOCHS}")
    begin = time.perf_counter()
    done = repository.verb("train", "-m", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={AT_ONCE}", *words)
    print(f"{CHILDREN} children, {AT_ONCE} at once: {time.perf_counter() - begin:.0f} s")
    return done


def test_a_sweep_of_32_with_8_at_once_is_whole_on_the_server(
    repository: Repository, swept: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    import mlflow.artifacts

    from pipeline.model.files import weights_sha256

    assert (swept.returncode, swept.stderr) == (0, ""), swept.stdout + swept.stderr
    parent = parent_of(swept)
    assert repository.client.get_run(parent).info.status == "FINISHED"
    children = repository.runs(f"tags.`{PARENT}` = '{parent}'")
    assert sorted(int(child.data.params["seed"]) for child in children) == list(range(CHILDREN))
    assert {child.info.status for child in children} == {"FINISHED"}

    files = {sha256(file): file for file in (repository.folder / "multirun").rglob("model.keras")}
    assert len(files) == CHILDREN
    rows = 0
    for child in children:
        folder = files[child.data.tags["model_sha256"]].parent
        assert repository.uncounted(child.info.run_id, folder / "history.csv") == {}
        rows += sum(map(len, (repository.client.get_metric_history(child.info.run_id, k) for k in child.data.metrics)))
    at_once = max(
        sum(other.info.start_time <= child.info.start_time < other.info.end_time for other in children)
        for child in children
    )
    print(f"{rows} rows of metrics of {len(children)} children, {at_once} at once")
    assert at_once > AT_ONCE // 2

    digests = {child.info.run_id: child.data.tags for child in children}
    logged = repository.client.search_logged_models([children[0].info.experiment_id], max_results=1000)
    models = {model.source_run_id: model for model in logged if model.source_run_id in digests}
    assert len(models) == CHILDREN == sum(model.source_run_id in digests for model in logged), "one model a child"
    for run_id, tags in digests.items():
        assert models[run_id].status.name == "READY"
        place = f"{models[run_id].artifact_location}/data/model.keras"
        served = mlflow.artifacts.download_artifacts(
            place, dst_path=str(tmp_path / run_id), tracking_uri=repository.variables["MLFLOW_TRACKING_URI"]
        )
        assert weights_sha256(Path(served)) == weights_sha256(files[tags["model_sha256"]]) == tags["weights_sha256"]
    pairs = {models[run_id].model_uri: str(files[digests[run_id]["model_sha256"]]) for run_id in sorted(digests)[:3]}
    test = str(repository.folder / "data/processed/test.npz")
    words = ["python", "-c", PREDICTIONS, test, json.dumps(pairs)]
    done = run(*words, cwd=repository.folder, **repository.variables, MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR="false")
    answers = [line.split() for line in done.stdout.splitlines() if line.startswith("models:/")]
    assert {uri for uri, _ in answers} == set(pairs), done.stderr
    assert {float(difference) for _, difference in answers} == {0.0}

    text = Path(repository.client.download_artifacts(parent, "ranking.csv", str(repository.folder / "data")))
    assert {row["run_id"] for row in csv.DictReader(text.read_text().splitlines())} == set(digests)


def test_the_same_sweep_again_trains_nothing(repository: Repository, swept: subprocess.CompletedProcess[str]) -> None:
    words = ("recipe=baseline", f"seed=range(0,{CHILDREN})", "train.examples=200", f"train.epochs={EPOCHS}")
    ids = {found.info.run_id for found in repository.runs()}
    again = repository.fine("train", "-m", *words[:1], "seed=range(0,2)", *words[2:])
    assert "2 jobs, 2 found finished" in again and "epoch 1/" not in again
    assert {found.info.run_id for found in repository.runs()} - ids == {parent_of_text(again)}


def parent_of_text(text: str) -> str:
    [found] = re.findall(r"^sweep .*MLflow run (\w{32})", text, re.MULTILINE)
    return str(found)


def test_runs_of_the_server_are_evaluated_compared_and_reproduced(
    repository: Repository, swept: subprocess.CompletedProcess[str]
) -> None:
    child = repository.runs(f"tags.`{PARENT}` = '{parent_of(swept)}' and params.seed = '5'")[0]
    run_id = child.info.run_id
    assert "scored on these test examples" in repository.fine("evaluate", f"run={run_id}")
    read = repository.client.get_run(run_id).data
    assert read.tags["test_scored"] == read.tags["model_sha256"] and 0 <= read.metrics["test_accuracy"] <= 1

    answer = repository.fine("compare", "a=accurate", "b=baseline")
    [compared] = re.findall(r"MLflow run (\w{32})", answer)
    assert {item.path for item in repository.client.list_artifacts(compared)} >= {"comparison.md", "comparison.png"}
    answer = repository.fine("compare", f"a={child.data.tags['group']}", "b=baseline")
    counts = re.findall(r"^\| baseline[^|]*\| +(\d+) \|", answer, re.MULTILINE)
    assert counts == [str(CHILDREN), "1"], answer

    assert "identical bits: model.keras has the SHA-256 of the run" in repository.fine("reproduce", f"run={run_id}")


LONG = 60  # epochs, of about 0.1 s


def begun(repository: Repository, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.train", *words],
        cwd=repository.folder,
        env=repository.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def training(repository: Repository, seed: int, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A training that the server has some epochs of, and that is far from its end."""
    words = ("recipe=baseline", f"seed={seed}", f"train.epochs={LONG}", f"hydra.run.dir={folder / 'run'}")
    process = begun(repository, *words)
    try:
        deadline = time.monotonic() + 120
        while not any(found.data.metrics.get("train_loss") for found in of_seed(repository, seed)):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate()


def of_seed(repository: Repository, seed: int) -> list[Any]:
    return repository.runs(f"params.seed = '{seed}' and params.`train.epochs` = '{LONG}'")


def epochs_trained(folder: Path) -> int:
    """Of the training that runs, by its checkpoints."""
    found = (folder / "run").glob("epoch-*.ckpt")
    return max((int(file.stem.partition("-")[2]) for file in found), default=0)


def whole(repository: Repository, seed: int, folder: Path) -> int:
    """Assert that the server has a training once, with every row of its history once and its model: the rows."""
    [found] = of_seed(repository, seed)
    assert found.info.status == "FINISHED"
    history = folder / "run/history.csv"
    assert len(history.read_text().splitlines()) == 1 + LONG
    assert repository.uncounted(found.info.run_id, history) == {}
    assert found.data.tags["model_sha256"] == sha256(folder / "run/model.keras")
    query = f"source_run_id = '{found.info.run_id}'"
    logged = repository.client.search_logged_models([found.info.experiment_id], query)
    assert [model.status.name for model in logged] == ["READY"]
    assert not list((repository.folder / "outputs/.pending").glob("*"))
    return LONG * len(history.read_text().splitlines()[0].split(",")[1:])


def test_a_training_outlives_a_restart_of_its_database(
    repository: Repository, postgres: Postgres, tmp_path: Path
) -> None:
    with training(repository, 1001, tmp_path) as process:
        postgres.stop()
        before = epochs_trained(tmp_path)
        while epochs_trained(tmp_path) <= before:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        postgres.start()
        said = process.communicate(timeout=300)
    assert (process.returncode, said[1]) == (0, ""), said
    repository.fine("sync")
    print(f"database restarted under a training: {whole(repository, 1001, tmp_path)} rows, each once")


def test_what_a_server_misses_that_is_killed_in_the_middle_is_sent_later(
    repository: Repository, server: TrackingServer, postgres: Postgres, tmp_path: Path
) -> None:
    with training(repository, 1002, tmp_path) as process:
        server.kill()
        try:
            said = process.communicate(timeout=300)
            assert (process.returncode, said[1]) == (0, ""), said
            assert said[0].count("python -m pipeline.sync") == 1
            assert (tmp_path / "run/model.keras").is_file()
            postgres.stop()
            assert_one_line(repository.verb("sync"))
        finally:
            postgres.start()
            server.start()
    assert of_seed(repository, 1002)[0].info.status == "RUNNING", "killed before it knew of the end"
    assert "sent: " in repository.fine("sync")
    rows = whole(repository, 1002, tmp_path)
    assert "nothing waits for MLflow" in repository.fine("sync")
    assert whole(repository, 1002, tmp_path) == rows
    print(f"server killed under a training: {rows} rows, each once")


def test_a_sweep_whose_server_is_killed_trains_on_and_is_completed_by_the_same_command(
    repository: Repository, server: TrackingServer
) -> None:
    words = ("-m", "recipe=baseline", "seed=range(2001,2005)", "train.epochs=2")
    sweep = begun(repository, *words)
    try:
        deadline = time.monotonic() + 120
        while not repository.runs("params.seed = '2001' and attributes.status = 'FINISHED'"):
            assert sweep.poll() is None and time.monotonic() < deadline, sweep.communicate()
            time.sleep(0.05)
        server.kill()
        said = sweep.communicate(timeout=300)
    finally:
        sweep.kill()
        sweep.communicate()
        server.start()
    assert_one_line(subprocess.CompletedProcess(words, sweep.returncode, *said))
    assert "the same command again completes the ranking" in said[1]
    assert re.findall(r"^seed=(\d+) epoch 2/2", said[0], re.MULTILINE) == ["2001", "2002", "2003", "2004"]
    again = repository.fine("train", *words)
    assert "begun before" in again and "epoch 1/" not in again, again
    children = repository.runs(f"tags.`{PARENT}` = '{parent_of_text(again)}'")
    assert sorted(child.data.params["seed"] for child in children) == ["2001", "2002", "2003", "2004"]
    assert {child.info.status for child in children} == {"FINISHED"}
    for child in children:
        assert len(repository.client.get_metric_history(child.info.run_id, "val_loss")) == 2


def assert_one_line(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 1 and re.fullmatch(r"error: [^\n]+\n", done.stderr), done.stdout + done.stderr


NEEDING = ["evaluate run=", "train -m recipe=baseline seed=1,2", "compare a=accurate b=baseline", "reproduce run="]


@pytest.mark.parametrize(("away", "commands"), [("server", NEEDING), ("database", NEEDING[:2])])
def test_what_needs_an_absent_tracker_is_an_error_in_one_line(
    repository: Repository, server: TrackingServer, postgres: Postgres, away: str, commands: list[str]
) -> None:
    [found] = repository.runs("tags.dvc_stage = 'train@baseline'")
    (server.kill if away == "server" else postgres.stop)()
    try:
        for command in commands:
            verb, *words = command.replace("run=", f"run={found.info.run_id}").split()
            assert_one_line(repository.verb(verb, *words))
    finally:
        (server if away == "server" else postgres).start()


def test_the_database_is_given_to_nobody_without_its_password(postgres: Postgres, server: TrackingServer) -> None:
    import psycopg2

    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host="127.0.0.1", port=postgres.port, user="mlflow", dbname="mlflow", password="mlflow")
    assert server.process and postgres.variables["PGPASSWORD"] not in (
        Path(f"/proc/{server.process.pid}/cmdline").read_text() + (server.folder / "log").read_text()
    )
