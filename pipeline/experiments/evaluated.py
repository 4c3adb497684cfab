"""Which model is evaluated: a recipe's, as `dvc repro` trained it, or that of an MLflow run."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, load_yaml, require_file, sha256
from pipeline.base.project import Project
from pipeline.base.schema import from_recorded
from pipeline.base.schema import Config
from pipeline.base.verb_schemas import RunConfig

HISTORY = ("epoch", "train_accuracy", "val_accuracy")


class Evaluated(NamedTuple):
    """What is to be evaluated."""

    config: Config
    model_file: Path
    model_sha256: str  # of the file that training wrote
    history_file: Path
    run: str | None  # MLflow's id, where one was asked for


def recipe_model(project: Project, config: Config) -> Evaluated:
    """Return the model of the recipe; a UserError where its files are missing or damaged."""
    model_file = require_file(project.model(config.name))
    history_file = project.recipe_results(config.name) / "history.csv"
    load_csv(history_file, HISTORY)
    return Evaluated(config, model_file, sha256(model_file), history_file, None)


def run_model(project: Project, config: RunConfig, folder: Path) -> Evaluated:
    """Return the model that run `config.run` holds, downloaded to `folder`, with the run's own configuration."""
    assert config.run
    if others := [one for one in project.overrides if not one.startswith(("run=", "data="))]:
        raise UserError(f"{others[0]} beside run={config.run}: a run is evaluated with its own configuration")
    with quiet_import():
        from pipeline.tracking import queries

    run = queries.find_run(project, config.run, config.data)
    config_file = queries.artifact(run, "config.yaml", folder)
    recorded = from_recorded(load_yaml(config_file), f"config.yaml of run {config.run}")
    history_file = queries.artifact(run, "history.csv", folder)
    model_file = queries.recorded_model(run, folder)
    return Evaluated(recorded, model_file, run.data.tags["model_sha256"], history_file, config.run)
