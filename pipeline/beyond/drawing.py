"""Figures of pages. Like pipeline.plots: from arrays, nothing computed but places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.beyond.sheet import Sheet
from pipeline.plots import BLUE, COLOURS, ORANGE, styled

A_ROW = 12  # digits beneath a page


def plot_sheet(sheet: Sheet, captions: Sequence[str], sure: Sequence[bool]) -> Figure:
    """The page with a box around every digit, and beneath it what the network saw; in orange where it is not sure."""
    rows = -(-len(captions) // A_ROW)
    height, width = sheet.page.shape
    page_height = 9.0 * height / width
    with styled():
        figure = Figure(figsize=(9, page_height + rows + 0.4), layout="constrained")
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[page_height, rows])[:, 0]
        axes = upper.subplots()
        axes.axis("off")
        axes.imshow(sheet.page, cmap="gray", vmin=0, vmax=255)
        for box, caption, is_sure in zip(sheet.boxes, captions, sure, strict=True):
            colour = BLUE if is_sure else ORANGE
            size = (box.right - box.left, box.bottom - box.top)
            axes.add_patch(Rectangle((box.left - 0.5, box.top - 0.5), *size, fill=False, color=colour))
            axes.text(box.left, box.top, caption, color=colour, va="bottom", fontsize=12)
        for number, axes in enumerate(lower.subplots(rows, A_ROW, squeeze=False).flat):
            axes.axis("off")
            if number < len(captions):
                axes.imshow(sheet.digits[number], cmap="gray_r", vmin=0, vmax=255)
                axes.set_title(captions[number], fontsize=9, color=BLUE if sure[number] else ORANGE)
        return figure


def plot_shares(shares: Mapping[str, Mapping[str, float]], xlabel: str) -> Figure:
    """Shares, 0 to 1, by recipe and by what was done to the digits: a line of dots each."""
    names = list(next(iter(shares.values())))
    with styled():
        figure = Figure(figsize=(7, 0.28 * len(names) + 1), layout="constrained")
        axes = figure.subplots()
        for (recipe, of), colour in zip(shares.items(), COLOURS, strict=False):
            axes.plot([100 * of[name] for name in names], range(len(names)), "o", color=colour, label=recipe)
        axes.set(xlabel=xlabel, xlim=(0, 101), yticks=range(len(names)), yticklabels=names)
        axes.invert_yaxis()
        axes.grid(axis="y", color="0.9")
        axes.legend(frameon=False, loc="lower left")
        return figure
