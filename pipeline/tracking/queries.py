"""What the MLflow store holds: runs, and their artifacts, found by id, content, configuration or filter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from pipeline.base import own
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.schema import Data
from pipeline.base.validation import flatten
from pipeline.model.files import weights_sha256
from pipeline.tracking.record import PARENT
from pipeline.tracking.store import address, open_store, translate_errors

MAX_NAME = 250  # characters of a run's name that MLflow's tables hold
MAX_TAG = 8_000  # of a tag's value
TEST_SCORED = "test_scored"  # tag of a run whose model was scored on the test examples
SCORED_TAGS = (TEST_SCORED, "test_set_reads")  # that of earlier code
PAGE = 100  # runs per request: a thousand of ours at once take a server longer than we wait for an answer
TRAINED = "tags.model_sha256 != '' and attributes.status = 'FINISHED'"  # the hash is the last thing to be logged


@translate_errors()
def find_run(project: Project, run_id: str, data: Data) -> Run:
    """Return the run of this id that trained a model on these data; a UserError if it did not."""
    run = _existing_run(project, run_id, data.name)
    if "model_sha256" not in run.data.tags:
        raise UserError(
            f"{run_id} ({run.info.run_name!r}, {run.info.status.lower()}) holds no trained model: take the id of a "
            "finished run, from a ranking or `mlflow ui`"
        )
    today = flatten({"data": data.model_dump(include={"image_shape", "classes", "sha256"})})
    for key, value in today.items():
        if run.data.params.get(key) != value[:MAX_PARAM_VAL_LENGTH]:
            raise UserError(
                f"{run_id} was trained on another {key} than conf/data/{data.name}.yaml has today: train again, and "
                "if it is the champion, take that alias off it in `mlflow ui`"
            )
    return run


def _existing_run(project: Project, run_id: str, experiment_name: str) -> Run:
    client, experiment = open_store(project, experiment_name)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise UserError(f"{run_id} is no run of {address()}: take an id from a ranking or `mlflow ui`") from None
    if run.info.experiment_id != experiment:
        other = client.get_experiment(run.info.experiment_id).name
        raise UserError(f"{run_id} is a run of {other!r}: give data={other}, or a run of {experiment_name!r}")
    if run.info.lifecycle_stage != "active":
        raise UserError(f"{run_id} is deleted: `mlflow runs restore --run-id {run_id}` brings it back")
    return run


@translate_errors()
def find_runs(project: Project, what: str, experiment_name: str) -> dict[str, list[Run]]:
    """Return the finished runs that `what` names, by configuration; the same bits trained twice count once.

    It is a recipe (the newest run of its DVC stage), a run's id, the id of a sweep (all its configurations), a group
    (all seeds of one configuration), or a filter in MLflow's language. If it names no run, that is a UserError.
    """
    if re.fullmatch("[0-9a-f]{32}", what):
        run = _existing_run(project, what, experiment_name)
        runs = sweep_runs(what) if "sweep" in run.data.tags else [run]
        runs = [one for one in runs if one.info.status == "FINISHED" and "model_sha256" in one.data.tags]
    elif (project.conf / "recipe" / f"{what}.yaml").is_file():
        runs = find_trained(project, experiment_name, dvc_stage=f"train@{what}")[:1]
    elif re.fullmatch("g?[0-9a-f]{12}", what):  # groups of earlier code have no g
        runs = find_trained(project, experiment_name, group=what)
    else:
        try:
            runs = search(*open_store(project, experiment_name), f"{what} and {TRAINED}")
        except MlflowException as error:
            raise UserError(
                f"{what!r} is no recipe, run, sweep or group, and no filter of MLflow's ({str(error).splitlines()[0]})"
            ) from None
    if not runs:
        raise UserError(
            f"{what!r} names no finished run of {address()}, where a recipe's name stands for what `dvc repro` trained "
            "of it: train one, or give a run's id"
        )
    return by_group(runs)


def by_group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Return runs by configuration, those of equal content once, as the first of them."""
    groups: dict[str, dict[str, Run]] = {}
    for run in runs:
        tags = run.data.tags
        group = groups.setdefault(tags.get("group", run.info.run_id), {})
        group.setdefault(tags.get("content_sha256", run.info.run_id), run)
    return {group: list(members.values()) for group, members in groups.items()}


