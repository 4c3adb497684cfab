"""The MLflow store: what a run holds, and how it is found again. No other module says `mlflow`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import math
import os
import re
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import filelock
import mlflow
import mlflow.store.tracking.sqlalchemy_store  # slow: before the lock, not under it
import mlflow.tensorflow
import numpy as np
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.numpy_dataset import NumpyDataset
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from pipeline.config import ROOT, Config, PipelineError, from_dict, to_dict
from pipeline.data import Digits
from pipeline.files import existing, load_yaml, sha256
from pipeline.surroundings import NOT_SOURCE, Identity, deciding, git, hardware, uncommitted, versions
from pipeline.tables import as_text

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # the view that the web page opens with
EVALUATION = "evaluate"  # the section of the configuration that only evaluation reads and logs
PARENT = "mlflow.parentRunId"
NOBODY = {"mlflow.user": "pipeline", "mlflow.source.name": "pipeline"}  # instead of a login name, and somebody's path


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """Turn what the store refuses (absent, broken, full, of another version) into a PipelineError."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        first = str(error).splitlines()[0][:200]
        uri = mlflow.get_tracking_uri()
        if "database schema" in first:  # MLflow would advise to upgrade even a store that is newer than itself
            raise PipelineError(
                f"another version of MLflow than {mlflow.__version__} wrote the store {uri}: an older one, "
                f"`mlflow db upgrade {uri}` (keep a copy); a newer one, install it, or move the store away"
            ) from None
        raise PipelineError(
            f"the MLflow store {uri} refused ({first}): free its disk, or mend MLFLOW_TRACKING_URI, or move it away"
        ) from None


@refusals_in_one_line()
def open_store(name: str) -> tuple[MlflowClient, str]:
    """Open the store and find or create the experiment `name`: a client and the experiment's id.

    The store is MLFLOW_TRACKING_URI where it is set, otherwise mlflow.db in the repository, which plain `mlflow ui`
    reads, with artifacts below mlruns/. In DVC's temporary checkouts the repository is the user's own.
    """
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    uri, root = os.environ.get("MLFLOW_TRACKING_URI"), Path(os.environ.get("DVC_ROOT", ROOT))
    location = None if uri else (root / "mlruns").as_uri()
    mlflow.set_tracking_uri(uri or f"sqlite:///{root / 'mlflow.db'}")
    client = MlflowClient()
    # Several processes that create the same database at once would leave it half made.
    with filelock.FileLock(root / "mlflow.db.lock"):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            return client, client.create_experiment(name, location, tags=MODEL_TRAINING)
    if experiment.lifecycle_stage != "active":
        raise PipelineError(
            f"the MLflow experiment {name!r} is deleted: restore it with "
            f"`mlflow experiments restore --experiment-id {experiment.experiment_id}`"
        )
    return client, experiment.experiment_id


@contextmanager
def training_run(
    config: Config, name: str, parent: str | None, identity: Identity, train: Digits, val: Digits
) -> Iterator[Run]:
    """Open a run holding everything known before training; it ends as finished, or as failed if the block raises.

    `parent` is the run id of the sweep that it belongs to.
    """
    client, experiment = open_store(config.data.name)
    mlflow.set_system_metrics_sampling_interval(1)
    tags = _tags("pipeline.train") | {"recipe": config.name} | identity._asdict() | ({PARENT: parent} if parent else {})
    with (
        refusals_in_one_line(),
        mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags, log_system_metrics=True) as run,
    ):
        run_id = run.info.run_id
        parameters = flatten(deciding(config)) | {
            "data.train_examples": len(train.labels),
            "data.val_examples": len(val.labels),
        }
        mlflow.log_params(parameters)
        client.log_dict(run_id, to_dict(config), "config.yaml")
        _log_surroundings(client, run_id)
        client.log_inputs(run_id, [_dataset("train", train), _dataset("val", val)])
        yield run


