"""The MLflow store itself: opened, made whole or not at all, set aside where it is damaged, followed where it moved."""

from __future__ import annotations

import functools
import logging
import os
import re
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path

import filelock
import mlflow
import mlflow.store.db.utils
import mlflow.store.tracking.sqlalchemy_store  # slow: before the lock, not under it
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from pipeline.config import PipelineError
from pipeline.record import user_root

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # the view that the web page opens with
SQLITE = "sqlite:///"
mlflow.store.db.utils.MAX_RETRY_COUNT = 1  # a database that is away would be asked for minutes
# What MLflow stumbles over in a database that a process died while making.
HALF_MADE = ("already exists", "duplicate column name")
# Where MLflow keeps absolute addresses of artifacts: tables and columns.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def address() -> str:
    """Where the store is, to be told."""
    return without_password(mlflow.get_tracking_uri())


def without_password(text: str) -> str:
    return re.sub(r"//[^/@\s]+@", "//…@", text)


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """Turn what the store refuses (absent, locked, full, of another version) into a PipelineError."""
    try:
        yield
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError, ImportError) as error:  # of a missing driver
        lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]
        first = without_password((lines or [type(error).__name__])[0])[:200]
        uri = address()
        if "database schema" in first:  # MLflow would advise to upgrade even a store that is newer than itself
            raise PipelineError(
                f"another version of MLflow than {mlflow.__version__} wrote the store {uri}: an older one, "
                f"`mlflow db upgrade {uri}` (keep a copy); a newer one, install it, or move the store away"
            ) from None
        raise PipelineError(
            f"the MLflow store {uri} refused ({first}): free its disk, or mend MLFLOW_TRACKING_URI, or move it away"
        ) from None


@refusals_in_one_line()
def open_store(name: str) -> tuple[MlflowClient, str]:
    """Open the store and find or create the experiment `name`: a client and the experiment's id.

    The store is MLFLOW_TRACKING_URI where it is set, otherwise mlflow.db in the repository, which plain `mlflow ui`
    reads, with artifacts below mlruns/. In DVC's temporary checkouts the repository is the user's own.
    """
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its errors reach the user as ours, in one line
    logging.getLogger("alembic").setLevel(logging.ERROR)
    root = user_root()
    own = f"{SQLITE}{root / 'mlflow.db'}"
    uri = os.environ.get("MLFLOW_TRACKING_URI") or own  # set_tracking_uri sets it too
    local = Path(uri.removeprefix(SQLITE)).absolute() if uri.startswith(SQLITE) else None
    if local and ("?" in str(local) or "%" in str(local)):
        raise PipelineError(
            f"the MLflow store {local} has ? or % in its path, which MLflow takes for more than a name: move the "
            "repository, or set MLFLOW_TRACKING_URI to a path without"
        )
    mlflow.set_tracking_uri(f"{SQLITE}{local}" if local else uri)
    artifacts = (root / "mlruns").as_uri() if uri == own else None
    lock = local.with_name(f"{local.name}.lock") if local else root / "mlflow.db.lock"
    # Several processes that create the same database, or experiment, at once would leave it half made.
    with filelock.FileLock(lock):
        if local:
            _prepare(local, artifacts)
            with closing(sqlite3.connect(local)) as database:
                database.execute("BEGIN IMMEDIATE")  # where it is locked, MLflow would wait for 20 s at every request
        client = MlflowClient()
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return client, client.create_experiment(name, artifacts, tags=MODEL_TRAINING)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = client.get_experiment_by_name(name)  # another machine was faster: the lock is ours alone
    if experiment.lifecycle_stage != "active":
        raise PipelineError(
            f"the MLflow experiment {name!r} is deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    return client, experiment.experiment_id


@functools.cache  # once a process: the check reads the whole file
def _prepare(path: Path, artifacts: str | None) -> None:
    """Make the database where there is none; the repository's own is set aside where it is damaged, and its addresses
    follow a repository that moved."""
    if path.is_file() and not path.stat().st_size:
        path.unlink()  # what another program opened, and left
    if path.exists() and (damage := _damage(path)):
        if not artifacts:  # not ours: a mistyped address may lead to any file
            raise PipelineError(
                f"the MLflow store {path} refused ({damage}): mend MLFLOW_TRACKING_URI, or move it away"
            )
        aside = path.with_name(f"{path.name}.damaged-{datetime.now():%Y-%m-%d_%H-%M-%S}")
        for suffix in ("", "-journal", "-wal", "-shm"):  # a journal left behind would be played into the fresh one
            file = path.with_name(path.name + suffix)
            if file.exists():
                file.rename(aside.with_name(aside.name + suffix))
        print(f"{path} is damaged ({damage}): kept as {aside.name}, and a fresh one begun", flush=True)
    if not path.exists():
        for left in path.parent.glob(f"{path.name}.*.making*"):  # by somebody who was killed while making it
            left.unlink()
        making = path.with_name(f"{path.name}.{uuid.uuid4().hex}.making")
        MlflowClient(f"{SQLITE}{making}").search_experiments(max_results=1)
        making.replace(path)
    if artifacts:
        _follow(path, artifacts)


def _damage(path: Path) -> str | None:
    """What is wrong with a database, or None. One that is locked, or cannot be read, is an error of its own."""
    if path.is_dir():
        return "a folder"
    try:
        with closing(sqlite3.connect(path)) as database:
            [found] = database.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            return str(found.splitlines()[-1])
        # By an address of its own: MLflow keeps connections open by address, and this file may be another soon.
        MlflowClient(f"{SQLITE}{path}?timeout=5").search_experiments(max_results=1)
    except (sqlite3.OperationalError, OperationalError) as error:
        if any(sign in str(error) for sign in HALF_MADE):
            return "half made"
        raise
    except sqlite3.DatabaseError as error:
        return str(error)
    except MlflowException as error:
        if "database schema" in str(error) and _holds_nothing(path):
            return "half made"
        raise
    return None


def _holds_nothing(path: Path) -> bool:
    """Whether a database has no experiment, which MLflow makes last: an older store has one."""
    with closing(sqlite3.connect(path)) as database:
        try:
            return database.execute("SELECT count(*) FROM experiments").fetchone() == (0,)
        except sqlite3.OperationalError:  # nor even the table
            return True


def _follow(path: Path, artifacts: str) -> None:
    """Let the addresses of artifacts begin with `artifacts`, where a repository was moved or copied."""
    with closing(sqlite3.connect(path)) as database, database:
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE '%/mlruns'"
        for [old] in [row for row in database.execute(query) if row[0] != artifacts]:
            for table, column in ADDRESSES:
                database.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                    f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                    {"old": old, "new": artifacts},
                )
            print(f"the repository moved: artifacts are now looked for in {artifacts}", flush=True)
