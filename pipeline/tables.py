"""Figures as text: in Markdown, which a terminal shows as well."""

from __future__ import annotations

import math
from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the heading; the first column is aligned left, the others right."""
    # MLflow's page takes a rule of fewer dashes for text.
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *aligned[1:]])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])])


def percent(share: float | None, places: int = 2) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{places}f} %"


def points(difference: float, places: int = 2) -> str:
    """A difference of shares, in points of a hundred, with its sign."""
    return "–" if math.isnan(difference) else f"{100 * difference:+.{places}f}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
