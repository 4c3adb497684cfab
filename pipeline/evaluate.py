"""Stage 4: read the test examples, once, for the model of one recipe, or of one MLflow run (run=<id>)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline import data
from pipeline.card import card
from pipeline.command import entry_point, output_folders, overrides
from pipeline.config import ROOT, Config, PipelineError, RunConfig
from pipeline.console import quiet_import
from pipeline.files import existing, load_csv, replacing, save_csv, save_json, sha256

HISTORY = ("epoch", "train_accuracy", "val_accuracy")


@entry_point
def evaluate(config: RunConfig) -> None:
    test = data.load_split("test.npz", config.data)
    results = output_folders(config).results
    if config.run:
        with tempfile.TemporaryDirectory() as folder:
            _evaluate(_of_run(config.run, config.data.name, Path(folder)), test, results)
    else:
        _evaluate(_of_stage(config), test, results)


def _of_stage(config: Config) -> Any:  # sending.Evaluation
    model_file = existing(ROOT / "models" / config.name / "model.keras")
    history_file = ROOT / "results" / "recipes" / config.name / "history.csv"
    load_csv(history_file, HISTORY)
    with quiet_import():
        from pipeline import engine, model, sending

    engine.start(config.seed)
    return sending.Evaluation(config, model.load_model(model_file), model_file, sha256(model_file), history_file, None)


def _of_run(run_id: str, data_name: str, folder: Path) -> Any:  # sending.Evaluation
    """The model that a run holds, with what it was trained by."""
    if others := [word for word in overrides() if not word.startswith(("run=", "data="))]:
        raise PipelineError(f"{others[0]} beside run={run_id}: a run is evaluated with its own configuration")
    with quiet_import():
        from pipeline import engine, model, sending, tracking

    run = tracking.find_run(run_id, data_name)
    config = tracking.recorded_config(run, folder)
    history_file = tracking.artifact(run, "history.csv", folder)
    engine.start(config.seed)
    model_file = tracking.recorded_model(run, folder)
    digest = run.data.tags["model_sha256"]
    return sending.Evaluation(config, model.load_model(model_file), model_file, digest, history_file, run_id)


def _evaluate(of: Any, test: data.Examples, results: Path) -> None:
    from pipeline import engine, metrics, sending

    config, cnn = of.config, of.model
    history = load_csv(of.history_file, HISTORY)
    probabilities = metrics.softmax(engine.predict(cnn, test.images, config.evaluate.views))
    figures = _figures(config, test, probabilities, history[-1])
    figures["test_errors_one_view"] = metrics.errors(test.labels, engine.predict(cnn, test.images).argmax(1))
    per_class = metrics.class_figures(
        metrics.confusion_matrix(test.labels, probabilities.argmax(1), len(config.data.classes))
    )
    data.save_predictions(results / "predictions.csv", test, probabilities)
    save_csv(results / "per_class.csv", {"class": config.data.classes, **per_class._asdict()})
    plots = _draw(results / "plots", config, test, probabilities, history)
    about = {"recipe": config.name, "data": config.data.name, "num_params": cnn.count_params(), "epochs": len(history)}
    save_json(results / "metrics.json", {**about, **figures, "model_sha256": of.model_sha256})
    recall = dict(zip(config.data.classes, per_class.recall, strict=True))
    with replacing(results / "model_card.md") as temporary:
        text = card(config, cnn.count_params(), len(history), figures, recall)
        temporary.write_text(text, encoding="utf-8")

    files = [results / name for name in ("predictions.csv", "per_class.csv", "metrics.json", "model_card.md")]
    of_test = {key: value for key, value in figures.items() if key.startswith("test_")}
    where = sending.log_evaluation(of, test, of_test, len(history), files, plots)
    print(
        f"{config.name}: test accuracy {100 * figures['test_accuracy']:.2f} %, {figures['test_errors']} errors "
        f"of {len(test.labels):,}; {where}"
    )


def _figures(config: Config, test: data.Examples, probabilities: Any, last: dict[str, float]) -> dict[str, Any]:
    from pipeline import metrics

    predictions = probabilities.argmax(1)
    errors, size = metrics.errors(test.labels, predictions), len(test.labels)
    low, high = metrics.wilson_interval(size - errors, size, config.evaluate.confidence)
    return {
        **{key: last[key] for key in ("train_loss", "train_accuracy", "val_loss", "val_accuracy")},
        "test_loss": metrics.cross_entropy(test.labels, probabilities),
        "test_accuracy": metrics.accuracy(test.labels, predictions),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_errors": errors,
        "test_examples": size,
        "test_views": config.evaluate.views,
        "test_calibration_error": metrics.calibration(
            test.labels, probabilities, config.evaluate.calibration_bins
        ).error,
        "confidence": config.evaluate.confidence,
    }


def _draw(
    folder: Path, config: Config, test: data.Examples, probabilities: Any, history: list[dict[str, float]]
) -> list[Path]:
    """Draw everything into `folder`: the files drawn."""
    from pipeline import metrics, plots

    labels, predictions = test.labels, probabilities.argmax(1)
    names = config.data.classes
    worst = metrics.worst_mistakes(labels, probabilities, most=24)
    confusion = metrics.confusion_matrix(labels, predictions, len(names))
    reliability = metrics.calibration(labels, probabilities, config.evaluate.calibration_bins)
    first = range(min(8, len(labels)))
    figures = {
        "learning_curves": plots.plot_history(history, config.name),
        "confusion_matrix": plots.plot_confusion_matrix(
            confusion, names, f"{config.name}, {len(labels):,} test examples"
        ),
        "reliability": plots.plot_reliability(
            reliability, f"{config.name}: calibration error {100 * reliability.error:.2f} points"
        ),
        "worst_mistakes": plots.plot_examples(
            test.images[worst],
            [f"#{test.source_index[i]}: {names[labels[i]]}, not {names[predictions[i]]}" for i in worst],
            6,
            f"{config.name}: the test examples it was most wrong about",
        ),
        "gallery": plots.plot_examples(
            test.images[first],
            [f"{names[predictions[i]]} (is {names[labels[i]]})" for i in first],
            4,
            f"{config.name}: the first test examples, prediction and truth",
            [predictions[i] != labels[i] for i in first],
        ),
    }
    for name, figure in figures.items():
        plots.save_figure(folder / f"{name}.png", figure)
    return [folder / f"{name}.png" for name in figures]


if __name__ == "__main__":
    evaluate()
