"""What a sweep writes into the MLflow store: its parent run, the tags of its children, its ranking."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.base.project import Project
from pipeline.tracking import views
from pipeline.tracking.environment import run_tags
from pipeline.tracking.queries import MAX_NAME, PARENT, search
from pipeline.tracking.store import open_store, translate_errors


@translate_errors()
def open_sweep(
    project: Project,
    experiment_name: str,
    name: str,
    command: str,
    digest: str,
    keys: Sequence[str],
    labels: Mapping[str, str],
) -> tuple[str, bool]:
    """Open the parent run of a sweep, or that of an earlier try: its run id, and whether it was there.

    `digest` is of what the sweep trains; `keys` are those that it varies; `labels` are tags that the user gives.
    """
    client, experiment = open_store(project, experiment_name)
    client.set_experiment_tag(experiment, views.SWEPT, " ".join(keys))  # for the view Sweep, from the next opening on
    if runs := search(client, experiment, f"tags.sweep = '{digest}'"):
        client.update_run(runs[0].info.run_id, "RUNNING")
        for key, value in labels.items():
            client.set_tag(runs[0].info.run_id, key, value)
        return runs[0].info.run_id, True
    tags = {**labels, **run_tags(project, "pipeline.train -m")}
    tags |= {"sweep": digest, "swept_keys": " ".join(keys), "command": command}
    return client.create_run(experiment, run_name=name[:MAX_NAME], tags=tags).info.run_id, False


def child_tags(parent: str, values: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a child of a sweep, which gives it these values."""
    return {PARENT: parent, "swept": json.dumps(values)}


@translate_errors()
def join_sweep(parent: str, run: Run, values: Mapping[str, str]) -> None:
    """Count a run that another command trained among those of a sweep, which gives it these values."""
    if run.data.tags.get(PARENT) != parent:
        MlflowClient().set_tag(parent, f"found.{run.info.run_id}", json.dumps(values))


@translate_errors()
def unfinished_children(parent: str, content_sha256: str) -> list[Run]:
    """Return the children of a sweep that are to train just this and have not."""
    client, content = MlflowClient(), f"tags.content_sha256 = '{content_sha256}'"
    query = f"tags.`{PARENT}` = '{parent}' and {content} and attributes.status != 'FINISHED'"
    return search(client, client.get_run(parent).info.experiment_id, query)


@translate_errors()
def delete_runs(runs: Sequence[Run]) -> None:
    """Delete runs, as MLflow does: they can be restored."""
    for run in runs:
        MlflowClient().delete_run(run.info.run_id)


@translate_errors(OSError)
def log_sweep(
    parent: str,
    files: Sequence[Path],
    tags: Mapping[str, str],
    status: str | None = None,
    metrics: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Renew a sweep's files, tags and metrics, and end it where a status is given."""
    client = MlflowClient()
    known = client.get_run(parent).data.metrics if metrics else {}
    for key, figure in metrics.items():
        if known.get(key) != figure:
            client.log_metric(parent, key, figure)
    for file in files:
        client.log_artifact(parent, str(file))
    for key, value in tags.items():
        client.set_tag(parent, key, value)
    if status:
        client.set_terminated(parent, status)
