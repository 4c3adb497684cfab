"""Measure what sweep.prune saves and loses, into benchmarks/results/pruning.json:  python -m benchmarks.pruning

A sweep of 24 is trained without pruning, and with a constant rate by the median too, in a store of its own each time.
Since the order of the jobs decides, both rules are then replayed in many orders from the curves of the unpruned sweep,
which gives the same epochs as training. No test digit is read.
"""

from __future__ import annotations

import json
import tempfile
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import WIDTH, table
from benchmarks.run import RESULTS, measured_on, run
from pipeline.base.files import load_json, save_json
from pipeline.base.project import open_project
from pipeline.experiments.pruning import Sibling, is_due, why_hopeless
from pipeline.tracking.record import Record

RULES = ("none", "median", "halving")
SCHEDULES = {"constant": RULES[:2], "one_cycle": RULES[:1]}  # and the rules that are really run
EPOCHS, EXAMPLES, ORDERS, SEEDS = 8, 5_000, 1_000, 5
FIXED = ("recipe=fast", f"train.epochs={EPOCHS}", f"train.examples={EXAMPLES}")
GRID: tuple[str, ...] = ("optimizer.learning_rate=0.0003,0.001,0.003,0.006,0.012,0.03", "model.filters=4,16")
GRID += ("optimizer.label_smoothing=0.0,0.1",)
Curves = Sequence[Sequence[float]]  # validation accuracy after every epoch that a job was trained, job by job


def sweep(*overrides: str) -> tuple[float, dict[str, list[float]]]:
    """Train a sweep; return its seconds and the curve of every job, by its name, in the order that Hydra makes."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["python", "-m", "pipeline.train", "-m", *FIXED, *overrides, f"hydra.sweep.dir={folder}/sweep"]
        begin = time.perf_counter()
        run(words, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/own.db")
        seconds = time.perf_counter() - begin
        records = [
            Record(Path(folder, "sweep", str(number))) for number in range(len(list(Path(folder).glob("sweep/[0-9]*"))))
        ]
    curves = {one.info["name"]: [row["values"]["val_accuracy"] for row in one.rows] for one in records}
    return round(seconds, 1), curves


def replay(rule: str, curves: Curves, order: Sequence[int]) -> tuple[int, float]:
    """Return the epochs that jobs one after the other would take in this order, and the best accuracy at their end."""
    done: list[Sequence[float]] = []
    for job in order:
        for epoch in range(1, EPOCHS + 1):
            siblings = [Sibling(one[epoch - 1], len(one) == EPOCHS) for one in done if len(one) >= epoch]
            if is_due(rule, epoch, EPOCHS) and why_hopeless(rule, curves[job][epoch - 1], siblings):
                break
        done.append(curves[job][:epoch])
    return sum(map(len, done)), max(one[-1] for one in done if len(one) == EPOCHS)


def measure(schedule: str, rules: Sequence[str]) -> dict[str, Any]:
    """Return curves, seconds and epochs of the sweeps by these rules, and what every rule gives in other orders."""
    given = f"optimizer.schedule={schedule}"
    swept = {rule: sweep(given, *GRID, *([f"sweep.prune={rule}"] if rule != "none" else [])) for rule in rules}
    curves = swept["none"][1]
    best = max(curves, key=lambda name: curves[name][-1])
    seeds = sweep(given, *best.split(), f"seed=range(0,{SEEDS})")[1]
    return {
        "curves": curves,
        "best": best,
        "seeds": [curve[-1] for curve in seeds.values()],
        "swept": {
            rule: {
                "seconds": seconds,
                "epochs": sum(map(len, some.values())),
                "best": max(curve[-1] for curve in some.values() if len(curve) == EPOCHS),
            }
            for rule, (seconds, some) in swept.items()
        },
        "replayed": {rule: replayed(rule, list(curves.values())) for rule in RULES[1:]},
    }


def replayed(rule: str, curves: Curves) -> dict[str, Any]:
    """Return what a rule gives in random orders: the share of epochs (median, least, most), how often the best job is
    kept, and by how much the best accuracy is lower on average."""
    generator = np.random.default_rng(0)
    tries = [replay(rule, curves, generator.permutation(len(curves)).tolist()) for _ in range(ORDERS)]
    epochs, best = np.array(tries).T
    shares, lost = epochs / (EPOCHS * len(curves)), max(curve[-1] for curve in curves) - best
    typed = range(len(curves))  # the lowest learning rate first
    share = [float(np.median(shares)), float(shares.min()), float(shares.max())]
    as_typed, reverse = (replay(rule, curves, order)[0] / (EPOCHS * len(curves)) for order in (typed, typed[::-1]))
    return {
        "typed": as_typed,
        "reverse": reverse,
        "share": share,
        "kept": float(np.mean(lost == 0)),
        "lost": float(lost.mean()),
    }


def pruning_table(results: Mapping[str, Any]) -> str:
    """Return what each rule saved and lost, as a Markdown table."""
    rows = []
    for schedule, measured in results["schedules"].items():
        for rule, orders in measured["replayed"].items():
            middle, least, most = (f"{share:.2f}" for share in orders["share"])
            row = [f"{schedule}, {rule}", f"{orders['typed']:.2f}", f"{orders['reverse']:.2f}"]
            row += [f"{middle} ({least}–{most})", f"{100 * orders['kept']:.0f} %", f"{100 * orders['lost']:.3f}"]
            rows.append(row)
    head = ("schedule, rule", "lowest rates first", "highest first", "random orders", "best kept", "points lost")
    return table(head, rows)


def blocks(read: Callable[[str], str]) -> dict[str, str]:
    """Return the generated block of docs/sweeps.md; `read` returns the text of a file."""
    results = json.loads(read("benchmarks/results/pruning.json"))
    return {"pruning": f"{pruning_table(results)}\n{note(results)}\n"}


def note(results: Mapping[str, Any]) -> str:
    """Say what the table holds, and how much seeds differ."""
    deviations = " and ".join(
        f"{100 * np.std(one['seeds'], ddof=1):.2f} ({name})" for name, one in results["schedules"].items()
    )
    whole, median = (results["schedules"]["constant"]["swept"][rule] for rule in ("none", "median"))
    text = (
        f"n = one unpruned sweep per schedule: 24 jobs of `fast`, one seed each, {EPOCHS} epochs on {EXAMPLES:,} "
        f"digits, on {results['hardware']}. Each rule was replayed on its curves, one job after the other. Random "
        f'orders: median (minimum–maximum) of {ORDERS:,}. In these, "best kept" is how often the best job is kept, '
        'and "points lost" how much worse the best one left is on average, on 5,000 validation digits; the standard '
        f"deviation over {SEEDS} seeds of the best configuration is {deviations} points. `median` was also really "
        f"run, with the constant rate, lowest rates first: {median['epochs']} of {whole['epochs']} epochs, "
        f"{median['seconds']:.0f} s instead of {whole['seconds']:.0f} s beside other work, the same best accuracy."
    )
    return textwrap.fill(text, WIDTH, break_on_hyphens=False)


def main() -> None:
    project = open_project()
    results = {**measured_on(project), "schedules": {name: measure(name, rules) for name, rules in SCHEDULES.items()}}
    save_json(RESULTS / "pruning.json", results)
    print(pruning_table(load_json(RESULTS / "pruning.json")))


if __name__ == "__main__":
    main()
