"""Image files as values of pixels, grey or in colour."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.base.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # as many as a good camera takes; unpacked up to 200 MB
MAX_SIDE = 1600  # pixels of the longer side; larger images are scaled down


def read_image(source: Path | bytes, name: str = "", channels: int = 1) -> NDArray[np.uint8]:
    """Return the pixels of an image file or its bytes, upright, transparency as white.

    They are uint8 [H, W], grey, or for 3 channels [H, W, 3], red, green and blue. What is no image, damaged, or has
    more than MAX_PIXELS is a UserError.
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
                mode = "L" if channels == 1 else "RGB"
                image.draft(mode, (MAX_SIDE, MAX_SIDE))  # a JPEG can be unpacked at an eighth of its size
                ImageOps.exif_transpose(image, in_place=True)
                return _pixels(image, mode)
    except UserError:
        raise
    except Exception as error:  # for a damaged file Pillow raises nearly anything
        raise UserError(
            f"{name} is no image that can be read ({type(error).__name__}): give one of {', '.join(FORMATS)}"
        ) from None


def fitted(pixels: NDArray[np.uint8], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return a picture, uint8 [h, w] or [h, w, 3], scaled into `shape`, [H, W] or [H, W, 3], and centred on black."""
    image = Image.fromarray(pixels)
    return np.asarray(ImageOps.pad(image, (shape[1], shape[0]), Image.Resampling.LANCZOS, color=0))


def _pixels(image: Image.Image, mode: str) -> NDArray[np.uint8]:
    if image.mode in ("1", "P"):  # Pillow would scale these by dropping pixels, and lose thin strokes
        image = image.convert("L" if image.mode == "1" else "RGBA")
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.HAMMING)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # 16 bits and more, of a range of their own
        values = np.asarray(image, np.float64)
        grey = np.interp(values, (values.min(), values.max()), (0, 255)).astype(np.uint8)
        return grey if mode == "L" else np.repeat(grey[..., None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert(mode), np.uint8)
