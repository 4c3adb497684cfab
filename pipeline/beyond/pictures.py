"""A folder of pictures, one folder a class, as arrays.

Shapes: N pictures, H rows, W columns.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline import data
from pipeline.beyond.images import read_image
from pipeline.config import PipelineError

TEST_SHARE = 0.2  # of the pictures of each class
SEED = 0  # of their choice


def read_pictures(folder: Path, shape: list[int]) -> tuple[list[str], NDArray[np.uint8], NDArray[np.uint8]]:
    """Names of the classes, images uint8 [N, H, W] and labels uint8 [N] of `folder`/<class>/<picture>, by name.

    Pictures are made grey and fitted into H x W, black around them. The same picture twice counts once: it could be
    trained on and tested with. What cannot be read, or stands in two classes, is a PipelineError.
    """
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise PipelineError(f"{folder} has {len(classes)} folders of pictures: give one with a folder a class")
    if len(classes) > 256:
        raise PipelineError(f"{folder} has {len(classes)} folders of pictures: give 256 at most, a label is a byte")
    found: dict[bytes, tuple[int, Path]] = {}
    most = (data.LIMIT - 10_000) // (shape[0] * shape[1] + 1)  # with labels and headers
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            if path.name.startswith(".") or path.is_dir():
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
    return classes, np.frombuffer(b"".join(found), np.uint8).reshape(-1, *shape), labels


def divided(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
    """The four arrays of a data set, TEST_SHARE of each class for testing."""
    train, test = data.stratified_split(labels, round(TEST_SHARE * len(labels)), SEED)
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[test],
        "test_labels": labels[test],
    }
