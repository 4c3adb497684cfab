"""What is known of a run before it trains, and is recorded first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from PIL import Image

from pipeline.base import own
from pipeline.base.files import replacing, save_yaml, write_text
from pipeline.base.project import Project
from pipeline.base.schema import Config, own_functions
from pipeline.experiments.pictures import tags_with_pictures
from pipeline.model.build import count_macs
from pipeline.tracking.environment import git_diff, packages, run_tags
from pipeline.tracking.fingerprint import Fingerprint, training_params
from pipeline.tracking.record import Record
from pipeline.tracking.sending import run_inputs
from pipeline.training.augment import random_affine

if TYPE_CHECKING:
    from pipeline.experiments.run import Split

SHOWN = 12  # images drawn before and after augmentation
WIDTH = 1200  # pixels of their sheet


def run_info(
    project: Project,
    config: Config,
    split: Split,
    fingerprint: Fingerprint,
    name: str,
    model: keras.Model,
    tags: Mapping[str, str],
) -> dict[str, Any]:
    """Return what the record of a run begins with; `tags` are those of a sweep's child."""
    sizes: dict[str, Any] = {
        "data.train_examples": len(split.train.labels),
        "data.val_examples": len(split.val.labels),
        "model.num_params": model.count_params(),
        "model.macs": count_macs(model),
    }
    tags = tags_with_pictures(config, tags)
    return {
        "experiment": config.data.name,
        "name": name,
        "tags": {**run_tags(project, "pipeline.train"), "recipe": config.name, **fingerprint.tags(), **tags},
        "params": training_params(config) | {key: str(size) for key, size in sizes.items() if size is not None},
        "inputs": run_inputs(zip(("train", "val"), split, strict=True)),
        "resume_key": fingerprint.resume_key,
        "trackers": bool(config.trackers),
    }


def write_description(project: Project, config: Config, split: Split, record: Record) -> None:
    """Write into the record what is known before training, with images before and after the largest augmentation."""
    save_yaml(record.folder / "config.yaml", config.model_dump())
    write_text(record.folder / "packages.txt", packages())
    for file in own.sources(project.root, own_functions(config)).values():  # to read; it runs in the repository alone
        write_text(record.folder / "source" / file.relative_to(project.root), file.read_text(encoding="utf-8"))
    if changes := git_diff(project.root):
        write_text(record.folder / "git.diff", changes)
    if not config.augment.is_on:
        return
    images = split.train.images[:SHOWN]
    augmented = random_affine(images, [config.seed, 0], config.augment).numpy()
    sheet = np.concatenate([np.concatenate(list(row), 1) for row in (images, augmented)])  # one row above the other
    sheet = sheet if sheet.ndim == 3 else 255 - sheet  # ink is dark, as in all pictures
    size = WIDTH, round(WIDTH * sheet.shape[0] / sheet.shape[1])
    with replacing(record.folder / "augmented.png") as file:
        Image.fromarray(sheet).resize(size, Image.Resampling.BICUBIC).save(file)
