"""Which model is evaluated, a recipe's as `dvc repro` trained it or that of an MLflow run; and how that is tracked: the
folder of an evaluation is a record like that of a training, and MLflow gets what stands there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.files import link_or_copy, load_csv, load_yaml, require_file, save_yaml, sha256
from pipeline.base.hydra import load_network_of_recipe
from pipeline.base.project import Project
from pipeline.base.schema import METRICS, Config
from pipeline.base.validation import flatten, from_recorded, without_own_keys
from pipeline.base.verb_schemas import RunConfig
from pipeline.data.examples import Examples
from pipeline.model.kept import best_figures, in_words
from pipeline.reports.tables import scored_in_words
from pipeline.tracking.environment import run_tags
from pipeline.tracking.fingerprint import training_params
from pipeline.tracking.record import Record, add_pending, now

HISTORY = ("epoch", *METRICS)


class Evaluated(NamedTuple):
    """What is to be evaluated."""

    config: Config
    model_file: Path
    model_sha256: str  # of the file that training wrote
    history_file: Path
    run: str | None  # MLflow's id, where one was asked for


def find_model(project: Project, config: RunConfig, folder: Path) -> Evaluated:
    """Return the recipe's model, or that of run `config.run`, downloaded to `folder`, with the run's configuration.

    Missing or damaged files are a UserError.
    """
    if not config.run:
        model_file = require_file(project.model(config.name))
        history_file = project.recipe_results(config.name) / "history.csv"
        load_csv(history_file, HISTORY)
        load_network_of_recipe(project, config)
        return Evaluated(without_own_keys(config), model_file, sha256(model_file), history_file, None)
    if others := [one for one in project.overrides if not one.startswith(("run=", "data="))]:
        raise UserError(f"{others[0]} beside run={config.run}: a run is evaluated with its own configuration")
    with quiet_import():
        from pipeline.tracking import queries

    run = queries.find_run(project, config.run, config.data)
    config_file = queries.artifact(run, "config.yaml", folder)
    recorded = from_recorded(load_yaml(config_file), f"config.yaml of run {config.run}")
    history_file = queries.artifact(run, "history.csv", folder)
    model_file = queries.recorded_model(run, folder)
    queries.load_network(project, run)
    return Evaluated(recorded, model_file, run.data.tags["model_sha256"], history_file, config.run)


def log_evaluation(
    project: Project,
    evaluated: Evaluated,
    sizes: Mapping[str, int],
    test: Examples,
    metrics: Mapping[str, float],
    step: int,
    files: Sequence[Path],
) -> str:
    """Log test metrics at `step` and files into the run that trained the model: where they are, in words.

    `sizes` are what a training knows of its model, for a model that has no run yet.
    """
    from pipeline.tracking import queries
    from pipeline.tracking.sending import SYNC, run_inputs, send_pending

    config = evaluated.config
    info: dict[str, Any] = {
        "experiment": config.data.name,
        "name": f"{config.name}, evaluated",
        "tags": run_tags(project, "pipeline.evaluate") | {"recipe": config.name},
        "params": flatten({"evaluate": config.evaluate.model_dump()}) | {"data.test_examples": str(len(test.labels))},
        "inputs": run_inputs([("test", test)]),
        "evaluated_by": project.stage or "pipeline.evaluate",
        "evaluated_sha256": evaluated.model_sha256,
        "run": evaluated.run,
        "status": "RUNNING",
    }
    record = Record.begin(project.job_folder, info)
    record.add_rows([{"step": step, "time": now(), "values": {key: float(value) for key, value in metrics.items()}}])
    if project.stage:  # which wrote them to its outputs
        for file in files:
            link_or_copy(file, record.folder / file.relative_to(project.recipe_results(config.name)))
    if evaluated.run is None:
        _keep_training(project, evaluated, sizes, record.folder / "training")
    record.finish("FINISHED")
    add_pending(project, record.folder)
    sent, left = send_pending(project)
    if run_id := sent.get(record.info["id"]):
        return f"MLflow run {run_id}; {scored_in_words(queries.models_scored(project, config.data.name))}"
    return "\n".join([*left, SYNC])


def _keep_training(project: Project, evaluated: Evaluated, sizes: Mapping[str, int], folder: Path) -> None:
    """Keep a record of the training, for a model that may have no run: it was pulled, or its tracker lost."""
    from pipeline.model.files import weights_sha256

    config, model_file, model_sha256, history_file, _ = evaluated
    tags = {
        "recipe": config.name,
        "dvc_stage": f"train@{config.name}",
        "adopted": "trained elsewhere; hardware, versions and commit are those of the evaluation",
    }
    rows = load_csv(history_file, HISTORY)
    kept = in_words(config.train, rows)
    if (predictions := history_file.with_name("val_predictions.csv")).is_file():
        sizes = {**sizes, "data.val_examples": len(predictions.read_bytes().splitlines()) - 1}
    info = {
        "experiment": config.data.name,
        "name": config.name,
        "tags": run_tags(project, "pipeline.evaluate") | tags,
        "params": training_params(config) | {key: str(value) for key, value in sizes.items()},
        "inputs": [],
        "result_tags": ({"kept": kept} if kept else {})
        | {"weights_sha256": weights_sha256(model_file), "model_sha256": model_sha256},
        "status": "FINISHED",
        "end": now(),
    }
    record = Record.begin(folder, info)
    best = {"step": len(rows), "time": now(), "values": best_figures(config.train, rows)}
    record.add_rows([*({"step": int(row.pop("epoch")), "time": now(), "values": row} for row in rows), best])
    save_yaml(folder / "config.yaml", config.model_dump())
    link_or_copy(model_file, folder / "model.keras")
    for name in ("history.csv", "val_predictions.csv"):  # runs are compared by these predictions
        if (file := history_file.with_name(name)).is_file():
            link_or_copy(file, folder / name)