def log_augmented(run: Run, config: Config, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> None:
    """Log a sheet of the same digits, uint8 [N, H, W], before and after the largest augmentation of the recipe."""
    from pipeline import plots

    titles = ["as it is"] * len(before) + ["augmented"] * len(after)
    heading = f"{config.name}: training digits, and how training varies them"
    sheet = plots.plot_digits(np.concatenate([before, after]), titles, len(before), heading)
    MlflowClient().log_figure(run.info.run_id, sheet, "augmented.png")


def log_epoch(run: Run, epoch: Mapping[str, float], size: int, seconds: float) -> None:
    """Log one row of history.csv with its seconds in training and images a second, at step = epoch."""
    figures = {**epoch, "epoch_seconds": seconds, "images_per_second": size / seconds}
    step = int(figures.pop("epoch"))
    finite = {key: value for key, value in figures.items() if not math.isnan(value)}
    mlflow.log_metrics(finite, step=step, run_id=run.info.run_id)


def log_trained(
    run: Run, model: Any, model_file: Path, files: Sequence[Path], image_shape: Sequence[int]
) -> dict[str, str]:
    """Log what training made: the model, its size and SHA-256, and files; give back the tags of the run."""
    client, run_id = MlflowClient(), run.info.run_id
    mlflow.log_param("model.num_params", model.count_params())
    for file in files:
        client.log_artifact(run_id, str(file))
    log_model(model, image_shape)
    made = {"weights_sha256": weights_sha256(model_file), "model_sha256": sha256(model_file)}
    tags = {key: value for key, value in run.data.tags.items() if not key.startswith("mlflow.")} | made
    client.log_dict(run_id, tags, "tags.json")
    for key, value in made.items():  # the model's last: a run with this tag holds everything
        client.set_tag(run_id, key, value)
    return tags


def log_model(model: Any, image_shape: Sequence[int]) -> None:
    """Log a Keras model into the active run, with a signature that takes raw digits."""
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *image_shape))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, model.output_shape[-1]))]),
    )
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")]
    mlflow.tensorflow.log_model(model, name="model", signature=signature, pip_requirements=versions, tags=NOBODY)


@refusals_in_one_line()
def find_run(run_id: str, data_name: str) -> Run:
    """The run of this id that trained a model; any other, and one of another experiment, is a PipelineError."""
    run = _existing_run(run_id, data_name)
    if "model_sha256" not in run.data.tags:
        raise PipelineError(
            f"{run_id} ({run.info.run_name!r}, {run.info.status.lower()}) holds no trained model: take the id of a "
            "finished run, from a ranking or `mlflow ui`"
        )
    return run


def _existing_run(run_id: str, data_name: str) -> Run:
    client, experiment = open_store(data_name)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise PipelineError(
            f"{run_id} is no run of {mlflow.get_tracking_uri()}: take an id from a ranking or `mlflow ui`"
        ) from None
    if run.info.experiment_id != experiment:
        other = client.get_experiment(run.info.experiment_id).name
        raise PipelineError(f"{run_id} is a run of the experiment {other!r}: give one of {data_name!r}")
    if run.info.lifecycle_stage != "active":
        raise PipelineError(f"{run_id} is deleted: `mlflow runs restore --run-id {run_id}` brings it back")
    return run


@refusals_in_one_line()
def find_runs(what: str, data_name: str) -> dict[str, list[Run]]:
    """The finished runs that a word names, by configuration; the same bits trained twice count once.

    The word is a recipe (the newest run of its DVC stage), a run's id, the id of a sweep (all its configurations), a
    group (all seeds of one configuration), or a filter in MLflow's language. One that names no run is a PipelineError.
    """
    client, experiment = open_store(data_name)
    trained = "tags.model_sha256 != '' and attributes.status = 'FINISHED'"
    newest = ["attributes.start_time DESC"]
    if re.fullmatch("[0-9a-f]{32}", what):
        run = _existing_run(what, data_name)
        found = of_sweep(what) if "sweep" in run.data.tags else [run]
        found = [one for one in found if one.info.status == "FINISHED" and "model_sha256" in one.data.tags]
    elif (ROOT / "conf" / "recipe" / f"{what}.yaml").is_file():
        query = f"tags.dvc_stage = 'train@{what}' and {trained}"
        found = [run for run in client.search_runs([experiment], query, order_by=newest) if PARENT not in run.data.tags]
        found = found[:1]
    elif re.fullmatch("[0-9a-f]{12}", what):
        found = client.search_runs([experiment], f"tags.group = '{what}' and {trained}", order_by=newest)
    else:
        try:
            found = client.search_runs([experiment], f"{what} and {trained}", order_by=newest)
        except MlflowException as error:
            raise PipelineError(
                f"{what!r} is no recipe, run, sweep or group, and no filter of MLflow's ({str(error).splitlines()[0]})"
            ) from None
    if not found:
        raise PipelineError(
            f"{what!r} names no finished run of {mlflow.get_tracking_uri()}: train one, or mend the word"
        )
    groups: dict[str, dict[str, Run]] = {}
    for run in found:
        tags = run.data.tags
        of_group = groups.setdefault(tags.get("group", run.info.run_id), {})
        of_group.setdefault(tags.get("content_sha256", run.info.run_id), run)
    return {group: list(runs.values()) for group, runs in groups.items()}


