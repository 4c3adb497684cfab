"""The configuration: its schema and its limits.

The values stand in params.yaml and conf/; the schema below has none, so that no value hides here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
MISSING: Any = "???"  # OmegaConf's mark of a value that has to be given


class PipelineError(Exception):
    """Something the user can mend. Its message is one line: what was given, what was expected, how to mend it."""


@dataclass
class Data:
    name: str = MISSING
    image_shape: list[int] = MISSING
    classes: int = MISSING
    val_size: int = MISSING
    split_seed: int = MISSING
    fraction: float = MISSING
    files: dict[str, str] = MISSING
    sources: list[str] = MISSING
    sha256: dict[str, str] = MISSING


@dataclass
class Convolution:
    multiple: int = MISSING
    kernel_size: int = MISSING
    strides: int = MISSING
    padding: str = MISSING
    pool: int = MISSING


@dataclass
class Model:
    filters: int = MISSING
    convolutions: list[Convolution] = MISSING
    batch_norm: bool = MISSING
    pooling: str = MISSING
    units: list[int] = MISSING
    pixel_scale: float = MISSING


@dataclass
class Optimizer:
    batch_size: int = MISSING
    batch_shards: int = MISSING
    row_strips: int = MISSING
    learning_rate: float = MISSING
    schedule: str = MISSING
    warmup: float = MISSING
    weight_decay: float = MISSING
    label_smoothing: float = MISSING


@dataclass
class Augment:
    rotation: float = MISSING
    scale: float = MISSING
    stretch: float = MISSING
    shear: float = MISSING
    shift: float = MISSING
    full_until: float = MISSING
    last: float = MISSING


@dataclass
class Train:
    epochs: int = MISSING
    examples: int | None = MISSING
    profile_steps: int = MISSING


@dataclass
class Evaluate:
    confidence: float = MISSING
    calibration_bins: int = MISSING
    views: int = MISSING


@dataclass
class Config:
    """One composed configuration; conf/ and params.yaml say what each value means, and its unit."""

    seed: int = MISSING
    dataset: str = MISSING
    recipes: list[str] = MISSING
    train: Train = MISSING
    evaluate: Evaluate = MISSING
    data: Data = MISSING
    name: str = MISSING
    model: Model = MISSING
    optimizer: Optimizer = MISSING
    augment: Augment = MISSING


@dataclass
class RunConfig(Config):
    """Of the verbs that take an earlier run."""

    run: str | None = MISSING


@dataclass
class CompareConfig(Config):
    a: str | None = MISSING
    b: str | None = MISSING


def validate(config: Config) -> None:
    """Refuse the first value that is out of its range, by a PipelineError."""
    for key, value, accepted, expected in _limits(config):
        if not accepted:
            raise PipelineError(f"{key}={value} is out of range: give {expected}")


def _limits(config: Config) -> Iterator[tuple[str, Any, bool, str]]:
    """Every limited value: its key, the value, whether it is accepted, and what is."""

    def at_least(key: str, value: int, low: int) -> tuple[str, Any, bool, str]:
        return key, value, value >= low, f"a whole number, {low} or more"

    def between(key: str, value: float, low: float, high: float) -> tuple[str, Any, bool, str]:
        return key, value, low <= value < high, f"a number from {low} to below {high}"

    def positive(key: str, value: float, high: float) -> tuple[str, Any, bool, str]:
        return key, value, 0 < value <= high, f"a number above 0, at most {high}"

    def one_of(key: str, value: str, *choices: str) -> tuple[str, Any, bool, str]:
        return key, value, value in choices, " or ".join(choices)

    data, model, optimizer, augment = config.data, config.model, config.optimizer, config.augment
    shape = data.image_shape
    for key, name in (("name", config.name), ("data.name", data.name), *(("recipes", name) for name in config.recipes)):
        # It becomes the name of folders, runs and curves.
        yield key, name, bool(re.fullmatch(r"\w[\w-]*(/\w[\w-]*)*", name)), "letters, digits, _ and -, parted by /"
    yield "data.image_shape", shape, len(shape) == 2 and min(shape) >= 1, "two whole numbers, each 1 or more"
    yield at_least("data.classes", data.classes, 2)
    yield "seed", config.seed, 0 <= config.seed < 2**31, "a whole number from 0 to 2147483647"
    yield at_least("train.epochs", config.train.epochs, 1)
    examples = config.train.examples
    yield "train.examples", examples, examples is None or examples >= 1, "a whole number, 1 or more, or null for all"
    yield at_least("train.profile_steps", config.train.profile_steps, 0)
    yield at_least("data.val_size", data.val_size, 0)
    yield at_least("data.split_seed", data.split_seed, 0)
    yield positive("data.fraction", data.fraction, 1)
    yield between("evaluate.confidence", config.evaluate.confidence, 0.5, 1)
    yield at_least("evaluate.calibration_bins", config.evaluate.calibration_bins, 2)
    views = config.evaluate.views
    yield "evaluate.views", views, views in (1, 5), "1 or 5"
    yield at_least("model.filters", model.filters, 1)
    yield one_of("model.pooling", model.pooling, "flatten", "average")
    for number, layer in enumerate(model.convolutions):
        key = f"model.convolutions[{number}]"
        yield at_least(f"{key}.multiple", layer.multiple, 1)
        yield at_least(f"{key}.kernel_size", layer.kernel_size, 1)
        yield at_least(f"{key}.pool", layer.pool, 1)
        yield at_least(f"{key}.strides", layer.strides, 1)
        yield one_of(f"{key}.padding", layer.padding, "valid", "same")
    rest = _output_shape(config)
    yield "model.convolutions", rest, min(rest) >= 1, "fewer or smaller ones: these leave no pixel of the digit"
    yield "model.units", model.units, all(units >= 1 for units in model.units), "whole numbers, each 1 or more"
    yield positive("model.pixel_scale", model.pixel_scale, 1)
    yield at_least("optimizer.batch_size", optimizer.batch_size, 1)
    shards, most = optimizer.batch_shards, min(optimizer.batch_size, 16)
    yield "optimizer.batch_shards", shards, 1 <= shards <= most, f"a whole number from 1 to {most}"
    yield "optimizer.row_strips", optimizer.row_strips, *_strips_limit(config)
    yield positive("optimizer.learning_rate", optimizer.learning_rate, 10)
    yield one_of("optimizer.schedule", optimizer.schedule, "constant", "one_cycle")
    yield between("optimizer.warmup", optimizer.warmup, 0, 1)
    yield between("optimizer.weight_decay", optimizer.weight_decay, 0, 1)
    yield between("optimizer.label_smoothing", optimizer.label_smoothing, 0, 1)
    yield between("augment.rotation", augment.rotation, 0, 180)
    yield between("augment.scale", augment.scale, 0, 1)
    yield between("augment.stretch", augment.stretch, 0, 1)
    yield between("augment.shear", augment.shear, 0, 1)
    yield between("augment.shift", augment.shift, 0, min(shape))
    yield between("augment.full_until", augment.full_until, 0, 1)
    yield "augment.last", augment.last, 0 <= augment.last <= 1, "a number from 0 to 1"


def _strips_limit(config: Config) -> tuple[bool, str]:
    """Whether model.in_strips can cut this network, and into how many."""
    model = config.model
    one_convolution = [(layer.strides, layer.padding, layer.pool) for layer in model.convolutions] == [(1, "valid", 1)]
    if not (one_convolution and not model.batch_norm and model.pooling == "flatten" and model.units):
        return config.optimizer.row_strips == 1, "1: only one valid convolution, 'flatten' and units can be cut"
    most = _output_shape(config)[0]
    return 1 <= config.optimizer.row_strips <= most, f"a whole number from 1 to {most}"


def _output_shape(config: Config) -> list[int]:
    """Height and width that the convolutions leave."""
    shape = list(config.data.image_shape)
    for layer in config.model.convolutions:
        border = layer.kernel_size - 1 if layer.padding == "valid" else 0
        shape = [-(-(size - border) // layer.strides) // layer.pool for size in shape]
    return shape


def in_dvc_stage() -> bool:
    return "DVC_STAGE" in os.environ


def to_dict(config: Config) -> dict[str, Any]:
    """The composed values, nested, as plain Python types."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.structured(config))  # type: ignore[return-value]


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """The inverse of to_dict, checked; what other code recorded may not fit, and is a PipelineError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if "${" in str(values):  # OmegaConf would fill it in, from the environment as well
        raise PipelineError(
            f"{source} holds a reference (${{…}}), which no recorded configuration does: give its value"
        )
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values))
    except OmegaConfBaseException as error:
        first = str(error).splitlines()[0]
        raise PipelineError(f"{source} was written by other code ({first}): check out its commit first") from None
    assert isinstance(config, Config)
    validate(config)
    return config


def config_name(verb: str) -> str:
    """The configuration of a verb: conf/<verb>.yaml, or the one that all share where there is none."""
    return verb if (CONF / f"{verb}.yaml").is_file() else "config"


def compose(*words: str, verb: str = "") -> Config:
    """The checked configuration that a stage gets for these key=value words, inside a command of Hydra's or not."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    register()
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(hydra.compose(config_name(verb), list(words)))
    assert isinstance(config, Config)
    validate(config)
    return config


def register() -> None:
    """Tell Hydra of the schemas and of the folder that a job writes to."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    for name, schema in (("schema", Config), ("run_schema", RunConfig), ("compare_schema", CompareConfig)):
        ConfigStore.instance().store(name=name, node=schema)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def _run_folder(parent: str) -> str:
    if in_dvc_stage():
        return "."
    from datetime import datetime

    return f"{parent}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
