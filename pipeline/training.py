"""Train one configuration, tracked and written to files: what every way to train shares."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline import checkpoint, data, engine, metrics, model, record, sending, surroundings, tracking
from pipeline.command import Folders
from pipeline.config import ROOT, Config, PipelineError, in_dvc_stage, to_dict
from pipeline.console import TrainingProgress
from pipeline.files import load_csv, save_csv, save_json, save_yaml, sha256
from pipeline.surroundings import Identity

SHOWN = 12  # examples drawn before and after augmentation


class Split(NamedTuple):
    """What training reads."""

    train: data.Examples
    val: data.Examples


class Shared(NamedTuple):
    """Checkpoints that the runs of one sweep share, where they differ in the number of epochs alone."""

    folder: Path
    epochs: Collection[int]  # those that some run of the sweep ends with


class Trained(NamedTuple):
    where: str  # the run, in words
    history: list[engine.Epoch]
    model_file: Path


def train_tracked(
    config: Config,
    examples: Split,
    identity: Identity,
    outputs: Folders,
    name: str,
    tags: Mapping[str, str] | None = None,
    bar: bool = True,
    shared: Shared | None = None,
) -> Trained:
    """Train, write model, history and validation predictions to `outputs`, and log everything to one MLflow run.

    `name` is the run's, in MLflow and before each line on the terminal; `tags` are those of a sweep's child. A run that
    was killed goes on after its last whole epoch.
    """
    engine.start(config.seed)
    cnn = model.build_cnn(config.model, config.data.image_shape, len(config.data.classes))
    about = sending.about_training(config, name, tags or {}, identity, *examples)
    with record.unfinished(identity.content_sha256, about) as (run, waited):
        made_before = waited or _dvc_missed(outputs.model / "model.keras")
        if made_before and (found := _made_before(config, identity, outputs)):
            run.forget()
            return found
        with sending.Sender(run) as sender:
            if run.about["status"] == "FINISHED":
                history = _bring_back(run, outputs)
            else:
                sender.begin(config, examples.train.images[:SHOWN])
                history = _train(cnn, config, examples, identity, sender, bar, shared)
                made = _write(cnn, config, examples, outputs, history, run)
                run.note(made=made, status="FINISHED", end=record.now())
                run.finish()
    return Trained(sender.end, history, outputs.model / "model.keras")


def _train(
    cnn: Any,
    config: Config,
    examples: Split,
    identity: Identity,
    sender: sending.Sender,
    bar: bool,
    shared: Shared | None,
) -> list[engine.Epoch]:
    """Train what is left to train; after each epoch the checkpoint comes first, then the record, then MLflow."""
    run, size = sender.record, len(examples.train.labels)
    folders = [run.folder, *([shared.folder] if shared else [])]
    origin = surroundings.origin(config, identity)
    found = checkpoint.newest(folders, origin, config.train.epochs)
    rows, state = (found.history, found.state) if found else ([], None)
    if rows:
        print(f"{run.about['name']}: goes on after epoch {len(rows)}", flush=True)
    run.add_rows([metrics_row(row, size) for row in rows])
    with (
        TrainingProgress(run.about["name"], config.train.epochs, size, len(rows), bar) as progress,
        record.SystemSamples(run.about["start"]) as samples,
    ):
        for epoch, seconds, state_of in engine.fit(cnn, config, *examples, progress.batch, len(rows), state):
            rows.append({**epoch._asdict(), "epoch_seconds": seconds, "time": record.now()})
            file = checkpoint.save(run.folder, origin, checkpoint.Checkpoint(rows, state_of()))
            if shared and epoch.epoch in shared.epochs:
                record.link(file, shared.folder / file.name)
            run.add_rows([metrics_row(rows[-1], size), *samples.rows()])
            sender.send()
            progress.epoch_done(epoch.train_accuracy, epoch.val_accuracy, seconds)
    return [_epoch(row) for row in rows]


def _epoch(row: dict[str, Any]) -> engine.Epoch:
    return engine.Epoch(int(row["epoch"]), *(row[key] for key in engine.Epoch._fields[1:]))


def metrics_row(row: dict[str, Any], size: int) -> record.Row:
    """A row of the history as MLflow shows it, at step = epoch."""
    values = {key: value for key, value in row.items() if key not in ("epoch", "time") and math.isfinite(value)}
    return {
        "step": row["epoch"],
        "time": row["time"],
        "values": {**values, "images_per_second": size / row["epoch_seconds"]},
    }


def _write(
    cnn: Any, config: Config, examples: Split, outputs: Folders, history: list[engine.Epoch], run: record.Record
) -> dict[str, str]:
    """Write what training made, to `outputs` and into the record: the tags that say what it is."""
    model_file = outputs.model / "model.keras"
    model.save_model(model_file, cnn)
    columns = zip(*history, strict=True)
    save_csv(outputs.results / "history.csv", dict(zip(engine.Epoch._fields, columns, strict=True)))
    probabilities = metrics.softmax(engine.predict(cnn, examples.val.images))
    data.save_predictions(outputs.results / "val_predictions.csv", examples.val, probabilities)
    made = {"weights_sha256": tracking.weights_sha256(model_file), "model_sha256": sha256(model_file)}
    tags = {key: value for key, value in run.about["tags"].items() if not key.startswith("mlflow.")} | made
    run.about["params"]["model.num_params"] = str(cnn.count_params())
    run.add_file(model_file, "")
    for name in ("history.csv", "val_predictions.csv"):
        run.add_file(outputs.results / name)
    save_json(run.folder / "artifacts" / "tags.json", tags)
    if not in_dvc_stage():  # for a stage DVC's own files say it
        save_yaml(outputs.results / "config.yaml", to_dict(config))
        save_json(outputs.results / "tags.json", tags)
    return made


def _bring_back(run: record.Record, outputs: Folders) -> list[engine.Epoch]:
    """Write to `outputs` what an earlier try made, which ended before MLflow had all of it."""
    print(f"{run.about['name']}: made before, only MLflow lacks it", flush=True)
    record.link(run.folder / "model.keras", outputs.model / "model.keras")
    names = ["history.csv", "val_predictions.csv", *([] if in_dvc_stage() else ["config.yaml", "tags.json"])]
    for name in names:
        record.link(run.folder / "artifacts" / name, outputs.results / name)
    return [_epoch(row) for row in load_csv(outputs.results / "history.csv", engine.Epoch._fields)]


def _dvc_missed(model_file: Path) -> bool:
    """Whether DVC was killed before it wrote down that its stage had made this file: it then runs the stage again."""
    if not (in_dvc_stage() and model_file.is_file()):
        return False
    lock = ROOT / "dvc.lock"
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.is_file() else {}
    known = {out["path"]: out["md5"] for out in stages.get(os.environ["DVC_STAGE"], {}).get("outs", [])}
    return known.get(model_file.relative_to(ROOT).as_posix()) != hashlib.md5(model_file.read_bytes()).hexdigest()


def _made_before(config: Config, identity: Identity, outputs: Folders) -> Trained | None:
    """What another process has written to the same outputs, if it has."""
    try:
        run = tracking.finished(config.data.name, identity.content_sha256)
        if run is None or run.data.tags["model_sha256"] != sha256(outputs.model / "model.keras"):
            return None
        rows = load_csv(outputs.results / "history.csv", engine.Epoch._fields)
    except PipelineError:  # not written, or MLflow does not answer
        return None
    for file in (
        outputs.model / "model.keras",
        outputs.results / "history.csv",
        outputs.results / "val_predictions.csv",
    ):
        file.touch()  # they are this stage's as well
    history = [_epoch(row) for row in rows]
    return Trained(f"made before, MLflow run {run.info.run_id}", history, outputs.model / "model.keras")