def traits(run: Run) -> dict[str, str]:
    """What distinguishes one run from another: every value of its configuration, its code, data and surroundings."""
    tags = {
        key: run.data.tags.get(key, "unknown")
        for key in ("git_commit", "code_sha256", "data_sha256", "versions", "hardware")
    }
    follows = ("model.num_params", "data.train_examples", "data.val_examples")  # from other values
    return {key: value for key, value in run.data.params.items() if key not in follows} | tags


def test_set_reads(run: Run) -> int:
    return int(run.data.tags.get("test_set_reads", 0))


@refusals_in_one_line()
def log_comparison(data_name: str, name: str, files: Sequence[Path], answer: str, compared: Sequence[Run]) -> str:
    """A run of its own for what was compared, with links to it: its id."""
    client, experiment = open_store(data_name)
    links = [f"[{as_text(run.info.run_name)}](#/experiments/{experiment}/runs/{run.info.run_id})" for run in compared]
    note = f"{answer}\nRuns compared: {', '.join(links)}\n"
    ids = " ".join(run.info.run_id for run in compared)
    tags = _tags("pipeline.compare") | {"mlflow.note.content": note, "compared": ids}
    run = client.create_run(experiment, run_name=name, tags=tags)
    for file in files:
        client.log_artifact(run.info.run_id, str(file))
    client.set_terminated(run.info.run_id)
    return run.info.run_id


def artifact(run: Run, name: str, folder: Path) -> Path:
    """Bring an artifact of a run, a file or a folder, into `folder`; one that is gone is a PipelineError."""
    try:
        return Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{name}", dst_path=str(folder)))
    except (MlflowException, OSError):
        raise PipelineError(
            f"{name} of the MLflow run {run.info.run_id} is gone (expected in {run.info.artifact_uri}): bring it back, "
            "or train again"
        ) from None


def recorded_config(run: Run, folder: Path) -> Config:
    """The configuration that a run was trained with."""
    file = artifact(run, "config.yaml", folder)
    return from_dict(load_yaml(file), f"config.yaml of the MLflow run {run.info.run_id}")


def recorded_model(run: Run, folder: Path) -> Path:
    """The .keras file of a run; one with other weights than the run trained is a PipelineError."""
    file = artifact(run, "model", folder) / "data" / "model.keras"
    if not file.is_file():
        raise PipelineError(f"the model of the MLflow run {run.info.run_id} is gone: bring it back, or train again")
    if weights_sha256(file) != run.data.tags.get("weights_sha256"):
        raise PipelineError(f"{run.info.run_id} holds another model than it trained: bring it back, or train again")
    return file


def weights_sha256(model_file: Path) -> str:
    """Of the weights in a .keras file: all else in it differs from one save to the next."""
    try:
        with zipfile.ZipFile(existing(model_file)) as archive:
            return hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
    except (zipfile.BadZipFile, KeyError) as error:
        raise PipelineError(f"{model_file} is damaged ({error}): bring it back, or train again") from None


@refusals_in_one_line()
def find_trained(config: Config, model_file: Path) -> Run | None:
    """The newest finished run of a DVC stage that trained exactly this model, or None; never a sweep's child."""
    client, experiment = open_store(config.data.name)
    found = client.search_runs(
        [experiment],
        f"tags.model_sha256 = '{sha256(model_file)}' and tags.dvc_stage = 'train@{config.name}' "
        "and attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
    )
    return next((run for run in found if PARENT not in run.data.tags), None)


