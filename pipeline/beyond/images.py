"""Image files as grey values, whoever made them.

Shapes: H rows, W columns of an image of any size.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pipeline.config import PipelineError
from pipeline.files import existing

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MOST_PIXELS = 50_000_000  # as many as a good camera takes; unpacked 200 MB
MOST_BYTES = 100_000_000
MOST_SCANS = 300  # of a JPEG, each worked through whole: seconds at most; cameras make 10
WORKED_ON = 1600  # pixels of the longer side that is looked at


def read_image(source: Path | bytes, name: str = "") -> NDArray[np.uint8]:
    """Grey values [H, W] of an image file or its bytes, upright, transparency on white.

    What is no image, damaged, or a bomb (more than MOST_PIXELS, huge tiles, endless scans) is a PipelineError, before
    it is unpacked.
    """
    name = name or str(source)
    if isinstance(source, Path) and existing(source).stat().st_size > MOST_BYTES:
        raise PipelineError(f"{name} has more than {MOST_BYTES:,} bytes: give a smaller image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage that Pillow can live with
            content = source if isinstance(source, bytes) else source.read_bytes()
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise PipelineError(
                        f"{name} has {image.width:,} x {image.height:,} pixels, at most {MOST_PIXELS:,} are looked "
                        "at: give it smaller, or a part of it"
                    )
                tags = getattr(image, "tag_v2", {})  # of a TIFF
                tile = tags.get(322, 0) * tags.get(323, 0)  # TileWidth, TileLength: unpacked whole, whatever they show
                scans = content.count(b"\xff\xda") if image.info.get("progressive") else 1
                if tile > MOST_PIXELS or scans > MOST_SCANS:
                    raise PipelineError(f"{name} takes far more to unpack than it shows: save it anew, as PNG")
                image.draft("L", (WORKED_ON, WORKED_ON))  # a JPEG unpacks to an eighth of its size as well
                ImageOps.exif_transpose(image, in_place=True)
                return _grey(image)
    except PipelineError:
        raise
    except Image.DecompressionBombError:
        raise PipelineError(f"{name} has far more than {MOST_PIXELS:,} pixels: give it smaller") from None
    except Exception as error:  # bytes that are not what they should be make Pillow raise nearly anything
        raise PipelineError(
            f"{name} is no image that can be read ({type(error).__name__}): give one of {', '.join(FORMATS)}"
        ) from None


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("1", "P"):  # Pillow would take single pixels of these, and lose thin strokes
        image = image.convert("L" if image.mode == "1" else "RGBA")
    image.thumbnail((WORKED_ON, WORKED_ON), Image.Resampling.HAMMING)
    if image.mode in ("I", "F") or image.mode.startswith("I;"):  # 16 bits and more: of its own range
        values = np.asarray(image, np.float64)
        low, high = values.min(), values.max()
        return ((values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)).astype(np.uint8)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L"), np.uint8)
