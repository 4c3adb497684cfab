"""Figures that show images: sheets of examples, and pages with what was found on them.

Shapes: N examples, H rows, W columns. Images are uint8 [N, H, W], 0 paper to 255 ink.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from pipeline.reports.plots import BLUE, ORANGE, drawing, text


def plot_examples(
    images: NDArray[np.uint8], titles: Sequence[str], columns: int, heading: str, wrong: Sequence[bool] = ()
) -> Figure:
    """A sheet of examples, black ink on white, each under its title; red where `wrong`."""
    with drawing(1.15 * columns + 0.3, 1.4 * max(1, -(-len(images) // columns)) + 0.5) as figure:
        figure.suptitle(heading)
        _draw_sheet(figure, images, titles, columns, wrong)
        return figure


def plot_example_rows(rows: Mapping[str, Sequence[tuple[NDArray[np.uint8], str]]]) -> Figure:
    """Rows of examples, uint8 [H, W] each with its title, under the heading of the row."""
    most = max(map(len, rows.values()))
    with drawing(1.15 * most + 0.3, 1.75 * len(rows)) as figure:
        parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
        for part, (heading, examples) in zip(parts, rows.items(), strict=True):
            part.suptitle(text(heading if examples else f"{heading}: none"), fontsize=9)
            images, titles = zip(*examples, strict=True) if examples else ((), ())
            _draw_sheet(part, images, titles, most)
        return figure


def plot_page(
    page: NDArray[np.uint8], boxes: Sequence[tuple[int, int, int, int]], digits: NDArray[np.uint8], names: Sequence[str]
) -> Figure:
    """A page [H, W] with a box (top, left, bottom, right) around each digit, and below it the digits as the model sees
    them [N, H, W]; orange where the name ends with a question mark."""
    unsure = [name.endswith("?") for name in names]
    height, columns, rows = 9 * page.shape[0] / page.shape[1], 12, -(-len(names) // 12)
    with drawing(9, height + rows + 0.4) as figure:
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[height, rows])[:, 0]
        axes = upper.subplots()
        axes.axis("off")
        axes.imshow(page, cmap="gray", vmin=0, vmax=255)
        for (top, left, bottom, right), name, is_unsure in zip(boxes, names, unsure, strict=True):
            colour = ORANGE if is_unsure else BLUE
            axes.add_patch(Rectangle((left - 0.5, top - 0.5), right - left, bottom - top, fill=False, color=colour))
            axes.text(left, top, name, color=colour, va="bottom", fontsize=12)
        _draw_sheet(lower, digits, names, columns, unsure)
        return figure


def _draw_sheet(
    figure: Figure | SubFigure, images: Iterable[Any], titles: Sequence[str], columns: int, wrong: Sequence[bool] = ()
) -> None:
    """Draw images, 0.9 units at the longer side, on a grid of 1 by 1.2: Matplotlib takes 50 ms for an axes of each."""
    axes = figure.subplots()
    axes.axis("off")
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        row, column = divmod(number, columns)
        height, width = 0.9 * np.array(image.shape[:2]) / max(image.shape[:2])
        middle, bottom = column + 0.5, 1.2 * row + (1 + height) / 2
        extent = (middle - width / 2, middle + width / 2, bottom, bottom - height)
        axes.imshow(image, cmap="gray_r", vmin=0, vmax=255, extent=extent)
        colour = ORANGE if wrong and wrong[number] else "black"
        axes.text(middle, bottom - height - 0.03, title, ha="center", va="bottom", fontsize=8, color=colour)
    axes.set(xlim=(0, columns), ylim=(1.2 * max(1, -(-len(titles) // columns)), -0.2))
