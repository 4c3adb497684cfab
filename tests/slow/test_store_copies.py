"""A store copied to a real server, on SQLite and on PostgreSQL, and back into a file: sweep, models, champion."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import PARENT, children, copy, parent_of, run, runs, store
from lab import Server
from servers import Postgres, TrackingServer, postgres_programs

WORDS = ("-m", "recipe=baseline", "seed=1,2", "train.epochs=1")


@pytest.fixture(params=["SQLite", "PostgreSQL"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The address of a server with that database."""
    folder = tmp_path / "server"
    folder.mkdir()
    if request.param == "SQLite":
        plain = Server(folder)
        plain.wait()
        yield f"http://127.0.0.1:{plain.port}"
        plain.kill()
        return
    pytest.importorskip("psycopg2")
    if (programs := postgres_programs()) is None:
        pytest.skip("no PostgreSQL here: on Debian, apt-get install postgresql")
    database = Postgres(programs)
    composed = TrackingServer(folder, database.variables)
    yield composed.uri
    composed.kill()
    database.remove()


def fine(folder: Path, verb: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    done = run("python", "-m", f"pipeline.{verb}", *words, cwd=folder, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done


def by_origin(client: Any) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("mnist").experiment_id
    return {run.data.tags["copied_from"]: run for run in client.search_runs([experiment])}


def test_a_store_goes_to_a_server_and_back(repository: Path, uri: str, tmp_path: Path) -> None:
    folder = copy(repository, tmp_path)
    parent = parent_of(fine(folder, "train", *WORDS))
    first, second = sorted(children(folder, parent), key=lambda run: run.data.params["seed"])
    fine(folder, "evaluate", f"run={first.info.run_id}")
    fine(folder, "promote", f"run={first.info.run_id}")
    said = fine(folder, "sync", f"to={uri}").stdout
    assert "3 of 3 runs copied" in said and "registered: mnist, version 1" in said
    assert "0 of 3 runs copied" in fine(folder, "sync", f"to={uri}").stdout

    remote = store(uri)
    copies = by_origin(remote)
    child = copies[first.info.run_id]
    assert child.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert child.data.tags[PARENT] == copies[parent].info.run_id
    before = next(run for run in runs(folder) if run.info.run_id == first.info.run_id)
    assert child.data.metrics == before.data.metrics and child.data.params == before.data.params
    assert remote.get_model_version_by_alias("mnist", "champion").run_id == child.info.run_id

    there = {"MLFLOW_TRACKING_URI": uri}
    again = fine(folder, "train", *WORDS, **there)
    assert "2 jobs, 2 found finished" in again.stdout and parent_of(again) == copies[parent].info.run_id
    fine(folder, "evaluate", f"run={copies[second.info.run_id].info.run_id}", **there)

    back = tmp_path / "back" / "repository"
    copy(repository, tmp_path / "back")
    said = fine(folder, "sync", f"to=sqlite:///{back / 'mlflow.db'}", **there).stdout
    assert "3 of 3 runs copied" in said
    home = by_origin(store(back))
    assert set(home) == set(copies)
    assert home[second.info.run_id].data.metrics["test_accuracy"] >= 0, "what the server got meanwhile"
    assert "test accuracy" in fine(back, "evaluate", f"run={home[first.info.run_id].info.run_id}").stdout
    assert store(back).get_model_version_by_alias("mnist", "champion").run_id == home[first.info.run_id].info.run_id
    assert "1 of 3 runs copied" in fine(folder, "sync", f"to=sqlite:///{folder / 'mlflow.db'}", **there).stdout
    assert len(runs(folder)) == 3
