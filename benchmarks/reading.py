"""How many digits of benchmarks/pages.py a recipe's model reads:

    python -m pipeline.signs
    python -m benchmarks.reading develop|measure recipe=accurate

A box is right where it is one digit's own: what both have in common is at least 0.4 of what the two cover together.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFont

from benchmarks.pages import Canvas, Points, fonts, pages, scanned, text_of
from benchmarks.report import percent, provenance, table
from benchmarks.run import RESULTS, measured_on
from pipeline.apps.digit_finder import DIGITS, Page, find_digits
from pipeline.apps.images import MAX_SIDE, read_image
from pipeline.apps.predictor import Predictor, knows_signs, load_predictor
from pipeline.base.command import isolate
from pipeline.base.errors import UserError
from pipeline.base.files import load_json, save_json
from pipeline.base.hydra import compose
from pipeline.base.project import open_project
from pipeline.base.verb_schemas import PredictConfig
from pipeline.signs import SIGNS, drawn_shapes

Counts = Mapping[str, Mapping[str, float]]  # by kind of page, then by what is counted


def matched(corners: list[Points], boxes: list[Any]) -> list[int | None]:
    """Return for each digit which of the boxes is its own: at least 0.4 of what both cover is common; None for none."""
    found: list[int | None] = []
    for points in corners:
        (left, top), (right, bottom) = points.min(0), points.max(0)
        shares = []
        for box in boxes:
            high, wide = (
                min(bottom, box[2]) - max(top, box[0]),
                min(right, box[3]) - max(left, box[1]),
            )
            common = max(high, 0) * max(wide, 0)
            shares.append(common / ((bottom - top) * (right - left) + (box[2] - box[0]) * (box[3] - box[1]) - common))
        found.append(int(np.argmax(shares)) if shares and max(shares) >= 0.4 else None)
    return found


def count(part: str, predictor: Any) -> dict[str, dict[str, float]]:
    """Return by kind of page: digits, boxes that are right, others, digits right, confident ones, and seconds."""
    rows: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for kind, drawn in pages(part):
        row, file = rows[kind], as_file(drawn.image)
        begin = time.perf_counter()
        try:
            page = find_digits(read_image(file))
            probabilities, reasons = predictor.answers(page.digits, page.joined)
            said, sure = probabilities.argmax(1), [not reason for reason in reasons]
        except UserError:
            page, sure, said = Page(np.zeros((0, 0), np.uint8), [], np.zeros(0, np.uint8), np.zeros(0, bool)), [], []
        row["seconds"] += time.perf_counter() - begin
        scale = max(1, max(drawn.image.size) / MAX_SIDE)
        boxes = [[side * scale for side in box] for box in page.boxes]
        own = matched(drawn.corners, boxes)
        right = {
            box for box, digit in zip(own, drawn.digits, strict=True) if box is not None and said[box] == int(digit)
        }
        # A box on two digits, or one that is said to be joined, is none's.
        own = [box if own.count(box) == 1 and box is not None and not page.joined[box] else None for box in own]
        right &= set(own)
        row["pages"] += 1
        row["digits"] += len(drawn.digits)
        row["boxes"] += len(set(own) - {None})
        row["others"] += len(boxes) - len(set(own) - {None})
        row["right"] += len(right)
        row["confident"] += int(sum(sure))
        row["confident_right"] += sum(bool(sure[box]) for box in right)
    return rows


def count_signs(part: str, predictor: Predictor) -> dict[str, dict[str, int]]:
    """Return of printed signs and of printed digits, a sheet each: shapes, those of which the model is confident, and
    those that are also no signs to the network of `python -m pipeline.signs`."""
    counts = {}
    for name, printed in (("signs", SIGNS), ("digits", DIGITS)):
        shapes = np.stack(list(drawn_shapes(printed, map(Path, fonts(part)))))
        confident = ~predictor.abstains(predictor.probabilities(shapes))
        kept = confident & ~predictor.are_signs(shapes)
        counts[name] = {"shapes": len(shapes), "confident": int(confident.sum()), "kept": int(kept.sum())}
    return counts


def time_full_page(part: str, predictor: Predictor) -> dict[str, Any]:
    """Return the digits read of a printed page of A4 at 300 dpi that is full of them, and the seconds of 5 times, from
    the file to the answers."""
    random, canvas = np.random.default_rng(3), Canvas(210, 297, 300)
    font = ImageFont.truetype(fonts(part)[0], 12 * 300 / 72)
    for row in range(40):
        canvas.print_row(text_of(random, 24), 15 * canvas.mm, (12 + 6.7 * row) * canvas.mm, font)
    file, seconds = as_file(scanned(canvas, random).image), []
    for _ in range(6):
        begin = time.perf_counter()
        page = find_digits(read_image(file))
        predictor.answers(page.digits, page.joined)
        seconds.append(round(time.perf_counter() - begin, 3))
    return {"digits": len(page.digits), "seconds": seconds[1:]}  # after one to warm up


def signs_table(counts: Mapping[str, Mapping[str, int]]) -> str:
    """Return what `count_signs` returns as a Markdown table."""
    rows = [
        [name, f"{of['shapes']:,}", *(percent(of[key] / of["shapes"], 1) for key in ("confident", "kept"))]
        for name, of in counts.items()
    ]
    return table(("printed", "shapes", "confident answers", "after `python -m pipeline.signs`"), rows)


def as_file(image: Image.Image) -> bytes:
    """Return a page as a scanner's or a canvas's file: PNG, as it keeps every pixel."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def reading_table(counts: Counts, before: Counts) -> str:
    """Return what `count` returns as a Markdown table, beside the shares of an earlier state where there are any."""
    rows = []
    for kind, row in counts.items():
        shares = [
            [of["boxes"] / (of["digits"] + of["others"]), of["right"] / of["digits"]] for of in (before[kind], row)
        ]
        sure = f"{row['confident']:,.0f}; {row['confident'] - row['confident_right']:,.0f}"
        cells = [
            f"{row['pages']:.0f}",
            f"{row['digits']:,.0f}",
            *(percent(one, 1) for pair in zip(*shares, strict=True) for one in pair),
        ]
        rows.append([kind, *cells, sure, f"{row['seconds'] / row['pages']:.1f}"])
    head = ("pages", "digits", "boxes right, before", "now", "digits right, before", "now")
    return table(("", *head, "confident answers; wrong", "seconds a page"), rows)


