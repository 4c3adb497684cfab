"""What the MLflow store holds, and how it is found again; sweeps and comparisons are logged here as well."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlflow
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

from pipeline.command import overrides
from pipeline.config import ROOT, Config, PipelineError, compose, flatten, from_dict, to_dict
from pipeline.files import existing, load_json, load_yaml
from pipeline.store import address, open_store, refusals_in_one_line
from pipeline.surroundings import about
from pipeline.tables import as_text

PARENT = "mlflow.parentRunId"
NEWEST = ["attributes.start_time DESC"]
NAME = 250  # characters of a run's name: what MLflow's tables hold
SCORED = "test_scored"  # the tag of a run whose model was scored on the test examples; before: test_set_reads
PAGE = 100  # runs a request: a thousand of ours at once take a server longer than we wait for an answer


@refusals_in_one_line()
def find_run(run_id: str, data_name: str) -> Run:
    """The run of this id that trained a model on the data of today's configuration; any other is a PipelineError."""
    run = _existing_run(run_id, data_name)
    if "model_sha256" not in run.data.tags:
        raise PipelineError(
            f"{run_id} ({run.info.run_name!r}, {run.info.status.lower()}) holds no trained model: take the id of a "
            "finished run, from a ranking or `mlflow ui`"
        )
    words = [word for word in overrides() if word.startswith("data.")]
    today = flatten({"data": to_dict(compose(f"data={data_name}", *words))["data"]})
    for key in (key for key in today if key.startswith(("data.image_shape", "data.classes", "data.sha256."))):
        if run.data.params.get(key) != today[key][:MAX_PARAM_VAL_LENGTH]:
            raise PipelineError(
                f"{run_id} was trained on another {key} than conf/data/{data_name}.yaml has today: train again, and "
                "where it is the champion, take that alias off it in `mlflow ui`"
            )
    return run


def _existing_run(run_id: str, data_name: str) -> Run:
    client, experiment = open_store(data_name)
    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise PipelineError(f"{run_id} is no run of {address()}: take an id from a ranking or `mlflow ui`") from None
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
    if re.fullmatch("[0-9a-f]{32}", what):
        run = _existing_run(what, data_name)
        found = of_sweep(what) if "sweep" in run.data.tags else [run]
        found = [one for one in found if one.info.status == "FINISHED" and "model_sha256" in one.data.tags]
    elif (ROOT / "conf" / "recipe" / f"{what}.yaml").is_file():
        query = f"tags.dvc_stage = 'train@{what}' and {trained}"
        found = [run for run in client.search_runs([experiment], query, order_by=NEWEST) if PARENT not in run.data.tags]
        found = found[:1]
    elif re.fullmatch("g?[0-9a-f]{12}", what):  # groups of earlier code have no g
        found = _search(client, experiment, f"tags.group = '{what}' and {trained}")
    else:
        try:
            found = _search(client, experiment, f"{what} and {trained}")
        except MlflowException as error:
            raise PipelineError(
                f"{what!r} is no recipe, run, sweep or group, and no filter of MLflow's ({str(error).splitlines()[0]})"
            ) from None
    if not found:
        raise PipelineError(f"{what!r} names no finished run of {address()}: train one, or mend the word")
    groups: dict[str, dict[str, Run]] = {}
    for run in found:
        tags = run.data.tags
        of_group = groups.setdefault(tags.get("group", run.info.run_id), {})
        of_group.setdefault(tags.get("content_sha256", run.info.run_id), run)
    return {group: list(runs.values()) for group, runs in groups.items()}


def _search(client: MlflowClient, experiment: str, query: str, view: int = ViewType.ACTIVE_ONLY) -> list[Run]:
    """All runs that a filter of MLflow's finds, however many, the newest first."""
    found: dict[str, Run] = {}  # by id: one that another process begins meanwhile moves all others back by a place
    token = None
    while True:
        page = client.search_runs([experiment], query, view, max_results=PAGE, order_by=NEWEST, page_token=token)
        found |= {run.info.run_id: run for run in page}
        token = page.token
        if not token:
            return list(found.values())


def traits(run: Run) -> dict[str, str]:
    """What distinguishes one run from another: every value of its configuration, its code, data and surroundings."""
    tags = {
        key: run.data.tags.get(key, "unknown")
        for key in ("git_commit", "code_sha256", "data_sha256", "versions", "hardware")
    }
    tags["environment"] = run.data.tags.get("environment", "none")  # it was not recorded always
    follows = ("model.num_params", "data.train_examples", "data.val_examples")  # from other values
    return {key: value for key, value in run.data.params.items() if key not in follows} | tags


def is_evaluated(run: Run) -> bool:
    """Whether the run holds predictions of the test examples."""
    return "evaluated_by" in run.data.tags


@refusals_in_one_line()
def models_scored(data_name: str) -> int:
    """How many different models of this store were scored on the test examples of a data set, whoever asked.

    The same model again tells nothing new and counts once; the model of a deleted run has told.
    """
    client, experiment = open_store(data_name)
    queries = (f"tags.{tag} != ''" for tag in (SCORED, "test_set_reads"))
    runs = [run for query in queries for run in _search(client, experiment, query, ViewType.ALL)]
    return len({run.data.tags.get("weights_sha256", run.info.run_id) for run in runs})


