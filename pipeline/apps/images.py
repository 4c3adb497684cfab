"""Image files as values of pixels, grey or in colour."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from scipy import ndimage

from pipeline.base.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000  # of a page: as many as a good camera takes, or A4 at 600 dpi has; unpacked up to 200 MB
MAX_SIDE = 3600  # pixels of the longer side, of A4 at 300 dpi; larger pages are scaled down
MAX_PAGES = 100
CLEARER = 1.3  # times the contrast of the luminance that another channel must have to be taken instead
ALIKE = 16  # levels that colours may differ by and count as one
LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R 601)


def read_image(source: Path | bytes, name: str = "", channels: int = 1) -> NDArray[np.uint8]:
    """Return the pixels of an image that is one page, as `read_pages` does; several are a UserError."""
    (_, pixels), *others = read_pages(source, name, channels)
    if others:
        raise UserError(
            f"{name or str(source)} has {1 + len(others)} pages, expected one: give each as a file of its own"
        )
    return pixels


def read_pages(source: Path | bytes, name: str = "", channels: int = 1) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Yield the name and the pixels of every page of an image file or its bytes, or frame of an animation, upright.

    They are uint8 [H, W], grey, or for 3 channels [H, W, 3], red, green and blue. What is no image, damaged, has more
    than MAX_PIXELS a page, or more than MAX_PAGES is a UserError.
    """
    name = name or str(source)
    content = source if isinstance(source, bytes) else source.read_bytes()
    with _one_line_errors(name):
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        # A phone's photograph may hold a preview, or what makes it brighter, beside itself.
        count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if count > MAX_PAGES:
        raise UserError(f"{name} has {count:,} pages, expected at most {MAX_PAGES}: give it in parts")
    for number in range(count):
        page = f"{name}, page {number + 1} of {count}" if count > 1 else name
        with _one_line_errors(page):
            image.seek(number)
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width:,} x {image.height:,} pixels"
                raise UserError(f"{page} has {size}, expected at most {MAX_PIXELS:,}: give it smaller, or a part")
            image.draft("RGB", (MAX_SIDE, MAX_SIDE))  # a JPEG can be unpacked at an eighth of its size
            pixels = _pixels(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
        yield page, pixels


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damage that Pillow can live with
            yield
    except UserError:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit
        raise UserError(f"{name} has more than {MAX_PIXELS:,} pixels: give it smaller, or a part") from None
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
        values = np.asarray(image)
        shown = values[values[..., 3] > 127][:, :3]
        if mode == "L" and len(shown) and np.ptp(shown, axis=0).max() <= ALIKE:  # a drawing in one colour, on nothing
            return np.array(255 - values[..., 3], np.uint8)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    if mode == "RGB" or image.mode == "L":
        return np.asarray(image.convert(mode), np.uint8)
    return _clearest(image)


def _clearest(image: Image.Image) -> NDArray[np.uint8]:
    """Return the luminance, or the channel of a colour in which the ink stands out far better, as red on grey."""
    colours = image.convert("RGB")
    small = np.asarray(colours.reduce(-(-max(image.size) // 400)), np.float64)
    channels = [small @ LUMINANCE, *np.moveaxis(small, 2, 0)]
    # A median keeps the edge of a sheet on a table, and takes strokes away.
    contrasts = [float(np.sqrt(np.mean((one - ndimage.median_filter(one, 9)) ** 2))) for one in channels]
    best = int(np.argmax(contrasts))
    is_clearer = best > 0 and contrasts[best] > CLEARER * contrasts[0]
    return np.array(colours.getchannel(best - 1) if is_clearer else image.convert("L"), np.uint8)
