"""What a network weighs and takes as each format of `pipeline.export`, beside Keras's own model, by turns.

    python -m benchmarks.export

Writes benchmarks/results/export.json. Each trial is a process of its own, which has the runtime of its format alone
and one thread an operation; all give the logits of every test digit.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.run import measured_on
from pipeline import data
from pipeline.beyond import formats
from pipeline.config import ROOT, PipelineError, compose
from pipeline.console import quiet_import
from pipeline.files import existing, save_json
from pipeline.tables import markdown_table

RESULTS = ROOT / "benchmarks" / "results" / "export.json"
RECIPES = ("baseline", "accurate")
KERAS = "Keras"  # the .keras file itself
ROUNDS = 3
SINGLE, BATCHES, BATCH = 500, 20, 500  # digits one by one, and times so many at once
RUNTIMES = ("ai-edge-litert", "onnxruntime", "tf2onnx")


def measure(what: str, path: Path, logits_file: Path) -> dict[str, float]:
    """Median milliseconds of one digit after another and of many at once; the logits [N, K] go into `logits_file`."""
    images = data.load_examples(ROOT / "data" / "processed" / "test.npz", compose().data).images
    with quiet_import():
        infer = _loaded(what, path)
        singles = [images[i : i + 1] for i in np.arange(SINGLE) % len(images)]
        batch = images[np.arange(BATCH) % len(images)]
        for digit in singles[:20]:  # the first ones compile
            infer(digit)
        single_ms = statistics.median(_milliseconds(infer, digit) for digit in singles)
        infer(batch)
        batch_ms = statistics.median(_milliseconds(infer, batch) for _ in range(BATCHES))
        np.save(logits_file, infer(images))
    return {"single_ms": round(single_ms, 4), "batch_ms": round(batch_ms, 3)}


def _loaded(what: str, path: Path) -> formats.Infer:
    if what in ("litert", "onnx"):
        return formats.load(what, path)
    from pipeline import engine
    from pipeline.model import load_model

    engine.start(seed=0)
    return engine.inference(load_model(path)) if what == KERAS else formats.load(what, path)


def _milliseconds(infer: Callable[[Any], Any], images: np.ndarray) -> float:
    begin = time.perf_counter()
    infer(images)
    return 1000 * (time.perf_counter() - begin)


def study(recipe: str, folder: Path) -> list[dict[str, Any]]:
    """Export a recipe in every format, then time each in turn, in rounds; Keras is first, and compared with."""
    paths = {KERAS: existing(ROOT / "models" / recipe / "model.keras")}
    for name, of in formats.FORMATS.items():
        _run("pipeline.export", f"recipe={recipe}", f"format={name}", f"hydra.run.dir={folder}")
        paths[name] = folder / of.name
    trials, logits = [], {}
    for number in range(ROUNDS):
        for what, path in paths.items():
            logits_file = folder / f"{what}.npy"
            took = json.loads(_run("benchmarks.export", what, str(path), str(logits_file)).splitlines()[-1])
            logits[what] = np.load(logits_file)
            check = formats.compared(logits[what], logits[KERAS])
            trial = {"recipe": recipe, "what": what, "round": number, "bytes": formats.size(path), **took}
            trials.append(trial | {"digits": len(logits[what]), "differ": check.differ, "largest": check.largest})
            print(trials[-1], flush=True)
    return trials


def _run(module: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise PipelineError(f"{module} {' '.join(words)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def table(found: dict[str, Any]) -> str:
    """The stored trials in Markdown: medians over the rounds, with the lowest and highest."""
    rows = [
        [
            *("recipe", "format", "MB", "one digit, ms", f"{BATCH} digits, ms"),
            *("predictions that differ", "largest difference of a logit"),
        ]
    ]
    for recipe, what in dict.fromkeys((trial["recipe"], trial["what"]) for trial in found["trials"]):
        of = [trial for trial in found["trials"] if (trial["recipe"], trial["what"]) == (recipe, what)]
        times = [[trial[key] for trial in of] for key in ("single_ms", "batch_ms")]
        cells = [f"{statistics.median(values):,.3g} ({min(values):,.3g}–{max(values):,.3g})" for values in times]
        differ, largest = max(trial["differ"] for trial in of), max(trial["largest"] for trial in of)
        compared = ["–", "–"] if what == KERAS else [f"{differ:,} of {of[0]['digits']:,}", f"{largest:.1e}"]
        rows.append([recipe, what, f"{of[0]['bytes'] / 1e6:.2f}", *cells, *compared])
    return markdown_table(rows)


def main(words: list[str]) -> None:
    if words:
        what, path, logits_file = words
        print(json.dumps(measure(what, Path(path), Path(logits_file))))
        return
    try:
        runtimes = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in RUNTIMES)
    except importlib.metadata.PackageNotFoundError as error:
        raise PipelineError(f"{error.name} is not installed: `make runtimes` does that") from None
    with tempfile.TemporaryDirectory() as folder:
        trials = [trial for recipe in RECIPES for trial in study(recipe, Path(folder) / recipe)]
    found = {"trials": trials, "runtimes": runtimes, **measured_on()}
    save_json(RESULTS, found)
    print(table(found))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except PipelineError as error:
        sys.exit(f"error: {error}")
