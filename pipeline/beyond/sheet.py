"""From a photograph, a scan or a drawing to digits in MNIST's form, found in reading order.

Shapes: H rows, W columns of an image of any size; N digits.
Ink is float64 [H, W] from 0, the paper, to 1, the pen at its darkest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.config import PipelineError

Ink = NDArray[np.float64]

DIGITS = list("0123456789")  # the classes that this is of
MOST_DIGITS = 1000  # on a sheet
FIELD, BOX = 28, 20  # of MNIST: pixels of the side of an image, and of the square that holds the digit
STROKE = 1.8  # pixels: the least width of strokes in the field; a tenth of MNIST's training digits have thinner ones
FAINTEST = 0.1  # contrast of ink to paper, of the whole range: less is an empty page
MOST_RIM = 0.02  # of the rim of a page, covered by ink: with more it is the rim of something else, as of a table
EMPTY = "the page is empty, or its ink too faint: give an image with digits that stand out"
SINGLE = 64  # pixels: an image no larger holds one digit


class Box(NamedTuple):
    """Of a digit on its sheet, in pixels; bottom and right lie just outside."""

    top: int
    left: int
    bottom: int
    right: int


class Sheet(NamedTuple):
    """What was found, in reading order."""

    page: NDArray[np.uint8]  # [H, W], grey, upright, the one that boxes are of
    boxes: list[Box]
    digits: NDArray[np.uint8]  # [N, 28, 28], white on black as in MNIST


def read_sheet(page: NDArray[np.uint8]) -> Sheet:
    """Find the digits of a page, uint8 [H, W]; a page without any is a PipelineError."""
    ink = find_ink(page)
    boxes = [(Box(0, 0, *page.shape), ink)] if max(page.shape) <= SINGLE else find_boxes(ink)
    return Sheet(page, [box for box, _ in boxes], np.stack([to_field(part) for _, part in boxes]))


def find_ink(page: NDArray[np.uint8]) -> Ink:
    """Ink of a page [H, W], dark on light or light on dark, under light that may differ from place to place.

    A page without contrast is a PipelineError.
    """
    values = page / 255.0
    if max(page.shape) <= SINGLE:  # its greys are of pixels that the pen covers in part
        contrast = _one_way(values - np.median(_rim(values)))
        if contrast.max() < FAINTEST:
            raise PipelineError(EMPTY)
        return contrast / contrast.max()
    found = []
    for difference in (_off_paper, _off_rim, _top_hat):
        ink = _levels(difference(values))
        if ink is not None and np.mean(_rim(ink) > 0.5) <= MOST_RIM:
            return ink
        found.append(ink)
    framed = [ink for ink in found if ink is not None]
    if not framed:
        raise PipelineError(EMPTY)
    return framed[0]


def _rim(values: Ink) -> NDArray[np.float64]:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _one_way(difference: Ink) -> Ink:
    """The contrast of ink, which is the rarer and far from the paper, whichever is dark."""
    return np.maximum(difference if np.sum(difference**3) > 0 else -difference, 0)


def _levels(difference: Ink | None) -> Ink | None:
    """Ink from what differs from the paper, or None where that is but noise."""
    if difference is None:
        return None
    contrast = _one_way(difference)
    noise = 1.5 * float(np.median(np.abs(difference - np.median(difference))))  # most of a page is paper
    split = _otsu(contrast)
    pen = float(np.median(contrast[contrast > split])) if (contrast > split).any() else 0.0
    if pen < max(FAINTEST, 4 * noise):
        return None
    low = min(split / 2, 2 * noise + split / 4)
    return np.clip((contrast - low) / (pen - low), 0, 1)


def _off_paper(values: Ink) -> Ink:
    """Against the median of a wide neighbourhood: light that changes slowly is none of the ink's."""
    step = math.ceil(max(values.shape) / 100)
    coarse = values[::step, ::step]
    window = max(3, min(coarse.shape) // 2)
    paper = ndimage.gaussian_filter(ndimage.median_filter(coarse, window, mode="nearest"), window / 4)
    sizes = zip(values.shape, coarse.shape, strict=True)
    rows, columns = (np.minimum(np.arange(size) / step, of - 1) for size, of in sizes)
    return values - ndimage.map_coordinates(paper, np.meshgrid(rows, columns, indexing="ij"), order=1)


def _off_rim(values: Ink) -> Ink | None:
    """Against the rim, where that is even and what differs from it is no sheet: a digit that was cut out tightly."""
    rim = _rim(values)
    difference = values - np.median(rim)
    differs = np.abs(difference) > 0.25
    if np.mean(np.abs(rim - np.median(rim)) < 0.1) < 0.9 or not differs.any():
        return None
    height, width = _cropped(differs.astype(float)).shape
    is_sheet = differs.sum() > 0.7 * height * width and max(height, width) < 3 * min(height, width)
    return None if is_sheet else difference


def _top_hat(values: Ink) -> Ink:
    """Against what is wider than a stroke: the paper's edge on a table is none."""
    size = min(values.shape) // 8 | 1
    still = np.pad(ndimage.median_filter(values, 3), size, mode="edge")
    hats = ndimage.grey_closing(still, size) - still, still - ndimage.grey_opening(still, size)
    dark, light = (hat[size:-size, size:-size] for hat in hats)
    # Narrow paper between strokes stands out as strokes do; strokes are the rarer.
    share = [np.mean(hat > 0.25) or 1.0 for hat in (dark, light)]
    return dark if share[0] < share[1] else light


def _otsu(values: Ink) -> float:
    """The threshold that parts values of 0 to 1 into the two most unlike classes (Otsu 1979)."""
    counts, edges = np.histogram(values, 256, (0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below, weighted = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (weighted / below - (weighted[-1] - weighted) / above) ** 2
    return float(edges[np.nanargmax(between) + 1]) if np.isfinite(between).any() else 1.0


def find_boxes(ink: Ink) -> list[tuple[Box, Ink]]:
    """The digits of a sheet, in reading order: the box of each, and its own ink alone within the box.

    A digit is ink that hangs together; parts that lie above one another and close, as the bar of a 5, are joined.
    Digits that touch are not parted.
    """
    reach = max(1, max(ink.shape) // 400)
    near = ndimage.binary_dilation(ink > 0.5, iterations=reach)
    labels, count = ndimage.label(near, np.ones((3, 3)))
    parts = [_Part([number + 1], *_limits(found)) for number, found in enumerate(ndimage.find_objects(labels))]
    if count > 50 * MOST_DIGITS:
        raise PipelineError(f"the page holds {count:,} spots of ink: give digits on plain paper")
    sizes = np.array([part.size for part in parts])
    usual = float(np.median(sizes[sizes >= sizes.max() / 4]))
    parts = [part for part in _joined(parts, usual) if part.size >= usual / 3]
    if len(parts) > MOST_DIGITS:
        raise PipelineError(f"the page holds {len(parts):,} shapes, expected {MOST_DIGITS:,} digits at most: cut it")
    found = []
    for part in _reading_order(parts):
        window = slice(part.top, part.bottom), slice(part.left, part.right)
        own = np.isin(labels[window], part.labels)
        found.append((Box(part.top, part.left, part.bottom, part.right), np.where(own, ink[window], 0)))
    return found


class _Part(NamedTuple):
    labels: list[int]
    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> int:
        return max(self.bottom - self.top, self.right - self.left)


def _limits(window: tuple[slice, slice]) -> tuple[int, int, int, int]:
    rows, columns = window
    return rows.start, columns.start, rows.stop, columns.stop


def _joined(parts: list[_Part], usual: float) -> list[_Part]:
    """Join what lies above one another: half of the narrower one's width, and less than a quarter digit apart."""
    joined: list[_Part] = []
    near: list[int] = []  # of `joined`, those that a part further down may still reach
    for part in sorted(parts, key=lambda part: part.top):
        near = [place for place in near if part.top - joined[place].bottom < usual / 4]
        for place in near:
            other = joined[place]
            heights = part.bottom - part.top, other.bottom - other.top
            beside = min(part.bottom, other.bottom) - part.top > min(heights) / 2
            overlap = min(part.right, other.right) - max(part.left, other.left)
            narrower = min(part.right - part.left, other.right - other.left)
            height = max(part.bottom, other.bottom) - other.top
            tall = height > 1.5 * max(usual, part.size, other.size)
            if overlap >= narrower / 2 and not beside and not tall:
                joined[place] = _Part(
                    other.labels + part.labels,
                    other.top,
                    min(part.left, other.left),
                    max(part.bottom, other.bottom),
                    max(part.right, other.right),
                )
                break
        else:
            near.append(len(joined))
            joined.append(part)
    return joined


def _reading_order(parts: Sequence[_Part]) -> list[_Part]:
    """Line by line: from the left, each joins the line whose last digit it overlaps most in height, if by half."""
    lines: list[list[_Part]] = []
    for part in sorted(parts, key=lambda part: part.left):

        def shared(line: list[_Part], part: _Part = part) -> float:
            last = line[-1]
            overlap = min(part.bottom, last.bottom) - max(part.top, last.top)
            return overlap / min(part.bottom - part.top, last.bottom - last.top)

        best = max(lines, key=shared, default=None)
        if best is not None and shared(best) >= 0.5:
            best.append(part)
        else:
            lines.append([part])
    lines.sort(key=lambda line: float(np.mean([part.top + part.bottom for part in line])))
    return [part for line in lines for part in line]


def to_field(ink: Ink) -> NDArray[np.uint8]:
    """One digit in MNIST's form, uint8 [28, 28], from its ink [H, W].

    As MNIST was made (yann.lecun.com/exdb/mnist): fitted into 20 x 20 with its aspect kept and its edges smooth, its
    centre of mass in the centre of 28 x 28 (on pixel 14, where MNIST has it on average). Strokes thinner than those of
    MNIST are widened first: a fine pen on a large sheet would leave next to nothing.
    """
    fine = 4  # times finer than the field, to widen in
    large = _fitted(_cropped(ink), BOX * fine)
    width = stroke_width(large)
    if width < STROKE * fine:
        radius = (STROKE * fine - width) / 2
        large = np.pad(large, int(radius) + 1)
        large = ndimage.grey_dilation(large, footprint=_disc(radius))
    return centred(_fitted(_cropped(large), BOX))


def stroke_width(ink: Ink) -> float:
    """The mean width of strokes, in pixels: those of a band of width w lie w / 4 + 1 / 2 deep on average."""
    depth = ndimage.distance_transform_edt(np.pad(ink, 1) > 0.5)
    return 4 * float(depth[depth > 0].mean()) - 2 if depth.any() else 0.0


def centred(ink: Ink) -> NDArray[np.uint8]:
    """Put ink of at most 28 x 28 into a field of uint8 [28, 28], whole, its centre of mass in the centre."""
    mass = ndimage.center_of_mass(ink) if ink.any() else (ink.shape[0] / 2, ink.shape[1] / 2)
    corner = [
        min(max(round(FIELD / 2 - centre), 0), FIELD - size) for centre, size in zip(mass, ink.shape, strict=True)
    ]
    field = np.zeros((FIELD, FIELD))
    field[corner[0] : corner[0] + ink.shape[0], corner[1] : corner[1] + ink.shape[1]] = ink
    return np.rint(field * (255 / max(field.max(), 1e-9))).astype(np.uint8)


def _cropped(ink: Ink) -> Ink:
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    if not len(rows):
        return ink
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _fitted(ink: Ink, size: int) -> Ink:
    """Resampled so that the longer side has `size` pixels."""
    scale = size / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    resized = Image.fromarray(ink.astype(np.float32)).resize((width, height), method)
    return np.clip(np.asarray(resized, np.float64), 0, 1)


def _disc(radius: float) -> NDArray[np.bool_]:
    reach = np.arange(-int(radius), int(radius) + 1)
    return reach[:, None] ** 2 + reach**2 <= radius**2
