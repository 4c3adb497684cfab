"""Corrupted images in the manner of MNIST-C (Mu and Gilmer 2019, arXiv 1906.02337), at its severities.

Written from its definitions, not taken from it: EXACT lists the kinds that give the published distribution. The others
use other libraries and other random numbers, and are of the same kind and strength.

Shapes: N images, H rows, W columns. Inside, images are float64 [N, H, W] from 0, black, to 1, white.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

Images = NDArray[np.float64]

GEOMETRIC = ("shear", "scale", "rotate", "translate")  # kinds that a recipe's augmentation may contain
EXACT = ("identity", "shot_noise", "impulse_noise", "brightness", "stripe", "inverse", *GEOMETRIC)


def corrupted(images: NDArray[np.uint8], name: str, seed: int) -> NDArray[np.uint8]:
    """Return uint8 [N, H, W], each image corrupted; the same seed gives the same result."""
    rng = np.random.default_rng([seed, *name.encode()])
    return np.rint(np.clip(CORRUPTIONS[name](images / 255.0, rng), 0, 1) * 255).astype(np.uint8)


def _glass_blur(x: Images, rng: np.random.Generator) -> Images:
    """Blur; twice, let about half of the pixels take the value of a neighbour above or to the left; blur again."""
    blur = (0, 0.7, 0.7)
    x = ndimage.gaussian_filter(x, blur)
    for _ in range(2):
        moved = rng.random(x.shape) < 0.5
        x = _neighbours(x, *(np.where(moved, rng.integers(-1, 1, x.shape), 0) for _ in range(2)))
    return ndimage.gaussian_filter(x, blur)


def _neighbours(x: Images, down: NDArray[np.int64], right: NDArray[np.int64]) -> Images:
    """Return for every pixel the value of the one that lies so far down and right, or at the image's edge."""
    number, row, column = np.indices(x.shape)
    return x[number, np.clip(row + down, 0, x.shape[1] - 1), np.clip(column + right, 0, x.shape[2] - 1)]


def _motion_blur(x: Images, rng: np.random.Generator) -> Images:
    """Smear to one side along 10 pixels, weighted by half a Gaussian of deviation 3, at up to 45 degrees."""
    weights = np.exp(-(np.arange(11) ** 2) / (2 * 3**2))
    angles = rng.uniform(-np.pi / 4, np.pi / 4, len(x))
    smeared = np.zeros_like(x)
    for distance, weight in enumerate(weights / weights.sum()):
        smeared += weight * _warped(x, shift=distance * np.array([np.sin(angles), np.cos(angles)]))
    return smeared


def _warped(x: Images, matrix: ArrayLike = ((1, 0), (0, 1)), shift: ArrayLike = ((0,), (0,))) -> Images:
    """Map images about their centre by a matrix [2, 2] or [2, 2, N], from the result's (row, column) to the image's,
    and move them by `shift` pixels [2, N] down and right; black comes in from outside."""
    centre = (np.array(x.shape[1:]) - 1) / 2
    matrices = np.broadcast_to(np.atleast_3d(np.array(matrix, float)), (2, 2, len(x))).transpose(2, 0, 1)
    shifts = np.broadcast_to(np.array(shift, float), (2, len(x))).T
    maps = zip(x, matrices, shifts, strict=True)
    return np.stack([ndimage.affine_transform(image, m, centre - m @ centre - s, order=1) for image, m, s in maps])


def _shear(x: Images, rng: np.random.Generator) -> Images:
    """Slide rows by 0.42 pixels (the tangent of 0.4) per row, about the middle row, to either side."""
    amount = np.tan(0.4) * rng.choice([-1.0, 1.0], len(x))
    return _warped(x, [[np.ones(len(x)), np.zeros(len(x))], [amount, np.ones(len(x))]])


def _rotate(x: Images, rng: np.random.Generator) -> Images:
    """Rotate by 0.4 radians, 23 degrees, either way."""
    angle = rng.choice([-0.4, 0.4], len(x))
    cos, sin = np.cos(angle), np.sin(angle)
    return _warped(x, [[cos, sin], [-sin, cos]])


def _stripe(x: Images, rng: np.random.Generator) -> Images:
    """Invert the left and the right quarter."""
    striped, quarter = 1 - x, x.shape[2] // 4
    striped[:, :, quarter:-quarter] = x[:, :, quarter:-quarter]
    return striped


def _fog(x: Images, rng: np.random.Generator) -> Images:
    """Add clouds, three times as bright as the ink, of noise in five octaves; dim the whole to the old range."""
    clouds = np.zeros_like(x)
    for octave in range(1, 6):
        grid = rng.uniform(-1, 1, (len(x), 2**octave + 1, 2**octave + 1))
        zoom = (1, x.shape[1] / grid.shape[1], x.shape[2] / grid.shape[2])
        clouds += ndimage.zoom(grid, zoom, order=1, mode="nearest", grid_mode=True) / 1.4**octave
    low, high = (limit(clouds, axis=(1, 2), keepdims=True) for limit in (np.min, np.max))
    brightest = x.max((1, 2), keepdims=True)
    return (x + 3 * (clouds - low) / (high - low)) * brightest / (brightest + 3)


