"""Image files as grey values."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.base.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # as many as a good camera takes; unpacked up to 200 MB
MAX_SIDE = 1600  # pixels of the longer side; larger images are scaled down


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
