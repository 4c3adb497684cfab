"""Copying one MLflow store into another: runs with their sweeps, logged models, and the registry.

Stores give ids of their own, so a copy keeps in a tag the id of the run or model that it began as. By that tag it is
found again, by the same command and on its way back. What a copy lacks is added; nothing is deleted.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric, Param, Run, RunTag, ViewType
from mlflow.tracking import MlflowClient

from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.tracking.queries import MAX_TAG, search, stored_files
from pipeline.tracking.record import is_alive
from pipeline.tracking.store import Store, at, log_in_parts, open_experiment, other_store, own_store

COPIED_FROM = "copied_from"  # tag: the id in the store where it was made
MAX_REGISTERED = 1000  # names in a registry
TEXT = (".md", ".csv", ".json", ".html", "MLmodel")  # how the names of files end that may name runs
ID = re.compile("(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])")
LINK = re.compile(r"#/experiments/(\d+)")


def copy_store(project: Project, uri: str) -> Iterator[str]:
    """Copy all experiments of this repository's store, and its registry, into the store at `uri`.

    Yields a line for each run and version that was made or completed, and one that counts them. Deleted runs and those
    that still train stay out; what was deleted there stays deleted.
    """
    source, target = own_store(project), other_store(uri)
    if source.uri.rstrip("/") == target.uri:
        raise UserError("to= names the store of this repository itself: give another")
    copy = _Copy(source, target)
    with at(source) as client:
        found = [
            (experiment, search(client, experiment.experiment_id, "")) for experiment in client.search_experiments()
        ]
    pairs: list[tuple[Run, Run]] = []
    for experiment, runs in found:
        whole = [run for run in runs if run.info.status != "RUNNING" or not is_alive(run.data.tags.get("process"))]
        pairs += copy.create(experiment, whole) if whole else []
    sent = 0
    for run, there in pairs:
        if copy.complete(run, there):
            sent += 1
            yield f"copied: {run.info.run_name}, MLflow run {there.info.run_id}"
    for version in copy.registry():
        yield f"registered: {version}"
    yield f"{sent} of {len(pairs)} runs copied, the others are there already"


class _Copy:
    """One store on its way into another."""

    def __init__(self, source: Store, target: Store) -> None:
        self.source, self.target = source, target
        self.ids: dict[str, str] = {}  # in the target, by that in the source: of runs, and of models without their m-
        self.experiments: dict[str, str] = {}  # likewise

    def create(self, experiment: Any, runs: Sequence[Run]) -> list[tuple[Run, Run]]:  # of MLflow's Experiment
        """Find or create an experiment, and in it each of the runs, so far empty: pairs of a run and its copy.

        This comes first: what is sent then may name any run.
        """
        pairs = []
        with at(self.target) as client:
            number = open_experiment(client, self.target, experiment.name)
            self.experiments[experiment.experiment_id] = number
            copies = {_origin(run): run for run in search(client, number, "", ViewType.ALL)}
            is_new = not copies
            for run in runs:
                origin = _origin(run)
                if origin not in copies:
                    user = {key: value for key, value in run.data.tags.items() if key == "mlflow.user"}  # cannot follow
                    tags = {COPIED_FROM: origin} | user
                    copies[origin] = client.create_run(number, run.info.start_time, tags, run.info.run_name)
                if copies[origin].info.lifecycle_stage == "active":
                    self.ids[run.info.run_id] = copies[origin].info.run_id
                    pairs.append((run, copies[origin]))
            for key, value in experiment.tags.items() if is_new else ():
                client.set_experiment_tag(number, key, self.translated(value))
        return pairs

    def complete(self, run: Run, there: Run) -> bool:
        """Add to a copy what it lacks, and return whether that was anything.

        Its tags and its end come last: with them, it is whole.
        """
        tags = {key: value for key, value in run.data.tags.items() if key != COPIED_FROM}
        tags = {self.translated(key): self.translated(value)[:MAX_TAG] for key, value in tags.items()}
        ends = run.info.status not in ("RUNNING", there.info.status)
        is_whole = not ends and all(
            repr(here) == repr(copies.get(key))  # NaN is equal to NaN
            for values, copies in (
                (tags, there.data.tags),
                (run.data.params, there.data.params),
                (run.data.metrics, there.data.metrics),
            )
            for key, here in values.items()
        )
        run_id, new_id = run.info.run_id, there.info.run_id
        with at(self.source) as client:
            files = set(stored_files(client, run_id))
        if is_whole:
            with at(self.target) as client:
                is_whole = files <= set(stored_files(client, new_id))
        if is_whole:
            return False
        with tempfile.TemporaryDirectory() as folder:
            with at(self.source) as client:
                metrics = [metric for key in run.data.metrics for metric in client.get_metric_history(run_id, key)]
                models = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
                if files:
                    mlflow.artifacts.download_artifacts(run_id=run_id, dst_path=folder)
            for model in models:
                if model.status.name == "READY":
                    self._model(model, run, there)
            self._translate_files(Path(folder))
            with at(self.target) as client:
                params = [Param(*one) for one in run.data.params.items()]
                rows = [Metric(one.key, one.value, one.timestamp, one.step) for one in metrics]
                log_in_parts(client, new_id, params, rows)
                if run.inputs and run.inputs.dataset_inputs:
                    client.log_inputs(new_id, run.inputs.dataset_inputs)
                client.log_artifacts(new_id, folder)
                log_in_parts(client, new_id, tags=[RunTag(*one) for one in tags.items()])
                if ends:
                    client.set_terminated(new_id, run.info.status, run.info.end_time)
        return True

    def _model(self, model: LoggedModel, run: Run, there: Run) -> None:
        """Find or make the copy of a run's model. One that is not ready was half made by an earlier try: deleted."""
        origin, new_id = _model_origin(model), there.info.run_id
        with at(self.target) as client:
            made = client.search_logged_models([there.info.experiment_id], f"source_run_id = '{new_id}'")
        same = [one for one in made if _model_origin(one) == origin]
        ready = next((one for one in same if one.status.name == "READY"), None)
        if ready is None:
            with tempfile.TemporaryDirectory() as folder:
                with at(self.source):
                    mlflow.artifacts.download_artifacts(artifact_uri=model.artifact_location, dst_path=folder)
                [files] = Path(folder).iterdir()  # under the last name of the address
                with at(self.target) as client:
                    for one in same:
                        client.delete_logged_model(one.model_id)
                    tags = model.tags | {COPIED_FROM: origin}
                    ready = client.create_logged_model(
                        there.info.experiment_id, model.name, new_id, tags, model.params, model.model_type
                    )
                    self.ids[model.model_id.removeprefix("m-")] = ready.model_id.removeprefix("m-")
                    self._translate_files(files, model.artifact_location, ready.artifact_location)
                    client.log_model_artifacts(ready.model_id, str(files))
                    client.finalize_logged_model(ready.model_id, "READY")
        steps = {one.model_id: one.step for one in (run.outputs.model_outputs if run.outputs else [])}
        linked = {one.model_id for one in (there.outputs.model_outputs if there.outputs else [])}
        if model.model_id in steps and ready.model_id not in linked:
            with at(self.target) as client:
                client.log_outputs(new_id, [LoggedModelOutput(ready.model_id, steps[model.model_id])])

    def registry(self) -> Iterator[str]:
        """Copy the registered models: a version for each copied run that has one, and the aliases, as they are here.

        Yields the versions that were made; their numbers are the target's own.
        """
        with at(self.source) as client:
            models = [client.get_registered_model(one.name) for one in _registered(client)]
            versions = {one.name: client.search_model_versions(f"name = '{one.name}'") for one in models}
        with at(self.target) as client:
            known = {one.name for one in _registered(client)}
            for model in models:
                if model.name not in known:
                    client.create_registered_model(model.name, model.tags, model.description)
                copies = {
                    one.run_id: str(one.version) for one in client.search_model_versions(f"name = '{model.name}'")
                }
                numbers: dict[str, str] = {}
                for version in sorted(versions[model.name], key=lambda one: int(one.version)):
                    run_id = self.ids.get(version.run_id, "")
                    if run_id and run_id not in copies and (number := self._register(client, version, run_id)):
                        copies[run_id] = number
                        yield f"{model.name}, version {number}"
                    numbers[str(version.version)] = copies.get(run_id, "")
                aliases = client.get_registered_model(model.name).aliases
                for alias, number in model.aliases.items():
                    new = numbers.get(str(number))
                    if new and str(aliases.get(alias)) != new:
                        client.set_registered_model_alias(model.name, alias, new)

    def _register(self, client: MlflowClient, version: Any, run_id: str) -> str | None:  # MLflow's ModelVersion
        """Register the model of a run of the target like `version`: the new one's number, None for a run without."""
        for model in client.search_logged_models(list(self.experiments.values()), f"source_run_id = '{run_id}'"):
            if model.status.name == "READY":
                made = client.create_model_version(
                    version.name, model.model_uri, run_id, version.tags, None, version.description, 0, model.model_id
                )
                return str(made.version)
        return None

    def translated(self, text: str) -> str:
        """Replace ids of the source by those of the target, and in links the experiment too."""
        text = ID.sub(lambda found: self.ids.get(found[0], found[0]), text)
        return LINK.sub(lambda found: f"#/experiments/{self.experiments.get(found[1], found[1])}", text)

    def _translate_files(self, folder: Path, old: str = "\0", new: str = "") -> None:
        """Translate the files of a folder that may name runs, in place, and in them the address `old` to `new`."""
        for file in (file for file in folder.rglob("*") if file.is_file() and file.name.endswith(TEXT)):
            text = file.read_bytes().decode("utf-8", "surrogateescape")
            file.write_bytes(self.translated(text.replace(old, new)).encode("utf-8", "surrogateescape"))


def _origin(run: Run) -> str:
    return str(run.data.tags.get(COPIED_FROM, run.info.run_id))


def _model_origin(model: LoggedModel) -> str:
    return str(model.tags.get(COPIED_FROM, model.model_id))


def _registered(client: MlflowClient) -> Sequence[Any]:
    return client.search_registered_models(max_results=MAX_REGISTERED)
