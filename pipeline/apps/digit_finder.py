"""From a photograph, a scan or a drawing to digits in MNIST's form, found in reading order.

Shapes: H rows, W columns of a page or a part of it; N digits.
Ink is float64 [H, W] from 0, the paper, to 1, the pen at its darkest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from pipeline.base.errors import UserError
from pipeline.base.schema import Data

Ink = NDArray[np.float64]

DIGITS = list("0123456789")  # the classes that are found
MAX_DIGITS = 1000  # on a page
FIELD, BOX = 28, 20  # of MNIST: pixels of the side of an image, and of the square that holds the digit
MIN_STROKE = 1.8  # pixels in the field; strokes of a tenth of MNIST's training digits are thinner
MIN_CONTRAST = 0.1  # of ink to paper, as a share of the whole range: with less, a page is empty
MAX_BORDER_INK = 0.02  # share of a page's border; more ink there is the edge of the sheet, on a table for example
SINGLE = 64  # pixels: an image no larger holds one digit


class Box(NamedTuple):
    """Position of a digit on its page, in pixels; bottom and right lie just outside."""

    top: int
    left: int
    bottom: int
    right: int

    def common(self, other: Box) -> tuple[int, int]:
        """Return the height and width that both have in common, negative where they are apart."""
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return height, min(self.right, other.right) - max(self.left, other.left)

    @property
    def sides(self) -> tuple[int, int]:
        return self.common(self)


class Page(NamedTuple):
    """A page with its digits in reading order."""

    image: NDArray[np.uint8]  # [H, W], grey, upright
    boxes: list[Box]
    digits: NDArray[np.uint8]  # [N, 28, 28], white on black as in MNIST


def finds_classes_of(data: Data) -> bool:
    """Return whether a model of these data takes the digits that are found here."""
    return data.classes == DIGITS and data.shape == [FIELD, FIELD]


def find_digits(image: NDArray[np.uint8]) -> Page:
    """Find the digits of a page, uint8 [H, W]; a page without any is a UserError."""
    ink = find_ink(image)
    digits = [(Box(0, 0, *image.shape), ink)] if max(image.shape) <= SINGLE else _separated(ink)
    return Page(image, [box for box, _ in digits], np.stack([to_mnist_form(own_ink) for _, own_ink in digits]))


def find_ink(image: NDArray[np.uint8]) -> Ink:
    """Return the ink of a page, uint8 [H, W], whichever of ink and paper is dark; no contrast is a UserError."""
    values = image / 255.0
    if max(image.shape) <= SINGLE:  # its greys are of pixels that the pen covers in part
        contrast = _ink_side(values - np.median(_border(values)))
        ink = contrast / contrast.max() if contrast.max() >= MIN_CONTRAST else None
    else:
        ink = None
        for difference in (_from_paper, _from_border, _from_surroundings):
            scaled = _scaled(difference(values))
            if scaled is not None and np.mean(_border(scaled) > 0.5) <= MAX_BORDER_INK:
                return scaled
            ink = scaled if ink is None else ink
    if ink is None:
        raise UserError("the page is empty, or its ink too faint: give an image with digits that stand out")
    return ink


def _border(values: Ink) -> Ink:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _ink_side(difference: Ink) -> Ink:
    """Return the contrast of the ink, dark or light: it is rare and far from the paper."""
    return np.maximum(difference if np.sum(difference**3) > 0 else -difference, 0)


def _scaled(difference: Ink) -> Ink | None:
    """Return the ink in a page's difference from its paper, or None where there is only noise."""
    contrast = _ink_side(difference)
    noise = 1.5 * float(np.median(np.abs(difference - np.median(difference))))  # most of a page is paper
    threshold = _otsu(contrast)
    pen = float(np.median(contrast[contrast > threshold])) if (contrast > threshold).any() else 0.0
    if pen < max(MIN_CONTRAST, 4 * noise):
        return None
    low = min(threshold / 2, 2 * noise + threshold / 4)
    return np.clip((contrast - low) / (pen - low), 0, 1)


