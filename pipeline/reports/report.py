"""The report to send: one HTML file that needs nothing beside it, neither files nor a network.

The same sections give the same bytes. Examples are images uint8 [H, W], 0 paper to 255 ink, or [H, W, 3].
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, StrictUndefined
from markdown_it import MarkdownIt
from matplotlib import style
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.files import write_text

WIDE = 7  # inches: wider figures scroll on a phone, where their letters would be too small to read
SVG: Any = {"svg.hashsalt": "report"}  # names of parts, otherwise random


class Section(NamedTuple):
    """A part of the report, from top to bottom: what is empty takes no room."""

    heading: str = ""
    text: str = ""  # Markdown; the first paragraph of a report is its answer
    figures: Mapping[str, Figure] = {}  # by their captions
    examples: Mapping[str, Sequence[tuple[NDArray[np.uint8], str]]] = {}  # rows of images, each with its caption


def save_report(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write the page of these sections to `path`."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"markdown": _markdown, "svg": _svg, "png": _png}
    template = resources.files("pipeline.reports").joinpath("report.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(title=title, sections=sections, wide=WIDE)
    write_text(path, f"{page}\n")


def _markdown(text: str) -> str:
    """HTML of our Markdown, which may hold none itself. A table scrolls where it is too wide; keys break at dots."""
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    html = re.sub(r"<td>[\w.]+</td>", lambda cell: cell[0].replace(".", ".<wbr>"), html)
    return html.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")


def _svg(figure: Figure) -> str:
    """The figure as an image: in the page itself, the parts of two SVGs would have the same names."""
    file = io.BytesIO()
    with style.context(["default", SVG]):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return _data_uri("svg+xml", file.getvalue())


def _png(image: NDArray[np.uint8]) -> str:
    file = io.BytesIO()
    Image.fromarray(255 - image if image.ndim == 2 else image).save(file, "PNG")
    return _data_uri("png", file.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
