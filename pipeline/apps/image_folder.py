"""A folder of the user's own pictures, with a folder for each class, as arrays."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.apps.images import read_image
from pipeline.base.errors import UserError
from pipeline.data.split import stratified_split

TEST_SHARE = 0.2  # of the pictures of each class
SEED = 0  # of their choice
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")  # beside those that begin with a dot


class Pictures(NamedTuple):
    classes: list[str]  # sorted
    arrays: dict[str, NDArray[np.uint8]]  # as in a data set: {train,test}_{images,labels}
    ignored: list[Path]  # entries that are no picture of a class: files of the system, folders in a class


def read_pictures(folder: Path, shape: list[int]) -> Pictures:
    """Read `folder`/<class>/<picture>, and take TEST_SHARE of each class as test examples.

    Pictures are made grey and fitted into `shape` (height, width), black around them. Copies of a picture count once:
    one might be trained on and another tested with. What cannot be read, or is in two classes, is a UserError.
    """
    entries = sorted(folder.iterdir())
    classes = [path.name for path in entries if path.is_dir() and not _is_of_the_system(path)]
    ignored = [path for path in entries if path.name not in classes]
    if not 2 <= len(classes) <= 256:
        raise UserError(f"{folder} has {len(classes)} folders of pictures: give one for each of 2 to 256 classes")
    pictures: dict[bytes, tuple[int, Path]] = {}
    for label, name in enumerate(classes):
        for path in sorted((folder / name).iterdir()):
            if path.is_dir() or _is_of_the_system(path):
                ignored.append(path)
                continue
            image = Image.fromarray(read_image(path))
            values = ImageOps.pad(image, (shape[1], shape[0]), Image.Resampling.LANCZOS, color=0).tobytes()
            known_label, known_path = pictures.setdefault(values, (label, path))
            if known_label != label:
                raise UserError(f"{path} and {known_path} are the same picture in two classes: remove one")
    labels = np.array([label for label, _ in pictures.values()], np.uint8)
    for name, count in zip(classes, np.bincount(labels, minlength=len(classes)), strict=True):
        if count < 5:
            raise UserError(f"{folder / name} has {count} different pictures: give at least 5, one to test with")
    images = np.frombuffer(b"".join(pictures), np.uint8).reshape(-1, *shape)
    train, test = stratified_split(labels, round(TEST_SHARE * len(labels)), SEED)
    parts = {"train": train, "test": test}.items()
    arrays = {f"{part}_{key}": array[i] for part, i in parts for key, array in (("images", images), ("labels", labels))}
    return Pictures(classes, arrays, ignored)


def _is_of_the_system(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_FILES
