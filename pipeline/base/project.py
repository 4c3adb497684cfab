"""A repository with its folders: made once, where a command begins or in a notebook, and passed down."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from pipeline.base.files import process_name
from pipeline.base.isolation import set_variables


@dataclass(frozen=True)
class Project:
    """Where everything stands, and what is asked of this job.

    `root` holds conf/, params.yaml and dvc.yaml. DVC's queue runs in checkouts that it throws away: downloads, the
    MLflow store and runs that wait for it belong into `home`, the user's own repository.
    """

    root: Path
    home: Path
    stage: str | None = None  # the stage of DVC that runs, as train@baseline
    dvc_experiment: str = "none"
    job_folder: Path = Path("outputs")  # of the run: its record, and outside of a stage its outputs
    overrides: tuple[str, ...] = ()  # key=value, as the job was called with them
    jobs_at_once: int = 1  # jobs of a sweep that run side by side
    folder_per_call: bool = False  # one project serves many calls, as in a notebook; see `job`

    @property
    def conf(self) -> Path:
        return self.root / "conf"

    @property
    def raw(self) -> Path:
        return self.root / "data" / "raw"

    @property
    def processed(self) -> Path:
        return self.root / "data" / "processed"

    @property
    def training_files(self) -> list[Path]:
        """The examples that a training sees."""
        return [self.processed / "train.npz", self.processed / "val.npz"]

    @property
    def downloads(self) -> Path:
        return self.home / "data" / "downloads"

    @property
    def signs(self) -> Path:
        """The network that tells digits from other signs, where `python -m pipeline.signs` has made one."""
        return self.root / "data" / "signs"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def sweeps(self) -> Path:
        return self.root / "multirun"

    @property
    def published_log(self) -> Path:
        """history.csv of the published run, transcribed."""
        return self.root / "reference" / "published_run.csv"

    def model(self, recipe: str) -> Path:
        """The .keras file of a recipe."""
        return self.root / "models" / recipe / "model.keras"

    def recipe_results(self, recipe: str) -> Path:
        return self.results / "recipes" / recipe

    def job(self) -> Project:
        """Return the project with a new job folder where it serves many calls, otherwise as it is."""
        return replace(self, job_folder=_new_folder(self.job_folder.parent)) if self.folder_per_call else self

    def output(self, stage_folder: Path) -> Path:
        """Return where this job writes: a stage of DVC into `stage_folder`, any other job into its own."""
        return stage_folder if self.stage else self.job_folder


def open_project(root: Path | str = ".") -> Project:
    """Open the repository at `root` as this process's environment describes it: inside a stage of DVC or not.

    In a notebook call it before TensorFlow or MLflow is imported.
    """
    set_variables()
    root = Path(root).resolve()
    home, stage = Path(os.environ.get("DVC_ROOT", root)), os.environ.get("DVC_STAGE")
    folder = _new_folder(home / "outputs" / "stages" if stage else root / "outputs")
    if stage:
        folder = folder.with_name(f"{folder.name}.{process_name()}")  # whose it is, should the process be killed
    return Project(root, home, stage, os.environ.get("DVC_EXP_NAME", "none"), folder, folder_per_call=not stage)


def _new_folder(parent: Path) -> Path:
    return parent / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
