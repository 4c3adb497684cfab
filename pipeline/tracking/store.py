"""The MLflow store: found or created, and what goes wrong with it in one line."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import filelock
import mlflow
import mlflow.store.db.utils
import mlflow.store.tracking.sqlalchemy_store  # slow: before the lock, not under it
import requests
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from pipeline.base.errors import UserError
from pipeline.base.files import replacing
from pipeline.base.project import Project
from pipeline.tracking import views

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # the view that the web page opens with
SQLITE = "sqlite:///"
# These two are of MLflow 3.17 and not its public interface: a database that is unreachable would be asked for minutes;
# and the tables and columns that hold absolute addresses of artifacts.
mlflow.store.db.utils.MAX_RETRY_COUNT = 1
ADDRESSES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def address() -> str:
    """Return where the store is, without a password, for messages."""
    return _without_password(mlflow.get_tracking_uri())


class ExperimentDeletedError(UserError):
    """The store answers, but this experiment of it is deleted."""


@contextmanager
def translate_errors(*more: type[Exception]) -> Iterator[None]:
    """Make a UserError of what the store answers (unreachable, locked, full, of another version), and of `more`."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, requests.RequestException, *more) as error:
        lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]
        first = _without_password((lines or [type(error).__name__])[0])[:200]
        if "database schema" in first:  # MLflow would advise to upgrade even a store that is newer than itself
            raise UserError(
                f"another version of MLflow than {mlflow.__version__} wrote the store {address()}: an older one, "
                f"`mlflow db upgrade {address()}` (keep a copy); a newer one, install it, or move the store away"
            ) from None
        raise UserError(
            f"the MLflow store {address()} failed ({first}): free its disk, or fix MLFLOW_TRACKING_URI, or move it away"
        ) from None


class Store(NamedTuple):
    """Where a store is, and where its new experiments keep their artifacts."""

    uri: str
    file: Path | None = None  # of SQLite
    artifacts: str | None = None  # a URI; None leaves it to MLflow
    lock: Path | None = None
    is_own: bool = False  # mlflow.db of this repository


def own_store(project: Project) -> Store:
    """Return MLFLOW_TRACKING_URI where it is set, otherwise mlflow.db in the user's repository, which plain `mlflow ui`
    reads, with artifacts below mlruns/."""
    own, asked = project.home / "mlflow.db", os.environ.get("MLFLOW_TRACKING_URI")
    uri = asked or f"{SQLITE}{own}"
    file = _sqlite_file(uri)
    artifacts = (project.home / "mlruns").as_uri() if file == own else None
    return Store(f"{SQLITE}{file}" if file else uri, file, artifacts, Path(f"{file or own}.lock"), file == own)


def other_store(uri: str) -> Store:
    """Return the store at another address: an SQLite file with artifacts in mlruns/ beside it, as every repository has,
    or a tracking server."""
    if file := _sqlite_file(uri):
        return Store(f"{SQLITE}{file}", file, (file.parent / "mlruns").as_uri(), Path(f"{file}.lock"))
    return Store(uri.rstrip("/"))


def _sqlite_file(uri: str) -> Path | None:
    path = Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None
    if path and ("?" in str(path) or "%" in str(path)):
        raise UserError(
            f"the MLflow store {path} has ? or % in its path, which MLflow does not read as a name: move the "
            "repository, or set MLFLOW_TRACKING_URI to a path without"
        )
    return path


@contextmanager
def at(store: Store) -> Iterator[MlflowClient]:
    """Let all that asks MLflow, and errors, mean this store inside the block; its client."""
    before, variable = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    try:
        client = connect(store)
        with translate_errors(OSError):
            yield client
    finally:
        mlflow.set_tracking_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)  # MLflow sets it as well
        if variable:
            os.environ["MLFLOW_TRACKING_URI"] = variable