def _spatter(x: Images, rng: np.random.Generator) -> Images:
    """Cover with opaque dark grey splashes."""
    liquid = ndimage.gaussian_filter(rng.normal(0.65, 0.3, x.shape), (0, 1, 1))
    splash = ndimage.gaussian_filter((liquid > 0.65).astype(float), (0, 1.5, 1.5))
    splash[splash < 0.8] = 0
    return x * (1 - splash) + splash * 63 / 255


def _dotted_line(x: Images, rng: np.random.Generator) -> Images:
    """Draw a dotted line from the left edge to the right edge, at random heights."""
    last = max(x.shape[2] - 1, 1)
    left, right = rng.integers(0, max(x.shape[1] - 1, 1), (2, len(x)))
    lines = np.stack([_line(x.shape[1:], (a, 0), (b, last)) for a, b in zip(left, right, strict=True)])
    lines[:, :, np.arange(x.shape[2]) // 2 % 2 == 0] = 0
    return x + lines


def _zigzag(x: Images, rng: np.random.Generator) -> Images:
    """Draw a zigzag, two pixels high, from side to side and nearly level."""
    left = rng.integers(0, max(x.shape[1] - 1, 1), len(x))
    right = left + rng.integers(-5, 5, len(x))
    drawn, width = [], max(x.shape[2] - 5, 6)  # of less, strokes would be upright
    for a, b in zip(left, right, strict=True):
        slope = np.arctan2(b - a, width)
        along = np.arange(0, width / np.cos(slope), 2)
        across = np.array([0, 2, 0, -2])[np.arange(len(along)) % 4]
        rows = a + along * np.sin(slope) + across * np.cos(slope)
        columns = 2 + along * np.cos(slope) - across * np.sin(slope)
        corners = [0, *range(1, len(along), 2)]
        points = zip(rows[corners], columns[corners], strict=True)
        drawn.append(sum(_line(x.shape[1:], *ends) for ends in pairwise(points)))
    return x + np.stack(drawn)


def _line(shape: tuple[int, ...], start: tuple[float, float], end: tuple[float, float]) -> NDArray[np.float64]:
    """Draw a line with soft edges between two points (row, column); brightness falls with the vertical distance."""
    rows, columns = np.indices(shape)
    (row, column), (last_row, last_column) = start, end
    height = row + (columns - column) * (last_row - row) / (last_column - column)
    distance = np.minimum(np.abs(rows - height), 2.299)
    line = np.clip(1 + np.log(1 - distance / 2.3), 0, 1)
    line[(columns < np.floor(column)) | (columns >= np.ceil(last_column))] = 0
    return line


def _edges(x: Images, rng: np.random.Generator) -> Images:
    """Keep outlines alone, by Canny's steps (1986) in their simplest form: smooth, take gradients, thin them to ridges,
    keep the ridges that are connected to a strong one."""
    smooth = ndimage.gaussian_filter(x, (0, 1, 1))
    down, right = ndimage.sobel(smooth, 1) / 4, ndimage.sobel(smooth, 2) / 4
    steepness = np.hypot(down, right)
    step_down, step_right = (np.rint(step / (steepness + 1e-12)).astype(int) for step in (down, right))
    ridge = steepness > 0.1
    ridge &= steepness > _neighbours(steepness, -step_down, -step_right)
    ridge &= steepness >= _neighbours(steepness, step_down, step_right)  # of two equal ones, one stays
    within_image = np.zeros((3, 3, 3))
    within_image[1] = 1
    labels, count = ndimage.label(ridge, within_image)
    strong = np.bincount(labels[ridge & (steepness > 0.2)], minlength=count + 1) > 0
    return (strong[labels] & ridge).astype(float)


CORRUPTIONS: dict[str, Callable[[Images, np.random.Generator], Images]] = {
    "identity": lambda x, rng: x,
    "shot_noise": lambda x, rng: rng.poisson(x * 3) / 3,  # 3 photons are white
    "impulse_noise": lambda x, rng: np.where(rng.random(x.shape) < 0.17, rng.random(x.shape) < 0.5, x),  # black, white
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "shear": _shear,
    "scale": lambda x, rng: _warped(x, np.eye(2) / 0.7),  # to 0.7 of the size
    "rotate": _rotate,
    "brightness": lambda x, rng: x + 0.5,
    "translate": lambda x, rng: _warped(x, shift=rng.choice([-3, 3], (2, len(x)))),  # pixels, each way
    "stripe": _stripe,
    "fog": _fog,
    "spatter": _spatter,
    "dotted_line": _dotted_line,
    "zigzag": _zigzag,
    "edges": _edges,
    "inverse": lambda x, rng: 1 - x,
}
