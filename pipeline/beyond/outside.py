"""Digits that are not MNIST's: those of scikit-learn, of printed fonts, and those drawn for this project.

A page is uint8 [H, W], each of its own size; labels are int64 [N].
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import make_interp_spline

from pipeline.config import ROOT
from pipeline.files import load_json

STROKES = ROOT / "reference" / "strokes.json"
PENS = {"thin": 3, "usual": 8, "thick": 14}  # of a square of side 100
FONT_SIZE = 96  # pixels
# Of the fonts that come with matplotlib those whose digits are digits; the others hold symbols.
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
NOT_FONTS = ("Display",)


class Outside(NamedTuple):
    pages: list[NDArray[np.uint8]]
    labels: NDArray[np.int64]


def scikit_learn() -> Outside:
    """1,797 digits of 8 x 8, light on dark, written by 13 people for the test set of "Optical Recognition of
    Handwritten Digits" (Alpaydin and Kaynak 1998), as scikit-learn ships them."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return Outside([np.rint(page * (255 / 16)).astype(np.uint8) for page in found.images], found.target)


def printed() -> Outside:
    """The ten digits in every text font that comes with matplotlib, black on white."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(
        file for file in folder.glob("*.ttf") if file.stem.startswith(FONTS) and not file.stem.endswith(NOT_FONTS)
    )
    return Outside(
        [_printed(file, digit) for file in files for digit in range(10)],
        np.tile(np.arange(10), len(files)),
    )


def _printed(font: Path, digit: int) -> NDArray[np.uint8]:
    page = Image.new("L", (2 * FONT_SIZE, 2 * FONT_SIZE), 255)
    place = (FONT_SIZE, FONT_SIZE)
    ImageDraw.Draw(page).text(place, str(digit), 0, ImageFont.truetype(font, FONT_SIZE), anchor="mm")
    return np.asarray(page)


def drawn(pen: str = "usual") -> Outside:
    """The thirty digits of reference/strokes.json, dark grey on light grey, drawn with one of PENS."""
    hands = [hand for name, hand in load_json(STROKES).items() if name != "about"]
    labels = [int(digit) for hand in hands for digit in hand]
    return Outside([draw(strokes, PENS[pen]) for hand in hands for strokes in hand.values()], np.array(labels))


def draw(strokes: list[list[list[float]]], pen: float, size: int = 200) -> NDArray[np.uint8]:
    """Draw strokes, lists of points x, y from 0 to 100, on a page of this side with a margin of a fifth."""
    fine = 4
    page = Image.new("L", (size * fine, size * fine), 225)
    canvas = ImageDraw.Draw(page)
    scale = 0.6 * size * fine / 100
    radius = pen * scale / 2
    for stroke in strokes:
        for x, y in smooth(np.array(stroke, float)) * scale + 0.2 * size * fine:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), 40)
    return np.asarray(page.resize((size, size), Image.Resampling.BOX))


def smooth(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A dense curve [M, 2] through points [N, 2]: a cubic spline, or a straight line through two."""
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    dense = np.linspace(0, along[-1], int(along[-1]) * 4)
    return np.asarray(make_interp_spline(along, points, k=min(3, len(points) - 1))(dense))