@refusals_in_one_line()
def adopt(config: Config, model: Any, model_file: Path, history: Sequence[Mapping[str, float]]) -> Run:
    """Open a run for a model trained elsewhere (pulled, or its tracker lost), from what its files hold."""
    client, experiment = open_store(config.data.name)
    tags = _tags("pipeline.evaluate") | {
        "recipe": config.name,
        "dvc_stage": f"train@{config.name}",
        "adopted": "trained elsewhere; hardware, versions and commit are those of the evaluation",
    }
    with mlflow.start_run(experiment_id=experiment, run_name=config.name, tags=tags) as run:
        mlflow.log_params(flatten(deciding(config)) | {"model.num_params": model.count_params()})
        for row in history:
            mlflow.log_metrics(
                {key: value for key, value in row.items() if key != "epoch" and not math.isnan(value)},
                step=int(row["epoch"]),
            )
        log_model(model, config.data.image_shape)
        client.log_dict(run.info.run_id, to_dict(config), "config.yaml")
        client.set_tag(run.info.run_id, "weights_sha256", weights_sha256(model_file))
        client.set_tag(run.info.run_id, "model_sha256", sha256(model_file))
    return client.get_run(run.info.run_id)


@refusals_in_one_line()
def log_evaluation(
    run: Run, config: Config, test: Digits, figures: Mapping[str, float], step: int, files: Sequence[Path]
) -> int:
    """Log test figures at `step` and files into a finished run; how often the test digits were read for it by now.

    MLflow's parameters cannot change: an evaluation with other settings goes into a child run.
    """
    client = MlflowClient()
    settings = flatten({EVALUATION: to_dict(config)[EVALUATION]})
    reads = test_set_reads(run) + 1
    client.set_tag(run.info.run_id, "test_set_reads", reads)
    target, own = run.info.run_id, None
    if any(run.data.params.get(key, value) != value for key, value in settings.items()):
        own = client.create_run(
            run.info.experiment_id,
            run_name=f"{run.info.run_name}, evaluated anew",
            tags=_tags("pipeline.evaluate") | {PARENT: run.info.run_id},
        ).info.run_id
        target = own
    now = int(time.time() * 1000)
    client.log_batch(
        target,
        metrics=[Metric(key, float(value), now, step) for key, value in figures.items()],
        params=[Param(key, value) for key, value in settings.items()]
        + [Param("data.test_examples", str(len(test.labels)))],
        tags=[RunTag("evaluated_by", os.environ.get("DVC_STAGE", "pipeline.evaluate"))],
    )
    if reads == 1 or own:
        client.log_inputs(target, [_dataset("test", test)])
    for file in files:
        client.log_artifact(target, str(file), "plots" if file.suffix == ".png" else None)
    if own:
        client.set_terminated(own)
    return reads


@refusals_in_one_line()
def seconds_in_training(name: str, model_sha256: str, data_name: str) -> tuple[float, str] | None:
    """Summed epoch seconds and the hardware of the newest run that trained this model, or None where none is known."""
    client, experiment = open_store(data_name)
    for run in client.search_runs(
        [experiment],
        f"tags.model_sha256 = '{model_sha256}' and tags.dvc_stage = 'train@{name}'",
        order_by=["attributes.start_time DESC"],
    ):
        epochs = client.get_metric_history(run.info.run_id, "epoch_seconds")
        if epochs:
            return sum(metric.value for metric in epochs), run.data.tags["hardware"]
    return None


@refusals_in_one_line()
def open_sweep(data_name: str, name: str, command: str, digest: str, keys: Sequence[str]) -> tuple[str, bool]:
    """Open the parent run of a sweep, or take up the one of an earlier try: its run id, and whether it was there.

    `digest` is of what the sweep trains; `keys` are those that it varies.
    """
    client, experiment = open_store(data_name)
    for run in client.search_runs([experiment], f"tags.sweep = '{digest}'"):
        client.update_run(run.info.run_id, "RUNNING")
        return run.info.run_id, True
    tags = _tags("pipeline.train -m") | {"sweep": digest, "swept_keys": " ".join(keys), "command": command}
    return client.create_run(experiment, run_name=name, tags=tags).info.run_id, False


@refusals_in_one_line()
def finished(data_name: str, content_sha256: str) -> Run | None:
    """The newest finished run that trained exactly this, or None."""
    client, experiment = open_store(data_name)
    # The model's hash is the last thing that training logs.
    query = f"tags.content_sha256 = '{content_sha256}' and tags.model_sha256 != '' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment], query, order_by=["attributes.start_time DESC"], max_results=1)
    return found[0] if found else None