def blocks(read: Callable[[str], str]) -> dict[str, str]:
    """Return the generated block of docs/predicting.md by name; `read` returns the text of a file."""
    stored = json.loads(read("benchmarks/results/reading.json"))
    seconds = stored["full_page"]["seconds"]
    return {
        "reading": f"{reading_table(stored['counts'], stored['before'])}\n{provenance(stored)}",
        "signs": signs_table(stored["signs"]),
        "full page": (
            f"A printed page of A4 at 300 dpi with {stored['full_page']['digits']} digits takes "
            f"{np.median(seconds):.2f} s from the file to the answers\n"
            f"(median of {len(seconds)}, {min(seconds):.2f} to {max(seconds):.2f}; on the same machine).\n"
        ),
    }


if __name__ == "__main__":
    isolate()
    part, *overrides = sys.argv[1:]
    project = open_project()
    config = compose(project, *overrides, schema=PredictConfig, name="predict")
    if not knows_signs(project, config.data):
        sys.exit("error: run `python -m pipeline.signs` first")
    predictor = load_predictor(project, config)
    full_page = time_full_page(part, predictor)
    counts, signs = count(part, predictor), count_signs(part, predictor)
    if part == "measure":
        stored = load_json(RESULTS / "reading.json")  # `before` is of commit d897b76, and cannot be measured here
        now = {"counts": counts, "signs": signs, "full_page": full_page, **measured_on(project)}
        save_json(RESULTS / "reading.json", {"before": stored["before"], **now})
    print(reading_table(counts, counts), signs_table(signs), full_page, sep="\n")
