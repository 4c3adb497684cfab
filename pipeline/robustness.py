"""Test a recipe's model on corrupted digits and on digits of other sources, and list labels that may be wrong.

DVC runs it for each recipe that dvc.yaml lists under `robustness`.
"""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from pipeline.apps.corruptions import corrupted
from pipeline.apps.predictor import Predictor, load_predictor
from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.files import save_csv, save_json, sha256
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.base.validation import validate
from pipeline.base.verb_schemas import PredictorConfig
from pipeline.data.examples import Examples, load_split
from pipeline.reports.tables import percent, scored_in_words

SHOWN = 10  # images of each kind of corruption in the picture
SUSPECTS = 50  # examples with the least probable labels, of validation and of test


def robustness(project: Project, config: Config) -> None:
    """Write robustness.json and corrupted.png, and the suspects as tables and pictures; log them to MLflow."""
    project = project.job()
    if config.data.channels > 1:
        raise UserError(f"robustness draws grey images, and those of {config.data.name} are in colour: give other data")
    test, val = load_split(project, "test", config.data), load_split(project, "val", config.data)
    folder = project.output(project.results / "robustness" / config.name)
    predictor = load_predictor(project, validate(PredictorConfig, config.model_dump()), again=False)
    with quiet_import():
        from pipeline.apps import stress_tests
        from pipeline.reports import plots, sheets
        from pipeline.tracking import environment

    results: dict[str, Any] = {
        "recipe": config.name,
        "seed": config.seed,
        "model_sha256": sha256(project.model(config.name)),
        "hardware": environment.hardware(),
        "versions": environment.versions(),
        "sure_above": predictor.threshold if predictor.threshold <= 1 else None,  # None: it always abstains
        **stress_tests.counts(predictor, test, config.seed, project.root / "reference" / "strokes.json"),
    }
    save_json(folder / "robustness.json", results)
    accuracies = {name: count["right"] / count["digits"] for name, count in results["corruptions"].items()}
    rows = {
        f"{name}: {percent(accuracy)}": [(image, "") for image in corrupted(test.images[:SHOWN], name, config.seed)]
        for name, accuracy in accuracies.items()
    }
    plots.save_figure(folder / "corrupted.png", sheets.plot_example_rows(rows))
    _list_suspects(folder, "test", test, predictor)
    _list_suspects(folder, "validation", val, predictor)
    accuracy = mean(accuracies[name] for name in accuracies if name != "identity")
    logged = _log(project, config, results["model_sha256"], folder, accuracy)
    print(f"{config.name}: {percent(accuracy)}, the mean over all corruptions; wrote {folder}; {logged}")


def _list_suspects(folder: Path, name: str, examples: Examples, predictor: Predictor) -> None:
    """Write suspects_<name>.csv and .png: the examples whose label the model finds least probable."""
    from pipeline.reports import plots, sheets

    probabilities, classes = predictor.probabilities(examples.images), predictor.data.classes
    of_label = probabilities[range(len(probabilities)), examples.labels]
    least = of_label.argsort(kind="stable")[:SUSPECTS]
    columns = {
        "index": examples.source_index[least],
        "label": examples.labels[least],
        "prediction": probabilities[least].argmax(1),
        "probability_of_label": [f"{probability:.6g}" for probability in of_label[least]],
    }
    save_csv(folder / f"suspects_{name}.csv", columns)
    rows = zip(*columns.values(), strict=True)
    titles = [f"#{index}: {classes[label]}?\n{classes[prediction]} predicted" for index, label, prediction, _ in rows]
    figure = sheets.plot_examples(examples.images[least], titles, 10, f"{name} images with the least probable labels")
    plots.save_figure(folder / f"suspects_{name}.png", figure)


def _log(project: Project, config: Config, model_sha256: str, folder: Path, accuracy: float) -> str:
    """Log the files and the mean accuracy to the run that trained the model, and say which."""
    from pipeline.tracking import queries

    try:
        stage = f"train@{config.name}"
        runs = queries.find_trained(project, config.data.name, model_sha256=model_sha256, dvc_stage=stage)
        if not runs:
            return "not logged: no MLflow run of a DVC stage holds this model, `pipeline.evaluate` makes one"
        queries.log_test_files(runs[0], folder, "robustness", {"corrupted_accuracy": accuracy})
        return f"MLflow run {runs[0].info.run_id}; {scored_in_words(queries.models_scored(project, config.data.name))}"
    except UserError as error:  # of a server that is unreachable, for one
        return f"not logged, nor the model counted among those scored on the test examples: {error}"


if __name__ == "__main__":
    main(robustness)
