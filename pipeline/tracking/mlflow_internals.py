"""What we use of MLflow that is not its public interface, as seen in MLflow 3.17; a test fails if it changes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow.store.db.utils

mlflow.store.db.utils.MAX_RETRY_COUNT = 1  # a database that is unreachable would be asked for minutes
# Where MLflow keeps absolute addresses of artifacts: tables and columns.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)


def relocate(database: Path, artifacts: str) -> None:
    """Let the addresses of artifacts begin with `artifacts`, a URI, where a repository was moved or copied."""
    with closing(sqlite3.connect(database)) as connection, connection:
        query = "SELECT DISTINCT artifact_location FROM experiments WHERE artifact_location LIKE '%/mlruns'"
        for [old] in [row for row in connection.execute(query) if row[0] != artifacts]:
            for table, column in ADDRESSES:
                connection.execute(
                    f"UPDATE {table} SET {column} = :new || substr({column}, length(:old) + 1) "
                    f"WHERE {column} = :old OR substr({column}, 1, length(:old) + 1) = :old || '/'",
                    {"old": old, "new": artifacts},
                )
            print(f"the repository moved: artifacts are now looked for in {artifacts}", flush=True)
