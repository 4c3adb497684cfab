"""Write docs/robustness.md and its pictures from results/robustness, which the stage `robustness` fills."""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.report import DISPUTED  # noqa: E402
from pipeline import plots  # noqa: E402
from pipeline.beyond.corruptions import EXACT, GEOMETRIC  # noqa: E402
from pipeline.beyond.drawing import plot_shares  # noqa: E402
from pipeline.files import load_csv, load_json, replacing  # noqa: E402
from pipeline.metrics import wilson_interval  # noqa: E402
from pipeline.tables import markdown_table, percent  # noqa: E402

DOCS = ROOT / "docs"
RESULTS = ROOT / "results" / "robustness"
SETTLED = 50  # suspects that are looked at


def share(of: dict[str, int]) -> float:
    return of["right"] / of["digits"]


def with_interval(of: dict[str, int], right: str = "right") -> str:
    low, high = wilson_interval(of[right], of["digits"], 0.95)
    return f"{percent(of[right] / of['digits'])} ({100 * low:.2f} to {100 * high:.2f})"


def corruptions(found: dict[str, Any]) -> str:
    names = list(next(iter(found.values()))["corruptions"])
    rows = [["corruption", *found, "as published"]]
    for name in names:
        exact = "yes" if name in EXACT else "alike"
        rows.append([name, *(percent(share(of["corruptions"][name])) for of in found.values()), exact])
    for title, left_out in (
        ("mean of all but identity", ()),
        ("and without shear, scale, rotate, translate", GEOMETRIC),
    ):
        some = [name for name in names if name not in ("identity", *left_out)]
        means = [statistics.mean(share(of["corruptions"][name]) for name in some) for of in found.values()]
        rows.append([f"{title} ({len(some)})", *map(percent, means), ""])
    return markdown_table(rows)


def elsewhere(found: dict[str, Any]) -> str:
    rows = [["digits", "n", "recipe", "prepared (95 %)", "not prepared (95 %)", "sure of", "right where sure"]]
    for source in next(iter(found.values()))["elsewhere"]:
        for recipe, of_recipe in found.items():
            of = of_recipe["elsewhere"][source]
            sure = f"{of['sure_right']:,} of {of['sure']:,}" if of["sure"] else "–"
            cells = [f"{of['digits']:,}", recipe, with_interval(of), with_interval(of, "unprepared_right")]
            rows.append([source, *cells, percent(of["sure"] / of["digits"], 1), sure])
    return markdown_table(rows)


def guises(found: dict[str, Any]) -> str:
    names = list(next(iter(found.values()))["guises"])
    return markdown_table(
        [
            ["test digits", *found],
            *([name, *(percent(share(of["guises"][name])) for of in found.values())] for name in names),
        ]
    )


def suspects(recipe: str) -> tuple[str, str]:
    """How many of the disputed test labels are among the first suspects, and their places there."""
    rows = load_csv(RESULTS / recipe / "suspects_test.csv", ["index"])
    places = [place for place, row in enumerate(rows[:SETTLED], 1) if int(row["index"]) in DISPUTED]
    return f"{len(places)} of {len(DISPUTED)}", ", ".join(map(str, places))


def main() -> None:
    recipes = sorted((path.parent.name for path in RESULTS.glob("*/robustness.json")), reverse=True)
    found = {
        recipe: load_json(RESULTS / recipe / "robustness.json")
        for recipe in sorted(recipes, key="fast accurate baseline".find, reverse=True)
    }
    folder = DOCS / "robustness"
    shares = {
        recipe: {name: share(of_name) for name, of_name in of["corruptions"].items()} for recipe, of in found.items()
    }
    plots.save_figure(folder / "accuracy.png", plot_shares(shares, "test digits right, %"))
    best = list(found)[-1]
    for name in ("corrupted.png", "suspects_test.png", "suspects_validation.png"):
        shutil.copyfile(RESULTS / best / name, folder / name)
    text = (DOCS / "robustness.in.md").read_text(encoding="utf-8")
    count, places = suspects(best)
    for mark, content in {
        "{corruptions}": corruptions(found),
        "{elsewhere}": elsewhere(found),
        "{guises}": guises(found),
        "{best}": best,
        "{sure}": ", ".join(
            f"{'none' if of['sure_above'] is None else percent(of['sure_above'])} for {recipe}"
            for recipe, of in found.items()
        ),
        "{disputed}": count,
        "{places}": places,
        "{where}": "; ".join(dict.fromkeys(f"{of['hardware']}; {of['versions']}" for of in found.values())),
    }.items():
        assert mark in text, mark
        text = text.replace(mark, content)
    with replacing(DOCS / "robustness.md") as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
