"""Metric, plot and trackers of the user's own, as typed: train, evaluate, a sweep and a search, with a real store."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from conftest import copy, parent_of, pipeline, runs, store, study

pytestmark = pytest.mark.slow

FILES = {
    "mine.py": """
import numpy as np
from matplotlib.figure import Figure

class AllRuns:
    def __init__(self, folder, config):
        self.file = folder / "told.txt"
    def epoch(self, step, metrics):
        with self.file.open("a") as file:
            print(step, metrics["val_macro_f1"], file=file)
    def end(self, status, files):
        with self.file.open("a") as file:
            print(status, *sorted(file.name for file in files if file.suffix == ".csv"), file=file)

def macro_f1(labels, probabilities):
    assert labels.dtype == np.int64 and probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(1), 1)
    return f1(labels, probabilities.argmax(1))

def f1(labels, predictions):
    right = [np.sum((labels == k) & (predictions == k)) for k in range(10)]
    return np.mean([2 * right[k] / max(1, np.sum(labels == k) + np.sum(predictions == k)) for k in range(10)])

def my_loss(labels, probabilities):
    return -macro_f1(labels, probabilities)

calls = []

def late(labels, probabilities):
    calls.append(len(labels))
    return 1 / (3 - len(calls))  # the first call is a try, and the second the first epoch's

def shares(examples, probabilities, classes):
    figure = Figure(figsize=(4, 3))
    figure.subplots().bar(classes, np.bincount(examples.labels) / len(probabilities))
    return figure

def nothing(examples, probabilities, classes):
    return None
""",
    "conf/recipe/mine.yaml": """# @package _global_
defaults: [/recipe/baseline, _self_]
train:
  metrics: {val_macro_f1: mine:macro_f1, val_my_loss: mine:my_loss}
evaluate:
  plots: {shares: mine:shares}
