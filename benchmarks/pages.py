"""Pages with known digits, drawn for the purpose: scans, photographs of sheets on tables, lines, colours, pens.

They come in two parts: "develop" is printed in Matplotlib's fonts, "measure" in 20 of Debian's, with other random
numbers. Develop on the one, measure on the other.
"""

from __future__ import annotations

import io
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy import ndimage

from pipeline.apps.stress_tests import curve
from pipeline.base.errors import UserError
from pipeline.base.files import load_json

Generator = np.random.Generator
Points = NDArray[np.float64]  # [N, 2], x and y

DEBIAN = (  # a family each
    *("Liberation Sans", "Liberation Serif", "Liberation Mono", "FreeSans", "FreeSerif", "FreeMono", "Lato", "Roboto"),
    *("Open Sans", "Cantarell", "Inconsolata", "Hack", "Carlito", "Caladea", "Comfortaa", "EB Garamond", "Quicksand"),
    *("Courier Prime", "Noto Mono", "TeX Gyre Schola"),
)
ROWS = 6  # of a page


class Drawn(NamedTuple):
    """A page and its digits in reading order, each with its corners on the page."""

    image: Image.Image
    digits: str
    corners: list[Points]  # of each digit, [4, 2]


class Canvas:
    """A sheet of paper that digits are put on, one pixel of 1 / dpi inches."""

    def __init__(self, width: float, height: float, dpi: int) -> None:
        """`width` and `height` are in millimetres."""
        self.dpi, self.mm = dpi, dpi / 25.4
        self.page = Image.new("L", (round(width * self.mm), round(height * self.mm)), 255)
        self.draw = ImageDraw.Draw(self.page)
        self.digits = ""
        self.corners: list[Points] = []

    def put(self, sign: str, box: tuple[float, float, float, float]) -> None:
        left, top, right, bottom = box
        self.digits += sign
        self.corners.append(np.array([(left, top), (right, top), (right, bottom), (left, bottom)], float))

    def print_row(self, text: str, x: float, y: float, font: ImageFont.FreeTypeFont) -> float:
        """Print signs from x, y in pixels; return where the next would stand."""
        for sign in text:
            self.draw.text((x, y), sign, 0, font)
            self.put(sign, font.getbbox(sign, anchor="la"))
            self.corners[-1] += (x, y)
            x += font.getlength(sign)
        return x

    def write_row(self, text: str, x: float, y: float, high: float, pen: float, gap: float, random: Generator) -> float:
        """Write digits by hand, so many millimetres high, with a pen and a gap of so many."""
        hand = HANDS[random.choice(list(HANDS))]
        slant, width = random.uniform(-0.2, 0.25), random.uniform(0.75, 1.05)
        scale, radius = high * self.mm / 100, max(pen * self.mm / 2, 0.5)
        for digit in text:
            lines = []
            for stroke in hand[digit]:
                points = np.array(stroke, float) + random.normal(0, 1.8, (len(stroke), 2))
                points[:, 0] = (points[:, 0] - slant * (points[:, 1] - 50)) * width
                lines.append(curve(points) * scale)
            every = np.concatenate(lines)
            low, far = every.min(0) - radius, every.max(0) + radius
            moved = (x - low[0], y + random.normal(0, high * self.mm / 25))
            for line in lines:
                for px, py in line + moved:
                    self.draw.ellipse((px - radius, py - radius, px + radius, py + radius), 30)
            self.put(digit, (x, low[1] + moved[1], x + far[0] - low[0], far[1] + moved[1]))
            x += far[0] - low[0] + gap * self.mm
        return x

    def drawn(self, image: Image.Image | None = None) -> Drawn:
        return Drawn(image or self.page, self.digits, self.corners)


HANDS = {name: hand for name, hand in load_json(Path("reference/strokes.json")).items() if name != "about"}


def fonts(part: str) -> list[str]:
    """Return font files: Matplotlib's to develop on, a regular one of each family of DEBIAN to measure."""
    if part == "develop":
        return sorted(str(path) for path in Path(matplotlib.get_data_path(), "fonts/ttf").glob("DejaVuS*[!y].ttf"))
    found = [subprocess.check_output(["fc-match", "-f", "%{family}|%{file}", name], text=True) for name in DEBIAN]
    if missing := [name for name, one in zip(DEBIAN, found, strict=True) if name not in one]:
        raise UserError(f"these fonts are not installed: {', '.join(missing)}: see Debian's packages fonts-*")
    return [one.partition("|")[2] for one in found]


