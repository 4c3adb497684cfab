"""The MLflow store: found or created, and what goes wrong with it in one line."""

from __future__ import annotations

import logging
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import filelock
import mlflow
import mlflow.store.db.utils
import mlflow.store.tracking.sqlalchemy_store  # slow: before the lock, not under it
import requests
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


@translate_errors(ImportError, OSError)  # a missing driver, a full disk
def open_store(project: Project, experiment: str) -> tuple[MlflowClient, str]:
    """Open the store, and find or create the experiment: a client and the experiment's id.

    The store is MLFLOW_TRACKING_URI where it is set, otherwise mlflow.db in the user's repository, which plain
    `mlflow ui` reads, with artifacts below mlruns/.
    """
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its errors reach the user as ours, in one line
    logging.getLogger("alembic").setLevel(logging.ERROR)
    own, asked = project.home / "mlflow.db", os.environ.get("MLFLOW_TRACKING_URI")
    uri = asked or f"{SQLITE}{own}"
    path = Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None
    if path and ("?" in str(path) or "%" in str(path)):
        raise UserError(
            f"the MLflow store {path} has ? or % in its path, which MLflow does not read as a name: move the "
            "repository, or set MLFLOW_TRACKING_URI to a path without"
        )
    mlflow.set_tracking_uri(f"{SQLITE}{path}" if path else uri)
    if not asked:  # MLflow sets the variable as well, but another project has a store of its own
        os.environ.pop("MLFLOW_TRACKING_URI", None)
    artifacts = (project.home / "mlruns").as_uri() if path == own else None
    lock = filelock.FileLock(f"{path or own}.lock")
    if path:
        with lock:  # several processes that create the same database at once would leave it half made
            _prepare(path, artifacts)
    client = MlflowClient()
    known = client.get_experiment_by_name(experiment)
    if known is None:
        with lock:
            known = client.get_experiment_by_name(experiment) or client.get_experiment(
                client.create_experiment(experiment, artifacts, tags=MODEL_TRAINING | views.renewed({}))
            )
    if known.lifecycle_stage != "active":
        raise ExperimentDeletedError(
            f"the MLflow experiment {experiment!r} is deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {known.experiment_id}`"
        )
    with suppress(UserError), translate_errors():  # a page without views is no reason to stop
        for key, value in views.renewed(known.tags).items():
            client.set_experiment_tag(known.experiment_id, key, value)
    return client, known.experiment_id


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
