"""A folder of pictures, one folder a class, as arrays.

Shapes: N pictures, H rows, W columns.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import data
from pipeline.beyond.images import read_image
from pipeline.config import PipelineError

TEST_SHARE = 0.2  # of the pictures of each class
SEED = 0  # of their choice
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")  # beside those that begin with a dot


class Pictures(NamedTuple):
    classes: list[str]  # by name
    images: NDArray[np.uint8]  # [N, H, W]
    labels: NDArray[np.uint8]  # [N]
    ignored: list[Path]  # what the folder holds besides: files of the system, folders in a class


def read_pictures(folder: Path, shape: list[int]) -> Pictures:
    """Read `folder`/<class>/<picture>.

    Pictures are made grey and fitted into H x W, black around them. The same picture twice counts once: it could be
    trained on and tested with. What cannot be read, or stands in two classes, is a PipelineError.
    """
    entries = sorted(folder.iterdir())
    classes = [path.name for path in entries if path.is_dir() and not _is_of_the_system(path)]
    ignored = [path for path in entries if path.name not in classes]
    if len(classes) < 2:
        raise PipelineError(f"{folder} has {len(classes)} folders of pictures: give one with a folder a class")
    if len(classes) > 256:
        raise PipelineError(f"{folder} has {len(classes)} folders of pictures: give 256 at most, a label is a byte")
    found: dict[bytes, tuple[int, Path]] = {}
    most = (data.LIMIT - 10_000) // (shape[0] * shape[1] + 1)  # with labels and headers
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            if path.is_dir() or _is_of_the_system(path):
                ignored.append(path)
                continue
            image = Image.fromarray(read_image(path))
            values = ImageOps.pad(image, (shape[1], shape[0]), Image.Resampling.LANCZOS, color=0).tobytes()
            known, first = found.setdefault(values, (label, path))
            if known != label:
                raise PipelineError(f"{path} and {first} are the same picture in two classes: remove one")
            if len(found) > most:
                raise PipelineError(f"{folder} has more than {most:,} pictures of {shape}: give fewer or smaller ones")
    labels = np.array([label for label, _ in found.values()], np.uint8)
    for label, name in enumerate(classes):
        if (count := int((labels == label).sum())) < 5:
            raise PipelineError(f"{folder / name} has {count} different pictures: give 5 at least, one to test with")
    return Pictures(classes, np.frombuffer(b"".join(found), np.uint8).reshape(-1, *shape), labels, ignored)


def _is_of_the_system(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_FILES


def divided(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """The four arrays of a data set, TEST_SHARE of each class for testing."""
    train, test = data.stratified_split(labels, round(TEST_SHARE * len(labels)), SEED)
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }
