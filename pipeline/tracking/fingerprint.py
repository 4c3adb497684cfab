"""The fingerprint of a training: configuration, data, code, versions, environment. It says what was trained already."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.base.files import remembered, require_file, sha256
from pipeline.base.own import sha256_of
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.base.validation import flatten, non_defaults
from pipeline.data.blocks import IN_MEMORY
from pipeline.tracking.environment import NUMERIC_PACKAGES, THREADS, compute_variables, processor, versions

# Code that can change a trained model: the rooms that compute, and the module that wires them.
TRAINING_MODULES = ("data", "model", "training", "experiments/run.py")
# What decides nothing about a trained model: its name, how it is evaluated, what else `dvc repro` builds. The arrays
# are hashed themselves, whatever they are called and wherever they came from.
NON_TRAINING_KEYS = ("evaluate", "recipes", "dataset", "name", "trackers")
NON_TRAINING_TRAIN_KEYS = ("pictures_every",)
NON_TRAINING_DATA_KEYS = ("name", "published", "files", "sources")


class Fingerprint(NamedTuple):
    """What decides a trained model. On one kind of processor, the same `content_sha256` gives the same bits."""

    config_sha256: str
    data_sha256: str
    code_sha256: str
    content_sha256: str  # of all three, the numeric packages' versions, and the variables that choose how they compute
    group: str  # the same without seed and train.fold, 12 digits after a g: runs of one group differ in these alone
    resume_key: dict[str, str]  # what decides the bits after an epoch: a checkpoint continues where all of it is equal

    def tags(self) -> dict[str, str]:
        return {key: value for key, value in self._asdict().items() if key != "resume_key"}


def fingerprint(project: Project, config: Config, data_files: Sequence[Path]) -> Fingerprint:
    """Return what decides the model that this process would train on these files, the training and validation data."""
    values = training_values(config)
    data = hashlib.sha256("".join(map(_file_sha256, data_files)).encode()).hexdigest()
    code = code_sha256(project.root)
    environment = compute_variables()
    shared = [data, code, [importlib.metadata.version(name) for name in NUMERIC_PACKAGES], environment]
    without_seed = {key: value for key, value in values.items() if key != "seed"}
    without_seed["train"] = {key: value for key, value in values["train"].items() if key != "fold"}
    without_epochs = {"train": {key: value for key, value in values["train"].items() if key != "epochs"}}
    resume_key = {
        "configuration": sha256_of(values if depends_on_length(config) else values | without_epochs),
        "data": data,
        "code": code,
        "versions": versions(NUMERIC_PACKAGES),
        "threads": THREADS,
        "processor": processor(),
        "environment": environment,
    }
    # The g: Hydra, and whoever reads a ranking, would take 9447e1230643 for a number.
    group = f"g{sha256_of([without_seed, *shared])[:12]}"
    return Fingerprint(sha256_of(values), data, code, sha256_of([values, *shared]), group, resume_key)


def _file_sha256(path: Path) -> str:
    if require_file(path).stat().st_size <= IN_MEMORY:
        return sha256(path)
    return remembered(path, "sha256", lambda: sha256(path))


def training_values(config: Config) -> dict[str, Any]:
    """Return what of a configuration can change a trained model, without defaults, to be hashed."""
    values = {key: value for key, value in non_defaults(config).items() if key not in NON_TRAINING_KEYS}
    # Without train.patience, train.monitor ranks and stops nothing.
    ignored = (*NON_TRAINING_TRAIN_KEYS, *(["monitor"] if config.train.patience is None else []))
    values["train"] = {key: value for key, value in values["train"].items() if key not in ignored}
    values["data"] = {key: value for key, value in values["data"].items() if key not in NON_TRAINING_DATA_KEYS}
    return values


def training_params(config: Config) -> dict[str, str]:
    """Return the values that a training is logged with: dotted keys, as text, defaults included."""
    values = {key: value for key, value in config.model_dump().items() if key not in NON_TRAINING_KEYS}
    values["train"] = {key: value for key, value in values["train"].items() if key not in NON_TRAINING_TRAIN_KEYS}
    return flatten(values)


def depends_on_length(config: Config) -> bool:
    """Return whether the weights after an epoch depend on how many epochs are to follow.

    With train.patience they do not, but which ones are kept is each training's own.
    """
    if config.train.patience is not None:
        return True
    return config.optimizer.schedule != "constant" or (config.augment.is_on and config.augment.last < 1)


def code_sha256(root: Path) -> str:
    """Return the hash of the code that can change a trained model.

    It is of the syntax trees, so that a comment, a docstring or a moved line is not other code.
    """
    package = root / "pipeline"
    files = [file for name in TRAINING_MODULES for file in (sorted((package / name).rglob("*.py")) or [package / name])]
    return sha256_of([ast.parse(file.read_text(encoding="utf-8")) for file in files])
