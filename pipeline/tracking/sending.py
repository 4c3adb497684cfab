"""When records are sent to MLflow: while a run goes on, when it ends, or later."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from pipeline.base.errors import UserError
from pipeline.base.files import HOST
from pipeline.base.project import Project
from pipeline.tracking.mlflow_log import create_or_update, log_rows, send
from pipeline.tracking.record import Record, pending, process_tag, remove_pending, waiting
from pipeline.tracking.store import open_store, translate_errors

SYNC = "python -m pipeline.sync, or the next run, sends it"
RETRY_SECONDS = 60.0  # that MLflow is left alone after a failure, doubled after each further one
LOCK_SECONDS = 60.0  # to wait for another process that sends


class LiveLog:
    """Sends a record while it grows.

    Where MLflow fails, training waits for that one request (5 s, base/project.py). The next try comes after
    RETRY_SECONDS, then after twice as long, and so on.
    """

    def __init__(self, project: Project, record: Record) -> None:
        self.project = project
        self.record = record
        self.run_id: str | None = None
        self.sent = 0  # rows
        self.pause, self.next_try = RETRY_SECONDS, 0.0

    def send(self) -> None:
        """Send what is new, unless MLflow failed a short while ago."""
        if time.monotonic() < self.next_try:
            return
        try:
            client, experiment = open_store(self.project, self.record.info["experiment"])
            if self.run_id is None:
                self.run_id = create_or_update(client, experiment, self.record)
            with translate_errors():
                log_rows(client, self.run_id, self.record.rows[self.sent :])
                client.set_tag(self.run_id, "process", process_tag())
            self.sent = len(self.record.rows)
            self.pause = RETRY_SECONDS
        except UserError as error:
            if self.pause == RETRY_SECONDS:
                print(f"{error}. Training goes on; what is logged is kept in {self.record.folder}", flush=True)
            self.next_try, self.pause = time.monotonic() + self.pause, 2 * self.pause


def send_pending(project: Project) -> tuple[dict[str, str], list[str]]:
    """Send every waiting record, whether its run finished, failed or was killed, the oldest first.

    Returns the MLflow run ids of those sent, by record id, and a line for each that is left.
    """
    sent: dict[str, str] = {}
    left: list[str] = []
    try:
        # One process at a time: an evaluation has to find the run of its training whole.
        with FileLock(project.home / "outputs" / ".pending.lock", timeout=LOCK_SECONDS):
            reachable, unsent_models = True, set[str]()
            for record in waiting(project):
                info, folder = record.info, record.folder
                if info.get("evaluated_sha256") in unsent_models:
                    left.append(f"{folder}, an evaluation, waits for its training")
                    continue
                try:
                    if not reachable:  # every request would wait as long
                        raise UserError("it is unreachable")
                    sent[info["id"]] = send(project, record)
                except UserError as error:
                    left.append(f"{folder} waits for MLflow: {error}")
                    unsent_models.add(info.get("result_tags", {}).get("model_sha256", ""))
                    reachable = reachable and is_reachable(project, info["experiment"])
                    continue
                if info["status"] == "KILLED":
                    record.update(sent=True)
                    continue
                remove_pending(project, record)
                if _stages(project) in folder.parents:  # DVC has the files as its outputs
                    shutil.rmtree(folder)
            _remove_left_over(project)
    except Timeout:
        left.append(f"another process has been sending for {LOCK_SECONDS:g} s: what waits, waits")
    return sent, left


def _stages(project: Project) -> Path:
    return project.home / "outputs" / "stages"


def _remove_left_over(project: Project) -> None:
    """Remove the folders of stages that were killed before their record was whole, and that no training continues."""
    kept = {record.folder for record in pending(project)}
    for folder in set(_stages(project).glob(f"*.{HOST}-*")) - kept:
        if not psutil.pid_exists(int(folder.name.rpartition("-")[2])):
            shutil.rmtree(folder, ignore_errors=True)


def is_reachable(project: Project, experiment: str) -> bool:
    """Return whether the store answers at all; if so, what it rejected is at fault."""
    with suppress(UserError), translate_errors():
        client, number = open_store(project, experiment)
        client.search_runs([number], max_results=1)
        return True
    return False
