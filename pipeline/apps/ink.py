"""Strokes on a page: connected parts of ink, each found at the size that its strokes need.

Shapes: H rows, W columns of a page; h, w of a part. Values are float32, 0 black to 1 white; ink is dark here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Values = NDArray[np.floating]
Window = tuple[slice, slice]  # rows and columns of a level

LARGEST = 64  # pixels of a part at the level where it is found; there a stroke is at most a quarter of WINDOW wide
WINDOW = 51  # pixels that the local threshold looks at
LEAST = 6  # pixels: what is smaller is a speck
MIN_CONTRAST = 0.1  # of ink to paper, as a share of the whole range: with less, a page is empty
EDGE = 0.3  # share of what surrounds a part that may be as dark as it
SENSITIVITY = 0.2  # Sauvola's k
PALE, PALEST = 0.35, 0.25  # share of the strongest contrast around, and on the page, below which it is no ink
LINE, SHARE = 3 * LARGEST, 0.4  # a ruled line runs straight for so many pixels, and over such a share of the page


class Box(NamedTuple):
    """Position of a part on its page, in pixels; bottom and right lie just outside."""

    top: int
    left: int
    bottom: int
    right: int

    def common(self, other: Box) -> tuple[int, int]:
        """Return the height and width that both have in common, negative where they are apart."""
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return height, min(self.right, other.right) - max(self.left, other.left)

    def around(self, other: Box) -> Box:
        return Box(*map(min, self[:2], other[:2]), *map(max, self[2:], other[2:]))

    @property
    def sides(self) -> tuple[int, int]:
        return self.bottom - self.top, self.right - self.left


class Level(NamedTuple):
    """A page, reduced by `factor`."""

    factor: int
    labels: NDArray[np.int32]  # [H / factor, W / factor], of connected components, from 1; 0 is paper
    lines: NDArray[np.bool_]  # [H / factor, W / factor], ruled ones, which are no ink
    values: Values
    paper: Values  # the value of the paper around each pixel


class Part(NamedTuple):
    labels: tuple[int, ...]  # of connected components
    box: Box  # at its level

    def join(self, other: Part) -> Part:
        return Part(self.labels + other.labels, self.box.around(other.box))


def levels(values: Values) -> Iterator[Level]:
    """Yield the page [H, W] as it is, and reduced to a half, and again, until it is no larger than LARGEST."""
    factor = 1
    while True:
        mask, paper = threshold(values)
        ink = without_lines(mask)
        labels, _ = ndimage.label(ink, np.ones((3, 3)))
        yield Level(factor, labels, mask & ~ink, values, paper)
        if max(values.shape) <= LARGEST:
            return
        values, factor = reduced(values, 2), 2 * factor


def parts(level: Level) -> list[Part]:
    """Return the connected parts of a level that stand out, and are of a digit's size or smaller."""
    strengths = np.zeros(int(level.labels.max()) + 1, np.float32)  # of each part's darkest pixel
    is_ink = level.labels > 0
    np.maximum.at(strengths, level.labels[is_ink], (level.paper - level.values)[is_ink])
    return [
        Part((label,), Box(y.start, x.start, y.stop, x.stop))
        for label, (y, x) in enumerate(ndimage.find_objects(level.labels), 1)
        if strengths[label] >= MIN_CONTRAST and LEAST / 2 <= max(y.stop - y.start, x.stop - x.start) <= LARGEST
    ]


def joined(found: list[Part]) -> list[Part]:
    """Join parts above one another: common is half of the narrower one's width, and the gap is small."""
    sizes = np.array([max(part.box.sides) for part in found])
    usual = float(np.median(sizes[sizes >= sizes.max() / 4])) if found else 0.0
    whole: list[Part] = []
    near: list[int] = []  # those of `whole` that a part further down may still reach
    for part in sorted(found, key=lambda part: part.box.top):
        near = [index for index in near if part.box.top - whole[index].box.bottom < usual / 4]
        for index in near:
            other = whole[index]
            height, width = part.box.common(other.box)
            sides, others = part.box.sides, other.box.sides
            if width < min(sides[1], others[1]) / 2 or height > min(sides[0], others[0]) / 2:  # beside it, or around
                continue
            if sides[1] > max(4 * sides[0], 1.2 * others[1]):  # a dash, to write on
                continue
            both = part.join(other)
            if both.box.sides[0] <= 1.5 * max(usual, *sides, *others):  # else they are of two lines
                whole[index] = both
                break
        else:
            near.append(len(whole))
            whole.append(part)
    return whole


