"""Send to MLflow what it has not got: everything that trainings and evaluations kept while it was away."""

from __future__ import annotations

from pipeline.command import entry_point
from pipeline.config import Config, PipelineError
from pipeline.console import quiet_import
from pipeline.record import remove_sent, waiting


@entry_point
def sync(config: Config) -> None:
    remove_sent()
    if not waiting():
        print("nothing waits for MLflow")
        return
    with quiet_import():
        from pipeline import sending

    sent, left = sending.send_waiting()
    for found in sent.values():
        print(f"sent: {found['name']}, MLflow run {found['run_id']}")
    if left:
        raise PipelineError(f"{left[0]}{f', and {len(left) - 1} more' if left[1:] else ''}")


if __name__ == "__main__":
    sync()
