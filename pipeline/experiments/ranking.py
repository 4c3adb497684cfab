"""The ranking of a sweep: its table, its picture, and the accuracy to expect of the best.

Children are ranked by validation accuracy; the test examples are not read.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock
from matplotlib.figure import Figure
from mlflow.entities import Run

from pipeline.base.errors import UserError
from pipeline.base.files import save_csv, write_text
from pipeline.base.project import Project
from pipeline.experiments.sweep_job import KEYS
from pipeline.metrics.metrics import wilson_interval
from pipeline.metrics.significance import Mean, best_of
from pipeline.reports import plots, verdicts
from pipeline.reports.comparison_report import mean_cells
from pipeline.reports.tables import markdown_table, percent, plain
from pipeline.tracking import queries, sweep_log

CONFIDENCE = 0.95
IDLE_FACTOR = 4  # the ranking is renewed again after so many times what it took: it grows with the sweep
MAX_NOTE = 5_000  # characters of the note that a run's page opens with


class Child(NamedTuple):
    """A line of the ranking. Accuracies are shares of the last epoch, NaN where there is none."""

    name: str
    values: dict[str, str]  # by swept key, as they were given
    status: str  # MLflow's: FINISHED, RUNNING, FAILED or KILLED
    val_accuracy: float
    train_accuracy: float
    seconds: float  # in training
    num_params: int
    val_examples: int
    group: str  # runs of one group differ in their seed alone
    run_id: str


def renew(project: Project, parent: str, folder: Path, partial: bool = False) -> tuple[list[Child], str]:
    """Write the ranking and its picture to `folder`, and log them to the parent run: the ranking, and as text.

    With `partial`, while the sweep runs: not soon after the last time, when both are empty, and without what takes
    reading every child.
    """
    locks = project.sweeps / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{parent}.lock"):
        begin, next_time = time.time(), folder / ".next"
        if partial and next_time.is_file() and begin < next_time.stat().st_mtime:
            return [], ""
        keys = os.environ[KEYS].split()
        runs = queries.sweep_runs(parent)
        children = rank(runs, keys)
        text = markdown(children, None if partial else _expected_of_best(children, runs))
        columns: dict[str, list[Any]] = {"rank": list(range(1, len(children) + 1))}
        columns |= {key: [child.values.get(key, "") for child in children] for key in keys}
        columns |= {name: [getattr(child, name) for child in children] for name in Child._fields if name != "values"}
        save_csv(folder / "ranking.csv", columns)
        write_text(folder / "ranking.md", text)
        curves = {run.info.run_id: queries.curve(run, "val_accuracy") for run in runs}
        plots.save_figure(folder / "sweep.png", _draw(children, curves, [key for key in keys if key != "seed"]))
        best = children[0] if children else None
        tags = {"best": best.name, "best_run": best.run_id} if best and best.status == "FINISHED" else {}
        tags["mlflow.note.content"] = text[:MAX_NOTE]
        sweep_log.log_sweep(parent, [folder / name for name in ("ranking.csv", "ranking.md", "sweep.png")], tags)
        next_time.touch()
        end = time.time()
        os.utime(next_time, (end, end + IDLE_FACTOR * (end - begin)))
    return children, text


def rank(runs: Sequence[Run], keys: Sequence[str]) -> list[Child]:
    """Return MLflow's runs as children: the finished first, by validation accuracy, the smaller model at a tie.

    What two machines have both trained counts once.
    """
    children: dict[str, Child] = {}  # by content
    for run in sorted(runs, key=lambda run: run.info.status == "FINISHED"):
        params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
        values = swept_values(run, keys)
        children[tags["content_sha256"]] = Child(
            plain(" ".join(f"{key}={value}" for key, value in values.items()) or run.info.run_name),
            values,
            run.info.status,
            metrics.get("val_accuracy", math.nan),
            metrics.get("train_accuracy", math.nan),
            sum(queries.curve(run, "epoch_seconds")),
            int(params.get("model.num_params", 0)),
            int(params.get("data.val_examples", 0)),
            tags["group"],
            run.info.run_id,
        )
    return sorted(
        children.values(),
        key=lambda child: (child.status != "FINISHED", -np.nan_to_num(child.val_accuracy), child.num_params),
    )


def swept_values(run: Run, keys: Sequence[str]) -> dict[str, str]:
    """Return what the sweep gave a run for its keys, as typed; for runs of earlier code, what their parameters say."""
    with suppress(ValueError, AttributeError):  # earlier code wrote none, or a sentence
        return {key: str(value) for key, value in json.loads(run.data.tags.get("swept", "")).items()}
    known = run.data.params | {"recipe": run.data.tags.get("recipe", "")}
    return {key: known[key] for key in keys} if known.keys() >= set(keys) else {}


def _expected_of_best(children: Sequence[Child], runs: Sequence[Run]) -> Mean | None:
    """The accuracy to expect of the best, by the validation predictions of all children that still have them."""
    runs_by_id, predictions = {run.info.run_id: run for run in runs}, {}
    with tempfile.TemporaryDirectory() as folder, suppress(UserError):
        for child in children:
            if child.status == "FINISHED" and child.val_examples > 1:
                with suppress(UserError):
                    file = queries.artifact(runs_by_id[child.run_id], "val_predictions.csv", Path(folder))
                    predictions[child.run_id] = verdicts.read_predictions(file)
        if len(predictions) > 1:
            _, labels = verdicts.same_examples(predictions, "validation")
            correct = np.array([one.predictions == labels for one in predictions.values()])
            return best_of(correct, CONFIDENCE)
    return None


def markdown(children: Sequence[Child], expected_of_best: Mean | None = None) -> str:
    """Return the ranking as a table, with a second one of means where there are several seeds."""
    rows = [["", "run", "validation", "training", "training time (s)", "parameters", "MLflow run"]]
    for position, child in enumerate(children, 1):
        label = str(position) if child.status == "FINISHED" else child.status.lower()
        accuracies = [percent(child.val_accuracy), percent(child.train_accuracy)]
        rows.append([label, child.name, *accuracies, f"{child.seconds:.1f}", f"{child.num_params:,}", child.run_id])
    text = f"{markdown_table(rows)}\n\nLast epoch, ranked by validation accuracy. The test examples were not read.\n"
    finished = [child for child in children if child.status == "FINISHED"]
    confidence = f"{100 * CONFIDENCE:g} %"
    if expected_of_best:
        mean, low, high = map(percent, (expected_of_best.mean, expected_of_best.low, expected_of_best.high))
        text += (
            f"The best of {len(finished)} was chosen on these {finished[0].val_examples:,} examples, so its accuracy "
            f"on them is biased upward. Chosen on bootstrap samples and scored on the examples left out, the best has "
            f"{mean} ({confidence} {low} to {high}; BBC-CV, from the predictions of {expected_of_best.n}).\n"
        )
    elif len(finished) == 1 and (size := finished[0].val_examples):
        limits = wilson_interval(round(finished[0].val_accuracy * size), size, CONFIDENCE)
        text += (
            f"The choice of {size:,} examples alone leaves it between {percent(limits.low)} and {percent(limits.high)} "
            f"({confidence}, Wilson); another seed moves it as well.\n"
        )
    groups = by_group(children)
    if max(map(len, groups.values()), default=0) < 2:
        return text
    rows = [["", "n seeds", "mean validation", f"{confidence} of the mean (t)"]]
    for name, members in groups.items():
        rows.append([name, *mean_cells([child.val_accuracy for child in members], CONFIDENCE)])
    return f"{text}\n{markdown_table(rows)}\n"


def by_group(children: Sequence[Child]) -> dict[str, list[Child]]:
    """Return the finished children that differ in their seed alone, under what they have in common."""
    groups = defaultdict(list)
    for child in children:
        if child.status == "FINISHED":
            common = [f"{key}={value}" for key, value in child.values.items() if key != "seed"]
            groups[" ".join([*common, f"group {child.group}"])].append(child)
    return groups


def _draw(children: Sequence[Child], curves: Mapping[str, Sequence[float]], keys: Sequence[str]) -> Figure:
    """Draw a heat map of two swept keys, seeds averaged; the curves of all children where it is not two."""
    finished = [child for child in children if child.status == "FINISHED"]
    if len(keys) != 2 or not finished:
        names = short_labels([child.name for child in children], 60)
        lines = dict(zip(names, (curves[child.run_id] for child in children), strict=True))
        return plots.plot_curves(lines, "validation accuracy")
    axes = [sorted({child.values.get(key, "") for child in children}, key=_number_first) for key in keys]
    grid = np.full([len(axis) for axis in axes], np.nan)
    for cell in np.ndindex(*grid.shape):
        values = [axis[index] for axis, index in zip(axes, cell, strict=True)]
        same = [child.val_accuracy for child in finished if [child.values.get(key, "") for key in keys] == values]
        if same:
            grid[cell] = np.mean(same)
    labels = [short_labels(axis, 24) for axis in axes]
    return plots.plot_heat_map(grid, list(keys), labels, "validation accuracy in %, last epoch")


def short_labels(texts: Sequence[str], longest: int) -> list[str]:
    """Return labels that fit beside a picture and differ: if one is long, all from before the first difference on."""
    if max(map(len, texts), default=0) <= longest:
        return list(texts)
    alike = len(os.path.commonprefix(texts)) if len(texts) > 1 else 0  # noqa: RUF071 - no paths
    start = max(0, alike - longest // 2)
    rest = [text[start:] for text in texts]
    cut = [f"{'…' if start else ''}{text[:longest]}{'…' if text[longest:] else ''}" for text in rest]
    return cut if len(set(cut)) == len(cut) else [f"{number}: {text}" for number, text in enumerate(cut, 1)]


def _number_first(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text
