"""What MLflow holds of the folders of this repository, and what it keeps of deleted runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse
from urllib.request import url2pathname

from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException

from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.tracking.notes import NOTE
from pipeline.tracking.queries import SCORED_TAGS, search, stored_files
from pipeline.tracking.record import Record
from pipeline.tracking.store import open_own, own_store, translate_errors

MAX_IDS = 1_000  # of a call of `mlflow gc`: one argument may have 128 KiB


class Deleted(NamedTuple):
    """The runs that were deleted in MLflow, and that nothing names any more."""

    runs: list[str]
    models: list[str]  # their logged models, which MLflow leaves
    folders: list[Path]  # with the files of both, where they are on this machine


class Held:
    """What this repository's store holds."""

    def __init__(self, project: Project) -> None:
        self.store = own_store(project)
        self.client = open_own(project)
        with translate_errors():
            self.experiments = [one.experiment_id for one in self.client.search_experiments()]

    @translate_errors()
    def lacks(self, record: Record) -> str:
        """Return what MLflow lacks of a record, in words; empty if it holds all of it."""
        info = record.info
        runs: list[Run] = []
        for query in (f"tags.record = '{info['id']}'", f"attributes.run_id = '{info.get('run')}'"):
            runs = runs or self.client.search_runs(self.experiments, query, max_results=1)
        if not runs:
            return "its run"
        run = runs[0]
        last = {key: value for row in record.rows for key, value in row["values"].items()}
        if any(run.data.metrics.get(key) != value for key, value in last.items()):
            return "figures"
        if run.info.status == "RUNNING" and info["status"] == "FINISHED":
            return "its end"
        if any(run.data.tags.get(key) != value for key, value in info.get("result_tags", {}).items()):
            return "the hash of its model"
        lacking = self.lacks_files(run.info.run_id, record.folder, record.artifacts())
        if not lacking and next(record.folder.rglob("model.keras"), None) and not self._has_model(run, info.get("run")):
            return "its model"
        return lacking or ("what other trackers wrote" if (record.folder / "tensorboard").is_dir() else "")

    def lacks_files(self, run_id: str, folder: Path, names: Sequence[Path]) -> str:
        """Return the first of these files of a folder that is no artifact of a run, or has another size there."""
        stored: dict[str, int] = {}
        with suppress(MlflowException):  # it is gone, or the server is: then none is there
            stored = stored_files(self.client, run_id)
        return next((str(one) for one in names if stored.get(one.as_posix()) != (folder / one).stat().st_size), "")

    def _has_model(self, run: Run, trained_by: str | None) -> bool:
        query = f"source_run_id = '{trained_by or run.info.run_id}'"
        models = self.client.search_logged_models([run.info.experiment_id], query)
        whole = [one.model_id for one in models if one.status.name == "READY"]
        files = [file.path for one in whole for file in self.client.list_logged_model_artifacts(one, "data")]
        return any(path.endswith("model.keras") for path in files)

    @translate_errors()
    def comparison(self, folder: Path) -> str:
        """Return the id of the run that holds a folder of `compare`; empty where there is none."""
        text = (folder / "comparison.md").read_text(encoding="utf-8").rstrip()
        names = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
        for experiment in self.experiments:
            for run in search(self.client, experiment, "tags.compared != ''"):
                note = run.data.tags.get(NOTE, "")
                if note and text.startswith(note[: len(text)]) and not self.lacks_files(run.info.run_id, folder, names):
                    return str(run.info.run_id)
        return ""

    @translate_errors()
    def deleted(self) -> tuple[Deleted, int]:
        """Return the deleted runs that can go, and how many cannot: those of registered models, and those whose test
        score counts (queries.models_scored)."""
        experiments = self.client.search_experiments(ViewType.ALL)
        runs = [run for one in experiments for run in search(self.client, one.experiment_id, "", ViewType.DELETED_ONLY)]
        needed = {version.run_id for version in self.client.search_model_versions()}
        needed |= {run.info.run_id for run in runs if run.data.tags.keys() & set(SCORED_TAGS)}
        free = [run for run in runs if run.info.run_id not in needed]
        gone = {one.experiment_id for one in experiments if one.lifecycle_stage != "active"}
        if any(run.info.run_id in needed for run in runs if run.info.experiment_id in gone):
            free = []  # `mlflow gc` always takes all of a deleted experiment
        models = [
            model
            for run in free
            for model in self.client.search_logged_models(
                [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
            )
        ]
        addresses = [run.info.artifact_uri for run in free] + [model.artifact_location for model in models]
        local = [url2pathname(urlparse(one).path) for one in addresses if urlparse(one).scheme in ("", "file")]
        folders = [Path(one) for one in local if Path(one).is_dir()]
        ids = [run.info.run_id for run in free], [model.model_id for model in models]
        return Deleted(*ids, folders), len(runs) - len(free)

    @translate_errors()
    def collect(self, deleted: Deleted) -> None:
        """Remove deleted runs for good, by `mlflow gc`."""
        for model in deleted.models:
            self.client.delete_logged_model(model)
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", self.store.uri]
        variables = os.environ | {"MLFLOW_TRACKING_URI": self.store.uri}
        for start in range(0, len(deleted.runs), MAX_IDS):
            words = ["--run-ids", ",".join(deleted.runs[start : start + MAX_IDS])]
            done = subprocess.run([*command, *words], env=variables, capture_output=True, text=True)
            if done.returncode:
                raise UserError(
                    f"mlflow gc failed ({(done.stderr.strip() or 'no word').splitlines()[-1]}): run it yourself"
                )
        for folder in deleted.folders:
            with suppress(OSError):  # it leaves the folder around them
                folder.parent.rmdir()
