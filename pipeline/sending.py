"""From records to MLflow: whatever is sent twice changes nothing, so what could not be sent is simply sent again."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

import mlflow
import mlflow.tensorflow
import numpy as np
import yaml
from filelock import FileLock, Timeout
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.numpy_dataset import NumpyDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray

from pipeline import model as networks
from pipeline import tracking
from pipeline.config import Config, PipelineError, flatten, to_dict
from pipeline.data import Examples
from pipeline.files import load_csv, sha256
from pipeline.record import Record, Row, home, now, process_tag, remove_sent, unfinished, waiting
from pipeline.store import open_store, refusals_in_one_line
from pipeline.surroundings import NOBODY, Identity, about, difference, origin, packages, trained_with
from pipeline.tables import models_scored

SYNC = "python -m pipeline.sync, or the next run, sends it"
EVALUATION = "evaluate"  # the section of the configuration that only evaluation reads and logs
AGAIN_AFTER = 60.0  # seconds that MLflow is left alone after a failure, doubled after each
PATIENCE = 60.0  # seconds for another process that sends
BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # what MLflow takes in one request


class Sender:
    """Sends a record while it grows, and all that waits when it ends. A tracker that is away costs training one
    request's patience, now and then."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.run_id: str | None = None
        self.sent = 0  # rows
        self.rest, self.next_try = AGAIN_AFTER, 0.0
        self.end = ""

    def __enter__(self) -> Sender:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            sent, left = send_waiting()
            if found := sent.get(self.record.about["id"]):
                self.run_id = found["run_id"]
            waits = (self.record.folder / "run.json").is_file()  # else another process has just sent it
            self.end = "\n".join([*left, SYNC]) if waits else f"MLflow run {self.run_id}"
        else:
            with suppress(OSError):  # of a full disk: what is to be told is the error itself
                self.record.fail(error)
            self.next_try = 0.0
            self.send()
            if isinstance(error, PipelineError):
                send_waiting()

    def begin(self, config: Config, some: NDArray[np.uint8]) -> None:
        """Put into the record what is known before training, with a sheet of `some` examples, uint8 [N, H, W], before
        and after the largest augmentation of the recipe."""
        from pipeline import augment, plots

        record = self.record
        record.add_text("config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        record.add_text("packages.txt", packages())
        if changes := difference():
            record.add_text("git.diff", changes)
        varied = augment.random_affine(some, [config.seed, 0], config.augment).numpy()
        titles = ["as it is"] * len(some) + ["augmented"] * len(some)
        heading = f"{config.name}: training examples, and how training varies them"
        sheet = plots.plot_examples(np.concatenate([some, varied]), titles, len(some), heading)
        plots.save_figure(record.folder / "artifacts" / "augmented.png", sheet)
        self.send()

    def send(self) -> None:
        """Send what is new, unless MLflow failed a short while ago."""
        if time.monotonic() < self.next_try:
            return
        try:
            self._send()
        except PipelineError as error:
            if self.rest == AGAIN_AFTER:
                print(f"{error}. What is logged is kept in {self.record.folder} meanwhile", flush=True)
            self.next_try, self.rest = time.monotonic() + self.rest, 2 * self.rest

    @refusals_in_one_line()
    def _send(self) -> None:
        client, experiment = open_store(self.record.about["experiment"])
        if self.run_id is None:
            self.run_id = _begin(client, experiment, self.record)
        _log_rows(client, self.run_id, self.record.rows[self.sent :])
        self.sent = len(self.record.rows)
        if self.record.about["status"] == "RUNNING":
            client.set_tag(self.run_id, "process", process_tag())
        else:
            client.set_terminated(self.run_id, self.record.about["status"], self.record.about["end"])


def about_training(
    config: Config, name: str, tags: Mapping[str, str], identity: Identity, train: Examples, val: Examples
) -> dict[str, Any]:
    """What is known of a run before training. `tags` are those of a sweep's child."""
    return {
        "experiment": config.data.name,
        "name": name,
        "tags": {**about("pipeline.train"), "recipe": config.name, **identity._asdict(), **tags},
        "params": trained_with(config)
        | {"data.train_examples": str(len(train.labels)), "data.val_examples": str(len(val.labels))},
        "inputs": [describe("train", train), describe("val", val)],
        "origin": origin(config, identity),
    }


def send_waiting() -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Send all records that wait, the oldest first, and remove those that MLflow has whole.

    Gives those sent by their id, each with its `run_id`, and a line for each that is left.
    """
    if not any((home() / "unsent").glob("*/")):
        return {}, []
    sent: dict[str, dict[str, Any]] = {}
    left: list[str] = []
    answers, held = True, set[str]()
    try:
        # One process at a time: an evaluation must find the run of its training whole.
        with FileLock(home() / "unsent.lock", timeout=PATIENCE):
            remove_sent()
            for folder in waiting():
                if not answers:  # it would wait as long
                    left.append(f"{folder} waits as well")
                    continue
                about: dict[str, Any] = {}
                try:
                    record = Record(folder)
                    about = record.about
                    if about.get("model_sha256") in held:
                        left.append(f"{folder}, an evaluation, waits for its training")
                        continue
                    run_id = send(record)
                    sent[about["id"]] = {**about, "run_id": run_id}
                    (folder / "run.json").unlink()  # first: what is half removed is no record
                    shutil.rmtree(folder)
                except PipelineError as error:
                    left.append(f"{folder} waits for MLflow: {error}")
                    if about:  # else it is damaged
                        held.add(about.get("made", {}).get("model_sha256", ""))
                        answers = _answers(about["experiment"])
    except Timeout:
        left.append(f"another process has been sending for {PATIENCE:g} s: what waits, waits")
    return sent, left


def _answers(experiment: str) -> bool:
    """Whether MLflow takes anything at all: else what it refused is at fault, and others can be sent."""
    with suppress(PipelineError), refusals_in_one_line():
        client, number = open_store(experiment)
        client.search_runs([number], max_results=1)
        return True
    return False


@refusals_in_one_line()
def send(record: Record) -> str:
    """Give MLflow all that it lacks of a finished record: the id of the run."""
    client, experiment = open_store(record.about["experiment"])
    if "evaluation" in record.about:
        return _send_evaluation(client, experiment, record)
    run_id = _begin(client, experiment, record)
    _log_rows(client, run_id, record.rows)
    client.log_artifacts(run_id, str(record.folder / "artifacts"))
    if (record.folder / "model.keras").is_file():
        _log_model(client, experiment, run_id, record)
    _log(client, run_id, tags=record.about.get("made", {}))  # last: a run with these tags holds everything
    client.set_terminated(run_id, record.about["status"], record.about["end"])
    return run_id


def _begin(client: MlflowClient, experiment: str, record: Record) -> str:
    """Find or create the run of a record, with all that is known before training: its id."""
    about = record.about
    run = _run_of(client, experiment, about["id"])
    if run is None:
        tags = about["tags"] | {"record": about["id"], "process": process_tag()}
        run = client.create_run(experiment, about["start"], tags, about["name"][: tracking.NAME])
    run_id = run.info.run_id
    if run.info.status != about["status"] and about["status"] == "RUNNING":
        client.update_run(run_id, "RUNNING")
    _log(client, run_id, params=about["params"])
    client.log_inputs(run_id, [_dataset_input(given) for given in about["inputs"]])
    client.log_artifacts(run_id, str(record.folder / "artifacts"))
    return run_id


def _run_of(client: MlflowClient, experiment: str, record_id: str) -> Run | None:
    found = client.search_runs([experiment], f"tags.record = '{record_id}'", max_results=1)
    return found[0] if found else None


def _log(
    client: MlflowClient, run_id: str, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
) -> None:
    for some in _parts([Param(key, str(value)) for key, value in (params or {}).items()], BATCH["params"]):
        client.log_batch(run_id, params=some)
    for some in _parts([RunTag(key, str(value)) for key, value in (tags or {}).items()], BATCH["tags"]):
        client.log_batch(run_id, tags=some)


def _log_rows(client: MlflowClient, run_id: str, rows: Sequence[Row]) -> None:
    metrics = [Metric(key, value, row["time"], row["step"]) for row in rows for key, value in row["values"].items()]
    for some in _parts(metrics, BATCH["metrics"]):
        client.log_batch(run_id, metrics=some)


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _log_model(client: MlflowClient, experiment: str, run_id: str, record: Record) -> None:
    """Log the record's model, once, with a signature that takes raw examples."""
    for logged in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        if logged.status.name == "READY":
            return
        client.delete_logged_model(logged.model_id)  # half sent by an earlier try; MLflow keeps its files
        if (place := urlparse(logged.artifact_location)).scheme == "file":
            shutil.rmtree(url2pathname(place.path), ignore_errors=True)
    model = networks.load_model(record.folder / "model.keras")
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *model.input_shape[1:]))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, model.output_shape[-1]))]),
    )
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")]
    with mlflow.start_run(run_id):
        mlflow.tensorflow.log_model(model, name="model", signature=signature, pip_requirements=versions, tags=NOBODY)