def text_of(random: Generator, length: int = 10) -> str:
    return "".join(map(str, random.integers(0, 10, length)))


def scanned(canvas: Canvas, random: Generator, turn: float = 0.4) -> Drawn:
    """Return the sheet as a scanner gives it: a little turned, its edges soft, with noise."""
    page = canvas.page.filter(ImageFilter.GaussianBlur(canvas.dpi / 500))
    angle = random.uniform(-turn, turn)
    page = page.rotate(angle, Image.Resampling.BILINEAR, fillcolor=255)
    centre, cosine, sine = np.array(page.size) / 2, np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turned = [(corners - centre) @ np.array([[cosine, -sine], [sine, cosine]]) + centre for corners in canvas.corners]
    values = np.asarray(page, np.float32) * 0.92 + random.normal(4, 2, page.size[::-1]).astype(np.float32)
    return Drawn(Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)), canvas.digits, turned)


def printed_sheet(file: str, dpi: int, points: float, random: Generator, rows: int = ROWS) -> Canvas:
    canvas, font = Canvas(210, 297, dpi), ImageFont.truetype(file, points * dpi / 72)
    for row in range(rows):
        canvas.print_row(text_of(random), 25 * canvas.mm, (30 + row * points * 0.9) * canvas.mm, font)
    return canvas


def written_sheet(dpi: int, high: float, gap: float, pen: float, random: Generator, rows: int = ROWS) -> Canvas:
    canvas = Canvas(210, 297, dpi)
    for row in range(rows):
        canvas.write_row(
            text_of(random, 8), 20 * canvas.mm, (30 + 2.2 * high * row) * canvas.mm, high, pen, gap, random
        )
    return canvas


def photographed(canvas: Canvas, random: Generator, share: float, table: str, shadow: str) -> Drawn:
    """Return a photo of 2,000 x 1,500 pixels of the sheet on a table, in perspective, `share` of the photo's width."""
    width, height = 1500, 2000
    wide = np.sqrt(share) * width
    tall = min(wide * canvas.page.height / canvas.page.width, 0.97 * height)
    corners = np.array([(-wide, -tall), (wide, -tall), (wide, tall), (-wide, tall)]) / 2
    angle = np.radians(random.uniform(-6, 6))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    where = corners @ turn + (width / 2, height / 2) + random.uniform(-0.02, 0.02, (4, 2)) * wide
    w, h = canvas.page.size
    there = np.array([(0, 0), (w, 0), (w, h), (0, h)], float)
    back, forth = _homography(where, there), _homography(there, where)
    # Finer than the photo first, so that thin strokes are averaged and not left out.
    moved = canvas.page.filter(ImageFilter.GaussianBlur(float(w / wide / 2.5)))
    sheet = moved.transform(
        (width, height), Image.Transform.PERSPECTIVE, tuple(back.ravel()[:8]), Image.Resampling.BICUBIC
    )
    mask = Image.new("L", (w, h), 255).transform((width, height), Image.Transform.PERSPECTIVE, tuple(back.ravel()[:8]))
    grain = ndimage.gaussian_filter(random.normal(0, 1, (height, width)), (2, 40 if table == "wood" else 3))
    ground = {"dark": 45, "light": 190, "wood": 110}[table] + grain * {"dark": 30, "light": 20, "wood": 150}[table]
    values = np.where(np.asarray(mask) > 127, 60 + 0.68 * np.asarray(sheet, float), ground)
    rows, columns = np.mgrid[:height, :width]
    light = 1 - 0.35 * random.random() * (columns / width) - 0.25 * random.random() * (rows / height)
    across = (columns - width * random.uniform(0.3, 0.7)) * np.cos(angle + 0.5) + (rows - height / 2) * np.sin(
        angle + 0.5
    )
    soft = {"soft": 120, "hard": 4}.get(shadow)
    light *= 1 - 0.4 / (1 + np.exp(np.clip(-across / soft, -60, 60))) if soft else 1
    values = ndimage.gaussian_filter(values * light, 0.7) + random.normal(0, 3, values.shape)
    photo = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=int(random.integers(70, 95)))
    moved_corners = [_project(forth, one) for one in canvas.corners]
    return Drawn(Image.open(file), canvas.digits, moved_corners)