trackers: [mine:AllRuns, pipeline.tracking.tensorboard:TensorBoard]
""",
}


@pytest.fixture(scope="module")
def mine(repository, tmp_path_factory) -> Path:
    folder = copy(repository, tmp_path_factory.mktemp("mine"))
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def outputs(done) -> Path:
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(re.findall(r"^wrote (\S+)/model.keras; MLflow run", done.stdout, re.MULTILINE)[0])


def macro_f1(predictions: list[dict[str, str]]) -> float:
    """By the definition, of the predictions as written: the mean over the classes of the harmonic mean."""
    pairs = np.array([(int(row["label"]), int(row["prediction"])) for row in predictions])
    found = []
    for k in range(10):
        true, predicted = pairs[:, 0] == k, pairs[:, 1] == k
        right = np.sum(true & predicted)
        found.append(0 if not right else 2 / (np.sum(predicted) / right + np.sum(true) / right))
    return float(np.mean(found))


@pytest.fixture(scope="module")
def trained(mine) -> Path:
    return mine / outputs(pipeline(mine, "train", "recipe=mine", "train.epochs=3"))


def test_a_metric_is_in_history_and_tracker_and_changes_no_bit(mine, trained):
    history = rows(trained / "history.csv")
    ours = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate"]
    assert list(history[0]) == [*ours, "val_macro_f1", "val_my_loss"] and len(history) == 3
    assert float(history[-1]["val_macro_f1"]) == pytest.approx(macro_f1(rows(trained / "val_predictions.csv")))
    logged = runs(mine, "tags.recipe = 'mine'")[0]
    values = store(mine).get_metric_history(logged.info.run_id, "val_macro_f1")
    assert [(one.step, one.value) for one in values] == [(int(r["epoch"]), float(r["val_macro_f1"])) for r in history]
    plain = mine / outputs(pipeline(mine, "train", "recipe=baseline", "train.epochs=3"))
    assert list(rows(plain / "history.csv")[0]) == ours
    assert [{key: row[key] for key in ours} for row in history] == rows(plain / "history.csv")
    assert (plain / "model.keras").read_bytes() == (trained / "model.keras").read_bytes()
    told = (trained / "told.txt").read_text().splitlines()
    assert [line.split() for line in told[:3]] == [[row["epoch"], row["val_macro_f1"]] for row in history]
    assert told[3] == "FINISHED history.csv val_predictions.csv"
    [events] = trained.glob("tensorboard/*")
    assert [
        (event.step, float(tf.make_ndarray(value.tensor)))
        for event in tf.compat.v1.train.summary_iterator(str(events))
        for value in event.summary.value
        if value.tag == "val_macro_f1"
    ] == [(step, pytest.approx(float(row["val_macro_f1"]))) for step, row in enumerate(history, 1)]
    names = {file.path for file in store(mine).list_artifacts(logged.info.run_id)}
    assert {"history.csv", "told.txt"} <= names and "tensorboard" not in names


def test_a_plot_is_saved_beside_ours_and_logged(mine, trained):
    [run] = runs(mine, "tags.recipe = 'mine' and attributes.status = 'FINISHED'")
    done = pipeline(mine, "evaluate", f"run={run.info.run_id}")
    assert done.returncode == 0, done.stderr
    [folder] = [file.parent for file in mine.glob("outputs/*/metrics.json")]
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["val_macro_f1"] == float(rows(trained / "history.csv")[-1]["val_macro_f1"])
    assert matplotlib.image.imread(folder / "plots/shares.png").shape[:2] == (360, 480)
    logged = {file.path for file in store(mine).list_artifacts(run.info.run_id, "plots")}
    assert {"plots/shares.png", "plots/gallery.png"} < logged and len(logged) == 6


def test_what_is_no_figure_is_one_line(mine, trained):
    recipe = mine / "conf/recipe/mine.yaml"
    recipe.write_text(FILES["conf/recipe/mine.yaml"].replace("mine:shares", "mine:nothing"))
    again = pipeline(mine, "train", "recipe=mine", "train.epochs=1", "seed=7")
    [run] = runs(mine, "params.seed = '7'")
    done = pipeline(mine, "evaluate", f"run={run.info.run_id}")
    recipe.write_text(FILES["conf/recipe/mine.yaml"])
    assert again.returncode == 0 and done.returncode == 1
    assert done.stderr == "error: evaluate.plots.shares: mine:nothing returned NoneType: return a Matplotlib Figure\n"


def test_a_sweep_is_ranked_by_it_and_by_another_without_training(mine):
    words = ("-m", "recipe=mine", "train.epochs=2", "model.filters=1,4")
    done = pipeline(mine, "train", *words, "train.monitor=val_macro_f1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ranked by val_macro_f1, the highest first" in done.stdout
    file = Path(store(mine).download_artifacts(parent_of(done), "ranking.csv"))
    values = [float(row["val_macro_f1"]) for row in rows(file)]
    assert values == sorted(values, reverse=True) and len(values) == 2
    for row in rows(file):
        logged = store(mine).get_run(row["run_id"]).data.metrics
        assert logged["val_macro_f1"] == float(row["val_macro_f1"]) == -logged["val_my_loss"]
    again = pipeline(mine, "train", *words, "train.monitor=val_my_loss")
    assert again.returncode == 0 and "2 found finished" in again.stdout and parent_of(again) == parent_of(done)
    assert "ranked by val_my_loss, the lowest first" in again.stdout
    by_loss = rows(Path(store(mine).download_artifacts(parent_of(again), "ranking.csv")))
    assert [row["run_id"] for row in by_loss] == [row["run_id"] for row in rows(file)]


def test_a_search_maximises_it_and_minimises_a_loss(mine):
    found = {}
    for monitor in ("val_macro_f1", "val_my_loss"):
        words = ("sweep=search", "hydra.sweeper.n_trials=2", "recipe=mine", "train.epochs=1")
        done = pipeline(mine, "train", *words, f"train.monitor={monitor}")
        assert done.returncode == 0, done.stdout + done.stderr
        found[monitor] = study(mine, done).best_value
    assert found["val_macro_f1"] == found["val_my_loss"] > 0


def test_a_metric_that_fails_later_ends_the_run_and_trackers_are_told(mine):
    done = pipeline(mine, "train", "recipe=mine", "train.epochs=3", "+train.metrics.val_late=mine:late", "seed=9")
    [run] = runs(mine, "params.seed = '9'")
    assert done.returncode == 1 and run.info.status == "FAILED" and run.data.metrics["val_late"] == 1
    said = "error: mine:late in line 31 of mine.py: ZeroDivisionError: division by zero\n"
    assert done.stderr == said and " epoch 1/3 " in done.stdout and " epoch 2/3 " not in done.stdout
    [told] = [text for file in mine.glob("outputs/*/told.txt") if "FAILED" in (text := file.read_text())]
    assert [line.split()[0] for line in told.splitlines()] == ["1", "FAILED"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return labels.mean(axis=2)", "odd:odd in line 2 of odd.py: AxisError: axis 2 is out of bounds"),
        (
            "return 1 / 0 if probabilities.max() > 1 else float('nan')",
            "train.metrics.val_odd: odd:odd returned nan: return a finite number",
        ),
        ("return probabilities", "odd:odd: TypeError: only "),
    ],
)
def test_a_metric_that_fails_is_one_line_before_training(mine, body, message):
    (mine / "odd.py").write_text(f"def odd(labels, probabilities):\n    {body}\n")
    done = pipeline(mine, "train", "recipe=baseline", "+train.metrics.val_odd=odd:odd")
    assert done.returncode == 1 and " epoch 1/" not in done.stdout
    assert done.stderr.startswith(f"error: {message}"), done.stderr
    assert len(done.stderr.splitlines()) == 1