def _from_paper(values: Ink) -> Ink:
    """Subtract the median of a wide neighbourhood, and with it light that varies slowly."""
    step = -(-max(values.shape) // 100)
    coarse = values[::step, ::step]
    window = max(3, min(coarse.shape) // 2)
    paper = ndimage.gaussian_filter(ndimage.median_filter(coarse, window, mode="nearest"), window / 4)
    return values - ndimage.map_coordinates(paper, np.indices(values.shape) / step, order=1, mode="nearest")


def _from_border(values: Ink) -> Ink:
    """Subtract the border where it is even and encloses no sheet, as of a digit cut out tightly; else return zeros."""
    border = _border(values)
    difference = values - np.median(border)
    differs = np.abs(difference) > 0.25
    is_even = np.mean(np.abs(border - np.median(border)) < 0.1) >= 0.9 and differs.any()
    height, width = _cropped(differs.astype(float)).shape
    is_sheet = differs.sum() > 0.7 * height * width and max(height, width) < 3 * min(height, width)
    return difference if is_even and not is_sheet else np.zeros_like(values)


def _from_surroundings(values: Ink) -> Ink:
    """Subtract whatever is wider than a stroke (a top-hat filter), such as a sheet and the table it lies on."""
    size = min(values.shape) // 8 | 1
    smooth = np.pad(ndimage.median_filter(values, 3), size, mode="edge")
    hats = ndimage.black_tophat(smooth, size), ndimage.white_tophat(smooth, size)
    dark, light = (hat[size:-size, size:-size] for hat in hats)
    # Narrow paper between strokes stands out as strokes do; strokes are rarer.
    share = [np.mean(hat > 0.25) or 1.0 for hat in (dark, light)]
    return dark if share[0] < share[1] else light


def _otsu(values: Ink) -> float:
    """Return the threshold that separates values from 0 to 1 into the two most different classes (Otsu 1979)."""
    counts, edges = np.histogram(values, 256, (0, 1))
    below, weighted = np.cumsum(counts), np.cumsum(counts * (edges[:-1] + edges[1:]) / 2)
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (weighted / below - (weighted[-1] - weighted) / above) ** 2
    return float(edges[np.nanargmax(between) + 1]) if np.isfinite(between).any() else 1.0


class _Part(NamedTuple):
    labels: list[int]  # of connected components
    box: Box


def _separated(ink: Ink) -> list[tuple[Box, Ink]]:
    """Return each digit's box and its own ink within the box, in reading order. Digits that touch are not separated."""
    reach = max(1, max(ink.shape) // 400)
    near = ndimage.binary_dilation(ink > 0.5, iterations=reach)
    labels, _ = ndimage.label(near, np.ones((3, 3)))
    windows = enumerate(ndimage.find_objects(labels), 1)
    parts = [_Part([label], Box(y.start, x.start, y.stop, x.stop)) for label, (y, x) in windows]
    sizes = np.array([max(part.box.sides) for part in parts])
    usual = float(np.median(sizes[sizes >= sizes.max() / 4]))
    parts = [part for part in _joined(parts, usual) if max(part.box.sides) >= usual / 3]
    if len(parts) > MAX_DIGITS:
        raise UserError(f"the page holds {len(parts):,} shapes, expected {MAX_DIGITS:,} digits at most: cut it")
    digits = []
    for own, box in _in_reading_order(parts):
        window = slice(box.top, box.bottom), slice(box.left, box.right)
        digits.append((box, np.where(np.isin(labels[window], own), ink[window], 0)))
    return digits


def _joined(parts: list[_Part], usual: float) -> list[_Part]:
    """Join parts above one another: common is half of the narrower one's width, and the gap is below `usual` / 4."""
    joined: list[_Part] = []
    near: list[int] = []  # those of `joined` that a part further down may still reach
    for labels, box in sorted(parts, key=lambda part: part.box.top):
        near = [index for index in near if box.top - joined[index].box.bottom < usual / 4]
        for index in near:
            other = joined[index].box
            height, width = box.common(other)
            if width < min(box.sides[1], other.sides[1]) / 2 or height > min(box.sides[0], other.sides[0]) / 2:
                continue
            whole = Box(*map(min, box[:2], other[:2]), *map(max, box[2:], other[2:]))
            if whole.sides[0] <= 1.5 * max(usual, *box.sides, *other.sides):
                joined[index] = _Part(joined[index].labels + labels, whole)
                break
        else:
            near.append(len(joined))
            joined.append(_Part(labels, box))
    return joined


def _in_reading_order(parts: list[_Part]) -> list[_Part]:
    """Sort by lines: from the left, each part joins the line whose last one it overlaps most in height, if by half."""
    lines: list[list[_Part]] = []
    for part in sorted(parts, key=lambda part: part.box.left):
        ends = [line[-1].box for line in lines]
        overlaps = [part.box.common(end)[0] / min(part.box.sides[0], end.sides[0]) for end in ends]
        if overlaps and max(overlaps) >= 0.5:
            lines[int(np.argmax(overlaps))].append(part)
        else:
            lines.append([part])
    lines.sort(key=lambda line: float(np.mean([part.box.top + part.box.bottom for part in line])))
    return [part for line in lines for part in line]


def to_mnist_form(ink: Ink) -> NDArray[np.uint8]:
    """Return one digit as uint8 [28, 28] from its ink [H, W], made as MNIST was (yann.lecun.com/exdb/mnist).

    It is fitted into 20 x 20, its edges smooth, its centre of mass on pixel 14 of 28, as in MNIST on average. Strokes
    thinner than MNIST's are widened first: a fine pen on a large sheet would leave next to nothing.
    """
    fine = 4  # times finer than the field, for widening
    large = _fitted(_cropped(ink), BOX * fine)
    radius = (MIN_STROKE * fine - stroke_width(large)) / 2
    if radius > 0:
        reach = np.arange(-int(radius), int(radius) + 1)
        disc = reach[:, None] ** 2 + reach**2 <= radius**2
        large = ndimage.grey_dilation(np.pad(large, int(radius) + 1), footprint=disc)
    return centred(_fitted(_cropped(large), BOX))


def stroke_width(ink: Ink) -> float:
    """Return the mean width of strokes in pixels: those of a band of width w lie w / 4 + 1 / 2 deep on average."""
    depth = ndimage.distance_transform_edt(np.pad(ink, 1) > 0.5)
    return 4 * float(depth[depth > 0].mean()) - 2 if depth.any() else 0.0


def centred(ink: Ink) -> NDArray[np.uint8]:
    """Put ink of at most 28 x 28 into a field of uint8 [28, 28], whole, its centre of mass in the centre."""
    mass = ndimage.center_of_mass(ink) if ink.any() else (ink.shape[0] / 2, ink.shape[1] / 2)
    sides = zip(mass, ink.shape, strict=True)
    row, column = (min(max(round(FIELD / 2 - centre), 0), FIELD - size) for centre, size in sides)
    field = np.zeros((FIELD, FIELD))
    field[row : row + ink.shape[0], column : column + ink.shape[1]] = ink
    return np.rint(field * (255 / max(field.max(), 1e-9))).astype(np.uint8)


def _cropped(ink: Ink) -> Ink:
    rows, columns = (np.flatnonzero((ink > 0.25).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink


def _fitted(ink: Ink, size: int) -> Ink:
    """Resample so that the longer side has `size` pixels."""
    ratio = size / max(ink.shape)
    height, width = (max(1, round(side * ratio)) for side in ink.shape)
    method = Image.Resampling.BOX if ratio < 1 else Image.Resampling.BICUBIC
    resized = Image.fromarray(ink.astype(np.float32)).resize((width, height), method)
    return np.clip(np.asarray(resized, np.float64), 0, 1)
