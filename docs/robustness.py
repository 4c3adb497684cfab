"""The tables of docs/robustness.md, from results/robustness, which `pipeline.robustness` fills."""

from __future__ import annotations

import csv
import json
import statistics
import textwrap
from collections.abc import Callable
from typing import Any

from benchmarks.report import CONFIDENCE, DISPUTED, WIDTH, interval, percent, provenance, table
from pipeline.apps.corruptions import CORRUPTIONS, EXACT, GEOMETRIC
from pipeline.metrics.metrics import wilson_interval

STYLES = {"inverted": "inverted", "in odd colours": "colour-mapped (viridis)"}
MEANS = {"mean": (), "mean without inverse": ("inverse",), "mean without augmented kinds": GEOMETRIC}
EXTERNAL = ("digits", "n", "recipe", "with preprocessing (95 % CI)", "without", "confident", "of these correct")
Results = dict[str, dict[str, Any]]  # by recipe: its robustness.json


def accuracy(counts: dict[str, int], key: str = "right") -> float:
    return counts[key] / counts["digits"]


def external_table(results: Results) -> str:
    rows = []
    for source in results["accurate"]["elsewhere"]:
        for recipe, result in results.items():
            counts = result["elsewhere"][source]
            row = [source, f"{counts['digits']:,}", recipe]
            for key in ("right", "unprepared_right"):
                ends = wilson_interval(counts[key], counts["digits"], CONFIDENCE)
                row.append(f"{percent(accuracy(counts, key))} ({interval(*ends)})")
            confident = [percent(accuracy(counts, "sure"), 1), f"{counts['sure_right']:,} of {counts['sure']:,}"]
            rows.append([*row, *(confident if result["sure_above"] else ("always abstains", "–"))])
    limits = {name: percent(one["sure_above"]) if one["sure_above"] else "none" for name, one in results.items()}
    text = ", ".join(f"{limit} for {name}" for name, limit in limits.items())
    return f"{table(EXTERNAL, rows)}\nConfidence threshold: {text}.\n"


def style_table(results: Results) -> str:
    rows = []
    for name in results["accurate"]["guises"]:
        style, _, prepared = name.partition(", ")
        label = STYLES[style] + ", with preprocessing" * bool(prepared)
        rows.append([label, *(percent(accuracy(result["guises"][name])) for result in results.values())])
    return table(("test digits", *results), rows)


def corruption_table(results: Results) -> str:
    kinds = {name: [accuracy(one["corruptions"][name]) for one in results.values()] for name in CORRUPTIONS}
    rows = [[name, *map(percent, values), "same" if name in EXACT else "similar"] for name, values in kinds.items()]
    for label, without in MEANS.items():
        some = [values for name, values in kinds.items() if name not in ("identity", *without)]
        means = (percent(statistics.mean(column)) for column in zip(*some, strict=True))
        rows.append([f"{label} ({len(some)} kinds)", *means, ""])
    return table(("corruption", *results, "definition"), rows)


def suspects(results: Results, rows: list[dict[str, str]]) -> str:
    """Say what the test digits with the least probable labels have in common with errors and disputed labels."""
    ranks = [str(rank) for rank, row in enumerate(rows, 1) if int(row["index"]) in DISPUTED]
    plain, missed = (
        results["accurate"]["corruptions"]["identity"],
        sum(row["label"] != row["prediction"] for row in rows),
    )
    errors = f"{missed} of its {plain['digits'] - plain['right']} errors"
    disputed = f"{len(ranks)} of the {len(DISPUTED)} test digits whose label annotators rejected"
    return textwrap.fill(f"They include {errors}, and {disputed}, at ranks {', '.join(ranks)}.", WIDTH) + "\n"


def blocks(read: Callable[[str], str]) -> dict[str, str]:
    """Return the generated blocks of docs/robustness.md by name; `read` returns the text of a file."""
    results = {
        name: json.loads(read(f"results/robustness/{name}/robustness.json")) for name in ("baseline", "accurate")
    }
    rows = list(csv.DictReader(read("results/robustness/accurate/suspects_test.csv").splitlines()))
    tables = {"external": external_table, "styles": style_table, "corruptions": corruption_table}
    text = {name: make(results) for name, make in tables.items()}
    return text | {"suspects": suspects(results, rows), "measured": provenance(*results.values())}
