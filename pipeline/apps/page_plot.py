"""A picture of a page with the digits that were found on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.apps.digit_finder import Page
from pipeline.reports.plots import BLUE, ORANGE, styled

PER_ROW = 12  # digits beneath the page


def plot_page(page: Page, captions: Sequence[str], abstains: Iterable[bool]) -> Figure:
    """Plot the page with a box around every digit, and beneath it what the model sees; orange where it abstains."""
    rows = -(-len(captions) // PER_ROW)
    colours = [ORANGE if is_unsure else BLUE for is_unsure in abstains]
    page_height = 9.0 * page.image.shape[0] / page.image.shape[1]
    with styled():
        figure = Figure(figsize=(9, page_height + rows + 0.4), layout="constrained")
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=[page_height, rows])[:, 0]
        axes = upper.subplots()
        axes.axis("off")
        axes.imshow(page.image, cmap="gray", vmin=0, vmax=255)
        for box, caption, colour in zip(page.boxes, captions, colours, strict=True):
            corner, (box_height, box_width) = (box.left - 0.5, box.top - 0.5), box.sides
            axes.add_patch(Rectangle(corner, box_width, box_height, fill=False, color=colour))
            axes.text(box.left, box.top, caption, color=colour, va="bottom", fontsize=12)
        for axes in lower.subplots(rows, PER_ROW, squeeze=False).flat:
            axes.axis("off")
        for axes, digit, caption, colour in zip(lower.axes, page.digits, captions, colours, strict=False):
            axes.imshow(digit, cmap="gray_r", vmin=0, vmax=255)
            axes.set_title(caption, fontsize=9, color=colour)
        return figure