def search(client: MlflowClient, experiment: str, query: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """Return all runs that a filter of MLflow's matches, however many, the newest first."""
    runs: dict[str, Run] = {}  # by id: one that another process begins meanwhile moves all others back by one
    page, newest_first = None, ["attributes.start_time DESC"]
    while page is None or page.token:
        token = page and page.token
        page = client.search_runs([experiment], query, view, max_results=PAGE, order_by=newest_first, page_token=token)
        runs |= {run.info.run_id: run for run in page}
    return list(runs.values())


@translate_errors()
def find_trained(project: Project, experiment_name: str, **tags: str) -> list[Run]:
    """Return the finished runs that trained a model and have these tags, the newest first."""
    query = " and ".join([TRAINED, *(f"tags.{key} = '{value}'" for key, value in tags.items())])
    return search(*open_store(project, experiment_name), query)


def traits(run: Run) -> dict[str, str]:
    """Return what distinguishes a run from others: every value of its configuration, code, data and environment."""
    keys = ("git_commit", "code_sha256", "data_sha256", "versions", "hardware")
    tags = {key: run.data.tags.get(key, "unknown") for key in keys}
    tags["environment"] = run.data.tags.get("environment", "none")  # it was not always recorded
    derived = ("model.num_params", "model.macs", "data.train_examples", "data.val_examples")
    return {key: value for key, value in run.data.params.items() if key not in derived} | tags


def stored_files(client: MlflowClient, run_id: str, path: str | None = None) -> dict[str, int]:
    """Return the artifacts of a run with their sizes in bytes."""
    files: dict[str, int] = {}
    for one in client.list_artifacts(run_id, path):
        files |= stored_files(client, run_id, one.path) if one.is_dir else {one.path: one.file_size}
    return files


def data_name(run: Run) -> str:
    """Return the data set of a run, as it is typed: data=<name>."""
    return str(run.data.params.get("data.name", "mnist"))


@translate_errors()
def models_scored(project: Project, experiment_name: str) -> int:
    """Return how many different models of this store were scored on the test examples of a data set, by anybody.

    The same model again tells nothing new and counts once; the model of a deleted run still counts.
    """
    store = open_store(project, experiment_name)
    runs = [run for tag in SCORED_TAGS for run in search(*store, f"tags.{tag} != ''", ViewType.ALL)]
    return len({run.data.tags.get("weights_sha256", run.info.run_id) for run in runs})


def artifact(run: Run, name: str, folder: Path) -> Path:
    """Download an artifact of a run, a file or a folder, into `folder`; a UserError if it is gone."""
    try:
        return Path(mlflow.artifacts.download_artifacts(f"runs:/{run.info.run_id}/{name}", dst_path=str(folder)))
    except (MlflowException, OSError):
        raise UserError(
            f"{name} of the MLflow run {run.info.run_id} is gone (expected in {run.info.artifact_uri}): bring it back, "
            "or train again"
        ) from None


def recorded_model(run: Run, folder: Path) -> Path:
    """Return the .keras file of a run; a UserError if it is gone or has other weights than the run trained."""
    file = artifact(run, "model/data/model.keras", folder)
    if weights_sha256(file) != run.data.tags.get("weights_sha256"):
        raise UserError(f"{run.info.run_id} holds another model than it trained: bring it back, or train again")
    return file


def final(run: Run, key: str) -> float:
    """Return a metric of the model that a run kept, of its last epoch or with train.patience the best; NaN for none."""
    return float(run.data.metrics.get(f"best_{key}", run.data.metrics.get(key, math.nan)))


def load_network(project: Project, run: Run) -> None:
    """Import what the model of a run was built by, where that is the user's own, so that its layers are known."""
    own.load_recorded(project.root, run.data.params.get("model.build"), run.data.params.get("model.source_sha256"))


def training_seconds(run: Run) -> float:
    """Return the seconds that the epochs of a run took; 0 if it has none."""
    seconds = run.data.metrics.get("speed/training_seconds")
    return sum(curve(run, "epoch_seconds")) if seconds is None else float(seconds)  # earlier code logged those alone


def curve(run: Run, key: str) -> list[float]:
    """Return a metric of every epoch, the first one first."""
    with translate_errors():
        history = MlflowClient().get_metric_history(run.info.run_id, key)
    return [metric.value for metric in sorted(history, key=lambda metric: metric.step)]


@translate_errors(OSError)
def log_test_files(run: Run, folder: Path, name: str, figures: Mapping[str, float]) -> None:
    """Log what was made of the test examples: the files of a folder as `name` of a run, and figures that it lacks."""
    client = MlflowClient()
    client.set_tag(run.info.run_id, TEST_SCORED, run.data.tags["model_sha256"])
    client.log_artifacts(run.info.run_id, str(folder), name)
    for key, value in figures.items():
        if run.data.metrics.get(key) != value:
            client.log_metric(run.info.run_id, key, value)


@translate_errors()
def sweep_runs(parent: str) -> list[Run]:
    """Return the runs of a sweep: its children, and those that it found finished."""
    client = MlflowClient()
    sweep = client.get_run(parent)
    runs = search(client, sweep.info.experiment_id, f"tags.`{PARENT}` = '{parent}'")
    ids = [key.removeprefix("found.") for key in sweep.data.tags if key.startswith("found.")]
    quoted = ", ".join(f"'{run_id}'" for run_id in ids)
    found = search(client, sweep.info.experiment_id, f"attributes.run_id IN ({quoted})") if ids else []
    for run in found:
        run.data.tags["swept"] = sweep.data.tags[f"found.{run.info.run_id}"]  # it is another sweep's, or nobody's
    return runs + found  # those deleted since are not among them
