"""Figures as text: in Markdown, which a terminal shows as well."""

from __future__ import annotations

import math
from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the heading; the first column is aligned left, the others right."""
    lines = [rows[0], ["-", *["-:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(share: float | None, places: int = 2) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.{places}f} %"


def points(difference: float, places: int = 2) -> str:
    """A difference of shares, in points of a hundred, with its sign."""
    return "–" if math.isnan(difference) else f"{100 * difference:+.{places}f}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
