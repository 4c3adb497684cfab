"""Corrupted digits in the manner of MNIST-C (Mu and Gilmer 2019, arXiv 1906.02337), at its severities.

Written from its definitions, not taken from it: EXACT says which give the published distribution. Those that add
noise, blur, or draw are made of other libraries and other random numbers, and are of the same kind and strength.

Shapes: N digits, H rows, W columns. Inside, images are float64 [N, H, W] from 0, black, to 1, white.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Images = NDArray[np.float64]
Corruption = Callable[[Images, np.random.Generator], Images]

GEOMETRIC = ("shear", "scale", "rotate", "translate")  # kinds that a recipe may have met in training
EXACT = ("identity", "shot_noise", "impulse_noise", "brightness", "stripe", "inverse", *GEOMETRIC)


def corrupted(images: NDArray[np.uint8], name: str, seed: int) -> NDArray[np.uint8]:
    """Corrupt every digit, uint8 [N, H, W], the same way for the same seed."""
    rng = np.random.default_rng([seed, *name.encode()])
    return np.rint(np.clip(CORRUPTIONS[name](images / 255.0, rng), 0, 1) * 255).astype(np.uint8)


def _shot_noise(x: Images, rng: np.random.Generator) -> Images:
    """As if 3 photons made white."""
    return rng.poisson(x * 3) / 3


def _impulse_noise(x: Images, rng: np.random.Generator) -> Images:
    """17 % of the pixels black or white."""
    struck, white = rng.random(x.shape) < 0.17, rng.random(x.shape) < 0.5
    return np.where(struck, white, x)


def _glass_blur(x: Images, rng: np.random.Generator) -> Images:
    """Twice, about half of the pixels change places with a neighbour above or to the left; blurred before and after.

    The published one changes places pixel by pixel, here they are taken from where they were.
    """
    blur = (0, 0.7, 0.7)
    x = ndimage.gaussian_filter(x, blur)
    number, row, column = np.indices(x.shape)
    for _ in range(2):
        moved = rng.random(x.shape) < 0.5
        down, right = (np.where(moved, rng.integers(-1, 1, x.shape), 0) for _ in range(2))
        x = x[number, np.clip(row + down, 0, x.shape[1] - 1), np.clip(column + right, 0, x.shape[2] - 1)]
    return ndimage.gaussian_filter(x, blur)


def _motion_blur(x: Images, rng: np.random.Generator) -> Images:
    """Smeared to one side along a line of 10 pixels, half a Gaussian of 3, at up to 45 degrees either way."""
    weights = np.exp(-(np.arange(11) ** 2) / (2 * 3**2))
    angles = rng.uniform(-np.pi / 4, np.pi / 4, len(x))
    smeared = np.zeros_like(x)
    for distance, weight in enumerate(weights / weights.sum()):
        smeared += weight * _moved(x, distance * np.sin(angles), distance * np.cos(angles))
    return smeared


def _moved(x: Images, down: NDArray[np.float64], right: NDArray[np.float64]) -> Images:
    """Each digit moved by its own number of pixels, with black from outside."""
    return np.stack(
        [
            ndimage.shift(image, (d, r), order=1)
            for image, d, r in zip(x, np.broadcast_to(down, len(x)), np.broadcast_to(right, len(x)), strict=True)
        ]
    )


def _warped(x: Images, matrices: NDArray[np.float64]) -> Images:
    """Each digit by its own matrix [N, 2, 2] of rows and columns, from the place in the result to that in the digit,
    about the centre."""
    centre = (np.array(x.shape[1:]) - 1) / 2
    return np.stack(
        [
            ndimage.affine_transform(image, matrix, centre - matrix @ centre, order=1)
            for image, matrix in zip(x, matrices, strict=True)
        ]
    )


def _either_way(count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    return rng.choice([-1.0, 1.0], count)


def _shear(x: Images, rng: np.random.Generator) -> Images:
    """Rows slide by 0.42 pixels (the tangent of 0.4) a row, the middle one stays."""
    amount = np.tan(0.4) * _either_way(len(x), rng)
    one, zero = np.ones(len(x)), np.zeros(len(x))
    return _warped(x, np.moveaxis(np.array([[one, zero], [amount, one]]), 2, 0))


def _scale(x: Images, rng: np.random.Generator) -> Images:
    """To 0.7 of its size."""
    return _warped(x, np.tile(np.eye(2) / 0.7, (len(x), 1, 1)))


def _rotate(x: Images, rng: np.random.Generator) -> Images:
    """By 0.4 radians, 23 degrees, either way."""
    angle = 0.4 * _either_way(len(x), rng)
    cos, sin = np.cos(angle), np.sin(angle)
    return _warped(x, np.moveaxis(np.array([[cos, sin], [-sin, cos]]), 2, 0))


def _translate(x: Images, rng: np.random.Generator) -> Images:
    """By 3 pixels down or up, and 3 to a side."""
    return _moved(x, 3 * _either_way(len(x), rng), 3 * _either_way(len(x), rng))


def _brightness(x: Images, rng: np.random.Generator) -> Images:
    return x + 0.5


def _stripe(x: Images, rng: np.random.Generator) -> Images:
    """The left and the right quarter inverted."""
    quarter = x.shape[2] // 4
    x = x.copy()
    for side in (x[:, :, :quarter], x[:, :, -quarter:]):
        side[:] = 1 - side
    return x


def _inverse(x: Images, rng: np.random.Generator) -> Images:
    return 1 - x


def _fog(x: Images, rng: np.random.Generator) -> Images:
    """Clouds over it, three times as bright as the ink, and the whole dimmed to the old range.

    The clouds are noise of octaves, each 1.4 times weaker than the coarser one before; published: a plasma fractal.
    """
    clouds = np.zeros_like(x)
    for octave in range(1, 6):
        grid = rng.uniform(-1, 1, (len(x), 2**octave + 1, 2**octave + 1))
        zoom = (1, x.shape[1] / grid.shape[1], x.shape[2] / grid.shape[2])
        clouds += ndimage.zoom(grid, zoom, order=1, mode="nearest", grid_mode=True) / 1.4**octave
    low, high = (limit(clouds, axis=(1, 2), keepdims=True) for limit in (np.min, np.max))
    brightest = x.max((1, 2), keepdims=True)
    return (x + 3 * (clouds - low) / (high - low)) * brightest / (brightest + 3)


def _spatter(x: Images, rng: np.random.Generator) -> Images:
    """Opaque dark grey splashes."""
    liquid = ndimage.gaussian_filter(rng.normal(0.65, 0.3, x.shape), (0, 1, 1))
    splash = ndimage.gaussian_filter((liquid > 0.65).astype(float), (0, 1.5, 1.5))
    splash[splash < 0.8] = 0
    return x * (1 - splash) + splash * 63 / 255


def _dotted_line(x: Images, rng: np.random.Generator) -> Images:
    """A dotted line from the left edge to the right one, at any heights."""
    left, right = rng.integers(0, 27, (2, len(x)))
    lines = np.stack([_line(x.shape[1:], (a, 0), (b, 27)) for a, b in zip(left, right, strict=True)])
    lines[:, :, np.arange(x.shape[2]) // 2 % 2 == 0] = 0
    return x + lines


def _zigzag(x: Images, rng: np.random.Generator) -> Images:
    """A zigzag of two pixels' height across, nearly level."""
    left = rng.integers(0, 27, len(x))
    right = left + rng.integers(-5, 5, len(x))
    drawn = []
    for a, b in zip(left, right, strict=True):
        slope = np.arctan2(b - a, 23)
        along = np.arange(0, 23 / np.cos(slope), 2)
        across = np.array([0, 2, 0, -2])[np.arange(len(along)) % 4] if len(along) else along
        rows = a + along * np.sin(slope) + across * np.cos(slope)
        columns = 2 + along * np.cos(slope) - across * np.sin(slope)
        corners = np.flatnonzero((np.arange(len(along)) % 2 == 1) | (np.arange(len(along)) == 0))
        points = list(zip(rows[corners], columns[corners], strict=True))
        drawn.append(sum(_line(x.shape[1:], *ends) for ends in pairwise(points)))
    return x + np.stack(drawn)


