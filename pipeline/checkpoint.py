"""Checkpoints: what the next epoch of a training starts from, in files that are whole, ours and the newest.

They never decide a result: the training loop draws all that is random from (seed, epoch) and (seed, step), so weights
and Adam's moments after an epoch are all there is to remember.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.files import replacing

KEPT = 2  # the newest may be cut short by a failing disk: then the one before it serves
DIGEST = hashlib.sha256().digest_size


class State(NamedTuple):
    """What the loop carries from one epoch to the next, besides the seed and the number of the epoch."""

    weights: list[NDArray[np.float32]]  # of the model, in Keras's order
    first: list[NDArray[np.float32]]  # Adam's moments, in the order of the trainer's variables
    second: list[NDArray[np.float32]]


class Checkpoint(NamedTuple):
    history: list[dict[str, float]]  # a row an epoch: that of history.csv, and its seconds
    state: State


class Foreign(Exception):
    """A file that is no checkpoint of this training: its message says why."""


def path_of(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:06}.ckpt"


def save(folder: Path, origin: Mapping[str, str], checkpoint: Checkpoint, keep: int = KEPT) -> Path:
    """Write the checkpoint of an epoch, whole and flushed to the disk, and remove all but the newest `keep` up to it.

    Those of later epochs were refused, or are about to be made anew.

    `origin` is what decides its bits: a checkpoint of another origin is never read.
    """
    about = json.dumps({"origin": dict(origin), "history": checkpoint.history}).encode()
    arrays = {f"{name}_{i}": array for name, of in checkpoint.state._asdict().items() for i, array in enumerate(of)}
    content = io.BytesIO()
    np.savez(content, about=np.frombuffer(about, np.uint8), **arrays)
    number = len(checkpoint.history)
    path = path_of(folder, number)
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())
    for other, epoch in _epochs(folder).items():
        if not number - keep < epoch <= number:
            other.unlink()
    return path


def _epochs(folder: Path) -> dict[Path, int]:
    """The checkpoints of a folder, by their names."""
    numbers = {path: re.fullmatch(r"epoch-(\d+)\.ckpt", path.name) for path in folder.glob("*.ckpt")}
    return {path: int(number[1]) for path, number in numbers.items() if number}


def load(path: Path, origin: Mapping[str, str]) -> Checkpoint:
    """Read a checkpoint; one that is damaged, or of another origin, is Foreign."""
    content = path.read_bytes()
    if hashlib.sha256(content[DIGEST:]).digest() != content[:DIGEST]:
        raise Foreign("damaged")
    with np.load(io.BytesIO(content[DIGEST:])) as archive:
        about = json.loads(archive["about"].tobytes())
        found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in State._fields}
        for key in archive.files:
            if key != "about":
                found[key.rpartition("_")[0]].append(archive[key])
    if differing := [key for key in origin if about["origin"].get(key) != origin[key]]:
        raise Foreign(f"of another training ({', '.join(differing)} differ)")
    if path != path_of(path.parent, len(about["history"])):
        raise Foreign(f"of epoch {len(about['history'])} by its content")
    return Checkpoint(about["history"], State(**found))


def newest(
    folders: Sequence[Path], origin: Mapping[str, str], most: int, say: Callable[[str], Any] = print
) -> Checkpoint | None:
    """The checkpoint of the latest epoch, `most` or earlier, that is whole and of this origin; others are named."""
    epochs = {path: epoch for folder in folders for path, epoch in _epochs(folder).items()}
    for path in sorted(epochs, key=lambda path: epochs[path], reverse=True):
        if epochs[path] > most:
            continue
        try:
            return load(path, origin)
        except Foreign as reason:
            say(f"checkpoint {path.name} is {reason}: not used")
        except FileNotFoundError:  # another job of the sweep has just renewed those that it shares
            continue
    return None
