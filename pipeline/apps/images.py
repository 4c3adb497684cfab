"""Image files as grey values: one file, and a folder of the user's own pictures with a folder for each class."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.base.errors import UserError
from pipeline.data.split import stratified_split

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # as many as a good camera takes; unpacked up to 200 MB
MAX_SIDE = 1600  # pixels of the longer side; larger images are scaled down
TEST_SHARE = 0.2  # of the pictures of each class
SYSTEM_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx")  # beside those that begin with a dot


def read_image(source: Path | bytes, name: str = "") -> NDArray[np.uint8]:
    """Return the grey values, uint8 [H, W], of an image file or its bytes: upright, transparency as white.

    What is no image, damaged, or has more than MAX_PIXELS is a UserError.
    """
    name = name or str(source)
    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage that Pillow can live with
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width:,} x {image.height:,} pixels"
                    raise UserError(f"{name} has {size}, expected at most {MAX_PIXELS:,}: give it smaller, or a part")
                image.draft("L", (MAX_SIDE, MAX_SIDE))  # a JPEG can be unpacked at an eighth of its size
                ImageOps.exif_transpose(image, in_place=True)
                return _grey(image)
    except UserError:
        raise
    except Exception as error:  # for a damaged file Pillow raises nearly anything
        raise UserError(
            f"{name} is no image that can be read ({type(error).__name__}): give one of {', '.join(FORMATS)}"
        ) from None


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("1", "P"):  # Pillow would scale these by dropping pixels, and lose thin strokes
        image = image.convert("L" if image.mode == "1" else "RGBA")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.HAMMING)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # 16 bits and more, of a range of their own
        values = np.asarray(image, np.float64)
        return np.interp(values, (values.min(), values.max()), (0, 255)).astype(np.uint8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L"), np.uint8)


def read_pictures(folder: Path, shape: list[int]) -> tuple[list[str], dict[str, NDArray[np.uint8]], list[Path]]:
    """Return the classes of `folder`/<class>/<picture>, the arrays {train,test}_{images,labels}, and what was ignored.

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
    train, test = stratified_split(labels, round(TEST_SHARE * len(labels)), seed=0)
    arrays = {"train_images": images[train], "train_labels": labels[train]}
    return classes, arrays | {"test_images": images[test], "test_labels": labels[test]}, ignored


def _is_of_the_system(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in SYSTEM_FILES
