"""A folder of the user's own pictures, with a folder for each class, as arrays.

Every picture is decoded once, on all cores, into a file beside a log of what stands there: a job that was killed goes
on, and pictures that are mended or added are all that is decoded again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from pipeline.apps.images import fitted, read_image
from pipeline.base.errors import UserError, shorten
from pipeline.data.blocks import BLOCK_BYTES, Rows
from pipeline.data.examples import label_type
from pipeline.data.split import stratified_split
from pipeline.reports.tables import plain

TEST_SHARE = 0.2  # of the pictures of each class
FEWEST = 5  # pictures of a class
MOST = 65_535  # classes
AT_ONCE = 256  # pictures that are decoded before they are written down
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")  # beside those that begin with a dot

Stamp = tuple[str, int, int]  # path in the folder, bytes, and when it was changed: what tells that a file is the same


class Listing(NamedTuple):
    classes: list[str]
    files: list[tuple[int, Path]]  # every picture with its label, by class and name
    ignored: list[Path]


class Decoded(NamedTuple):
    row: int  # in the file of pixels
    digest: str  # of the pixels
    error: str  # why it is no picture, or ""


def list_pictures(folder: Path) -> Listing:
    """Return the pictures `folder`/<class>/<picture>; too few or too many classes, or empty ones, are a UserError."""
    entries = sorted(folder.iterdir())
    classes = [path.name for path in entries if path.is_dir() and not _is_of_the_system(path)]
    ignored = [path for path in entries if path.name not in classes]
    if not 2 <= len(classes) <= MOST:
        raise UserError(f"{folder} has {len(classes)} folders of pictures: give one for each of 2 to {MOST:,} classes")
    files: list[tuple[int, Path]] = []
    empty = []
    for label, name in enumerate(classes):
        inside = sorted((folder / name).iterdir())
        left_out = [path for path in inside if path.is_dir() or _is_of_the_system(path) or _is_of_another_kind(path)]
        ignored += left_out
        files += [(label, path) for path in inside if path not in left_out]
        if len(inside) == len(left_out):
            empty.append(name)
    if empty:
        raise UserError(
            f"{len(empty):,} folders of {folder} have no picture: {shorten(plain(', '.join(empty)))}: give at least "
            f"{FEWEST} to each, or remove the folders"
        )
    return Listing(classes, files, ignored)


def read_pictures(
    folder: Path, listing: Listing, shape: Sequence[int], work: Path, skip_damaged: bool
) -> tuple[dict[str, NDArray | Rows], list[str]]:
    """Return {train,test}_{images,labels} of a listing, whose pixels stand in the folder `work`, and what is damaged.

    Pictures are fitted into `shape`, [H, W] or [H, W, 3], black around them. Copies of a picture count once: one might
    be trained on and another tested with. What cannot be read (unless it is to be skipped), or is in two classes, is a
    UserError.
    """
    decoded = _decode(folder, [path for _, path in listing.files], shape, work)
    damaged = [path.relative_to(folder).as_posix() for _, path in listing.files if decoded[path].error]
    if damaged and not skip_damaged:
        first = decoded[folder / damaged[0]].error
        names = f", namely {shorten(plain(', '.join(damaged)))}" if len(damaged) > 1 else ""
        raise UserError(
            f"{len(damaged):,} of {len(decoded):,} pictures cannot be read{names}: {first}, or leave such out with "
            "skip_damaged=true"
        )
    different: dict[str, tuple[int, Path]] = {}
    for label, path in listing.files:
        if decoded[path].error:
            continue
        known_label, known_path = different.setdefault(decoded[path].digest, (label, path))
        if known_label != label:
            raise UserError(f"{path} and {known_path} are the same picture in two classes: remove one")
    dtype = np.dtype(label_type(len(listing.classes)))
    labels: NDArray[np.integer] = np.array([label for label, _ in different.values()], dtype)
    for name, count in zip(listing.classes, np.bincount(labels, minlength=len(listing.classes)), strict=True):
        if count < FEWEST:
            raise UserError(f"{folder / name} has {count} different pictures: give at least {FEWEST}, one to test with")
    rows = np.array([decoded[path].row for _, path in different.values()])
    pixels = np.memmap(work / "pixels", np.uint8, "r").reshape(-1, *shape)
    train, test = stratified_split(labels, round(TEST_SHARE * len(labels)), seed=0)
    return {
        "train_images": Rows(pixels, rows[train]),
        "train_labels": labels[train],
        "test_images": Rows(pixels, rows[test]),
        "test_labels": labels[test],
    }, damaged


def _decode(folder: Path, files: list[Path], shape: Sequence[int], work: Path) -> dict[Path, Decoded]:
    """Decode what the log of `work` does not have yet, and return where the pixels of every file stand."""
    work.mkdir(parents=True, exist_ok=True)
    known = _continue(work, shape)
    stats = {path: path.stat() for path in files}
    stamps = {path: (path.relative_to(folder).as_posix(), s.st_size, s.st_mtime_ns) for path, s in stats.items()}
    waiting = [path for path in files if stamps[path] not in known]
    blank = bytes(math.prod(shape))

    def read(path: Path) -> tuple[bytes, str]:
        try:
            return fitted(read_image(path, "", shape[2] if len(shape) == 3 else 1), shape).tobytes(), ""
        except UserError as error:
            return blank, str(error)

    size = max(1, min(AT_ONCE, BLOCK_BYTES // len(blank)))
    with (
        (work / "pixels").open("ab") as pixels,
        (work / "log.jsonl").open("a", encoding="utf-8") as log,
        tqdm(total=len(files), initial=len(files) - len(waiting), unit=" pictures", leave=False, disable=None) as bar,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
    ):
        for start in range(0, len(waiting), size):
            paths = waiting[start : start + size]
            for path, (content, error) in zip(paths, pool.map(read, paths), strict=True):
                digest = hashlib.blake2b(content, digest_size=16).hexdigest()
                known[stamps[path]] = entry = Decoded(len(known), digest, error)
                pixels.write(content)
                log.write(f"{json.dumps([*stamps[path], *entry])}\n")
                bar.update()
            pixels.flush()
            os.fsync(pixels.fileno())  # before the log says that they are there
            log.flush()
    return {path: known[stamps[path]] for path in files}


def _continue(work: Path, shape: Sequence[int]) -> dict[Stamp, Decoded]:
    """Return what an earlier job with the same shape has decoded, and cut both files to what is whole."""
    log, pixels = work / "log.jsonl", work / "pixels"
    head, size = f"{json.dumps(list(shape))}\n", math.prod(shape)
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
    if lines[:1] != [head]:
        lines = [head]
    whole = [line for line in lines[1:] if line.endswith("\n")]
    whole = whole[: pixels.stat().st_size // size if pixels.exists() else 0]
    log.write_text("".join([head, *whole]), encoding="utf-8")
    pixels.touch()
    os.truncate(pixels, len(whole) * size)
    entries = [json.loads(line) for line in whole]
    return {(path, bytes_, changed): Decoded(*entry) for path, bytes_, changed, *entry in entries}


def _is_of_another_kind(path: Path) -> bool:
    """Return whether a file's name says that it is no picture; one without an ending may be."""
    return path.suffix != "" and Image.registered_extensions().get(path.suffix.lower()) is None


def _is_of_the_system(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_FILES