@refusals_in_one_line()
def log_comparison(data_name: str, name: str, files: Sequence[Path], answer: str, compared: Sequence[Run]) -> str:
    """A run of its own for what was compared, with links to it: its id."""
    client, experiment = open_store(data_name)
    links = [f"[{as_text(run.info.run_name)}](#/experiments/{experiment}/runs/{run.info.run_id})" for run in compared]
    note = f"{answer}\nRuns compared: {', '.join(links)}\n"
    ids = " ".join(run.info.run_id for run in compared)
    tags = about("pipeline.compare") | {"mlflow.note.content": note, "compared": ids}
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
def find_trained(recipe: str, model_sha256: str, data_name: str) -> Run | None:
    """The newest finished run of a DVC stage that trained exactly this model, or None; never a sweep's child."""
    client, experiment = open_store(data_name)
    found = client.search_runs(
        [experiment],
        f"tags.model_sha256 = '{model_sha256}' and tags.dvc_stage = 'train@{recipe}' "
        "and attributes.status = 'FINISHED'",
        order_by=NEWEST,
    )
    return next((run for run in found if PARENT not in run.data.tags), None)


@refusals_in_one_line()
def log_test_files(run: Run, folder: Path, name: str, figures: Mapping[str, float]) -> None:
    """Log what was made of the test examples: the files of a folder as `name` of a run, and figures that it lacks."""
    client = MlflowClient()
    client.set_tag(run.info.run_id, SCORED, run.data.tags["model_sha256"])
    client.log_artifacts(run.info.run_id, str(folder), name)
    for key, value in figures.items():
        if run.data.metrics.get(key) != value:
            client.log_metric(run.info.run_id, key, value)


@refusals_in_one_line()
def seconds_in_training(name: str, model_sha256: str, data_name: str) -> tuple[float, str] | None:
    """Summed epoch seconds and the hardware of the newest run that trained this model, or None where none is known."""
    client, experiment = open_store(data_name)
    for run in client.search_runs(
        [experiment],
        f"tags.model_sha256 = '{model_sha256}' and tags.dvc_stage = 'train@{name}'",
        order_by=NEWEST,
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
    tags = about("pipeline.train -m") | {"sweep": digest, "swept_keys": " ".join(keys), "command": command}
    return client.create_run(experiment, run_name=name[:NAME], tags=tags).info.run_id, False


@refusals_in_one_line()
def finished(data_name: str, content_sha256: str) -> Run | None:
    """The newest finished run that trained exactly this, or None."""
    client, experiment = open_store(data_name)
    # The model's hash is the last thing that training logs.
    query = f"tags.content_sha256 = '{content_sha256}' and tags.model_sha256 != '' and attributes.status = 'FINISHED'"
    found = client.search_runs([experiment], query, order_by=NEWEST, max_results=1)
    return found[0] if found else None


@refusals_in_one_line()
def join_sweep(parent: str, run: Run, values: Mapping[str, str]) -> None:
    """Count a run that another command trained among those of a sweep, which gives it these values."""
    if run.data.tags.get(PARENT) != parent:
        MlflowClient().set_tag(parent, f"found.{run.info.run_id}", json.dumps(values))


def child_tags(parent: str, values: Mapping[str, str]) -> dict[str, str]:
    """The tags of a child of a sweep, which gives it these values."""
    return {PARENT: parent, "swept": json.dumps(values)}


@refusals_in_one_line()
def unfinished_children(parent: str, content_sha256: str, left: Path | None) -> list[Run]:
    """The children of a sweep that are to train just this and have not, without the one whose record is `left`."""
    client = MlflowClient()
    query = (
        f"tags.`{PARENT}` = '{parent}' and tags.content_sha256 = '{content_sha256}' and attributes.status != 'FINISHED'"
    )
    own = load_json(left / "run.json")["id"] if left else ""
    found = client.search_runs([client.get_run(parent).info.experiment_id], query)
    return [run for run in found if run.data.tags.get("record") != own]


@refusals_in_one_line()
def discard(runs: Sequence[Run]) -> int:
    """Delete runs, as MLflow does: they can be restored. Give their number."""
    for run in runs:
        MlflowClient().delete_run(run.info.run_id)
    return len(runs)


@refusals_in_one_line()
def of_sweep(parent: str) -> list[Run]:
    """The runs of a sweep: its children, and those that it found finished."""
    client = MlflowClient()
    sweep = client.get_run(parent)
    children = _search(client, sweep.info.experiment_id, f"tags.`{PARENT}` = '{parent}'")
    ids = [key.removeprefix("found.") for key in sweep.data.tags if key.startswith("found.")]
    if not ids:
        return children
    quoted = ", ".join(f"'{run_id}'" for run_id in ids)
    found = _search(client, sweep.info.experiment_id, f"attributes.run_id IN ({quoted})")
    for run in found:
        run.data.tags["swept"] = sweep.data.tags[f"found.{run.info.run_id}"]  # it is another sweep's, or nobody's
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
