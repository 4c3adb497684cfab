"""Train one configuration, tracked and written to files: what every way to train shares."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from pipeline import augment, data, engine, metrics, model, tracking
from pipeline.command import Folders
from pipeline.config import Config, in_dvc_stage, to_dict
from pipeline.console import TrainingProgress
from pipeline.files import save_csv, save_json, save_yaml
from pipeline.surroundings import Identity

SHOWN = 12  # digits drawn before and after augmentation


class Split(NamedTuple):
    """What training reads."""

    train: data.Digits
    val: data.Digits


class Trained(NamedTuple):
    run_id: str  # of MLflow
    history: list[engine.Epoch]
    model_file: Path


def train_tracked(
    config: Config,
    digits: Split,
    identity: Identity,
    outputs: Folders,
    name: str,
    parent: str | None = None,
    bar: bool = True,
) -> Trained:
    """Train, write model, history and validation predictions to `outputs`, and log everything to one MLflow run.

    `name` is the run's, in MLflow and before each line on the terminal; `parent` the sweep's.
    """
    engine.start(config.seed)
    cnn = model.build_cnn(config.model, config.data.image_shape, config.data.classes)
    size = len(digits.train.labels)
    with (
        tracking.training_run(config, name, parent, identity, *digits) as run,
        TrainingProgress(name, config.train.epochs, size, bar) as progress,
    ):
        some = digits.train.images[:SHOWN]
        tracking.log_augmented(run, config, some, augment.random_affine(some, [config.seed, 0], config.augment).numpy())
        history = []
        for epoch, seconds in engine.fit(cnn, config, *digits, progress.batch):
            history.append(epoch)
            tracking.log_epoch(run, epoch._asdict(), size, seconds)
            progress.epoch_done(epoch.train_accuracy, epoch.val_accuracy, seconds)
        model_file = outputs.model / "model.keras"
        files = [outputs.results / "history.csv", outputs.results / "val_predictions.csv"]
        model.save_model(model_file, cnn)
        columns = zip(*history, strict=True)
        save_csv(files[0], dict(zip(engine.Epoch._fields, columns, strict=True)))
        data.save_predictions(files[1], digits.val, metrics.softmax(engine.predict(cnn, digits.val.images)))
        tags = tracking.log_trained(run, cnn, model_file, files, config.data.image_shape)
        if not in_dvc_stage():  # for a stage DVC's own files say it
            save_yaml(outputs.results / "config.yaml", to_dict(config))
            save_json(outputs.results / "tags.json", tags)
    return Trained(run.info.run_id, history, model_file)
