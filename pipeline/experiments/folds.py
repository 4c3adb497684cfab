"""A cross-validation as one: every example was predicted once by a network that had not been trained on it.

Its runs are of one group: they differ in their fold and, where there are several, in their seed.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from pipeline.base.errors import UserError
from pipeline.base.files import write_text
from pipeline.metrics.significance import Mean, folds_interval
from pipeline.reports.tables import markdown_table, percent, plain
from pipeline.reports.verdicts import Predictions
from pipeline.tracking import queries

WORDS = (
    "Cross-validation: each example was predicted by networks that had not been trained on it. The interval is over "
    "the folds, of each the mean over its seeds. Folds share training examples, so it is Student's with the variance "
    "that Nadeau and Bengio (2003) correct for that: 1/K + 1/(K - 1) in place of 1/K, for K folds. The test examples "
    "were not read."
)
VARIED = ("seed", "train.fold")  # the keys in which the runs of a cross-validation differ


class CrossValidation(NamedTuple):
    """The runs of one group, MLflow's."""

    group: str
    name: str
    folds: int
    by_seed: dict[str, list[Any]]  # in the order of the folds

    def accuracies(self, of_run: Callable[[Any], float]) -> list[float]:
        """Return the accuracy of every fold, the mean over its seeds."""
        return np.mean([list(map(of_run, runs)) for runs in self.by_seed.values()], axis=0).tolist()

    def predictions(self, of_run: Mapping[str, Predictions]) -> dict[str, Predictions]:
        """Return the out-of-fold predictions of every seed, by example, under a name; `of_run` is by run id."""
        joined = {}
        for seed, runs in self.by_seed.items():
            columns = list(map(np.concatenate, zip(*(of_run[run.info.run_id] for run in runs), strict=True)))
            order = np.argsort(columns[0])
            joined[f"{self.group}, seed={seed}"] = Predictions(*(column[order] for column in columns))
        return joined


def count_folds(run: Any) -> int:
    """Return of how many folds a run validates on one; 0 for a run without folds."""
    value = run.data.params.get("train.folds", "None")  # earlier code logged none
    return 0 if value == "None" else int(value)


def cross_validation(runs: Sequence[Any], values: Mapping[str, str] = MappingProxyType({})) -> CrossValidation:
    """Return runs of one group as a cross-validation, named by `values`; a fold that is missing is a UserError."""
    found: dict[str, dict[int, Any]] = defaultdict(dict)
    for run in runs:
        found[run.data.params["seed"]][int(run.data.params["train.fold"])] = run
    folds, seeds = count_folds(runs[0]), sorted(found, key=int)
    named = [f"{key}={value}" for key, value in values.items() if key not in VARIED]
    name = plain(" ".join(named) or runs[0].data.tags["recipe"])
    for seed in seeds:
        if missing := [str(fold) for fold in range(folds) if fold not in found[seed]]:
            raise UserError(
                f"{name}, seed={seed}: of {folds} folds train.fold={','.join(missing)} is not there: give the sweep's "
                "id, or train it by the sweep's command again"
            )
    by_seed = {seed: [found[seed][fold] for fold in range(folds)] for seed in seeds}
    return CrossValidation(runs[0].data.tags["group"], name, folds, by_seed)


def renew_sweep(runs: Sequence[Any], folder: Path, confidence: float) -> tuple[str, list[Path], dict[str, float]]:
    """Return what a sweep's cross-validations come to, as text, as files and, of one alone, as metrics of the parent.

    `runs` are the finished ones. A file holds the out-of-fold predictions of a group and seed, in `folder`.
    """
    groups: dict[str, list[Any]] = defaultdict(list)
    for run in filter(count_folds, runs):
        groups[run.data.tags["group"]].append(run)
    rows, files, notes, means = [], [], [], []
    for members in groups.values():
        try:
            one = cross_validation(members, json.loads(members[0].data.tags["swept"]))
            for seed, of_seed in one.by_seed.items():
                files.append(_write_predictions(of_seed, folder / f"out_of_fold_{one.group}_seed{seed}.csv"))
        except UserError as error:
            notes.append(f"{str(error).rpartition(':')[0]}: the same command again trains what is missing.\n\n")
            continue
        means.append(mean := folds_interval(one.accuracies(lambda run: queries.final(run, "val_accuracy")), confidence))
        examples = sum(int(run.data.params["data.val_examples"]) for run in next(iter(one.by_seed.values())))
        count = f"{len(one.by_seed)} × {one.folds}"
        limits = "–" if math.isnan(mean.low) else f"{percent(mean.low)} to {percent(mean.high)}"
        errors = f"{(1 - mean.mean) * examples:,.1f} of {examples:,}"
        rows.append((mean.mean, [one.name, f"group {one.group}", count, percent(mean.mean), limits, errors]))
    text = "".join(notes)
    if rows:
        interval = f"{100 * confidence:g} % of the mean"
        head = ["", "", "seeds × folds", "mean of the folds", interval, "out-of-fold errors"]
        table = markdown_table([head, *(cells for _, cells in sorted(rows, key=lambda row: -row[0]))])
        text = f"{table}\n\n{WORDS}\n{text}\n"
    return text, files, _metrics(means[0]) if len(groups) == len(means) == 1 else {}


def _metrics(mean: Mean) -> dict[str, float]:
    values = {"val_accuracy": mean.mean, "val_accuracy_low": mean.low, "val_accuracy_high": mean.high}
    return {key: value for key, value in values.items() if math.isfinite(value)}


def _write_predictions(runs: Sequence[Any], file: Path) -> Path:
    """Write val_predictions.csv of every fold as one table, by example, with the fold as its last column."""
    lines, head = [], ""
    with tempfile.TemporaryDirectory() as folder:
        for fold, run in enumerate(runs):
            head, *rows = queries.artifact(run, "val_predictions.csv", Path(folder)).read_text("utf-8").splitlines()
            lines += [f"{row},{fold}" for row in rows]
    lines.sort(key=lambda line: int(line.partition(",")[0]))
    write_text(file, "\n".join([f"{head},fold", *lines]) + "\n")
    return file
