"""The ranking of a sweep: its table, its picture, and the accuracy to expect of the best.

Children are ranked by train.monitor, validation accuracy where nothing else is asked for; the test examples are not
read.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
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
from pipeline.base.schema import better
from pipeline.experiments import folds
from pipeline.metrics.significance import Mean, best_of
from pipeline.reports import plots
from pipeline.reports.comparison_report import mean_cells
from pipeline.reports.tables import markdown_table, percent, plain
from pipeline.reports.verdicts import read_predictions
from pipeline.tracking import queries, sweep_log

ACCURACY = "val_accuracy"  # what is ranked by where nothing else is asked for
CONFIDENCE = 0.95
IDLE_FACTOR = 4  # the ranking is renewed again after so many times what it took: it grows with the sweep
MAX_NOTE = 5_000  # characters of the note that a run's page opens with


class Child(NamedTuple):
    """A line of the ranking. Metrics are of the epoch that is kept, accuracies shares, NaN where there is none."""

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
    run: Run
    monitored: float  # train.monitor


def renew(
    project: Project, parent: str, keys: Sequence[str], folder: Path, monitor: str = ACCURACY, partial: bool = False
) -> tuple[list[Child], str]:
    """Write the ranking and its picture to `folder`, and log them to the parent run: the ranking, and as text.

    With `partial`, while the sweep runs: not soon after the last time, when both are empty, and without what takes
    reading every child.
    """
    with FileLock(project.sweeps / ".locks" / f"{parent}.lock"):
        begin, next_time = time.time(), folder / ".next"
        if partial and next_time.is_file() and begin < next_time.stat().st_mtime:
            return [], ""
        children = rank(queries.sweep_runs(parent), monitor)
        is_ours = monitor == ACCURACY
        text = markdown(children, monitor, None if partial or not is_ours else _expected_of_best(children))
        done = [] if partial else [child.run for child in children if child.status == "FINISHED"]
        of_folds, predictions, metrics = folds.renew_sweep(done, folder, CONFIDENCE)
        text = of_folds + text
        columns: dict[str, Sequence[Any]] = {"rank": range(1, len(children) + 1)}
        columns |= {key: [child.values.get(key, "") for child in children] for key in keys}
        columns |= {} if is_ours else {monitor: [child.monitored for child in children]}
        columns |= {name: [getattr(child, name) for child in children] for name in ("name", *Child._fields[2:-2])}
        table, note, picture = files = [folder / name for name in ("ranking.csv", "ranking.md", "sweep.png")]
        save_csv(table, columns)
        write_text(note, text)
        plots.save_figure(picture, _draw(children, [key for key in keys if key not in folds.VARIED], monitor))
        tags = {"mlflow.note.content": text[:MAX_NOTE]}
        if children and children[0].status == "FINISHED" and not folds.count_folds(children[0].run):
            tags |= {"best": children[0].name, "best_run": children[0].run_id}
        sweep_log.log_sweep(parent, [*files, *predictions], tags, metrics=metrics)
        next_time.touch()
        end = time.time()
        os.utime(next_time, (end, end + IDLE_FACTOR * (end - begin)))
    return children, text


def rank(runs: Sequence[Run], monitor: str = ACCURACY) -> list[Child]:
    """Return MLflow's runs as children: the finished first, by `monitor`, the smaller model at a tie.

    A run without that metric comes after those that have it. What two machines have both trained counts once.
    """
    children: dict[str, Child] = {}  # by content
    for run in sorted(runs, key=lambda run: run.info.status == "FINISHED"):
        params, tags = run.data.params, run.data.tags
        values = json.loads(tags["swept"])
        children[tags["content_sha256"]] = Child(
            plain(" ".join(f"{key}={value}" for key, value in values.items()) or run.info.run_name),
            values,
            run.info.status,
            queries.final(run, ACCURACY),
            queries.final(run, "train_accuracy"),
            sum(queries.curve(run, "epoch_seconds")),
            int(params.get("model.num_params", 0)),
            int(params.get("data.val_examples", 0)),
            tags["group"],
            run.info.run_id,
            run,
            queries.final(run, monitor),
        )

    def place(child: Child) -> tuple[Any, ...]:
        score = better(monitor, child.monitored)
        return child.status != "FINISHED", math.isnan(score), -np.nan_to_num(score), child.num_params

    return sorted(children.values(), key=place)


def _expected_of_best(children: Sequence[Child]) -> Mean | None:
    """Return the accuracy to expect of the best, by the validation predictions of all children that have them."""
    correct = []
    with tempfile.TemporaryDirectory() as folder:
        for child in children:
            if child.status == "FINISHED" and child.val_examples > 1 and not folds.count_folds(child.run):
                with suppress(UserError):
                    found = read_predictions(queries.artifact(child.run, "val_predictions.csv", Path(folder)))
                    correct.append(found.predictions == found.labels)
    return best_of(np.array(correct), CONFIDENCE) if len(correct) > 1 else None


def markdown(children: Sequence[Child], monitor: str = ACCURACY, expected_of_best: Mean | None = None) -> str:
    """Return the ranking as a table, with a second one of means where there are several seeds."""
    extra = [] if monitor == ACCURACY else [monitor]
    rows = [["", "run", *extra, "validation", "training", "training time (s)", "parameters", "MLflow run"]]
    groups = defaultdict(list)
    for position, child in enumerate(children, 1):
        label = str(position) if child.status == "FINISHED" else child.status.lower()
        shown = [f"{child.monitored:.6g}" for _ in extra] + [percent(child.val_accuracy), percent(child.train_accuracy)]
        rows.append([label, child.name, *shown, f"{child.seconds:.1f}", f"{child.num_params:,}", child.run_id])
        if child.status == "FINISHED" and not folds.count_folds(child.run):  # whose means stand before the ranking
            common = [f"{key}={value}" for key, value in child.values.items() if key != "seed"]
            groups[" ".join([*common, f"group {child.group}"])].append(child.val_accuracy)
    by = "validation accuracy"
    if extra:
        first = "lowest" if better(monitor, 1) < 0 else "highest"
        by = f"{monitor}, the {first} first, a run without it last; validation and training are accuracies"
    epoch = "Best epoch" if any("kept" in child.run.data.tags for child in children) else "Last epoch"
    text = f"{markdown_table(rows)}\n\n{epoch}, ranked by {by}. The test examples were not read.\n"
    confidence = f"{100 * CONFIDENCE:g} %"
    if expected_of_best:
        mean, low, high = map(percent, (expected_of_best.mean, expected_of_best.low, expected_of_best.high))
        text += (
            f"The best of {sum(map(len, groups.values()))} was chosen on these {children[0].val_examples:,} examples, "
            "so its accuracy on them is biased upward. Chosen on bootstrap samples and scored on the examples left "
            f"out, the best has {mean} ({confidence} {low} to {high}; BBC-CV, from the predictions of "
            f"{expected_of_best.n}).\n"
        )
    if any(len(accuracies) > 1 for accuracies in groups.values()):
        rows = [["", "n seeds", "mean validation", f"{confidence} of the mean (t)"]]
        rows += [[name, *mean_cells(accuracies, CONFIDENCE)] for name, accuracies in groups.items()]
        text += f"\n{markdown_table(rows)}\n"
    return text


def _draw(children: Sequence[Child], keys: Sequence[str], monitor: str = ACCURACY) -> Figure:
    """Draw a heat map of two swept keys, seeds averaged; the curves of all children where it is not two."""
    cells = defaultdict(list)
    factor, label = (100, "validation accuracy in %") if monitor == ACCURACY else (1, monitor)
    for child in children:
        if child.status == "FINISHED":
            cells[tuple(child.values.get(key, "") for key in keys)].append(factor * child.monitored)
    if len(keys) != 2 or not cells:
        names = short_labels([child.name for child in children], 60)
        curves = [factor * np.array(queries.curve(child.run, monitor)) for child in children]
        labels = [f"{position}: {name}" for position, name in enumerate(names, 1)]
        return plots.plot_curves(dict(zip(labels, curves, strict=True)), label)
    axes = [sorted({child.values.get(key, "") for child in children}, key=_number_first) for key in keys]
    values = [[np.mean(cells.get((row, column), math.nan)) for column in axes[1]] for row in axes[0]]
    ticks = [short_labels(axis, 24) for axis in axes]
    return plots.plot_heat_map(np.array(values), keys, ticks, f"{label}, last epoch", ".2f" if factor > 1 else ".4g")


def short_labels(texts: Sequence[str], longest: int) -> list[str]:
    """Return labels that fit beside a picture: if one is long, all from shortly before the first difference on."""
    if max(map(len, texts), default=0) <= longest:
        return list(texts)
    alike = len(os.path.commonprefix(texts)) if len(texts) > 1 else 0  # noqa: RUF071 - no paths
    start = max(0, alike - longest // 2)
    return [f"{'…' if start else ''}{text[start:][:longest]}{'…' if text[start:][longest:] else ''}" for text in texts]


def _number_first(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text
