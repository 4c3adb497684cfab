"""Draw a data set in colour, for tries and tests:  python -m benchmarks.shapes <folder> [pictures a class] [side]

Ten classes of shapes, each with a texture and colours of its own on a textured ground, at any place, size and angle:
colour alone tells nothing. `python -m pipeline.adopt path=<folder> data.channels=3 data.image_shape=[32,32]` takes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Plane = NDArray[np.floating]  # [H, W]


def _polygon(x: Plane, y: Plane, corners: int, turn: float = 0.0) -> Plane:
    angle = (np.arctan2(y, x) + turn) % (2 * np.pi / corners) - np.pi / corners
    return np.hypot(x, y) * np.cos(angle) / np.cos(np.pi / corners)


# The distance from the centre, which is up to 1 inside the shape.
SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "bar": lambda x, y: np.maximum(np.abs(x), 3.5 * np.abs(y)),
    "crescent": lambda x, y: np.maximum(np.hypot(x, y), 1.6 - np.hypot(x - 0.5, y)),
    "cross": lambda x, y: np.maximum(np.maximum(np.abs(x), np.abs(y)), 3.5 * np.minimum(np.abs(x), np.abs(y))),
    "disc": np.hypot,
    "frame": lambda x, y: 1 + np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.7) - 0.22,
    "half": lambda x, y: np.maximum(np.hypot(x, y), 1 - 2 * y),
    "ring": lambda x, y: 1 + np.abs(np.hypot(x, y) - 0.75) - 0.22,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) * 1.2,
    "star": lambda x, y: np.hypot(x, y) / (0.65 + 0.35 * np.cos(5 * np.arctan2(y, x))),
    "triangle": lambda x, y: _polygon(x, y, 3),
}


def picture(shape: str, side: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return one picture, uint8 [side, side, 3]."""
    row, column = np.mgrid[:side, :side] / side * 2 - 1
    size, angle = generator.uniform(0.45, 0.75), generator.uniform(0, 2 * np.pi)
    down, right = generator.uniform(-0.25, 0.25, 2)
    x, y = (column - right) / size, (row - down) / size
    turned = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    inside = (SHAPES[shape](*turned) <= 1)[..., None]
    return np.where(inside, _texture(row, column, generator), _texture(row, column, generator))


def _texture(row: Plane, column: Plane, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Return stripes, checks or grain of two shades of a colour, uint8 [H, W, 3]."""
    colour, period, angle = generator.uniform(40, 215, 3), generator.uniform(8, 20), generator.uniform(0, np.pi)
    along = np.cos(angle) * column + np.sin(angle) * row
    across = np.cos(angle) * row - np.sin(angle) * column
    wave = [
        np.sin(period * along),
        np.sign(np.sin(period * along) * np.sin(period * across)),
        generator.normal(0, 0.7, row.shape),
    ][generator.integers(3)]
    return np.clip(colour + 30 * wave[..., None], 0, 255).astype(np.uint8)


def draw(folder: Path, each: int, side: int, seed: int = 0) -> None:
    """Write `each` pictures of every class as <folder>/<class>/<number>.png."""
    generator = np.random.default_rng(seed)
    for shape in SHAPES:
        (folder / shape).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            Image.fromarray(picture(shape, side, generator)).save(folder / shape / f"{number:04}.png")


if __name__ == "__main__":
    words = sys.argv[1:]
    draw(Path(words[0]), int((words[1:] or ["300"])[0]), int((words[2:] or ["32"])[0]))