@translate_errors(ImportError, OSError)  # a missing driver, a full disk
def connect(store: Store) -> MlflowClient:
    """Make this the store that MLflow asks, and create an SQLite file that is not there yet: its client."""
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its errors reach the user as ours, in one line
    logging.getLogger("alembic").setLevel(logging.ERROR)
    mlflow.set_tracking_uri(store.uri)
    if store.file:
        with filelock.FileLock(str(store.lock)):  # processes that create one database at once leave it half made
            _prepare(store.file, store.artifacts if store.is_own else None)
    return MlflowClient()


@translate_errors(ImportError, OSError)
def open_experiment(client: MlflowClient, store: Store, name: str) -> str:
    """Find or create an experiment: its id. A deleted one is an ExperimentDeletedError."""
    known = client.get_experiment_by_name(name)
    if known is None:
        with filelock.FileLock(str(store.lock)) if store.lock else nullcontext():
            known = client.get_experiment_by_name(name) or client.get_experiment(
                client.create_experiment(name, store.artifacts, tags=MODEL_TRAINING | views.renewed({}))
            )
    if known.lifecycle_stage != "active":
        raise ExperimentDeletedError(
            f"the MLflow experiment {name!r} is deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {known.experiment_id}`"
        )
    with suppress(UserError), translate_errors():  # a page without views is no reason to stop
        for key, value in views.renewed(known.tags).items():
            client.set_experiment_tag(known.experiment_id, key, value)
    return str(known.experiment_id)


def log_in_parts(
    client: MlflowClient,
    run_id: str,
    params: Sequence[Param] = (),
    metrics: Sequence[Metric] = (),
    tags: Sequence[RunTag] = (),
) -> None:
    """Log any number of each, in requests of as many as MLflow takes."""
    for name, values, most in (("params", params, 100), ("metrics", metrics, 1000), ("tags", tags, 100)):
        for start in range(0, len(values), most):
            client.log_batch(run_id, **{name: values[start : start + most]})


def open_store(project: Project, experiment: str) -> tuple[MlflowClient, str]:
    """Open this repository's store, and find or create the experiment: a client and the experiment's id."""
    client = open_own(project)
    return client, open_experiment(client, own_store(project), experiment)


def open_own(project: Project) -> MlflowClient:
    """Open this repository's store, see `own_store`: its client."""
    asked = os.environ.get("MLFLOW_TRACKING_URI")
    try:
        return connect(own_store(project))
    finally:
        if not asked:  # MLflow sets the variable as well, but another project has a store of its own
            os.environ.pop("MLFLOW_TRACKING_URI", None)


def _prepare(path: Path, artifacts: str | None) -> None:
    """Create the database where there is none; the repository's own is set aside if SQLite cannot open it."""
    if path.exists():
        try:
            with closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA schema_version")
                database.execute("BEGIN IMMEDIATE")  # if it is locked, MLflow would wait for 20 s at every request
        except sqlite3.DatabaseError as error:
            if not artifacts or isinstance(error, sqlite3.OperationalError):
                raise  # not ours: a mistyped address may lead to any file; or only locked
            aside = path.with_name(f"{path.name}.damaged-{datetime.now():%Y-%m-%d_%H-%M-%S}")
            path.rename(aside)
            for suffix in ("-journal", "-wal", "-shm"):  # SQLite would replay them into the new one
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            print(f"{path} is damaged ({error}): kept as {aside.name}, and a new one begun", flush=True)
    if not path.exists() or not path.stat().st_size:  # another program may have opened and left it
        with replacing(path) as making:
            MlflowClient(f"{SQLITE}{making}").search_experiments(max_results=1)
    if artifacts:
        _relocate(path, artifacts)


def _relocate(database: Path, artifacts: str) -> None:
    """Let the addresses of artifacts begin with `artifacts`, a URI, where a repository was moved or copied."""
    with closing(sqlite3.connect(database)) as connection, connection:
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE '%/mlruns'"
        for [old] in connection.execute(f"{query} AND artifact_location != ?", [artifacts]).fetchall():
            for table, column in ADDRESSES.items():
                connection.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", [old, artifacts])
            print(f"the repository moved: artifacts are now looked for in {artifacts}", flush=True)


def _without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//…@", text)
