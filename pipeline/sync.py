"""Send to MLflow what it lacks: everything that trainings and evaluations kept while it was unreachable.

With to=<address> then copy this store into another: runs with their sweeps, models, the registry with its aliases.
"""

from __future__ import annotations

import re

from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.keras_import import load_keras
from pipeline.base.project import Project
from pipeline.base.verb_schemas import SyncConfig
from pipeline.tracking.record import waiting


def sync(project: Project, config: SyncConfig) -> None:
    if config.to and not re.match("(sqlite:///|https?://).", config.to):
        raise UserError(
            f"to={config.to.partition('//')[0]} is no store to copy to: give sqlite:///<absolute path>/mlflow.db, or "
            "http://<host>:<port> of an MLflow server"
        )
    names = {record.info["id"]: record.info["name"] for record in waiting(project)}
    left: list[str] = []
    if names:
        load_keras()
        with quiet_import():
            from pipeline.tracking.sending import send_pending

        sent, left = send_pending(project)
        for record_id, run_id in sent.items():
            print(f"sent: {names.get(record_id, 'a run that ended meanwhile')}, MLflow run {run_id}")
    else:
        print("nothing waits for MLflow")
    if config.to:
        with quiet_import():
            from pipeline.tracking.copying import copy_store

        for line in copy_store(project, config.to):
            print(line, flush=True)
    if left:
        raise UserError(f"{left[0]}{f', and {len(left) - 1} more' if left[1:] else ''}")


if __name__ == "__main__":
    main(sync)
