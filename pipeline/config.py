"""The configuration: its schema and its limits.

The values stand in params.yaml and conf/. A default in the schema below is of a key that came after the first recorded
runs and means "as before", so that these stay readable; where a value is its default, nothing is written or hashed.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
MISSING: Any = "???"  # OmegaConf's mark of a value that has to be given
ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")  # what a data set consists of
MOST_LAYERS = 50  # of a kind
MOST_WEIGHTS = 100_000_000  # 2 GB in training: they, their gradients, Adam's moments
MOST_ACTIVATIONS = 2_000_000  # of an example: 4 GB for the 500 that are predicted at once
SHOWN = 200  # characters of a refused value
RETIRED = ("train.profile_steps", "data.sha256_of")  # keys of recorded configurations that no longer exist


class PipelineError(Exception):
    """Something the user can mend. Its message is one line: what was given, what was expected, how to mend it."""


@dataclass
class Data:
    name: str = MISSING  # of its file in conf/data
    image_shape: list[int] = MISSING
    classes: list[str] = MISSING
    published: bool = MISSING
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
    precision: str = "float32"


@dataclass
class Optimizer:
    batch_size: int = MISSING
    batch_shards: int = MISSING
    row_strips: int = 1
    learning_rate: float = MISSING
    schedule: str = MISSING
    warmup: float = MISSING
    weight_decay: float = MISSING
    label_smoothing: float = MISSING


@dataclass
class Augment:
    rotation: float = MISSING
    scale: float = MISSING
    stretch: float = 0.0
    shear: float = MISSING
    shift: float = MISSING
    full_until: float = 0.0
    last: float = 1.0


@dataclass
class Train:
    epochs: int = MISSING
    examples: int | None = None


@dataclass
class Evaluate:
    confidence: float = MISSING
    calibration_bins: int = MISSING
    views: int = 1


@dataclass
class Config:
    """One composed configuration; conf/ and params.yaml say what each value means, and its unit."""

    seed: int = MISSING
    dataset: str = MISSING
    recipes: list[str] = MISSING
    train: Train = MISSING
    evaluate: Evaluate = MISSING
    data: Data = MISSING
    name: str = MISSING  # of its file in conf/recipe
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


@dataclass
class AdoptConfig(Config):
    path: str | None = MISSING


@dataclass
class NetworkConfig(RunConfig):
    """Of the verbs that predict with a trained network."""

    alias: str | None = MISSING
    sure: float = MISSING


@dataclass
class PredictConfig(NetworkConfig):
    input: Any = MISSING
    show: bool = MISSING


@dataclass
class ServeConfig(NetworkConfig):
    host: str = MISSING
    port: int = MISSING


@dataclass
class ExportConfig(RunConfig):
    alias: str | None = MISSING
    format: str = MISSING


def validate(config: Config) -> None:
    """Refuse the first value that is out of its range, by a PipelineError."""
    for key, value, accepted, expected in _limits(config):
        if not accepted:
            raise PipelineError(f"{key}={shortened(value)} is out of range: give {expected}")


def shortened(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"


def _limits(config: Config) -> Iterator[tuple[str, Any, bool, str]]:
    """Every limited value: its key, the value, whether it is accepted, and what is."""

    def whole(key: str, value: int, low: int, high: int) -> tuple[str, Any, bool, str]:
        return key, value, low <= value <= high, f"a whole number from {low} to {high}"

    def between(key: str, value: float, low: float, high: float) -> tuple[str, Any, bool, str]:
        return key, value, low <= value < high, f"a number from {low} to below {high}"

    def positive(key: str, value: float, high: float) -> tuple[str, Any, bool, str]:
        return key, value, 0 < value <= high, f"a number above 0, at most {high}"

    def one_of(key: str, value: str, *choices: str) -> tuple[str, Any, bool, str]:
        return key, value, value in choices, " or ".join(choices)

    def names(key: str, value: Any, each: Iterable[Any], folder: str = "") -> tuple[str, Any, bool, str]:
        pattern = rf"{folder}[A-Za-z0-9][\w.-]{{0,63}}"
        plain = all(isinstance(name, str) and re.fullmatch(pattern, name, re.ASCII) for name in each)
        return key, value, plain, "plain names: letters, digits, _ - and . alone, at most 64 and no . first"

    data, model, optimizer, augment = config.data, config.model, config.optimizer, config.augment
    shape = data.image_shape
    sizes = [size for size in shape if isinstance(size, int) and 1 <= size <= 1000]  # a list may hold lists
    yield "data.image_shape", shape, len(sizes) == len(shape) == 2, "two whole numbers from 1 to 1000"
    distinct = len(set(data.classes)) == len(data.classes) and 2 <= len(data.classes) <= 256  # a label is a byte
    short = all(isinstance(name, str) and name.isprintable() and 0 < len(name) <= 40 for name in data.classes)
    yield "data.classes", data.classes, distinct and short, "2 to 256 different names of at most 40 characters"
    for key, name in (("dataset", config.dataset), ("data.name", data.name)):
        yield names(key, name, [name])
    in_folder = r"([A-Za-z0-9][\w-]*/)?"
    yield names("name", config.name, [config.name], in_folder)
    yield names("recipes", config.recipes, config.recipes, in_folder)
    for field, of_array in (("files", data.files), ("sha256", data.sha256)):
        yield f"data.{field}", of_array, of_array.keys() == set(ARRAYS), f"one each for {', '.join(ARRAYS)}"
    for key in ARRAYS:
        yield names(f"data.files.{key}", data.files[key], [data.files[key]])
        digest = data.sha256[key]
        yield f"data.sha256.{key}", digest, bool(re.fullmatch("[0-9a-f]{64}", digest)), "64 hexadecimal digits"
    yield "data.sources", data.sources, all(isinstance(source, str) for source in data.sources), "a list of addresses"
    yield whole("seed", config.seed, 0, 2**31 - 1)
    yield whole("train.epochs", config.train.epochs, 1, 10_000)
    examples = config.train.examples
    accepted = examples is None or 1 <= examples < 2**31
    yield "train.examples", examples, accepted, f"a whole number from 1 to {2**31 - 1}, or null for all"
    yield whole("data.val_size", data.val_size, 0, 2**31 - 1)
    yield whole("data.split_seed", data.split_seed, 0, 2**31 - 1)
    yield positive("data.fraction", data.fraction, 1)
    yield between("evaluate.confidence", config.evaluate.confidence, 0.5, 1)
    yield whole("evaluate.calibration_bins", config.evaluate.calibration_bins, 2, 1000)
    views = config.evaluate.views
    yield "evaluate.views", views, views in (1, 5), "1 or 5"
    yield whole("model.filters", model.filters, 1, 10_000)
    yield one_of("model.pooling", model.pooling, "flatten", "average")
    count = len(model.convolutions)
    yield "model.convolutions", f"{count} layers", count <= MOST_LAYERS, f"at most {MOST_LAYERS} layers"
    for number, layer in enumerate(model.convolutions):
        key = f"model.convolutions[{number}]"
        for field in ("multiple", "kernel_size", "pool", "strides"):
            yield whole(f"{key}.{field}", getattr(layer, field), 1, 1000)
        yield one_of(f"{key}.padding", layer.padding, "valid", "same")
    few = len(model.units) <= MOST_LAYERS and all(isinstance(of, int) and 1 <= of <= 100_000 for of in model.units)
    yield "model.units", model.units, few, f"at most {MOST_LAYERS} whole numbers from 1 to 100000"
    of = network(config)
    rest = [of.height, of.width]
    yield "model.convolutions", rest, min(rest) >= 1, "fewer or smaller ones: these leave no pixel of the example"
    at_most = f"fewer or smaller layers: at most {MOST_WEIGHTS:,} weights"
    yield "model", f"{of.weights:,} weights", of.weights <= MOST_WEIGHTS, at_most
    yield positive("model.pixel_scale", model.pixel_scale, 1)
    yield one_of("model.precision", model.precision, "float32", "mixed_bfloat16")
    yield whole("optimizer.batch_size", optimizer.batch_size, 1, 2**16)
    at_most = f"fewer or smaller layers: at most {MOST_ACTIVATIONS:,} values that they compute for an example"
    yield "model", f"{of.activations:,} values", of.activations <= MOST_ACTIVATIONS, at_most
    batch, most = min(optimizer.batch_size, examples or optimizer.batch_size), 500 * MOST_ACTIVATIONS // of.activations
    yield "optimizer.batch_size", optimizer.batch_size, batch <= most, f"at most {most}, which this network can hold"
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
    if isinstance(config, NetworkConfig):
        yield positive("sure", config.sure, 1)
    if isinstance(config, ServeConfig):
        yield whole("port", config.port, 0, 65535)
    if isinstance(config, ExportConfig):
        yield one_of("format", config.format, "saved_model", "litert", "onnx")
    yield between("augment.full_until", augment.full_until, 0, 1)
    yield "augment.last", augment.last, 0 <= augment.last <= 1, "a number from 0 to 1"


def _strips_limit(config: Config) -> tuple[bool, str]:
    """Whether model.in_strips can cut this network, and into how many."""
    model = config.model
    one_convolution = [(layer.strides, layer.padding, layer.pool) for layer in model.convolutions] == [(1, "valid", 1)]
    if not (one_convolution and not model.batch_norm and model.pooling == "flatten" and model.units):
        return config.optimizer.row_strips == 1, "1: only one valid convolution, 'flatten' and units can be cut"
    most = network(config).height
    return 1 <= config.optimizer.row_strips <= most, f"a whole number from 1 to {most}"


class Network(NamedTuple):
    """What model.build_cnn will build."""

    height: int  # that the convolutions leave
    width: int
    weights: int
    activations: int  # values that the layers give, for one example
    multiply_adds: int  # of the convolutions and dense layers, for one example


def network(config: Config) -> Network:
    """Walk over the layers, without building them."""
    model = config.model
    height, width = config.data.image_shape
    channels, weights, activations, total = 1, 0, height * width, 0
    for layer in model.convolutions:
        border = layer.kernel_size - 1 if layer.padding == "valid" else 0
        height, width = (-(-(size - border) // layer.strides) for size in (height, width))
        filters = model.filters * layer.multiple
        kernel = layer.kernel_size**2 * channels * filters
        weights += kernel + filters * (4 if model.batch_norm else 1)
        activations += height * width * filters
        total += height * width * kernel
        height, width, channels = height // layer.pool, width // layer.pool, filters
    inputs = channels * (height * width if model.pooling == "flatten" else 1)
    for units in [*model.units, len(config.data.classes)]:
        weights += (inputs + 1) * units
        activations += units
        total += inputs * units
        inputs = units
    return Network(height, width, weights, activations, total)


def in_dvc_stage() -> bool:
    return "DVC_STAGE" in os.environ


def to_dict(config: Config) -> dict[str, Any]:
    """The composed values, nested, as plain Python types; without those of one verb alone, as `run` of evaluate."""
    from omegaconf import OmegaConf

    own = OmegaConf.masked_copy(OmegaConf.structured(config), list(Config.__dataclass_fields__))
    return OmegaConf.to_container(own)  # type: ignore[return-value]


def explicit(config: Config) -> dict[str, Any]:
    """The composed values without those that are the schema's default, nested, as plain Python types.

    This is what is written for DVC and hashed: a key that comes later leaves the files and hashes of before alone.
    """

    return {key: _explicit(value) for key, value in _set(config, Config)}


def _set(values: Any, schema: Any) -> Iterator[tuple[str, Any]]:
    for field in dataclasses.fields(schema):
        if (value := getattr(values, field.name)) != field.default:
            yield field.name, value


def _explicit(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {key: _explicit(inner) for key, inner in _set(value, value)}
    return [_explicit(one) for one in value] if isinstance(value, list) else value


def flatten(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, str]:
    """Nested values under dotted keys, as text; a list of plain values stays one value."""
    flat: dict[str, str] = {}
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    for key, value in items:
        nested = isinstance(value, Mapping) or (
            isinstance(value, list) and any(isinstance(item, Mapping) for item in value)
        )
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": str(value)}
    return flat


def from_dict(values: Mapping[str, Any], source: str) -> Config:
    """The inverse of to_dict, checked; what other code recorded may not fit, and is a PipelineError.

    Keys that came later have their default, those that went are left out.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        with refusing(source):
            recorded = copy.deepcopy(dict(values))
            for key in RETIRED:
                section, _, name = key.partition(".")
                recorded.get(section, {}).pop(name, None)
            return checked(OmegaConf.merge(OmegaConf.structured(Config), recorded))
    except OmegaConfBaseException as error:
        raise PipelineError(
            f"{source} was written by other code ({joined(error)}): check out its commit first"
        ) from None


