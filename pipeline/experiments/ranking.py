"""The ranking of a sweep: its table, its picture, and the accuracy to expect of the best.

Children are ranked by train.monitor, validation accuracy where nothing else is asked for; the test examples are not
read.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from matplotlib.figure import Figure

from pipeline.base.errors import UserError
from pipeline.base.files import save_csv, write_text
from pipeline.base.project import Project
from pipeline.experiments import folds
from pipeline.experiments.children import ACCURACY, Child, rank
from pipeline.experiments.importance import explain, level_of, levels
from pipeline.experiments.jobs import keys_of
from pipeline.experiments.run_report import learning_curves, provenance
from pipeline.metrics.significance import Mean, best_of
from pipeline.model.kept import better
from pipeline.reports import plots
from pipeline.reports.comparison_report import mean_cells
from pipeline.reports.plots import short_labels
from pipeline.reports.report import Section, save_report
from pipeline.reports.tables import as_text, markdown_table, percent
from pipeline.reports.verdicts import read_predictions
from pipeline.tracking import queries, sweep_log
from pipeline.tracking.notes import NOTE
from pipeline.tracking.record import PRUNED_AT

CONFIDENCE = 0.95
IDLE_FACTOR = 4  # the ranking is renewed again after so many times what it took: it grows with the sweep
MAX_NOTE = 5_000  # characters of the note that a run's page opens with


def renew(
    project: Project, parent: str, factors: Sequence[str], folder: Path, monitor: str = ACCURACY, partial: bool = False
) -> tuple[list[Child], str]:
    """Write the ranking and its pictures to `folder`, and log them to the parent run: the ranking, and as text.

    `factors` are the keys that vary, those that do so together joined by commas. With `partial`, while the sweep runs:
    not soon after the last time, when both are empty, and without what takes long or needs every child.
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
        columns |= {key: [child.values.get(key, "") for child in children] for key in keys_of(factors)}
        columns |= {} if is_ours else {monitor: [child.monitored for child in children]}
        columns |= {name: [getattr(child, name) for child in children] for name in ("name", *Child._fields[2:-2])}
        table, note, picture = files = [folder / name for name in ("ranking.csv", "ranking.md", "sweep.png")]
        if not partial and not of_folds and (found := _explain(children, factors, monitor)):
            text += f"\n{found[0]}"
            files.append(folder / "effects.png")
            plots.save_figure(files[-1], found[1])
        save_csv(table, columns)
        write_text(note, text)
        drawn = [factor for factor in factors if factor not in folds.VARIED]
        plots.save_figure(picture, figure := _draw(children, drawn, monitor))
        if not partial:
            files.append(folder / "report.html")
            title = f"Sweep over {', '.join(keys_of(factors))}"
            save_report(files[-1], title, _sections(children, text, figure, parent, monitor))
        tags = {NOTE: text[:MAX_NOTE]}
        if children and children[0].status == "FINISHED" and not folds.count_folds(children[0].run):
            tags |= {"best": children[0].name, "best_run": children[0].run_id}
        sweep_log.log_sweep(parent, [*files, *predictions], tags, metrics=metrics)
        next_time.touch()
        end = time.time()
        os.utime(next_time, (end, end + IDLE_FACTOR * (end - begin)))
    return children, text


def _shown(monitor: str) -> tuple[int, str, str]:
    """Return by what a monitored metric is multiplied, what it is called then, and its format."""
    return (100, "validation accuracy in %", ".2f") if monitor == ACCURACY else (1, monitor, ".4g")


def _explain(children: Sequence[Child], factors: Sequence[str], monitor: str) -> tuple[str, Figure] | None:
    """Return which factor mattered to the finished children, as text and picture, if there is something to say."""
    scale, label, form = _shown(monitor)
    done = [child for child in children if child.status == "FINISHED" and math.isfinite(child.monitored)]
    results = [scale * child.monitored for child in done]
    return explain([child.values for child in done], results, factors, label, form, CONFIDENCE)


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
        label += f" at {child.run.data.tags[PRUNED_AT]}" if child.status == "PRUNED" else ""
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


def _sections(children: Sequence[Child], text: str, figure: Figure, parent: str, monitor: str) -> list[Section]:
    """Return what stands in the report of a sweep that has ended."""
    finished = {child.name: [child.run] for child in children if child.status == "FINISHED"}
    if not finished:
        return [Section("", f"No job finished.\n\n{text}")]
    best = children[0]
    score = percent(best.monitored) if monitor == ACCURACY else f"{best.monitored:.6g}"
    answer = f"**First of {len(finished)} by {monitor}: {as_text(best.name)}, with {score}.**"
    if folds.count_folds(best.run):
        answer = "**Cross-validation: the mean counts, not the best fold.**"
    compare = (
        f"Whether they differ by more than chance, which digits tell them apart, and what they mistake:\n\n"
        f"    python -m pipeline.compare a={parent} data={queries.data_name(best.run)}\n"
    )
    several = len({child.group for child in children if child.status == "FINISHED"}) > 1
    return [
        Section("", f"{answer}\n\n{text}", {"All jobs": figure}),
        *learning_curves(finished),
        provenance(finished),
        *([Section("What to ask next", compare)] if several else []),
    ]


def _draw(children: Sequence[Child], factors: Sequence[str], monitor: str = ACCURACY) -> Figure:
    """Draw a heat map of two factors, seeds averaged; the curves of all children where it is not two."""
    cells = defaultdict(list)
    scale, label, form = _shown(monitor)
    for child in children:
        if child.status == "FINISHED":
            cells[tuple(level_of(child.values, factor) for factor in factors)].append(scale * child.monitored)
    if len(factors) != 2 or not cells:
        names = short_labels([child.name for child in children], 60)
        curves = [scale * np.array(queries.curve(child.run, monitor)) for child in children]
        labels = [f"{position}: {name}" for position, name in enumerate(names, 1)]
        return plots.plot_curves(dict(zip(labels, curves, strict=True)), label)
    axes = [levels(level_of(child.values, factor) for child in children) for factor in factors]
    values = [[np.mean(cells.get((row, column), math.nan)) for column in axes[1]] for row in axes[0]]
    ticks = [short_labels([",".join(level) for level in axis], 24) for axis in axes]
    return plots.plot_heat_map(np.array(values), factors, ticks, f"{label}, last epoch", form)
