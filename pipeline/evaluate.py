"""Stage 4: score the model of one recipe, or of one MLflow run (run=<id>), on the test examples."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base import own
from pipeline.base.command import main
from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, save_csv, save_json, write_text
from pipeline.base.keras_import import load_keras
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.base.verb_schemas import RunConfig
from pipeline.data.examples import Examples, load_split, save_predictions
from pipeline.experiments.evaluated import HISTORY, Evaluated, find_model, log_evaluation
from pipeline.metrics import metrics
from pipeline.model.kept import in_words, kept_epoch
from pipeline.reports.card import model_card


def evaluate(project: Project, config: RunConfig) -> None:
    project = project.job()
    test = load_split(project, "test", config.data)
    with tempfile.TemporaryDirectory() as folder:
        _evaluate(project, find_model(project, config, Path(folder)), test)


def _evaluate(project: Project, evaluated: Evaluated, test: Examples) -> None:
    load_keras()
    from pipeline.model.build import count_macs
    from pipeline.model.files import load_model
    from pipeline.model.inference import predict_without_and_with_tta, start

    config = evaluated.config
    start(config.seed)
    model = load_model(evaluated.model_file)
    history = load_csv(evaluated.history_file, HISTORY)
    plain, logits = predict_without_and_with_tta(model, test.images, config.evaluate.tta_shifts)
    probabilities = metrics.softmax(logits)
    epoch, kept = kept_epoch(config.train, history), in_words(config.train, history)
    figures = test_metrics(config, test, probabilities, history[epoch - 1])
    figures["test_errors_no_tta"] = int(np.sum(plain.argmax(1) != test.labels))
    per_class = metrics.class_figures(test.labels, probabilities.argmax(1), len(config.data.classes))
    results = project.output(project.recipe_results(config.name))
    save_predictions(results / "predictions.csv", test, probabilities)
    save_csv(results / "per_class.csv", {"class": config.data.classes, **per_class})
    num_params, macs, epochs = model.count_params(), count_macs(model), len(history)
    facts = {"recipe": config.name, "data": config.data.name, "num_params": num_params, "macs": macs, "epochs": epochs}
    facts |= {"best_epoch": epoch, "kept": kept} if kept else {}
    save_json(results / "metrics.json", {**facts, **figures, "model_sha256": evaluated.model_sha256})
    recall = dict(zip(config.data.classes, per_class["recall"], strict=True))
    write_text(results / "model_card.md", model_card(config, num_params, epochs, kept, figures, recall))
    drawn = _draw(project.root, results / "plots", config, test, probabilities, history, kept)

    files = [results / name for name in ("predictions.csv", "per_class.csv", "metrics.json", "model_card.md")] + drawn
    of_test = {key: value for key, value in figures.items() if key.startswith("test_")}
    sizes = {"model.num_params": num_params, "model.macs": macs}
    tracked = log_evaluation(project, evaluated, sizes, test, of_test, epoch, files)
    print(
        f"{config.name}: test accuracy {100 * figures['test_accuracy']:.2f} %, {figures['test_errors']} errors "
        f"of {len(test.labels):,}; {tracked}"
    )


def test_metrics(
    config: Config, test: Examples, probabilities: NDArray[np.float64], epoch: dict[str, float]
) -> dict[str, Any]:
    """Return what metrics.json holds of the test examples, beside the epoch that is kept."""
    predictions = probabilities.argmax(1)
    errors, size = int(np.sum(predictions != test.labels)), len(test.labels)
    low, high = metrics.wilson_interval(size - errors, size, config.evaluate.confidence)
    bins = config.evaluate.calibration_bins
    return {
        **{key: value for key, value in epoch.items() if key not in ("epoch", "learning_rate")},
        "test_loss": metrics.cross_entropy(test.labels, probabilities),
        "test_accuracy": metrics.accuracy(test.labels, predictions),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_errors": errors,
        "test_examples": size,
        "test_tta_shifts": config.evaluate.tta_shifts,
        "test_calibration_error": metrics.calibration(test.labels, probabilities, bins).error,
        "confidence": config.evaluate.confidence,
    }


def _draw(
    root: Path,
    folder: Path,
    config: Config,
    test: Examples,
    probabilities: NDArray[np.float64],
    history: Sequence[dict[str, float]],
    kept: str,
) -> list[Path]:
    """Draw everything into `folder`: the files drawn."""
    # Matplotlib reads the environment when it is imported: after `isolate`
    from matplotlib.figure import Figure

    from pipeline.reports import plots, sheets
    from pipeline.reports.answers import confusion_figure

    name, classes, labels, predictions = config.name, config.data.classes, test.labels, probabilities.argmax(1)
    counted = f"{name}, {len(labels):,} test examples"
    reliability = metrics.calibration(labels, probabilities, config.evaluate.calibration_bins)
    error = f"{name}: calibration error {100 * reliability.error:.2f} points"
    worst = metrics.worst_mistakes(labels, probabilities, most=24)
    mistakes = [f"#{test.source_index[i]}: {classes[labels[i]]}, not {classes[predictions[i]]}" for i in worst]
    most_wrong = f"{name}: the test examples it was most wrong about"
    first = range(min(8, len(labels)))
    answers = [f"{classes[predictions[i]]} (is {classes[labels[i]]})" for i in first]
    wrong = [predictions[i] != labels[i] for i in first]
    both = f"{name}: the first test examples, prediction and truth"
    figures = {
        "learning_curves": plots.plot_history(history, f"{name}: {kept}" if kept else name),
        "confusion_matrix": confusion_figure(labels, predictions, classes, counted),
        "reliability": plots.plot_reliability(reliability, error),
        "worst_mistakes": sheets.plot_examples(test.images[worst], mistakes, 6, most_wrong),
        "gallery": sheets.plot_examples(test.images[first], answers, 4, both, wrong),
    }
    for key, function in config.evaluate.plots.items():
        with own.errors_named(root, function):
            figures[key] = own.load(root, function)(test, probabilities, classes)
        if not isinstance(figures[key], Figure):
            kind = type(figures[key]).__name__
            raise UserError(f"evaluate.plots.{key}: {function} returned {kind}: return a Matplotlib Figure")
    files = {folder / f"{key}.png": figure for key, figure in figures.items()}
    for file, figure in files.items():
        plots.save_figure(file, figure)
    for former in set(folder.glob("*.png")) - set(files):  # of a plot that is no longer in the configuration
        former.unlink()
    return list(files)


if __name__ == "__main__":
    main(evaluate)