@contextmanager
def refusing(given: str) -> Iterator[None]:
    """Make a PipelineError of what Hydra and OmegaConf did not foresee, as an overflow: what is given caused it."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (PipelineError, HydraException, OmegaConfBaseException):
        raise
    except Exception as error:
        said = f"{type(error).__name__}, {joined(error)}"
        raise PipelineError(f"{shortened(given)}: {said}: mend the value (keys and values: --help)") from error


def joined(error: BaseException, before: str = "") -> str:
    """The message in one line, without Hydra's search path; with OmegaConf's key, unless that stands `before`."""
    text = str(error).partition("Config search path:")[0]
    noise = ("^", "To append to your", "full_key:", "object_type=", "reference_type=", "See https")
    lines = (line.strip().rstrip(".") for line in text.splitlines())
    text = " ".join(line for line in lines if line and not line.startswith(noise))
    key = re.search(r"full_key: (.+)", str(error))
    return text if key is None or key[1] in before + text else f"{key[1]}: {text}"


def checked(composed: Any, choices: Mapping[str, str] | None = None) -> Config:
    """The values of a composed configuration, OmegaConf's DictConfig, within their limits.

    Recipe and data set are named by the files that Hydra's `choices` say; a recorded configuration holds its names.
    """
    from omegaconf import OmegaConf

    with refusing("configuration"):
        _refuse_references(OmegaConf.to_container(composed, resolve=False))
        if choices:
            _name_by_file(composed, choices)
        config = OmegaConf.to_object(composed)
        if not isinstance(config, Config):
            raise PipelineError("the defaults in conf/ leave out the schema: bring conf/config.yaml back")
        validate(config)
    return config


def _name_by_file(composed: Any, choices: Mapping[str, str]) -> None:
    from omegaconf import OmegaConf

    for key, group in (("name", "recipe"), ("data.name", "data")):
        name = OmegaConf.select(composed, key)  # None where it is MISSING, as it should be
        if name not in (None, choices[group]):
            raise PipelineError(
                f"{key}={shortened(name)}: the name is that of the file, {group}={choices[group]}: remove the key"
            )
        OmegaConf.update(composed, key, choices[group])


def _refuse_references(value: Any, key: str = "") -> None:
    """Refuse ${...} anywhere: it could bring in what must not be logged, such as environment variables."""
    if isinstance(value, dict | list):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            _refuse_references(name, key)
            _refuse_references(inner, f"{key}.{name}".lstrip("."))
    elif isinstance(value, str) and "${" in value:
        raise PipelineError(f"{key}={shortened(value)} refers to another value: write the value out")


def config_name(verb: str) -> str:
    """The configuration of a verb: conf/<verb>.yaml, or the one that all share where there is none."""
    return verb if (CONF / f"{verb}.yaml").is_file() else "config"


def compose(*words: str, verb: str = "") -> Config:
    """The checked configuration that a stage gets for these key=value words, inside a command of Hydra's or not."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import open_dict

    register()
    ready = GlobalHydra.instance().is_initialized()
    with (
        refusing(" ".join(words)),
        nullcontext() if ready else hydra.initialize_config_dir(str(CONF), version_base="1.3"),
    ):
        composed = hydra.compose(config_name(verb), list(words), return_hydra_config=True)
        choices = composed.hydra.runtime.choices
        with open_dict(composed):
            del composed["hydra"]
        return checked(composed, choices)


def register() -> None:
    """Tell Hydra of the schemas and of the folder that a job writes to."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    schemas = {
        "": Config,
        "run_": RunConfig,
        "compare_": CompareConfig,
        "adopt_": AdoptConfig,
        "predict_": PredictConfig,
        "serve_": ServeConfig,
        "export_": ExportConfig,
    }
    for verb, schema in schemas.items():
        ConfigStore.instance().store(name=f"{verb}schema", node=schema)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
    OmegaConf.clear_resolver("oc.env")  # no environment variable gets into what is logged


def _run_folder(parent: str) -> str:
    if in_dvc_stage():
        return "."
    from datetime import datetime

    return f"{parent}/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
