"""One digit in MNIST's form, from its ink.

Shapes: H rows, W columns. Ink is float64 [H, W] from 0, the paper, to 1, the pen at its darkest.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Ink = NDArray[np.float64]

FIELD, BOX = 28, 20  # of MNIST: pixels of the side of an image, and of the square that holds the digit
MIN_STROKE = 1.8  # pixels in the field; strokes of a tenth of MNIST's training digits are thinner


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
    inside = np.zeros(np.add(ink.shape, 2), bool)
    inside[1:-1, 1:-1] = ink > 0.5
    return 4 * float(ndimage.distance_transform_edt(inside).sum() / inside.sum()) - 2 if inside.any() else 0.0


def centred(ink: Ink) -> NDArray[np.uint8]:
    """Put ink of at most 28 x 28 into a field of uint8 [28, 28], whole, its centre of mass in the centre."""
    mass = ndimage.center_of_mass(ink) if ink.any() else (ink.shape[0] / 2, ink.shape[1] / 2)
    sides = zip(mass, ink.shape, strict=True)
    row, column = (min(max(round(FIELD / 2 - centre), 0), FIELD - size) for centre, size in sides)
    field = np.zeros((FIELD, FIELD))
    field[row : row + ink.shape[0], column : column + ink.shape[1]] = ink
    return np.rint(field * (255 / max(field.max(), 1e-9))).astype(np.uint8)


def _cropped(ink: Ink) -> Ink:
    rows, columns = (np.flatnonzero((ink > 0.1).any(axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else ink


def _fitted(ink: Ink, size: int) -> Ink:
    """Resample so that the longer side has `size` pixels."""
    ratio = size / max(ink.shape)
    height, width = (max(1, round(side * ratio)) for side in ink.shape)
    method = Image.Resampling.BOX if ratio < 1 else Image.Resampling.LANCZOS
    resized = Image.fromarray(ink.astype(np.float32)).resize((width, height), method)
    return np.clip(np.asarray(resized, np.float64), 0, 1)
