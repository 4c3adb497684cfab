"""What MLflow gets of a record when its run ends, or later; while it goes on, tracking/live.py sends.

Sending twice changes nothing, so what could not be sent is simply sent again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow
import mlflow.tensorflow
import numpy as np
import psutil
from filelock import FileLock, Timeout
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.numpy_dataset import NumpyDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from pipeline.base import own
from pipeline.base.errors import UserError
from pipeline.base.files import HOST, load_yaml, remembered
from pipeline.base.project import Project
from pipeline.data.blocks import blocks, is_large
from pipeline.data.examples import Examples
from pipeline.model.files import load_model
from pipeline.tracking import notes, queries
from pipeline.tracking.environment import ANONYMOUS_TAGS, NUMERIC_PACKAGES
from pipeline.tracking.record import Record, Row, pending, pending_folder, pointer, process_tag, waiting
from pipeline.tracking.store import ExperimentDeletedError, log_in_parts, open_store, translate_errors

SYNC = "python -m pipeline.sync, or the next run, sends it"
LOCK_SECONDS = 60.0  # to wait for another process that sends


def send_pending(project: Project) -> tuple[dict[str, str], list[str]]:
    """Send every waiting record, whether its run finished, failed or was killed, the oldest first. Each run calls it
    when it ends, and `pipeline.sync`.

    Returns the MLflow run ids of those sent, by record id, and why others are left, in words; after MLflow was found
    unreachable, no more are tried.
    """
    stages = project.home / "outputs" / "stages"
    sent: dict[str, str] = {}
    left: list[str] = []
    unsent_models: set[str] = set()
    try:
        # One process at a time: an evaluation has to find the run of its training whole.
        with FileLock(f"{pending_folder(project)}.lock", timeout=LOCK_SECONDS), suppress(UserError):
            for record in waiting(project):
                info, folder = record.info, record.folder
                if info.get("evaluated_sha256") in unsent_models:
                    left.append(f"{folder}, an evaluation, waits for its training")
                    continue
                try:
                    sent[info["id"]] = _send(project, record)
                except UserError as error:
                    left.append(f"{folder} waits for MLflow: {error}")
                    unsent_models.add(info.get("result_tags", {}).get("model_sha256", ""))
                    with suppress(ExperimentDeletedError):  # others may not be
                        # Where MLflow is unreachable, this raises, and the `suppress` above ends the loop.
                        open_store(project, info["experiment"])
                    continue
                if info["status"] == "KILLED":
                    record.update(sent=True)
                    continue
                pointer(project, folder).unlink(missing_ok=True)
                if stages in folder.parents and info.get("trackers"):
                    folder.rename(stages.parent / folder.name)
                elif stages in folder.parents:  # DVC has the files as its outputs
                    shutil.rmtree(folder)
            # Of stages that were killed before their record was whole, and that no training continues.
            for folder in set(stages.glob(f"*.{HOST}-*")) - {record.folder for record in pending(project)}:
                if not psutil.pid_exists(int(folder.name.rpartition("-")[2])):
                    shutil.rmtree(folder, ignore_errors=True)
    except Timeout:
        left.append(f"another process has been sending for {LOCK_SECONDS:g} s: what waits, waits")
    return sent, left


@translate_errors()
def _send(project: Project, record: Record) -> str:
    """Give MLflow all that it lacks of a record that is not running: the id of the run."""
    client, experiment = open_store(project, record.info["experiment"])
    if "evaluated_sha256" in record.info:
        return _send_evaluation(project, client, experiment, record)
    run_id = create_or_update(client, experiment, record)
    if (record.folder / "model.keras").is_file() and record.info["status"] == "FINISHED":
        _log_model(project, client, experiment, run_id, record)
    for key, value in record.info.get("result_tags", {}).items():  # last: a run with these tags is whole
        client.set_tag(run_id, key, value)
    if progress := record.info.get("progress"):
        client.set_tag(run_id, "progress", progress.partition(",")[0])  # no time is left
    status = record.info["status"]
    client.set_terminated(run_id, "KILLED" if status == "PRUNED" else status, record.info["end"])  # it knows no PRUNED
    notes.describe_run(client, run_id)
    return run_id


def create_or_update(client: MlflowClient, experiment: str, record: Record) -> str:
    """Find or create the run of a training, with all that is known so far: its id."""
    run = _find_or_create(client, experiment, record, record.info["name"], {"process": process_tag()})
    if record.info["status"] == "RUNNING":
        client.update_run(run.info.run_id, "RUNNING")
        tags = [RunTag(key, value) for key, value in record.info["tags"].items()]
        log_in_parts(client, run.info.run_id, tags=tags)  # a note may have come since
    _log_all(client, run.info.run_id, record)
    return str(run.info.run_id)


def _find_or_create(client: MlflowClient, experiment: str, record: Record, name: str, tags: Mapping[str, str]) -> Run:
    info = record.info
    runs = client.search_runs([experiment], f"tags.record = '{info['id']}'", max_results=1)
    tags = {**info["tags"], **tags, "record": info["id"]}
    return runs[0] if runs else client.create_run(experiment, info["start"], tags, name[: queries.MAX_NAME])


def _log_all(client: MlflowClient, run_id: str, record: Record) -> None:
    """Log parameters, metrics, inputs and artifacts of a record."""
    log_in_parts(client, run_id, [Param(key, value) for key, value in record.info["params"].items()])
    log_rows(client, run_id, record.rows)
    inputs = [(Dataset(**one), [InputTag("mlflow.data.context", one["name"])]) for one in record.info["inputs"]]
    client.log_inputs(run_id, [DatasetInput(*one) for one in inputs])
    for path in record.artifacts():
        log_file(client, run_id, record, path)


@translate_errors(OSError)  # a full disk below mlruns/
def log_file(client: MlflowClient, run_id: str, record: Record, path: Path) -> None:
    """Log an artifact of a record, or its new content."""
    client.log_artifact(run_id, str(record.folder / path), str(path.parent) if path.parent.parts else None)


def log_rows(client: MlflowClient, run_id: str, rows: Sequence[Row]) -> None:
    metrics = [Metric(key, value, row["time"], row["step"]) for row in rows for key, value in row["values"].items()]
    log_in_parts(client, run_id, metrics=metrics)


@translate_errors(OSError)
def _log_model(project: Project, client: MlflowClient, experiment: str, run_id: str, record: Record) -> None:
    """Log the record's model, once, with a signature that takes raw images."""
    for logged in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if logged.status.name == "READY":
            return
        client.delete_logged_model(logged.model_id)  # half sent by an earlier try; MLflow keeps its files
        location = urlparse(logged.artifact_location)
        if location.scheme == "file":
            shutil.rmtree(url2pathname(location.path), ignore_errors=True)
    recorded = load_yaml(record.folder / "config.yaml")["model"]
    own.load_recorded(project.root, recorded.get("build"), recorded.get("source_sha256"))
    model = load_model(record.folder / "model.keras")
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *model.input_shape[1:]))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, model.output_shape[-1]))]),
    )
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in NUMERIC_PACKAGES]
    with mlflow.start_run(run_id):
        mlflow.tensorflow.log_model(
            model, name="model", signature=signature, pip_requirements=versions, tags=ANONYMOUS_TAGS
        )


