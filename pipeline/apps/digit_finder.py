"""From a photograph, a scan or a drawing to digits in MNIST's form, found in reading order.

Shapes: H rows, W columns of a page or a part of it; N digits.
Ink is float64 [H, W] from 0, the paper, to 1, the pen at its darkest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.apps.ink import (
    LARGEST,
    LEAST,
    MIN_CONTRAST,
    Box,
    Level,
    Values,
    Window,
    ink_of,
    joined,
    levels,
    parts,
    reduced,
)
from pipeline.apps.mnist_form import FIELD, Ink, stroke_width, to_mnist_form
from pipeline.base.errors import UserError
from pipeline.base.schema import Data

DIGITS = list("0123456789")  # the classes that are found
MAX_DIGITS = 1000  # on a page
SINGLE = 64  # pixels: an image no larger, and no wider than high, holds one digit
ENOUGH = 1200  # pixels of the longer side, to see whether ink or paper is dark
FULL = 0.85  # share of its box that the ink of a digit does not fill, unless it is a bar
FAINT = 0.4  # share of the usual contrast
USUAL_WIDTH = 0.68  # of a digit, as a share of its height
EMPTY = "the page is empty, or its ink too faint: give an image with digits that stand out"


class Page(NamedTuple):
    """A page with its digits in reading order."""

    image: NDArray[np.uint8]  # [H, W], grey, upright
    boxes: list[Box]
    digits: NDArray[np.uint8]  # [N, 28, 28], white on black as in MNIST
    joined: NDArray[np.bool_]  # [N], it is as wide as several digits, and nowhere thin enough to be cut
    left_out: int = 0  # other shapes: far larger, smaller or paler than the digits, or lines


class _Found(NamedTuple):
    box: Box  # on the page
    ink: Ink
    contrast: float  # of the pen, as a share of the paper, so that a shadow does not matter
    area: int  # pixels of ink on the page
    is_joined: bool  # as in Page


def finds_classes_of(data: Data) -> bool:
    """Return whether a model of these data takes the digits that are found here."""
    return data.classes == DIGITS and data.shape == [FIELD, FIELD]


def find_digits(image: NDArray[np.uint8]) -> Page:
    """Find the digits of a page, uint8 [H, W]; a page without any is a UserError."""
    height, width = image.shape
    if max(height, width) <= SINGLE and width <= 1.25 * height:
        one = to_mnist_form(_ink_of_one(image / 255.0))
        return Page(image, [Box(0, 0, height, width)], one[None], np.zeros(1, bool))
    values = image.astype(np.float32) / 255
    factor = -(-max(height, width) // ENOUGH)
    small = reduced(values, factor)  # mostly enough to see which is ink
    looks = [_digits(small), _digits(1 - small)]
    if factor > 1:
        dark, light = (_strokes(found) for found, _ in looks)
        looks = list(map(_digits, [values] * (dark >= light) + [1 - values] * (light >= dark)))
    found, left_out = max(looks, key=lambda look: _strokes(look[0]))
    if not found:
        raise UserError(EMPTY)
    if len(found) > MAX_DIGITS:
        raise too_many(len(found))
    ordered = _in_reading_order(found)
    digits = np.stack([to_mnist_form(one.ink) for one in ordered])
    boxes = [Box(top, left, min(bottom, height), min(right, width)) for (top, left, bottom, right), *_ in ordered]
    return Page(image, boxes, digits, np.array([one.is_joined for one in ordered]), left_out)


def too_many(shapes: int) -> UserError:
    return UserError(f"the page holds {shapes:,} shapes, expected {MAX_DIGITS:,} digits at most: cut it")


def _strokes(found: list[_Found]) -> float:
    """Return how much speaks for these as the ink, not the paper: digits that leave most of their boxes free. With ink
    and paper confused, the holes in digits are found, or a whole sheet."""
    return sum(max(one.box.sides) * (1 - one.area / math.prod(one.box.sides)) ** 2 for one in found)


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


def _digits(values: Values) -> tuple[list[_Found], int]:
    """Return the digits of a page with dark ink, each from the finest level at which it is no larger than LARGEST, and
    how many shapes are left out beside them."""
    found: list[_Found] = []
    for level in levels(values):
        finer, pieces, fresh = np.array([one.box for one in found]).reshape(-1, 4), set[int](), []
        for one in _of_level(level):
            inside = np.flatnonzero(_share_inside(finer, one.box) > 0.5)
            if len(inside) < 3 and all(found[index].area < one.area / 20 for index in inside):  # specks; else a frame
                pieces.update(inside)
                fresh.append(one)
        found = [one for index, one in enumerate(found) if index not in pieces] + fresh
    if not found:
        return [], 0
    signs = [one for one in found if not _is_bar(one)] or found
    sizes, pens = (np.array(of) for of in zip(*((max(one.box.sides), one.contrast) for one in signs), strict=True))
    usual, pen = (_weighted_median(of, sizes) for of in (sizes, pens))  # specks weigh little

    def fits(one: _Found) -> bool:
        height, width = one.box.sides
        is_rule = _is_bar(one) and (height > 1.5 * usual or one.contrast < 0.75 * pen)  # of a form, or a grid
        return usual / 3 <= max(height, width) <= 4 * usual and one.contrast >= FAINT * pen and not is_rule

    kept = list(filter(fits, found))
    return kept, len(found) - len(kept)


def _is_bar(one: _Found) -> bool:
    return one.box.sides[1] < one.box.sides[0] / 7


def _weighted_median(values: NDArray[np.number], weights: NDArray[np.number]) -> float:
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), weights.sum() / 2)])


def _share_inside(boxes: NDArray[np.int64], other: Box) -> NDArray[np.float64]:
    """Return the shares of `boxes` [N, 4] that lie inside of another."""
    common = np.minimum(boxes[:, 2:], other[2:]) - np.maximum(boxes[:, :2], other[:2])
    return np.prod(np.maximum(common, 0), axis=1) / np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)


def _of_level(level: Level) -> Iterator[_Found]:
    """Yield the digits of a level that no finer one shows whole."""
    differences = (level.values - level.paper)[level.labels == 0][::16]
    noise = 1.5 * float(np.median(np.abs(differences))) if differences.size else 0.0
    least = LEAST if level.factor == 1 else LARGEST // 2 - 2  # sizes are rounded
    border = np.concatenate([level.labels[[0, -1]].ravel(), level.labels[:, [0, -1]].ravel()])
    found = parts(level)
    if len(found) > 5 * MAX_DIGITS:
        raise too_many(len(found))
    for labels, box in joined(found):
        height, width = box.sides
        if max(height, width) < least or width > 8 * height:  # a speck, or a line
            continue
        window = slice(max(box.top - 3, 0), box.bottom + 3), slice(max(box.left - 3, 0), box.right + 3)
        own = np.isin(level.labels[window], labels)
        at_border = float(np.isin(border, labels).mean())
        if at_border > 0.4 or (own.sum() > FULL * height * width and (height < 3.2 * width or at_border > 0.1)):
            continue  # a patch, of a table perhaps
        ink, contrast = ink_of(level, window, own, noise)
        if contrast:
            yield from _pieces(level.factor, box, window, own, ink, contrast)


def _pieces(
    factor: int, box: Box, window: Window, own: NDArray[np.bool_], ink: Values, contrast: float
) -> Iterator[_Found]:
    """Yield a part of a level, cut where several digits touch."""
    rows_from, start = (part.start for part in window)
    cuts, is_joined = _cuts(own[:, box.left - start : box.right - start], box.sides[0])
    for first, last in pairwise([box.left, *(box.left + cut for cut in cuts), box.right]):
        piece = np.zeros_like(ink, float)
        columns = slice(max(first - 1 - start, 0), last + 1 - start)
        piece[:, columns] = ink[:, columns]
        inside = own[:, first - start : last - start]
        rows = np.flatnonzero(inside.any(1)) + rows_from
        if not len(rows):
            continue
        part = Box(int(rows[0]), first, int(rows[-1]) + 1, last)
        yield _Found(Box(*(factor * side for side in part)), piece, contrast, factor**2 * int(inside.sum()), is_joined)


def _cuts(own: NDArray[np.bool_], height: int) -> tuple[list[int], bool]:
    """Return the columns at which digits that touch are cut, and whether there are several that cannot be."""
    width = own.shape[1]
    count = round(width / (USUAL_WIDTH * height))
    if width < 1.1 * height or count < 2:
        return [], False
    columns, stroke = own.sum(0), stroke_width(own.astype(float))
    cuts = []
    for number in range(1, count):
        middle, reach = number * width / count, 0.35 * width / count
        nearby = np.arange(int(middle - reach), int(middle + reach) + 1)
        best = int(nearby[np.argmin(columns[nearby] + np.abs(nearby - middle) / width)])
        if columns[best] > 1.6 * stroke + 1:  # not where two digits touch
            return [], True
        cuts.append(best)
    return cuts, False


def _in_reading_order(parts: list[_Found]) -> list[_Found]:
    """Sort by lines: from the left, each part joins the line whose last one it overlaps most in height, if by half."""
    lines: list[list[_Found]] = []
    for part in sorted(parts, key=lambda part: part.box.left):
        ends = [line[-1].box for line in lines]
        overlaps = [part.box.common(end)[0] / min(part.box.sides[0], end.sides[0]) for end in ends]
        if overlaps and max(overlaps) >= 0.5:
            lines[int(np.argmax(overlaps))].append(part)
        else:
            lines.append([part])
    lines.sort(key=lambda line: float(np.mean([part.box.top + part.box.bottom for part in line])))
    return [part for line in lines for part in line]
