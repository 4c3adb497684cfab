"""The children of a sweep in their order: by train.monitor, validation accuracy where nothing else is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from mlflow.entities import Run

from pipeline.model.kept import better
from pipeline.reports.tables import plain
from pipeline.tracking import queries
from pipeline.tracking.record import PRUNED_AT

ACCURACY = "val_accuracy"  # what is ranked by where nothing else is asked for


class Child(NamedTuple):
    """A line of the ranking. Metrics are of the epoch that is kept, accuracies shares, NaN where there is none."""

    name: str
    values: dict[str, str]  # by swept key, as they were given
    status: str  # MLflow's: FINISHED, RUNNING, FAILED or KILLED; STOPPED from outside, or PRUNED
    val_accuracy: float
    train_accuracy: float
    seconds: float  # in training
    num_params: int
    val_examples: int
    group: str  # runs of one group differ in seed and train.fold alone
    run_id: str
    run: Run
    monitored: float  # train.monitor


def rank(runs: Sequence[Run], monitor: str = ACCURACY) -> list[Child]:
    """Return MLflow's runs as children: the finished first, the pruned last, by `monitor`, the smaller model at a tie.

    A run without that metric comes after those that have it. What two machines have both trained counts once.
    """
    children: dict[str, Child] = {}  # by content
    for run in sorted(runs, key=lambda run: run.info.status == "FINISHED"):
        params, tags = run.data.params, run.data.tags
        values = json.loads(tags["swept"])
        children[tags["content_sha256"]] = Child(
            plain(" ".join(f"{key}={value}" for key, value in values.items()) or run.info.run_name),
            values,
            _status(run),
            queries.final(run, ACCURACY),
            queries.final(run, "train_accuracy"),
            queries.training_seconds(run),
            int(params.get("model.num_params", 0)),
            int(params.get("data.val_examples", 0)),
            tags["group"],
            run.info.run_id,
            run,
            queries.final(run, monitor),
        )

    def place(child: Child) -> tuple[Any, ...]:
        score = better(monitor, child.monitored)
        late = (child.status != "FINISHED") + (child.status == "PRUNED")
        lacks = math.isnan(score)
        return late, lacks, 0 if lacks else -score, child.num_params

    return sorted(children.values(), key=place)


def _status(run: Run) -> str:
    if PRUNED_AT in run.data.tags:
        return "PRUNED"
    is_stopped = run.info.status == "KILLED" and run.data.tags.get("progress", "").startswith("stopped")
    return "STOPPED" if is_stopped else str(run.info.status)


def names_of_failed(children: Sequence[Child]) -> list[str]:
    """Return the names of the children that did not finish, with a word for those that somebody stopped."""
    left = [child for child in children if child.status not in ("FINISHED", "PRUNED")]
    return [f"{child.name}, stopped" if child.status == "STOPPED" else child.name for child in left]