def _homography(source: Points, target: Points) -> NDArray[np.float64]:
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), target.ravel()), 1).reshape(3, 3)


def _project(matrix: NDArray[np.float64], points: Points) -> Points:
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return moved[:, :2] / moved[:, 2:]


def pages(part: str) -> Iterator[tuple[str, Drawn]]:
    """Yield the pages of a part, each under its kind."""
    random, files = np.random.default_rng({"develop": 1, "measure": 2}[part]), itertools.cycle(fonts(part))
    for dpi, points in itertools.product((150, 200, 300, 400, 600), (10, 12, 18, 24, 36)):
        yield "printed, scanned", scanned(printed_sheet(next(files), dpi, points, random), random)
    for dpi, high, gap in itertools.product((200, 300, 400), (6, 8, 11), (0.5, 1, 1.5)):
        yield "written, scanned", scanned(written_sheet(dpi, high, gap, random.uniform(0.4, 0.9), random), random)
    for number, (share, table, shadow) in enumerate(
        itertools.product((0.3, 0.5, 0.7, 0.95), ("dark", "light", "wood"), ("none", "soft", "hard"))
    ):
        canvas, font = Canvas(100, 140, 300), ImageFont.truetype(next(files), 28 * 300 / 72)
        for x, y in ((8 * canvas.mm, (9 + 20 * row) * canvas.mm) for row in range(ROWS)):
            if number % 2:
                canvas.print_row(text_of(random, 8), x, y, font)
            else:
                canvas.write_row(text_of(random, 7), x, y, 9, random.uniform(0.5, 1), 1.5, random)
        yield "photographed", photographed(canvas, random, share, table, shadow)
    for kind, ground, _ in itertools.product(("ruled", "squared", "boxes"), (120, 190), range(3)):
        yield f"on {kind} paper" if kind != "boxes" else "in boxes", _on_lines(kind, ground, random)
    for pen in (0.2, 0.3, 2.0, 2.6):
        yield "thin and bold pens", scanned(written_sheet(300, 10 + 3 * pen, 1 + pen / 2, pen, random), random)
    for ink, paper in (("red", "grey"), ("white", "black"), ("yellow", "blue"), ("blue", "white"), ("clear", "clear")):
        yield "colours and alpha", _coloured(next(files), ink, paper, random)
    for overlap in (-0.05, -0.3, -0.6):
        yield "touching", scanned(written_sheet(300, 9, overlap, 0.6, random), random)


def _on_lines(kind: str, grey: int, random: Generator) -> Drawn:
    canvas = Canvas(148, 105, 300)
    wide, thick, mm = 9.0, max(1, round(0.25 * canvas.mm)), canvas.mm
    below = Image.new("L", canvas.page.size, 255)
    draw = ImageDraw.Draw(below)
    for row in range(ROWS):
        y = (15 + row * 14) * mm
        if kind != "boxes":
            canvas.write_row(text_of(random, 9), 15 * mm, y - 7.5 * mm, 8, 0.6, 1.5, random)
            draw.line((0, y, below.width, y), grey, thick)
            continue
        for cell in range(9):
            x = (12 + cell * wide) * mm
            draw.rectangle((x, y - 10 * mm, x + wide * mm, y + mm), None, grey, thick)
            canvas.write_row(text_of(random, 1), x + 2 * mm, y - 8 * mm, 6.5, 0.6, 0, random)
    for line in range(0, 300, 5) if kind == "squared" else ():
        draw.line((line * mm, 0, line * mm, below.height), grey, thick)
        draw.line((0, line * mm, below.width, line * mm), grey, thick)
    canvas.page = Image.fromarray(np.minimum(np.asarray(below), np.asarray(canvas.page)))
    return scanned(canvas, random)


def _coloured(file: str, ink: str, paper: str, random: Generator) -> Drawn:
    canvas, colours = printed_sheet(file, 150, 24, random, 3), {"red": (228, 60, 60), "grey": (111, 111, 111)}
    mask = canvas.page.point(lambda value: 255 - value)
    if ink == "clear":
        image = Image.new("RGBA", mask.size, (255, 255, 255, 0))
        image.putalpha(mask)
        return canvas.drawn(image)
    grounds = [Image.new("RGB", mask.size, colours.get(name, name)) for name in (ink, paper)]
    return canvas.drawn(Image.composite(grounds[0], grounds[1], mask))