def ink_of(level: Level, window: Window, own: NDArray[np.bool_], noise: float) -> tuple[Values, float]:
    """Return the ink of a part, the pixels `own` of a window of its level, and its contrast as a share of the paper's
    value; 0 where it does not stand out from what is around it."""
    values, paper, others = level.values[window], level.paper[window], (level.labels[window] > 0) & ~own
    dark, light = float(np.sort(values[own])[own.sum() // 5]), float(paper[own].mean())
    pen = light - dark
    near = _grown(own)
    ring = _grown(_grown(near)) & ~near & ~others
    # Beside a stroke there is paper: an edge, as of a sheet on a table or of a shadow, is dark on the other side.
    if pen < max(MIN_CONTRAST, 5 * noise) or np.sum(values[ring] < (dark + light) / 2) > EDGE * ring.sum():
        return np.zeros(own.shape), 0.0
    shade = np.clip(((paper - values) / pen - 0.15) / 0.85, 0, 1)
    return np.where(near & ~others, shade, 0), pen / light


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask grown by a pixel. For masks as small as digits, ndimage takes several times as long."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def threshold(values: Values) -> tuple[NDArray[np.bool_], Values]:
    """Return what is ink [H, W], by its surroundings (Sauvola and Pietikäinen 2000), and the value of the paper."""
    step = 4 if max(values.shape) > 8 * LARGEST else 1  # what varies slowly need not be known at every pixel
    mean = around(reduced(values, step), step)
    deviation = np.sqrt(np.maximum(around(reduced(values * values, step), step) - mean * mean, 0))
    limit = mean * (1 + SENSITIVITY * (deviation / max(float(deviation.max()), 0.05) - 1))
    mask = values < _enlarged(limit, values.shape)
    light, share = (around(reduced(one, step), step) for one in (values * ~mask, 1.0 - mask))
    paper = _enlarged(light / np.maximum(share, 0.02), values.shape)
    contrast = np.maximum(paper - values, 0)
    # Printed lines are often paler than what is written on them.
    pen = ndimage.maximum_filter(_strongest(contrast * mask, step), WINDOW // step | 1)
    return mask & (contrast > _enlarged(np.maximum(PALE * pen, PALEST * pen.max()), values.shape)), paper


def reduced(values: Values, step: int) -> Values:
    """Return the mean of every square of `step` pixels, as float32."""
    return np.asarray(Image.fromarray(values.astype(np.float32, copy=False)).reduce(step))


def _strongest(values: Values, step: int) -> Values:
    """Return the maximum of every square of `step` pixels."""
    padded = np.pad(values, [(0, -side % step) for side in values.shape])
    return np.maximum.reduce([padded[i::step, j::step] for i in range(step) for j in range(step)])


def around(values: Values, step: int) -> Values:
    """Return the mean of what surrounds each of the pixels, which are reduced by `step`."""
    return ndimage.uniform_filter(values, WINDOW // step | 1, mode="nearest")


def _enlarged(values: Values, shape: tuple[int, ...]) -> Values:
    if values.shape == shape:
        return values
    return np.asarray(
        Image.fromarray(values.astype(np.float32)).resize((shape[1], shape[0]), Image.Resampling.BILINEAR)
    )


def without_lines(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Take ruled lines away, and leave of them what a stroke crosses."""
    return _without_level_lines(mask) & _without_level_lines(mask.T).T


def _without_level_lines(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if mask.shape[1] < LINE or not _runs(mask[:, ::8], LINE // 8 - 1).any():  # a quick look: most pages have none
        return mask
    lines = ndimage.maximum_filter1d(_runs(mask, LINE), LINE, 1, mode="constant")
    labels, _ = ndimage.label(lines)
    reach = mask.shape[1] * SHARE
    lines = np.array([0, *(x.stop - x.start >= reach for _, x in ndimage.find_objects(labels))], bool)[labels]
    if not lines.any():
        return mask
    starts = int(np.count_nonzero(np.diff(lines, axis=0, prepend=False) & lines))
    width = -(-int(np.count_nonzero(lines)) // starts)
    rest = mask & ~lines
    bridged = ndimage.minimum_filter1d(ndimage.maximum_filter1d(rest, width + 2, 0), width + 2, 0)
    return rest | (mask & bridged)


def _runs(mask: NDArray[np.bool_], length: int) -> NDArray[np.bool_]:
    """Return the middles of runs along rows; a line that is a little turned is steps from a row to the next."""
    return ndimage.minimum_filter1d(ndimage.maximum_filter1d(mask, 3, 0), length, 1, mode="constant")
