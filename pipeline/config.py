"""The configuration: its schema, its limits, how a verb becomes a command, and where outputs go.

The values stand in params.yaml and conf/; the schema below has none, so that no value hides here.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

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


class Folders(NamedTuple):
    model: Path
    results: Path


def output_folders(config: Config) -> Folders:
    """Where this job writes: a DVC stage to its outputs, any other run to Hydra's folder of that job."""
    if in_dvc_stage():
        return Folders(ROOT / "models" / config.name, ROOT / "results" / "recipes" / config.name)
    return Folders(job_folder(), job_folder())


def job_folder() -> Path:
    """Hydra's folder of this job; the repository where DVC runs the stage."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def overrides() -> list[str]:
    """The key=value words this job was called with."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def in_dvc_stage() -> bool:
    return "DVC_STAGE" in os.environ


def to_dict(config: Config) -> dict[str, Any]:
    """The composed values, nested, as plain Python types."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.structured(config))  # type: ignore[return-value]


def compose(*words: str) -> Config:
    """The checked configuration that a stage gets for these key=value words, without being a command."""
    import hydra
    from omegaconf import OmegaConf

    _register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_object(hydra.compose("config", list(words)))
    assert isinstance(config, Config)
    validate(config)
    return config


def _register() -> None:
    """Tell Hydra of the schema and of the folder that a job writes to."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)


def entry_point(verb: Callable[[Config], None]) -> Callable[[], None]:
    """Make `verb` a command: compose, check, call; every refusal is one line on stderr and exit code 1."""

    @functools.wraps(verb)
    def command() -> None:
        # Hydra then raises instead of printing several lines; a user who has set it wants the traceback.
        full_error = os.environ.setdefault("HYDRA_FULL_ERROR", "") == "1"
        os.environ["HYDRA_FULL_ERROR"] = "1"
        try:
            _check_yaml()
            _compose_and_call(verb)
        except KeyboardInterrupt:
            sys.exit("interrupted")
        except Exception as error:
            message = _one_line(error)
            if full_error or message is None:
                raise
            sys.exit(f"error: {message}")

    return command


def _compose_and_call(verb: Callable[[Config], None]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    _register()

    def task(composed: DictConfig) -> None:
        try:
            for word in overrides():
                if word.startswith(("+", "~")):  # Hydra would take it, even for a mistyped key
                    raise PipelineError(f"{word}: keys are neither added nor removed: give key=value (keys: --help)")
            config = OmegaConf.to_object(composed)
            assert isinstance(config, Config)
            validate(config)
            verb(config)
        except Exception as error:
            if not in_dvc_stage():
                _remove_empty(job_folder())
            # A sweep goes on with its other jobs, and Hydra names the one that failed.
            if HydraConfig.get().mode == RunMode.MULTIRUN or _one_line(error) is None:
                raise
            sys.exit(f"error: {_one_line(error)}")

    hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()


def _remove_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a job that wrote nothing, and its parent if it was the first."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _run_folder(parent: str) -> str:
    if in_dvc_stage():
        return "."
    from datetime import datetime

    return f"{parent}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"


def _check_yaml() -> None:
    """Refuse broken YAML by file and line, and aliases, which Hydra would expand without bound."""
    for path in [ROOT / "params.yaml", *sorted(CONF.rglob("*.yaml"))]:
        where = path.relative_to(ROOT)
        try:
            for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
                if isinstance(event, yaml.AliasEvent):
                    line = event.start_mark.line + 1 if event.start_mark else "?"
                    raise PipelineError(f"{where}:{line}: a YAML alias (*name): write the value out")
        except yaml.MarkedYAMLError as error:
            raise PipelineError(_broken_yaml(error, path)) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise PipelineError(f"{where}: not YAML in UTF-8, {_joined(error)}: mend it") from None


def _broken_yaml(error: yaml.MarkedYAMLError, path: Path) -> str:
    mark = error.problem_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{path.relative_to(ROOT)}{place}: broken YAML, {error.problem}: mend that line"


def _one_line(error: Exception) -> str | None:
    """What went wrong in one line, or None for what is a bug of ours and deserves its traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:  # valid YAML, but a key stands there twice
        return _broken_yaml(error, Path(error.problem_mark.name).resolve())
    if isinstance(error, HydraException | OmegaConfBaseException):
        parts = [_joined(error)]
        if isinstance(error.__cause__, OmegaConfBaseException):
            parts.append(_joined(error.__cause__))
        return f"{': '.join(dict.fromkeys(parts))} (for the keys and their values add --help)"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or _joined(error)}: free the disk, or mend the path or its permissions"
    return None


def _joined(error: BaseException) -> str:
    """The message in one line, without Hydra's search path, and OmegaConf's positions and hints."""
    text = str(error).partition("Config search path:")[0]
    noise = ("To append to your config", "full_key:", "object_type=", "reference_type=", "See https")
    lines = (line.strip().rstrip(".") for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(noise))