def _send_evaluation(client: MlflowClient, experiment: str, record: Record) -> str:
    """Log test figures into the run that trained the model, or one made of the files where there is none.

    MLflow's parameters cannot change: an evaluation with other settings goes into a child run.
    """
    about = record.about
    run = _evaluated(client, experiment, record)
    if about.get("run") != run.info.run_id:  # decided once: sent again, it goes into the same run
        record.note(run=run.info.run_id)
    client.set_tag(run.info.run_id, tracking.SCORED, about["model_sha256"])
    target = run.info.run_id
    settings = about["params"]
    own = any(run.data.params.get(key, value) != value for key, value in settings.items())
    if own:
        child = _run_of(client, experiment, about["id"])
        if child is None:
            tags = about["tags"] | {tracking.PARENT: target, "record": about["id"]}
            child = client.create_run(experiment, about["start"], tags, f"{run.info.run_name}, evaluated anew")
        target = child.info.run_id
    _log(client, target, params=settings, tags={"evaluated_by": about["evaluation"]})
    _log_rows(client, target, record.rows)
    client.log_inputs(target, [_dataset_input(given) for given in about["inputs"]])
    client.log_artifacts(target, str(record.folder / "artifacts"))
    if own:
        client.set_terminated(target, "FINISHED", about["end"])
    return run.info.run_id


