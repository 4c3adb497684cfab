"""Hopeless jobs of a sweep end early: sweep.prune=median or halving.

After an epoch a job's train.monitor is compared with what its siblings had after the same epoch. Siblings are the jobs
of its sweep with the same train.epochs, as their records beside the sweep's folder say: those of an earlier try of the
sweep are among them, and MLflow is not asked.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from pipeline.base.errors import UserError
from pipeline.base.schema import Config
from pipeline.base.verb_schemas import TrainConfig
from pipeline.model.kept import History, better
from pipeline.tracking.fingerprint import Fingerprint
from pipeline.tracking.record import PARENT, Record

WARM_UP = {"median": 1 / 4, "halving": 1 / 8}  # share of the epochs after which a job is judged for the first time
MIN_SIBLINGS = {"median": 4, "halving": 2}  # fewer say nothing


class Sibling(NamedTuple):
    value: float  # after the epoch in question; more is better
    has_finished: bool


def watch(
    config: TrainConfig, identity: Fingerprint, name: str, parent: str, folder: Path
) -> Callable[[History], bool]:
    """Return a function that says, of the rows of a job's epochs so far, whether it is hopeless, and prints why.

    `parent` is the id of the sweep's run, and `folder` the sweep's.
    """
    rule = config.sweep.prune

    def is_hopeless(rows: History) -> bool:
        epoch, monitor = len(rows), config.train.monitor
        if not rule or not is_due(rule, epoch, config.train.epochs):
            return False
        siblings = find_siblings(parent, folder, config, identity.content_sha256, epoch)
        reason = why_hopeless(rule, better(monitor, rows[-1][monitor]), siblings)
        if reason:
            what = f"pruned after epoch {epoch} of {config.train.epochs}"
            print(f"{name}: {what}: {monitor} {rows[-1][monitor]:.6g} {reason}", flush=True)
        return bool(reason)

    return is_hopeless


def is_due(rule: str, epoch: int, epochs: int) -> bool:
    """Return whether jobs are judged after this epoch: after each from the end of the warm-up on, except the last; by
    halving after the first of them, and each that is twice as late."""
    first = max(1, math.ceil(WARM_UP[rule] * epochs))
    if not first <= epoch < epochs:
        return False
    return rule == "median" or epoch in (first * 2**i for i in range(epochs.bit_length()))


def why_hopeless(rule: str, value: float, siblings: Sequence[Sibling]) -> str:
    """Return why a job with this value, of which more is better, is hopeless among its siblings; "" if it is not.

    median: it is below the median of those that have finished, after the same epoch (Optuna's MedianPruner takes a
    job's best value so far instead).
    halving: it is not in the better half of all that came so far (asynchronous successive halving, Li et al. 2018).
    """
    if rule == "median":
        finished = [sibling.value for sibling in siblings if sibling.has_finished]
        if len(finished) >= MIN_SIBLINGS[rule] and value < statistics.median(finished):
            return f"is worse than the median of the {len(finished)} siblings that have finished"
    elif len(siblings) >= MIN_SIBLINGS[rule]:
        ahead = sum(sibling.value > value for sibling in siblings)
        if ahead >= (len(siblings) + 1) / 2:
            return f"is not in the better half: {ahead} of {len(siblings)} siblings were better"
    return ""


def find_siblings(parent: str, folder: Path, config: Config, content_sha256: str, epoch: int) -> list[Sibling]:
    """Return the siblings that came to this epoch, of all tries of the sweep; what was tried twice counts once."""
    siblings: dict[str, Sibling] = {}
    for file in folder.parent.glob("*/*/run.json"):
        with suppress(UserError, OSError):  # a record that is moved just now
            if parent not in file.read_text(encoding="utf-8"):
                continue
            record = Record(file.parent)
            tags = record.info["tags"]
            if tags.get(PARENT) != parent or tags["content_sha256"] == content_sha256:
                continue
            if record.info["params"]["train.epochs"] != str(config.train.epochs):
                continue
            values = [row["values"] for row in record.rows if row["step"] == epoch]
            for value in (row[config.train.monitor] for row in values if config.train.monitor in row):
                sibling = Sibling(better(config.train.monitor, value), record.info["status"] == "FINISHED")
                if sibling.has_finished or tags["content_sha256"] not in siblings:
                    siblings[tags["content_sha256"]] = sibling
    return list(siblings.values())
