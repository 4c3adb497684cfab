"""Which epoch's model a training keeps: the last one's, or with train.patience that of the best by train.monitor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pipeline.base.schema import Train

History = Sequence[Mapping[str, float]]  # a row per epoch, the first one first: metrics by name


def better(monitor: str, value: float) -> float:
    """Return a value of train.monitor so that more is better: the negative of a loss or an error."""
    return -value if "loss" in monitor or "error" in monitor else value


def kept_epoch(train: Train, history: History) -> int:
    """Return the number, from 1, of the epoch whose model is kept; 0 before the first.

    The first of equals counts, and a value that is NaN is never the best.
    """
    if train.patience is None or not history:
        return len(history)
    values = [better(train.monitor, row[train.monitor]) for row in history]
    return 1 + max(range(len(values)), key=lambda i: -math.inf if math.isnan(values[i]) else values[i])


def is_over(train: Train, history: History) -> bool:
    """Return whether training stops after these epochs: train.monitor has not improved for train.patience of them."""
    return train.patience is not None and len(history) - kept_epoch(train, history) >= train.patience


def in_words(train: Train, history: History) -> str:
    """Say which epoch's model is kept and why; "" where it is that of the last, as ever."""
    if train.patience is None:
        return ""
    best = kept_epoch(train, history)
    return f"epoch {best} of {len(history)}, the best by {train.monitor} on the validation examples"


def best_figures(train: Train, history: History) -> dict[str, float]:
    """Return what a run with train.patience logs of its best epoch: best_epoch, best_val_accuracy and the like."""
    if train.patience is None:
        return {}
    best = kept_epoch(train, history)
    figures = {key: value for key, value in history[best - 1].items() if key.startswith(("train_", "val_"))}
    return {"best_epoch": best, **{f"best_{key}": value for key, value in figures.items()}}