def _line(shape: tuple[int, ...], start: tuple[float, float], end: tuple[float, float]) -> NDArray[np.float64]:
    """A line of soft edges between two points (row, column), brightness by the vertical distance from it."""
    rows, columns = np.indices(shape)
    (row, column), (last_row, last_column) = start, end
    height = row + (columns - column) * (last_row - row) / (last_column - column)
    distance = np.minimum(np.abs(rows - height), 2.299)
    line = np.clip(1 + np.log(1 - distance / 2.3), 0, 1)
    line[(columns < np.floor(column)) | (columns >= np.ceil(last_column))] = 0
    return line


def _edges(x: Images, rng: np.random.Generator) -> Images:
    """Outlines alone, by Canny's steps (1986) in their simplest form: smooth, gradient, thin, keep what hangs on
    something strong."""
    smooth = ndimage.gaussian_filter(x, (0, 1, 1))
    down, right = ndimage.sobel(smooth, 1) / 4, ndimage.sobel(smooth, 2) / 4
    steep = np.hypot(down, right)
    number, row, column = np.indices(x.shape)
    step_down, step_right = np.rint(down / (steep + 1e-12)).astype(int), np.rint(right / (steep + 1e-12)).astype(int)
    ridge = steep > 0.1
    for way in (-1, 1):
        beside = steep[
            number,
            np.clip(row + way * step_down, 0, x.shape[1] - 1),
            np.clip(column + way * step_right, 0, x.shape[2] - 1),
        ]
        ridge &= (steep > beside) if way < 0 else (steep >= beside)  # of two alike, one
    hanging = np.zeros((3, 3, 3))
    hanging[1] = 1
    labels, count = ndimage.label(ridge, hanging)
    strong = np.bincount(labels[ridge & (steep > 0.2)], minlength=count + 1) > 0
    return (strong[labels] & ridge).astype(float)


CORRUPTIONS: dict[str, Corruption] = {
    "identity": lambda x, rng: x,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "shear": _shear,
    "scale": _scale,
    "rotate": _rotate,
    "brightness": _brightness,
    "translate": _translate,
    "stripe": _stripe,
    "fog": _fog,
    "spatter": _spatter,
    "dotted_line": _dotted_line,
    "zigzag": _zigzag,
    "edges": _edges,
    "inverse": _inverse,
}
