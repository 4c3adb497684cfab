"""Shapes on a page that may be digits: parts of a level, cut where digits touch, without frames and patches.

Shapes: H rows, W columns of a page; h, w of a part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.apps.ink import LARGEST, LEAST, Box, Level, Values, Window, ink_of, joined, parts
from pipeline.apps.mnist_form import Ink, stroke_width
from pipeline.base.errors import UserError

MAX_DIGITS = 1000  # on a page
FULL = 0.85  # share of its box that the ink of a digit does not fill, unless it is a bar
USUAL_WIDTH = 0.68  # of a digit, as a share of its height


class Shape(NamedTuple):
    """What may be a digit."""

    box: Box  # on the page
    ink: Ink
    contrast: float  # of the pen, as a share of the paper, so that a shadow does not matter
    area: int  # pixels of ink on the page
    is_joined: bool  # as in Page


def shapes_of(level: Level) -> Iterator[Shape]:
    """Yield the shapes of a level that no finer one shows whole."""
    differences = (level.values - level.paper)[level.labels == 0][::16]
    noise = 1.5 * float(np.median(np.abs(differences))) if differences.size else 0.0
    least = LEAST if level.factor == 1 else LARGEST // 2 - 2  # sizes are rounded
    border = np.concatenate([level.labels[[0, -1]].ravel(), level.labels[:, [0, -1]].ravel()])
    border = np.bincount(border, minlength=int(level.labels.max()) + 1)  # pixels of each component
    found = parts(level)
    if len(found) > 5 * MAX_DIGITS:
        raise too_many(len(found))
    for labels, box in joined(found):
        height, width = box.sides
        if max(height, width) < least or width > 8 * height:  # a speck, or a line
            continue
        window = slice(max(box.top - 3, 0), box.bottom + 3), slice(max(box.left - 3, 0), box.right + 3)
        own = functools.reduce(np.logical_or, (level.labels[window] == label for label in labels))
        at_border = float(border[list(labels)].sum() / border.sum())
        if at_border > 0.4 or (own.sum() > FULL * height * width and (height < 3.2 * width or at_border > 0.1)):
            continue  # a patch, of a table perhaps
        if width < height / 4 and _is_between_lines(level, window, own):  # in a row of boxes
            continue
        ink, contrast = ink_of(level, window, own, noise)
        if contrast:
            yield from _pieces(level.factor, box, window, own, ink, contrast)


def _is_between_lines(level: Level, window: Window, own: NDArray[np.bool_]) -> bool:
    """Return whether a part ends at ruled lines above and below that are as dark as it."""
    lines, values = level.lines[window], level.values[window]
    return bool(lines[:5].any() and lines[-5:].any() and values[lines].mean() < values[own].mean() + 0.1)


def _pieces(
    factor: int, box: Box, window: Window, own: NDArray[np.bool_], ink: Values, contrast: float
) -> Iterator[Shape]:
    """Yield a part of a level, cut where several digits touch."""
    rows_from, start = (part.start for part in window)
    cuts, is_joined = _cuts(own[:, box.left - start : box.right - start], box.sides[0])
    for first, last in pairwise([box.left, *(box.left + cut for cut in cuts), box.right]):
        piece = ink[:, max(first - 1 - start, 0) : last + 1 - start].astype(float)
        inside = own[:, first - start : last - start]
        rows = np.flatnonzero(inside.any(1)) + rows_from
        if not len(rows):
            continue
        part = Box(int(rows[0]), first, int(rows[-1]) + 1, last)
        yield Shape(Box(*(factor * side for side in part)), piece, contrast, factor**2 * int(inside.sum()), is_joined)


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


def without_frames(found: list[Shape], finer: int) -> list[Shape]:
    """Return shapes without frames around digits, and without specks inside of digits.

    The first `finer` of them are of finer levels, and were looked at with those.
    """
    boxes = np.array([one.box for one in found]).reshape(-1, 4)
    values = np.array([(max(one.box.sides), one.area, one.contrast) for one in found])
    spaces = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    dropped = set[int]()
    for number, one in enumerate(found[finer:], finer):
        common = np.minimum(boxes[:, 2:], one.box[2:]) - np.maximum(boxes[:, :2], one.box[:2])
        shared = np.prod(np.maximum(common, 0), axis=1)
        inside = np.flatnonzero(shared > 0.5 * spaces)
        inside = inside[inside != number]
        if len(inside) and not _is_hollow(one):  # pieces of lines may lie around it
            inside = inside[inside < finer]
        sizes, areas, contrasts = (values[inside] / values[number]).T
        # A digit is over half as high as its frame or has a quarter of its ink, and the dot or dash of a zero neither.
        is_frame = len(inside) >= 3 or (((sizes > 0.5) | (areas > 0.25)) & (contrasts > 0.6)).any()
        if is_frame or shared[:finer].sum() > 0.5 * spaces[number]:  # a piece of a line of digits that are known
            dropped.add(number)
        else:  # specks, or the dot of a zero; what is far darker than what is around it stays
            dropped.update(inside[contrasts < 2].tolist())
    return [one for index, one in enumerate(found) if index not in dropped]


def _is_hollow(one: Shape) -> bool:
    top, left = (side // 3 for side in one.ink.shape)
    return not (one.ink[top:-top, left:-left] > 0.5).any()


def is_bar(one: Shape) -> bool:
    return one.box.sides[1] < one.box.sides[0] / 7


def weight(one: Shape) -> float:
    """Return how much a shape looks like a digit: it is large, and leaves most of its box free."""
    return max(one.box.sides) * (1 - one.area / math.prod(one.box.sides)) ** 2


def too_many(shapes: int) -> UserError:
    return UserError(f"the page holds {shapes:,} shapes, expected {MAX_DIGITS:,} digits at most: cut it")
