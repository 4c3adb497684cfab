"""The MLflow store: what a run holds, and how it is found again. No other module says `mlflow`."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when mlflow is imported

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

from pipeline.config import ROOT, Config, PipelineError, in_dvc_stage, overrides, to_dict
from pipeline.data import Digits
from pipeline.files import sha256

MODEL_TRAINING = {"mlflow.experimentKind": "custom_model_development"}  # the view that the web page opens with
EVALUATION = "evaluate"  # the section of the configuration that only evaluation reads and logs
PACKAGES = ("tensorflow", "keras", "numpy", "hydra-core", "mlflow", "dvc")
# What DVC deletes and rewrites around a stage, and the benchmark between trials, does not make a tree dirty.
NOT_SOURCE = (":!results", ":!dvc.lock", ":!benchmarks/results", ":!docs/benchmark", ":!docs/benchmark.md")


@contextmanager
def refusals_in_one_line() -> Iterator[None]:
    """Turn what the store refuses (absent, broken, full, of another version) into a PipelineError."""
    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        first = str(error).splitlines()[0][:200]
        uri = mlflow.get_tracking_uri()
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
def training_run(config: Config, train: Digits, val: Digits, data_files: Sequence[Path]) -> Iterator[Run]:
    """Open a run holding everything known before training; it ends as finished, or as failed if the block raises."""
    client, experiment = open_store(config.data.name)
    mlflow.set_system_metrics_sampling_interval(1)
    words = [word for word in overrides() if not word.startswith("recipe=")]
    name = config.name if in_dvc_stage() else " ".join([config.name, *words])
    tags = _tags(config, "pipeline.train") | {"data_sha256": _sha256_of_all(data_files)}
    with (
        refusals_in_one_line(),
        mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags, log_system_metrics=True) as run,
    ):
        run_id = run.info.run_id
        settings = to_dict(config)
        settings.pop(EVALUATION)
        parameters = flatten(settings) | {
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


def log_trained(run: Run, model: Any, model_file: Path, files: Sequence[Path], image_shape: Sequence[int]) -> None:
    """Log what training made: the model, its size and SHA-256, and files."""
    client, run_id = MlflowClient(), run.info.run_id
    mlflow.log_param("model.num_params", model.count_params())
    for file in files:
        client.log_artifact(run_id, str(file))
    log_model(model, image_shape)
    # Last, so that a run with this tag holds everything.
    client.set_tag(run_id, "model_sha256", sha256(model_file))


def log_model(model: Any, image_shape: Sequence[int]) -> None:
    """Log a Keras model into the active run, with a signature that takes raw digits."""
    signature = ModelSignature(
        Schema([TensorSpec(np.dtype("uint8"), (-1, *image_shape))]),
        Schema([TensorSpec(np.dtype("float32"), (-1, model.output_shape[-1]))]),
    )
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in ("tensorflow", "keras", "numpy")]
    mlflow.tensorflow.log_model(model, name="model", signature=signature, pip_requirements=versions)


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
    return next((run for run in found if "mlflow.parentRunId" not in run.data.tags), None)


@refusals_in_one_line()
def adopt(config: Config, model: Any, model_file: Path, history: Sequence[Mapping[str, float]]) -> Run:
    """Open a run for a model trained elsewhere (pulled, or its tracker lost), from what its files hold."""
    client, experiment = open_store(config.data.name)
    tags = _tags(config, "pipeline.evaluate") | {
        "dvc_stage": f"train@{config.name}",
        "adopted": "trained elsewhere; hardware, versions and commit are those of the evaluation",
    }
    with mlflow.start_run(experiment_id=experiment, run_name=config.name, tags=tags) as run:
        settings = to_dict(config)
        settings.pop(EVALUATION)
        mlflow.log_params(flatten(settings) | {"model.num_params": model.count_params()})
        for row in history:
            mlflow.log_metrics(
                {key: value for key, value in row.items() if key != "epoch" and not math.isnan(value)},
                step=int(row["epoch"]),
            )
        log_model(model, config.data.image_shape)
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
    reads = int(run.data.tags.get("test_set_reads", 0)) + 1
    client.set_tag(run.info.run_id, "test_set_reads", reads)
    target, own = run.info.run_id, None
    if any(run.data.params.get(key, value) != value for key, value in settings.items()):
        own = client.create_run(
            run.info.experiment_id,
            run_name=f"{run.info.run_name}, evaluated anew",
            tags=_tags(config, "pipeline.evaluate") | {"mlflow.parentRunId": run.info.run_id},
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


def _tags(config: Config, source: str) -> dict[str, str]:
    decides = {key: value for key, value in to_dict(config).items() if key not in (EVALUATION, "recipes", "dataset")}
    commit = git("rev-parse", "HEAD")
    return {
        "mlflow.user": "pipeline",  # instead of the login name
        "mlflow.source.name": source,  # instead of a path on somebody's machine
        "mlflow.source.git.commit": commit or "none",
        "git_commit": commit or "none",
        "git_dirty": {"": "false", None: "unknown"}.get(uncommitted(), "true"),
        "recipe": config.name,
        "dvc_stage": os.environ.get("DVC_STAGE", "none"),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", "none"),
        "config_sha256": hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
        "hardware": hardware(),
        "threads": "intra-op 1, inter-op 2",
        "versions": versions(),
    }


def hardware() -> str:
    """Processor, cores this process may use, memory, and graphics processors, in words."""
    import psutil
    import tensorflow as tf

    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line]
        name = next((value.strip() for key, value in lines if key.strip() == "model name"), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = round(psutil.virtual_memory().total / 2**30)
    devices = tf.config.list_physical_devices("GPU")
    cards = [tf.config.experimental.get_device_details(card).get("device_name", "GPU") for card in devices]
    return ", ".join([name, f"{cores} cores", f"{memory} GiB", platform.system(), *(cards or ["no GPU"])])


def versions() -> str:
    return ", ".join(
        [f"python {platform.python_version()}"] + [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    )


def git(*words: str) -> str | None:
    """What a git command prints, or None without git or outside a clone."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, errors="replace")
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def uncommitted() -> str | None:
    """What stands in the working tree but not in the commit, as git names it: empty for nothing."""
    return git("status", "--porcelain", "--", ".", *NOT_SOURCE)


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


def _sha256_of_all(files: Sequence[Path]) -> str:
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()
