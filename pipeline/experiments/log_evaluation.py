"""Track an evaluation: its folder is a record like that of a training, and MLflow gets what stands there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.base.files import link_or_copy, load_csv, save_yaml, sha256
from pipeline.base.project import Project
from pipeline.base.schema import flatten
from pipeline.data.examples import Examples
from pipeline.experiments.evaluated import HISTORY, Evaluated
from pipeline.model.files import weights_sha256
from pipeline.reports.tables import models_scored
from pipeline.tracking import queries
from pipeline.tracking.environment import run_tags
from pipeline.tracking.fingerprint import training_params
from pipeline.tracking.record import Record, add_pending, now
from pipeline.tracking.sending import SYNC, describe, send_pending


def log_evaluation(
    project: Project,
    evaluated: Evaluated,
    num_params: int,
    test: Examples,
    metrics: Mapping[str, float],
    step: int,
    files: Sequence[Path],
    plots: Sequence[Path],
) -> str:
    """Log test metrics at `step`, files and plots into the run that trained the model: where they are, in words."""
    config = evaluated.config
    info: dict[str, Any] = {
        "experiment": config.data.name,
        "name": f"{config.name}, evaluated",
        "tags": run_tags(project, "pipeline.evaluate") | {"recipe": config.name},
        "params": flatten({"evaluate": config.evaluate.model_dump()}) | {"data.test_examples": str(len(test.labels))},
        "inputs": describe([("test", test)]),
        "evaluated_by": project.stage or "pipeline.evaluate",
        "evaluated_sha256": evaluated.model_sha256,
        "run": evaluated.run,
        "status": "RUNNING",
    }
    record = Record.begin(project.job_folder, info)
    values = {key: float(value) for key, value in metrics.items()}
    record.add_rows([{"step": step, "time": now(), "values": values}])
    for folder, paths in ((record.folder, files), (record.folder / "plots", plots)):
        for path in paths:
            if path.parent != folder:  # a stage of DVC wrote them to its outputs
                link_or_copy(path, folder / path.name)
    if evaluated.run is None:
        _keep_training(project, evaluated, num_params, record.folder / "training")
    record.finish("FINISHED")
    add_pending(project, record.folder)
    sent, left = send_pending(project)
    if run_id := sent.get(record.info["id"]):
        return f"MLflow run {run_id}; {models_scored(queries.models_scored(project, config.data.name))}"
    return "\n".join([*left, SYNC])


def _keep_training(project: Project, evaluated: Evaluated, num_params: int, folder: Path) -> None:
    """Keep a record of the training, for a model that may have no run: it was pulled, or its tracker lost."""
    config = evaluated.config
    tags = run_tags(project, "pipeline.evaluate") | {
        "recipe": config.name,
        "dvc_stage": f"train@{config.name}",
        "adopted": "trained elsewhere; hardware, versions and commit are those of the evaluation",
    }
    result_tags = {"weights_sha256": weights_sha256(evaluated.model_file), "model_sha256": sha256(evaluated.model_file)}
    info = {
        "experiment": config.data.name,
        "name": config.name,
        "tags": tags,
        "params": training_params(config) | {"model.num_params": str(num_params)},
        "inputs": [],
        "result_tags": result_tags,
        "status": "FINISHED",
        "end": now(),
    }
    record = Record.begin(folder, info)
    rows = load_csv(evaluated.history_file, HISTORY)
    record.add_rows([{"step": int(row.pop("epoch")), "time": now(), "values": row} for row in rows])
    save_yaml(folder / "config.yaml", config.model_dump())
    link_or_copy(evaluated.model_file, folder / "model.keras")
    # Predictions of the validation examples: runs are compared by them.
    for path in (evaluated.history_file, evaluated.history_file.with_name("val_predictions.csv")):
        if path.is_file():
            link_or_copy(path, folder / path.name)
