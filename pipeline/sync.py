"""Send to MLflow what it lacks: everything that trainings and evaluations kept while it was unreachable."""

from __future__ import annotations

from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.tracking.record import waiting


def sync(project: Project, config: Config) -> None:
    names = {record.info["id"]: record.info["name"] for record in waiting(project)}
    if not names:
        print("nothing waits for MLflow")
        return
    with quiet_import():
        from pipeline.tracking.sending import send_pending

    sent, left = send_pending(project)
    for record_id, run_id in sent.items():
        print(f"sent: {names.get(record_id, 'a run that ended meanwhile')}, MLflow run {run_id}")
    if left:
        raise UserError(f"{left[0]}{f', and {len(left) - 1} more' if left[1:] else ''}")


if __name__ == "__main__":
    main(sync)
