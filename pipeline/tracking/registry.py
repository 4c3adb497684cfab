"""MLflow's registry of models: one name per data set, a version per run, and the alias `champion` for the best."""

from __future__ import annotations

from typing import Any

from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.tracking.queries import search
from pipeline.tracking.store import open_store, translate_errors

CHAMPION, CHALLENGER = "champion", "challenger"
MAX_DESCRIPTION = 5_000  # characters of a description in MLflow


@translate_errors()
def register(project: Project, run: Run, name: str, card: str) -> str:
    """Return the version of `name` that holds the model of a run, with its card: made once, renewed after."""
    client, experiment = open_store(project, name)
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.run_id == run.info.run_id:
            client.update_model_version(name, version.version, card[:MAX_DESCRIPTION])
            return str(version.version)
    logged = client.search_logged_models([experiment], f"source_run_id = '{run.info.run_id}'")
    model = next((model for model in logged if model.status.name == "READY"), None)
    if model is None:
        raise UserError(f"{run.info.run_id} has no model in MLflow: `python -m pipeline.sync` sends what waits")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    made = client.create_model_version(
        name, model.model_uri, run.info.run_id, description=card[:MAX_DESCRIPTION], model_id=model.model_id
    )
    return str(made.version)


@translate_errors()
def point(project: Project, alias: str, name: str, version: str) -> None:
    """Let `alias` stand for a version, and for no other; a new champion has no challenger yet."""
    client, _ = open_store(project, name)
    client.set_registered_model_alias(name, alias, version)
    if alias == CHAMPION:
        client.delete_registered_model_alias(name, CHALLENGER)


@translate_errors()
def version_of(project: Project, alias: str, name: str) -> Any | None:
    """Return the version that `alias` stands for, or None."""
    client, _ = open_store(project, name)
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


@translate_errors()
def is_gone(project: Project, version: Any) -> bool:
    """Return whether the run of a version was deleted; its version and alias stay in the registry, even after gc."""
    return not search(*open_store(project, version.name), f"attributes.run_id = '{version.run_id}'")


def run_of(project: Project, alias: str, name: str) -> str:
    """Return the id of the run whose model `alias` stands for; a UserError without any."""
    version = version_of(project, alias, name)
    if version is None:
        raise UserError(f"the registry has no {alias} of {name}: `python -m pipeline.promote run=<id>` makes one")
    if is_gone(project, version):
        raise UserError(
            f"the {alias} of {name} is run {version.run_id}, which was deleted: `python -m pipeline.promote run=<id>` "
            f"makes another; until `mlflow gc`, `mlflow runs restore --run-id {version.run_id}` brings it back"
        )
    return str(version.run_id)
