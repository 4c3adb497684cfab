"""What MLflow gets of a record. Sending twice changes nothing, so what could not be sent is simply sent again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow
import mlflow.tensorflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.numpy_dataset import NumpyDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from pipeline.base.files import load_csv
from pipeline.base.project import Project
from pipeline.data.examples import Examples
from pipeline.model.files import load_model
from pipeline.tracking import queries
from pipeline.tracking.environment import ANONYMOUS_TAGS, NUMERIC_PACKAGES
from pipeline.tracking.record import Record, Row, process_tag
from pipeline.tracking.store import open_store, translate_errors

BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # what MLflow takes in one request


def send(project: Project, record: Record) -> str:
    """Give MLflow all that it lacks of a record that is not running: the id of the run."""
    client, experiment = open_store(project, record.info["experiment"])
    if "evaluated_sha256" in record.info:
        return _send_evaluation(project, client, experiment, record)
    run_id = create_or_update(client, experiment, record)
    with translate_errors():
        log_rows(client, run_id, record.rows)
    _log_artifacts(client, run_id, record)
    if (record.folder / "model.keras").is_file() and record.info["status"] == "FINISHED":
        _log_model(client, experiment, run_id, record)
    with translate_errors():
        _log(client, run_id, tags=record.info.get("result_tags", {}))  # last: a run with these tags is whole
        client.set_terminated(run_id, record.info["status"], record.info["end"])
    return run_id


@translate_errors()
def create_or_update(client: MlflowClient, experiment: str, record: Record) -> str:
    """Find or create the run of a record, with all that is known before training: its id."""
    info = record.info
    run = _run_of(client, experiment, info["id"])
    if run is None:
        tags = info["tags"] | {"record": info["id"], "process": process_tag()}
        run = client.create_run(experiment, info["start"], tags, info["name"][: queries.MAX_NAME])
    run_id = run.info.run_id
    if info["status"] == "RUNNING" and run.info.status != "RUNNING":
        client.update_run(run_id, "RUNNING")
    _log(client, run_id, params=info["params"])
    client.log_inputs(run_id, [_dataset_input(description) for description in info["inputs"]])
    _log_artifacts(client, run_id, record)
    return run_id


def _run_of(client: MlflowClient, experiment: str, record_id: str) -> Run | None:
    runs = client.search_runs([experiment], f"tags.record = '{record_id}'", max_results=1)
    return runs[0] if runs else None


def _log(
    client: MlflowClient, run_id: str, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
) -> None:
    for batch in _batches([Param(key, str(value)) for key, value in (params or {}).items()], BATCH["params"]):
        client.log_batch(run_id, params=batch)
    for batch in _batches([RunTag(key, str(value)) for key, value in (tags or {}).items()], BATCH["tags"]):
        client.log_batch(run_id, tags=batch)


def log_rows(client: MlflowClient, run_id: str, rows: Sequence[Row]) -> None:
    metrics = [Metric(key, value, row["time"], row["step"]) for row in rows for key, value in row["values"].items()]
    for batch in _batches(metrics, BATCH["metrics"]):
        client.log_batch(run_id, metrics=batch)


def _batches(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


@translate_errors(OSError)  # a full disk below mlruns/
def _log_artifacts(client: MlflowClient, run_id: str, record: Record) -> None:
    for path in record.artifacts():
        folder = None if path.parent == Path() else path.parent.as_posix()
        client.log_artifact(run_id, str(record.folder / path), folder)


def _log_model(client: MlflowClient, experiment: str, run_id: str, record: Record) -> None:
    """Log the record's model, once, with a signature that takes raw images."""
    model = load_model(record.folder / "model.keras")
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *model.input_shape[1:]))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, model.output_shape[-1]))]),
    )
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in NUMERIC_PACKAGES]
    with translate_errors(OSError):
        for logged in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
            if logged.status.name == "READY":
                return
            client.delete_logged_model(logged.model_id)  # half sent by an earlier try; MLflow keeps its files
            location = urlparse(logged.artifact_location)
            if location.scheme == "file":
                shutil.rmtree(url2pathname(location.path), ignore_errors=True)
        with mlflow.start_run(run_id):
            mlflow.tensorflow.log_model(
                model, name="model", signature=signature, pip_requirements=versions, tags=ANONYMOUS_TAGS
            )


def _send_evaluation(project: Project, client: MlflowClient, experiment: str, record: Record) -> str:
    """Log test metrics into the run that trained the model, or one made of the files where there is none.

    MLflow's parameters cannot change: an evaluation with other settings goes into a child run.
    """
    info = record.info
    run_id = info.get("run") or _training_run(project, record)
    if info.get("run") != run_id:  # decided once: sent again, it goes into the same run
        record.update(run=run_id)
    with translate_errors():
        run = client.get_run(run_id)
        client.set_tag(run_id, queries.TEST_SCORED, info["evaluated_sha256"])
        target = run_id
        if any(run.data.params.get(key, value) != value for key, value in info["params"].items()):
            child = _run_of(client, experiment, info["id"]) or client.create_run(
                experiment,
                info["start"],
                info["tags"] | {queries.PARENT: run_id, "record": info["id"]},
                f"{run.info.run_name}, evaluated again"[: queries.MAX_NAME],
            )
            target = child.info.run_id
        _log(client, target, params=info["params"], tags={"evaluated_by": info["evaluated_by"]})
        log_rows(client, target, record.rows)
        client.log_inputs(target, [_dataset_input(description) for description in info["inputs"]])
    _log_artifacts(client, target, record)
    if target != run_id:
        with translate_errors():
            client.set_terminated(target, "FINISHED", info["end"])
    return run_id


def _training_run(project: Project, record: Record) -> str:
    info = record.info
    run = queries.find_trained(project, info["tags"]["recipe"], info["evaluated_sha256"], info["experiment"])
    return run.info.run_id if run else send(project, Record(record.folder / "training"))


def training_rows(history: Path, time_ms: int) -> list[Row]:
    """Return the rows of a history.csv, whose times are not known, as metrics at `time_ms`."""
    rows = []
    for row in load_csv(history, ["epoch"]):
        values = {key: value for key, value in row.items() if key != "epoch" and math.isfinite(value)}
        rows.append({"step": int(row["epoch"]), "time": time_ms, "values": values})
    return rows


def describe(splits: Iterable[tuple[str, Examples]]) -> list[dict[str, str]]:
    """Return data sets as a run's inputs: name, digest and form, without the path of somebody's home."""
    described = []
    for name, examples in splits:
        source = CodeDatasetSource({"file": f"data/processed/{name}.npz"})
        digest = hashlib.sha256(examples.images.tobytes() + examples.labels.tobytes()).hexdigest()[:32]
        values = NumpyDataset(examples.images, source, examples.labels, name, digest).to_dict()
        described.append({key: values[key] for key in ("name", "digest", "source_type", "source", "schema", "profile")})
    return described


def _dataset_input(description: Mapping[str, str]) -> DatasetInput:
    return DatasetInput(Dataset(**description), [InputTag("mlflow.data.context", description["name"])])
