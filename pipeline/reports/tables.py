"""Figures as text: in Markdown, which a terminal shows as well."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence

# What Markdown and its HTML are made of, where it is no ordinary text: `p < 0.001`, `batch_size` and `[3, 3]` stay.
MARKS = re.compile(r"[\\`*|~&]|<(?=[A-Za-z/!?])|\](?=[(\[:])|(?<![^\W_])_|_(?![^\W_])|^(?:[#>]|[+-](?=\s))")


def plain(text: str) -> str:
    """A name from elsewhere in one line that moves no terminal's cursor: what does not print becomes a mark."""
    return "".join(one if one.isprintable() or unicodedata.category(one) == "Zs" else "�" for one in text)  # Zs: spaces


def as_text(text: str) -> str:
    """Markdown that shows a name from elsewhere as it is: no HTML, link, picture or cell of its own."""
    return MARKS.sub(r"\\\g<0>", plain(text))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the heading; the first column is aligned left, the others right. Cells are text."""
    rows = [[as_text(cell) for cell in row] for row in rows]
    # MLflow's page takes a rule of fewer dashes for text.
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        aligned = [cell.rjust(width) for cell, width in zip(cells, widths, strict=True)]
        return f"| {' | '.join([cells[0].ljust(widths[0]), *aligned[1:]])} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([line(rows[0]), f"| {' | '.join(rule)} |", *map(line, rows[1:])])


def percent(share: float | None) -> str:
    return "–" if share is None or math.isnan(share) else f"{100 * share:.2f} %"


def points(difference: float) -> str:
    """A difference of shares, in points of a hundred, with its sign."""
    return "–" if math.isnan(difference) else f"{100 * difference:+.2f}"


def p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def scored_in_words(count: int) -> str:
    """How much the test examples have told: more than one model is a choice among several, which flatters the best."""
    models = "1 model of this store was" if count == 1 else f"{count:,} different models of this store were"
    return f"{models} scored on these test examples"