def _send_evaluation(project: Project, client: MlflowClient, experiment: str, record: Record) -> str:
    """Log test metrics into the run that trained the model, or one made of the files where there is none.

    MLflow's parameters cannot change: an evaluation with other settings goes into a child run.
    """
    info = record.info
    if info["run"] is None:
        tags = {"model_sha256": info["evaluated_sha256"], "dvc_stage": f"train@{info['tags']['recipe']}"}
        trained = queries.find_trained(project, info["experiment"], **tags)
        run_id = trained[0].info.run_id if trained else _send(project, Record(record.folder / "training"))
        record.update(run=run_id)  # decided once: sent again, it goes into the same run
    run = client.get_run(info["run"])
    client.set_tag(run.info.run_id, queries.TEST_SCORED, info["evaluated_sha256"])
    is_other = any(run.data.params.get(key, value) != value for key, value in info["params"].items())
    if is_other:
        name, tags = f"{run.info.run_name}, evaluated again", {queries.PARENT: run.info.run_id}
        run = _find_or_create(client, experiment, record, name, tags)
    _log_all(client, run.info.run_id, record)
    client.set_tag(run.info.run_id, "evaluated_by", info["evaluated_by"])
    if is_other:
        client.set_terminated(run.info.run_id, "FINISHED", info["end"])
    notes.describe_run(client, run.info.run_id)
    return str(info["run"])


def run_inputs(splits: Iterable[tuple[str, Examples]]) -> list[dict[str, str]]:
    """Return data sets as a run's inputs: name, digest and form, without the path of somebody's home."""
    described = []
    for name, examples in splits:
        source = CodeDatasetSource({"file": f"data/processed/{name}.npz"})
        described.append(NumpyDataset(examples.images, source, examples.labels, name, _digest(examples)).to_dict())
    return described


def _digest(examples: Examples) -> str:
    """Return 32 digits of the SHA-256 of the images and labels."""

    def digest() -> str:
        found = hashlib.sha256()
        for block in chain(blocks(examples.images), blocks(examples.labels)):
            found.update(block.data)
        return found.hexdigest()[:32]

    if is_large(examples.images) and (file := getattr(examples.images, "filename", None)):  # mapped
        return remembered(Path(file), f"first {len(examples.labels)} examples", digest)
    return digest()