@refusals_in_one_line()
def join_sweep(parent: str, run: Run) -> None:
    """Count a run that another command trained among those of a sweep."""
    if run.data.tags.get(PARENT) != parent:
        MlflowClient().set_tag(parent, f"found.{run.info.run_id}", "trained before this sweep")


@refusals_in_one_line()
def discard_unfinished(parent: str, content_sha256: str) -> int:
    """Delete (as MLflow does: they can be restored) the children that an earlier try left unfinished: how many."""
    client = MlflowClient()
    query = f"tags.`{PARENT}` = '{parent}' and tags.content_sha256 = '{content_sha256}'"
    unfinished = client.search_runs([client.get_run(parent).info.experiment_id], query)
    for run in unfinished:
        client.delete_run(run.info.run_id)
    return len(unfinished)


@refusals_in_one_line()
def of_sweep(parent: str) -> list[Run]:
    """The runs of a sweep: its children, and those that it found finished."""
    client = MlflowClient()
    sweep = client.get_run(parent)
    children = client.search_runs([sweep.info.experiment_id], f"tags.`{PARENT}` = '{parent}'", max_results=5_000)
    ids = [key.removeprefix("found.") for key in sweep.data.tags if key.startswith("found.")]
    if not ids:
        return list(children)
    quoted = ", ".join(f"'{run_id}'" for run_id in ids)
    found = client.search_runs([sweep.info.experiment_id], f"attributes.run_id IN ({quoted})", max_results=5_000)
    return [*children, *found]  # those deleted since are not among them


@refusals_in_one_line()
def log_sweep(parent: str, files: Sequence[Path], tags: Mapping[str, str], status: str | None = None) -> None:
    """Renew a sweep's files and tags, and end it where a status is given."""
    client = MlflowClient()
    for file in files:
        client.log_artifact(parent, str(file))
    for key, value in tags.items():
        client.set_tag(parent, key, value)
    if status:
        client.set_terminated(parent, status)


def curve(run: Run, key: str) -> list[float]:
    """A metric of every epoch, the first one first."""
    found = MlflowClient().get_metric_history(run.info.run_id, key)
    return [metric.value for metric in sorted(found, key=lambda metric: metric.step)]


def flatten(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, str]:
    """Nested values under dotted keys, as text; a list of plain values stays one value."""
    flat: dict[str, str] = {}
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    for key, value in items:
        nested = isinstance(value, Mapping) or (
            isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        )
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": str(value)}
    return flat


def _tags(source: str) -> dict[str, str]:
    commit = git("rev-parse", "HEAD")
    return NOBODY | {
        "mlflow.source.name": source,
        "mlflow.source.git.commit": commit or "none",
        "git_commit": commit or "none",
        "git_dirty": {"": "false", None: "unknown"}.get(uncommitted(), "true"),
        "dvc_stage": os.environ.get("DVC_STAGE", "none"),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", "none"),
        "hardware": hardware(),
        "threads": "intra-op 1, inter-op 2",
        "versions": versions(),
    }


def _log_surroundings(client: MlflowClient, run_id: str) -> None:
    """Installed packages, and what stood in the working tree but not in the commit."""
    installed = sorted(f"{found.metadata['Name']}=={found.version}" for found in importlib.metadata.distributions())
    client.log_text(run_id, "\n".join(installed) + "\n", "packages.txt")
    if changes := uncommitted():
        difference = git("diff", "HEAD", "--", ".", *NOT_SOURCE) or ""
        client.log_text(run_id, f"{changes}\n\n{difference}\n", "git.diff")


def _dataset(context: str, digits: Digits) -> DatasetInput:
    digest = hashlib.sha256(digits.images.tobytes() + digits.labels.tobytes()).hexdigest()[:32]
    # As made by code: a source given as a file would be stored with the path of somebody's home.
    source = CodeDatasetSource({"file": f"data/processed/{context}.npz"})
    described = NumpyDataset(digits.images, source, digits.labels, context, digest).to_dict()
    fields = ("name", "digest", "source_type", "source", "schema", "profile")
    dataset = Dataset(**{field: described[field] for field in fields})
    return DatasetInput(dataset, [InputTag("mlflow.data.context", context)])
