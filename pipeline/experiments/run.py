"""Train one configuration, tracked: what `train`, a sweep's jobs and `reproduce` share.

The output folder is the record of the run: MLflow gets its files from there, and a stage of DVC links to them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
from scipy.special import softmax

from pipeline.base.console import TrainingProgress, copied_to
from pipeline.base.errors import UserError
from pipeline.base.files import link_or_copy, save_csv, save_json, sha256
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.data.examples import Examples, save_predictions
from pipeline.experiments.described import run_info, write_description
from pipeline.experiments.own_metrics import load_metrics
from pipeline.experiments.pictures import Pictures
from pipeline.model.build import build_model
from pipeline.model.files import save_model, weights_sha256
from pipeline.model.inference import Inference, Metric, inference, start
from pipeline.model.kept import History, best_figures, in_words, is_over, kept_epoch
from pipeline.tracking.fingerprint import Fingerprint
from pipeline.tracking.live import LiveLog
from pipeline.tracking.record import CONSOLE, PRUNED_AT, Record, Row, now, process_tag, resume_or_create, system_metrics
from pipeline.tracking.sending import SYNC, send_pending
from pipeline.tracking.trackers import Trackers
from pipeline.training import checkpoint
from pipeline.training.loop import Epoch, fit

STAGE_FILES = ("history.csv", "val_predictions.csv")


class Split(NamedTuple):
    """What training reads."""

    train: Examples
    val: Examples


class SharedCheckpoints(NamedTuple):
    """Checkpoints that the runs of one sweep share, where they differ in the number of epochs alone."""

    folder: Path
    epochs: Collection[int]  # those that some run of the sweep ends with


class Trained(NamedTuple):
    tracked: str  # the MLflow run, or why it waits, in words
    history: list[Epoch]
    kept: Epoch  # of `history`, the one whose model was written
    model_file: Path


def train_tracked(
    project: Project,
    config: Config,
    split: Split,
    fingerprint: Fingerprint,
    name: str,
    tags: Mapping[str, str] | None = None,
    bar: bool = True,
    shared: SharedCheckpoints | None = None,
    is_hopeless: Callable[[History], bool] = lambda _: False,
) -> Trained:
    """Train, write model, history and validation predictions, and log everything to one MLflow run.

    `name` is the run's, in MLflow and before each line on the terminal; `tags` are the user's and a sweep's. A run that
    was killed, or stopped from outside (a StoppedError), continues after its last whole epoch. One that `is_hopeless`,
    which is asked after each epoch, ends with its metrics and without a model.
    """
    start(config.seed)
    model = build_model(project, config)
    infer = inference(model)  # compiled once for validation, pictures and predictions
    metrics = load_metrics(project, config, split.val)
    record = resume_or_create(project, run_info(project, config, split, fingerprint, name, model, tags or {}))
    trackers = Trackers(project.root, config, record)
    try:
        with copied_to(record.folder / CONSOLE):
            log = LiveLog(project, record)
            print(f"{name}: to stop it after an epoch: touch {log.stop_file}", flush=True)
            write_description(project, config, split, record)
            log.send()
            history = _train(model, config, split, fingerprint, log, bar, shared, metrics, trackers, is_hopeless, infer)
            rows = [epoch.row() for epoch in history]
            # Neither the last epoch nor patience: `is_hopeless` ended it.
            if is_pruned := len(rows) < config.train.epochs and not is_over(config.train, rows):
                record.update(result_tags={PRUNED_AT: str(len(rows))})
            else:
                _write_results(project, config, split, model, rows, record, infer)
    except BaseException as error:
        with suppress(OSError, UserError):  # of a full disk, say: the error itself is to be told
            if isinstance(error, UserError):  # the same command would meet it again, so it is not continued
                record.finish("FAILED")
            else:  # a kill, a stop from outside, or a fault of ours: the same command continues
                record.update(status="KILLED", end=now())
            trackers.end(record.info["status"])
            send_pending(project)
        raise
    record.finish("PRUNED" if is_pruned else "FINISHED")
    trackers.end("KILLED" if is_pruned else "FINISHED")
    sent, left = send_pending(project)
    model_file = project.model(config.name) if project.stage else record.folder / "model.keras"
    kept = history[kept_epoch(config.train, rows) - 1]
    run_id = sent.get(record.info["id"])
    return Trained(f"MLflow run {run_id}" if run_id else "\n".join([*left, SYNC]), history, kept, model_file)


def _train(
    model: keras.Model,
    config: Config,
    split: Split,
    fingerprint: Fingerprint,
    log: LiveLog,
    bar: bool,
    shared: SharedCheckpoints | None,
    metrics: Mapping[str, Metric],
    trackers: Trackers,
    is_hopeless: Callable[[History], bool],
    infer: Inference,
) -> list[Epoch]:
    """Train what is left to train; after each epoch the checkpoint comes first, then the record, then MLflow, then
    the other trackers.

    With train.patience the model has the variables of the best epoch in the end.
    """
    record, size, name = log.record, len(split.train.labels), log.record.info["name"]
    folders = [record.folder, *([shared.folder] if shared else [])]
    resumed = checkpoint.newest(folders, fingerprint.resume_key, config.train.epochs)
    rows, state, best = resumed or ([], None, ())
    if rows:
        print(f"{name}: continues after epoch {len(rows)}", flush=True)
    logged = [metrics_row(rows[:epochs], size) for epochs in range(1, len(rows) + 1)]
    record.add_rows(logged)
    for row in logged:
        trackers.epoch(row)
    pictures = Pictures(config, record, model, split.val, infer)
    if not rows:
        pictures.draw(0)

    def should_end() -> bool:
        if is_over(config.train, rows):
            return True
        log.check_stop(f"epoch {len(rows)}/{config.train.epochs}")  # raises a StoppedError
        return len(rows) > 0 and is_hopeless(rows)

    system_metrics()  # each call measures since the one before
    with TrainingProgress(name, config.train.epochs, size, len(rows), bar) as progress:
        for epoch, seconds, state_of in fit(
            model, config, *split, progress.batch, len(rows), state, should_end, metrics, infer
        ):
            rows.append({**epoch.row(), "epoch_seconds": seconds, "time": now()})
            state = state_of()
            if config.train.patience and kept_epoch(config.train, rows) == len(rows):
                best = state.variables
            file = checkpoint.save(record.folder, fingerprint.resume_key, checkpoint.Checkpoint(rows, state, best))
            if shared and epoch.epoch in shared.epochs:
                link_or_copy(file, shared.folder / file.name)
            row = metrics_row(rows, size)
            record.add_rows([row | {"values": row["values"] | system_metrics()}])
            pictures.draw(epoch.epoch)
            progress.epoch_done(epoch.train_accuracy, epoch.val_accuracy, seconds)
            record.update(process=process_tag(), progress=progress.said)
            log.send()
            trackers.epoch(row)
    if best:
        for variable, value in zip(model.variables, best, strict=True):
            variable.assign(value)
        record.add_rows([{"step": len(rows), "time": rows[-1]["time"], "values": best_figures(config.train, rows)}])
        print(f"{name}: keeps {in_words(config.train, rows)}", flush=True)
    return [Epoch.of_row(row, metrics) for row in rows]


def metrics_row(rows: Sequence[Mapping[str, Any]], size: int) -> Row:
    """Return the last of these rows of the history as MLflow shows it, at step = epoch; speed is a section there."""
    row = rows[-1]
    values = {key: value for key, value in row.items() if key not in ("epoch", "time", "epoch_seconds")}
    values["speed/epoch_seconds"] = row["epoch_seconds"]
    values["speed/training_seconds"] = sum(row["epoch_seconds"] for row in rows)
    values["speed/images_per_second"] = size / row["epoch_seconds"]
    return {"step": row["epoch"], "time": row["time"], "values": values}


def _write_results(
    project: Project,
    config: Config,
    split: Split,
    model: keras.Model,
    rows: History,
    record: Record,
    infer: Inference,
) -> None:
    """Write what training made into the record, and hand a stage of DVC its outputs."""
    folder = record.folder
    model_file = folder / "model.keras"
    save_model(model_file, model)
    save_csv(folder / "history.csv", {key: [row[key] for row in rows] for key in rows[0]})
    # SciPy's: with metrics.softmax the stage `train` would depend on pipeline/metrics.
    probabilities = softmax(infer(split.val.images).astype(np.float64), axis=1)
    save_predictions(folder / "val_predictions.csv", split.val, probabilities)
    kept = in_words(config.train, rows)
    result_tags = {"kept": kept} if kept else {}
    result_tags |= {"weights_sha256": weights_sha256(model_file), "model_sha256": sha256(model_file)}
    tags = {key: value for key, value in record.info["tags"].items() if not key.startswith("mlflow.")}
    save_json(folder / "tags.json", tags | result_tags)
    record.update(result_tags=result_tags)
    if project.stage:
        link_or_copy(model_file, project.model(config.name))
        for name in STAGE_FILES:
            link_or_copy(folder / name, project.recipe_results(config.name) / name)
