"""Stress tests: counts of correct predictions on digits that are corrupted, of another style, or of another source.

Shapes: N digits, H rows, W columns, K classes. A page is uint8 [H, W], each of its own size.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.interpolate import make_interp_spline

from pipeline.apps.corruptions import CORRUPTIONS, corrupted
from pipeline.apps.digit_finder import find_digits, finds_classes_of
from pipeline.apps.images import LUMINANCE
from pipeline.apps.mnist_form import FIELD
from pipeline.apps.predictor import Predictor
from pipeline.base.files import load_json
from pipeline.data.examples import Examples

Pages = tuple[list[NDArray[np.uint8]], NDArray[np.int64]]  # pages with a digit each, and their labels [N]

PENS = {"thin": 3, "usual": 8, "thick": 14}  # widths, where a digit is 100 high
# Of the fonts that come with matplotlib those with digits; the others hold symbols.
FONTS = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")


def counts(predictor: Predictor, test: Examples, seed: int, strokes_file: Path) -> dict[str, dict[str, Any]]:
    """Count the correct predictions for each kind of corruption, style and source; styles and sources also after the
    preparation that the verb `predict` gives any page, where it knows the classes."""

    def count(images: NDArray[np.uint8]) -> dict[str, int]:
        correct = predictor.probabilities(images).argmax(1) == test.labels
        return {"right": int(correct.sum()), "digits": len(correct)}

    corruptions = {name: count(corrupted(test.images, name, seed)) for name in CORRUPTIONS}
    is_prepared, styles = finds_classes_of(predictor.data), {}
    for name, images in {"inverted": 255 - test.images, "in odd colours": odd_colours(test.images)}.items():
        styles[name] = count(images)
        if is_prepared:
            styles[f"{name}, prepared"] = count(np.stack([find_digits(image).digits[0] for image in images]))
    # "guises" for styles and "elsewhere" for other sources: keys of the robustness.json that there are already.
    results: dict[str, dict[str, Any]] = {"corruptions": corruptions, "guises": styles}
    if is_prepared:
        sources = {"scikit-learn": scikit_learn(), "printed fonts": printed()}
        sources |= {f"drawn, {pen} pen": drawn(strokes_file, pen) for pen in PENS}
        results["elsewhere"] = {name: _external_count(predictor, *source) for name, source in sources.items()}
    return results


def odd_colours(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw images in matplotlib's default colour map, viridis, and make them grey again (ITU-R 601)."""
    colours = matplotlib.colormaps["viridis"](np.arange(256))[:, :3]
    return np.rint(colours @ LUMINANCE * 255).astype(np.uint8)[images]


def _external_count(predictor: Predictor, pages: list[NDArray[np.uint8]], labels: NDArray[np.int64]) -> dict[str, int]:
    """Count the correct predictions for external digits: prepared, of them the confident ones, and only resized to
    28 x 28, white on black where their border is light."""
    prepared = predictor.probabilities(np.stack([find_digits(page).digits[0] for page in pages]))
    correct, confident = prepared.argmax(1) == labels, ~predictor.abstains(prepared)
    small = [np.asarray(Image.fromarray(page).resize((FIELD, FIELD), Image.Resampling.BILINEAR)) for page in pages]
    resized = np.stack([255 - page if np.median(page[[0, -1]]) > 127 else page for page in small])
    return {
        "right": int(correct.sum()),
        "digits": len(labels),
        "sure": int(confident.sum()),
        "sure_right": int((confident & correct).sum()),
        "unprepared_right": int((predictor.probabilities(resized).argmax(1) == labels).sum()),
    }


def scikit_learn() -> Pages:
    """Return 1,797 digits of 8 x 8, light on dark, written by 13 people for the test set of "Optical Recognition of
    Handwritten Digits" (Alpaydin and Kaynak 1998), as scikit-learn ships them."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return [np.rint(page * (255 / 16)).astype(np.uint8) for page in loaded.images], loaded.target


def printed() -> Pages:
    """Return the ten digits in every text font that comes with matplotlib, black on white."""
    files, pages = text_fonts(), []
    for file, digit in product(files, "0123456789"):
        page = Image.new("L", (192, 192), 255)
        ImageDraw.Draw(page).text((96, 96), digit, 0, ImageFont.truetype(file, 96), anchor="mm")
        pages.append(np.asarray(page))
    return pages, np.tile(np.arange(10), len(files))


def text_fonts() -> list[Path]:
    """Return the files of the fonts with letters and digits that come with matplotlib."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return sorted(file for file in folder.glob("*.ttf") if file.stem.startswith(FONTS) and "Display" not in file.stem)


def drawn(strokes_file: Path, pen: str = "usual") -> Pages:
    """Return the thirty digits of reference/strokes.json, dark grey on light grey, drawn with one of PENS."""
    hands = [hand for name, hand in load_json(strokes_file).items() if name != "about"]
    labels = [int(digit) for hand in hands for digit in hand]
    return [draw(strokes, PENS[pen]) for hand in hands for strokes in hand.values()], np.array(labels)


def draw(strokes: list[list[list[float]]], pen: float, size: int = 200) -> NDArray[np.uint8]:
    """Draw strokes, lists of points x, y from 0 to 100, on a page [size, size] with a margin of a fifth.

    Each stroke is a cubic spline through its points, or a straight line through two.
    """
    fine = 4
    page = Image.new("L", (size * fine, size * fine), 225)
    canvas = ImageDraw.Draw(page)
    scale = 0.6 * size * fine / 100
    radius = pen * scale / 2
    for stroke in strokes:
        for x, y in curve(np.array(stroke, float)) * scale + 0.2 * size * fine:
            canvas.ellipse((x - radius, y - radius, x + radius, y + radius), 40)
    return np.asarray(page.resize((size, size), Image.Resampling.BOX))


def curve(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points x, y along a cubic spline through `points` [N, 2], or a straight line through two, 4 a unit."""
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    spline = make_interp_spline(along, points, k=min(3, len(points) - 1))
    return np.asarray(spline(np.linspace(0, along[-1], int(along[-1]) * 4)))
