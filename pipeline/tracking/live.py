"""What MLflow gets of a training while it goes on, and whether somebody asks from outside that it stops."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

from mlflow.entities import RunTag
from mlflow.tracking import MlflowClient

from pipeline.base.errors import StoppedError, UserError
from pipeline.base.project import Project
from pipeline.tracking.record import CONSOLE, SILENT_SECONDS, STOP, Record, process_tag
from pipeline.tracking.sending import create_or_update, log_file, log_rows
from pipeline.tracking.store import open_store, translate_errors

RETRY_SECONDS = 60.0  # that MLflow is left alone after a failure, doubled after each further one
MAX_RETRY_SECONDS = SILENT_SECONDS / 3  # a training that tries less often would count as dead
GROWING = (CONSOLE, "images")  # artifacts that are sent meanwhile; the others come at the end


class LiveLog:
    """Sends a record while it grows.

    Where MLflow fails, training waits for one failed request (5 s, base/isolation.py; a server that is slow, but
    answers, may take as long for each of several). The next try comes after RETRY_SECONDS, then after twice as long,
    and so on up to MAX_RETRY_SECONDS.
    """

    def __init__(self, project: Project, record: Record) -> None:
        self.project = project
        self.record = record
        self.run_id: str | None = None
        self.sent = 0  # rows
        self.files: dict[Path, int] = {}  # sent, with the times of their last change
        # Relative, as the console's log is sent and a path may name a person.
        self.stop_file = shlex.quote(os.path.relpath(record.folder / STOP, project.home))
        self.is_killed = False  # somebody has set the status of the run in MLflow
        self.pause, self.next_try = RETRY_SECONDS, 0.0

    def send(self) -> None:
        """Send what is new, unless MLflow failed a short while ago."""
        if time.monotonic() < self.next_try:
            return
        try:
            with translate_errors():
                client, experiment = open_store(self.project, self.record.info["experiment"])
                if self.run_id is None:
                    self.run_id = create_or_update(client, experiment, self.record)  # RUNNING from here on
                else:
                    self.is_killed = client.get_run(self.run_id).info.status == "KILLED"
                    log_rows(client, self.run_id, self.record.rows[self.sent :])
                    self._send_files(client, self.run_id)
                tags = {"process": process_tag(), "progress": self.record.info.get("progress") or "begins"}
                client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
            self.sent = len(self.record.rows)
            self.pause = RETRY_SECONDS
        except UserError as error:
            if self.pause == RETRY_SECONDS:
                print(f"{error}. Training goes on; what is logged is kept in {self.record.folder}", flush=True)
            self.next_try = time.monotonic() + self.pause
            self.pause = min(2 * self.pause, MAX_RETRY_SECONDS)

    def _send_files(self, client: MlflowClient, run_id: str) -> None:
        for path in self.record.artifacts():
            changed = (self.record.folder / path).stat().st_mtime_ns
            if path.parts[0] in GROWING and self.files.get(path) != changed:
                log_file(client, run_id, self.record, path)
                self.files[path] = changed

    def check_stop(self, epoch: str) -> None:
        """Raise a StoppedError, after an epoch, where somebody has put a file `stop` into the folder or has set the
        status of the run in MLflow to KILLED, as it was seen when the epoch was sent."""
        asked = (self.record.folder / STOP).exists()
        if asked or self.is_killed:
            self.record.update(progress=f"stopped after {epoch}")
            why = f"the file {self.stop_file}" if asked else f"the status KILLED of the MLflow run {self.run_id}"
            raise StoppedError(f"stopped after {epoch} by {why}: the same command again continues")
