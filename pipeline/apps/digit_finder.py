"""From a photograph, a scan or a drawing to digits in MNIST's form, found in reading order.

Shapes: H rows, W columns of a page or a part of it; N digits.
Ink is float64 [H, W] from 0, the paper, to 1, the pen at its darkest.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.apps.ink import MIN_CONTRAST, Box, Values, around, levels, reduced
from pipeline.apps.mnist_form import FIELD, Ink, to_mnist_form
from pipeline.apps.shapes import MAX_DIGITS, Shape, is_bar, shapes_of, too_many, weight, without_frames
from pipeline.base.errors import UserError
from pipeline.base.schema import Data

DIGITS = list("0123456789")  # the classes that are found
SINGLE = 64  # pixels: an image no larger, and no wider than high, holds one digit
ENOUGH = 1200  # pixels of the longer side, to see whether ink or paper is dark
PLAIN = -2.0  # skewness that tells dark ink; of bold light digits, cut out tightly, it was -0.5 at least
FAINT = 0.4  # share of the usual contrast
EMPTY = "the page is empty, or its ink too faint: give an image with digits that stand out"


class Page(NamedTuple):
    """A page with its digits in reading order."""

    image: NDArray[np.uint8]  # [H, W], grey, upright
    boxes: list[Box]
    digits: NDArray[np.uint8]  # [N, 28, 28], white on black as in MNIST
    joined: NDArray[np.bool_]  # [N], it is as wide as several digits, and nowhere thin enough to be cut
    left_out: int = 0  # other shapes: far larger, smaller or paler than the digits, or lines


def finds_classes_of(data: Data) -> bool:
    """Return whether a model of these data takes the digits that are found here."""
    return data.classes == DIGITS and data.shape == [FIELD, FIELD]


def find_digits(image: NDArray[np.uint8]) -> Page:
    """Find the digits of a page, uint8 [H, W]; a page without any is a UserError."""
    height, width = image.shape
    if max(height, width) <= SINGLE and width <= 1.25 * height:
        one = to_mnist_form(_ink_of_one(image / 255.0))
        return Page(image, [Box(0, 0, height, width)], one[None], np.zeros(1, bool))
    looks = map(_digits, _with_dark_ink(image.astype(np.float32) / 255))
    found, left_out = max(looks, key=lambda look: _likeness(look[0]))
    if not found:
        raise UserError(EMPTY)
    if len(found) > MAX_DIGITS:
        raise too_many(len(found))
    ordered = _in_reading_order(found)
    digits = np.stack([to_mnist_form(one.ink) for one in ordered])
    boxes = [Box(top, left, min(bottom, height), min(right, width)) for (top, left, bottom, right), *_ in ordered]
    return Page(image, boxes, digits, np.array([one.is_joined for one in ordered]), left_out)


def _with_dark_ink(values: Values) -> list[Values]:
    """Return a page as it is or inverted, so that its ink is dark, or both, where a small look does not tell.

    Ink is rare, and far from the paper, so the skewness of what stands out mostly tells. It is asked of dark ink alone:
    what gleams on a page may outweigh pale strokes.
    """
    factor = -(-max(values.shape) // ENOUGH)
    small = reduced(values, factor)
    difference = small - around(small, 1)
    skewness = np.mean(difference**3) / (np.mean(difference**2) + 1e-6) ** 1.5
    if skewness < PLAIN:
        return [values]
    dark, light = (_likeness(_digits(one)[0]) if factor > 1 else 0 for one in (small, 1 - small))
    return [values] * (dark >= light) + [1 - values] * (light >= dark)


def _likeness(found: list[Shape]) -> float:
    """Return how much speaks for these as the ink, not the paper. With both confused, the holes in digits are found, or
    a whole sheet."""
    return sum(map(weight, found))


def _ink_of_one(values: Ink) -> Ink:
    """Return the ink of a small image: its greys are of pixels that the pen covers in part."""
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    paper = np.median(border)
    noise = 4 * np.median(np.abs(border - paper))
    difference = values - paper
    contrast = difference if np.sum(difference**3) > 0 else -difference  # ink is rare, and far from the paper
    contrast = np.maximum(contrast - noise, 0)
    if contrast.max() < MIN_CONTRAST:
        raise UserError(EMPTY)
    return contrast / contrast.max()


def _digits(values: Values) -> tuple[list[Shape], int]:
    """Return the digits of a page with dark ink, each from the finest level at which it is no larger than LARGEST, and
    how many shapes are left out beside them."""
    found: list[Shape] = []
    for level in levels(values):
        found = without_frames([*found, *shapes_of(level)], len(found))
    if not found:
        return [], 0
    signs = [one for one in found if not is_bar(one)] or found
    weights = np.array(list(map(weight, signs)))  # specks and patches, as of a cloth, weigh little
    usual = _quantile(np.array([max(one.box.sides) for one in signs]), weights, 0.5)
    pen = _quantile(np.array([one.contrast for one in signs]), weights, 0.9)  # not that of a grid's many pieces

    def fits(one: Shape) -> bool:
        height, width = one.box.sides
        is_rule = is_bar(one) and (height > 1.5 * usual or one.contrast < 0.75 * pen)  # of a form, or a grid
        return usual / 3 <= max(height, width) <= 4 * usual and one.contrast >= FAINT * pen and not is_rule

    kept = list(filter(fits, found))
    return kept, len(found) - len(kept)


def _quantile(values: NDArray[np.number], weights: NDArray[np.number], share: float) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), share * weights.sum())])


def _in_reading_order(parts: list[Shape]) -> list[Shape]:
    """Sort by lines: from the left, each part joins the line whose last one it overlaps most in height, if by half."""
    lines: list[list[Shape]] = []
    ends = np.zeros((len(parts), 2))  # top and bottom of the last one of each line
    for part in sorted(parts, key=lambda part: part.box.left):
        top, bottom = part.box.top, part.box.bottom
        tops, bottoms = ends[: len(lines)].T
        overlaps = (np.minimum(bottoms, bottom) - np.maximum(tops, top)) / np.minimum(bottoms - tops, bottom - top)
        best = int(np.argmax(overlaps)) if lines else 0
        if lines and overlaps[best] >= 0.5:
            lines[best].append(part)
        else:
            best = len(lines)
            lines.append([part])
        if bottom - top > 0.6 * (ends[best, 1] - ends[best, 0]):  # a comma does not move the line
            ends[best] = top, bottom
    lines.sort(key=lambda line: float(np.mean([part.box.top + part.box.bottom for part in line])))
    return [part for line in lines for part in line]
