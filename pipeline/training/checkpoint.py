"""Checkpoints: what the next epoch of a training starts from, in files that are whole and belong to this training.

They never decide a result: the training loop draws all that is random from (seed, epoch) and (seed, step), so the
variables of the model and of the optimizer after an epoch are all there is to keep, beside the best epoch's model.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.files import replacing

KEPT = 2  # the newest may be cut short by a failing disk: then the one before it serves
DIGEST = hashlib.sha256().digest_size


class State(NamedTuple):
    """What the loop carries from one epoch to the next, besides the seed and the number of the epoch."""

    variables: list[NDArray[Any]]  # of the model, in Keras's order: float32, a dropout's seed int64
    optimizer: list[NDArray[Any]]  # its variables, as the moments of Adam


class Checkpoint(NamedTuple):
    history: list[dict[str, Any]]  # a row per epoch: that of history.csv, epoch_seconds and time
    state: State
    best: Sequence[NDArray[Any]] = ()  # with train.patience: the model's variables after the best epoch


class UnusableError(Exception):
    """A file that is no checkpoint of this training. Its message says why."""


def checkpoint_path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:06}.ckpt"


def save(folder: Path, resume_key: Mapping[str, str], checkpoint: Checkpoint) -> Path:
    """Write the checkpoint of an epoch, whole and flushed to the disk, and remove all but the newest KEPT up to it.

    Those of later epochs were unusable, or are about to be made again. A checkpoint of another `resume_key`, which is
    what decides its bits, is never read.
    """
    header = json.dumps({"resume_key": dict(resume_key), "history": checkpoint.history}).encode()
    parts = {**checkpoint.state._asdict(), "best": checkpoint.best}
    arrays = {f"{name}_{i}": array for name, part in parts.items() for i, array in enumerate(part)}
    content = io.BytesIO()
    np.savez(content, header=np.frombuffer(header, np.uint8), **arrays)
    number = len(checkpoint.history)
    path = checkpoint_path(folder, number)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())
    for other, epoch in _epochs(folder).items():
        if not number - KEPT < epoch <= number:
            other.unlink(missing_ok=True)
    return path


def load(path: Path, resume_key: Mapping[str, str]) -> Checkpoint:
    """Read a checkpoint; an UnusableError if it is damaged or of another resume key."""
    content = path.read_bytes()
    if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        raise UnusableError("damaged")
    with np.load(io.BytesIO(content[DIGEST:])) as archive:
        header = json.loads(archive["header"].tobytes())
        # First, as earlier code wrote other arrays.
        if differing := [key for key in resume_key if header["resume_key"].get(key) != resume_key[key]]:
            raise UnusableError(f"of another training ({', '.join(differing)} differ)")
        parts: dict[str, list[NDArray[Any]]] = {name: [] for name in (*State._fields, "best")}
        for key in archive.files:
            if key != "header":
                parts[key.rpartition("_")[0]].append(archive[key])
    best = parts.pop("best")
    return Checkpoint(header["history"], State(**parts), best)


def newest(folders: Sequence[Path], resume_key: Mapping[str, str], last_epoch: int) -> Checkpoint | None:
    """Return the usable checkpoint of the latest epoch up to `last_epoch`; one that is passed over is named."""
    epochs = {path: epoch for folder in folders for path, epoch in _epochs(folder).items() if epoch <= last_epoch}
    for path in sorted(epochs, key=lambda path: epochs[path], reverse=True):
        try:
            return load(path, resume_key)
        except UnusableError as reason:
            print(f"checkpoint {path.name} is {reason}: not used")
        except FileNotFoundError:  # another job of the sweep has just renewed those that they share
            continue
    return None


def _epochs(folder: Path) -> dict[Path, int]:
    """Return the checkpoints of a folder with their epochs, by their names."""
    names = {path: re.fullmatch(r"epoch-(\d+)\.ckpt", path.name) for path in folder.glob("*.ckpt")}
    return {path: int(name[1]) for path, name in names.items() if name}
