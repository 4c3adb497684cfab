"""Count the errors on the validation examples, and the time, without TTA, with it, and with it below a limit.

    python -m benchmarks.looks recipe=accurate        any key=value can follow

It needs the data and the model of `dvc repro`, and writes benchmarks/results/looks.md. The test examples are not read.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

from pipeline.apps.predictor import confidence_threshold, unsure_below
from pipeline.base.hydra import compose
from pipeline.base.project import open_project
from pipeline.base.schema import Config
from pipeline.data.examples import Examples, load_split
from pipeline.metrics.metrics import softmax
from pipeline.model.files import load_model
from pipeline.model.inference import SHIFTS, inference, looks_again, start
from pipeline.tracking.environment import hardware

ROUNDS = 7


def compare_looks(model_file: Path, examples: Examples, confidence: float) -> str:
    """Return a Markdown table, with the abstentions at the threshold that one look gives for `confidence`."""
    start(0)
    model = load_model(model_file)
    once = softmax(inference(model)(examples.images))
    below = unsure_below(once.max(1))
    threshold = confidence_threshold(once.max(1), once.argmax(1) == examples.labels, confidence)
    ways = {
        "none": inference(model),
        f"where the probability is below {100 * below:.2f} %": looks_again(model, below),
        "all": inference(model, len(SHIFTS)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {name: softmax(look(examples.images)) for name, look in ways.items()}  # compiles
    for _ in range(ROUNDS):
        for name, look in ways.items():
            begin = time.perf_counter()
            look(examples.images)
            seconds[name].append(time.perf_counter() - begin)
    rows = ["| TTA | errors | confident answers | of these wrong | time |", "| - | -: | -: | -: | -: |"]
    for name, probabilities in results.items():
        wrong, confident = probabilities.argmax(1) != examples.labels, probabilities.max(1) >= threshold
        ratio = median(own / one for own, one in zip(seconds[name], seconds["none"], strict=True))
        rows.append(
            f"| {name} | {wrong.sum()} | {confident.sum():,} | {(wrong & confident).sum()} | "
            f"{1000 * median(seconds[name]):,.0f} ms, {ratio:.2f} x |"
        )
    share = (once.max(1) < below).mean()
    return "\n".join(
        [
            *rows,
            "",
            f"n = {len(once):,}, {100 * share:.1f} % below the limit; threshold {100 * threshold:.2f} %; {hardware()}.",
        ]
    )


if __name__ == "__main__":
    project = open_project()
    settings: Config = compose(project, *sys.argv[1:], name="train")
    text = compare_looks(project.model(settings.name), load_split(project, "val", settings.data), 0.999)
    Path("benchmarks/results/looks.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)