def _evaluated(client: MlflowClient, experiment: str, record: Record) -> Run:
    about = record.about
    if about.get("run"):
        found = client.search_runs([experiment], f"attributes.run_id = '{about['run']}'", max_results=1)
        if found:
            return found[0]
    found = tracking.find_trained(about["recipe"], about["model_sha256"], about["experiment"])
    if found is not None:
        return found
    return client.get_run(send(Record(record.folder / "adopted")))


class Evaluation(NamedTuple):
    """What was evaluated."""

    config: Config
    model: Any  # keras.Model
    model_file: Path
    model_sha256: str  # of the file that training wrote
    history_file: Path
    run: str | None  # MLflow's id, where one was asked for


def log_evaluation(
    of: Evaluation,
    test: Examples,
    figures: Mapping[str, float],
    step: int,
    files: Sequence[Path],
    plots: Sequence[Path],
) -> str:
    """Log test figures at `step`, and files, into the run that trained the model: where they are, in words."""
    config = of.config
    settings = flatten({EVALUATION: to_dict(config)[EVALUATION]})
    known: dict[str, Any] = {
        "experiment": config.data.name,
        "name": f"{config.name}, evaluated",
        "tags": about("pipeline.evaluate"),
        "params": settings | {"data.test_examples": str(len(test.labels))},
        "inputs": [describe("test", test)],
        "evaluation": os.environ.get("DVC_STAGE", "pipeline.evaluate"),
        "recipe": config.name,
        "model_sha256": of.model_sha256,
        "run": of.run,
    }
    content = f"{of.model_sha256} {of.run} {known['params']}"
    with unfinished(content, known, anew=True) as (record, _):
        if record.about["status"] != "FINISHED":  # or it was logged by a try that ended before MLflow had all of it
            record.add_rows(
                [{"step": step, "time": now(), "values": {key: float(value) for key, value in figures.items()}}]
            )
            for file in files:
                record.add_file(file)
            for file in plots:
                record.add_file(file, "artifacts/plots")
            if of.run is None:
                _adopt(record.folder / "adopted", of)
            record.note(status="FINISHED", end=now())
            record.finish()
    sent, left = send_waiting()
    if found := sent.get(record.about["id"]):
        return f"MLflow run {found['run_id']}; {models_scored(tracking.models_scored(config.data.name))}"
    if not (record.folder / "run.json").is_file():
        return "sent to MLflow by another process"
    return "\n".join([*left, SYNC])


def _adopt(folder: Path, of: Evaluation) -> None:
    """A record for a model that may have no run (it was pulled, or its tracker lost), from what its files hold."""
    config = of.config
    tags = about("pipeline.evaluate") | {
        "recipe": config.name,
        "dvc_stage": f"train@{config.name}",
        "adopted": "trained elsewhere; hardware, versions and commit are those of the evaluation",
    }
    known = {
        "experiment": config.data.name,
        "name": config.name,
        "tags": tags,
        "params": trained_with(config) | {"model.num_params": str(of.model.count_params())},
        "inputs": [],
        "made": {"weights_sha256": tracking.weights_sha256(of.model_file), "model_sha256": sha256(of.model_file)},
        "status": "FINISHED",
        "end": now(),
    }
    record = Record(folder, known)
    for row in load_csv(of.history_file, ["epoch"]):
        values = {key: value for key, value in row.items() if key != "epoch" and math.isfinite(value)}
        record.add_rows([{"step": int(row["epoch"]), "time": now(), "values": values}])
    record.add_text("config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    record.add_file(of.model_file, "")
    record.add_file(of.history_file)
    predictions = of.history_file.with_name("val_predictions.csv")  # of validation examples; a run's are compared by it
    if predictions.is_file():
        record.add_file(predictions)


def describe(context: str, examples: Examples) -> dict[str, str]:
    """A data set as a run's input: its name, digest and form, without the path of somebody's home."""
    source = CodeDatasetSource({"file": f"data/processed/{context}.npz"})
    digest = hashlib.sha256(examples.images.tobytes() + examples.labels.tobytes()).hexdigest()[:32]
    described = NumpyDataset(examples.images, source, examples.labels, context, digest).to_dict()
    return {field: described[field] for field in ("name", "digest", "source_type", "source", "schema", "profile")}


def _dataset_input(given: Mapping[str, str]) -> DatasetInput:
    return DatasetInput(Dataset(**given), [InputTag("mlflow.data.context", given["name"])])
