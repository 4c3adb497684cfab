"""Trackers beside MLflow: classes that the configuration names, which are told of every epoch and of the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.base import own
from pipeline.base.errors import one_line
from pipeline.base.schema import Config
from pipeline.tracking.record import Record, Row


class Trackers:
    """The trackers of one run. One that raises is named in a line and left alone from then on: training goes on.

    A tracker is made as T(folder, config): the output folder of the run, a Path, and the configuration, a plain dict.
    A run that continues tells of its earlier epochs again, as its first epochs may be those of another run.
    """

    def __init__(self, root: Path, config: Config, record: Record) -> None:
        self.root, self.record = root, record
        self.trackers: dict[str, Any] = {}
        for name in config.trackers:
            with self._dropping(name):
                self.trackers[name] = own.load(root, name)(record.folder, config.model_dump())

    def epoch(self, row: Row) -> None:
        """Call epoch(step, metrics) of each: step from 1, metrics by the names that MLflow has, without NaN."""
        metrics = {key: value for key, value in row["values"].items() if math.isfinite(value)}
        for name, tracker in list(self.trackers.items()):
            with self._dropping(name):
                tracker.epoch(row["step"], dict(metrics))

    def end(self, status: str) -> None:
        """Call end(status, files) of each: FINISHED, FAILED or KILLED, and the files that the run has written."""
        files = [self.record.folder / name for name in (*self.record.artifacts(), Path("model.keras"))]
        for name, tracker in list(self.trackers.items()):
            with self._dropping(name):
                tracker.end(status, [file for file in files if file.is_file()])

    @contextmanager
    def _dropping(self, name: str) -> Iterator[None]:
        try:
            with own.errors_named(self.root, name):
                yield
        except Exception as error:
            self.trackers.pop(name, None)
            print(f"tracker {one_line(error)}. Training goes on without it", flush=True)
