"""The configuration of the verbs that have keys of their own; no stage of DVC depends on them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pipeline.base.schema import Config, Section


class Sweep(Section):
    """How a sweep runs: nothing that is trained depends on it."""

    prune: Literal["median", "halving"] | None = Field(
        default=None,
        description="end jobs early whose train.monitor is worse than their siblings' after the same epoch",
    )


class TrainConfig(Config):
    sweep: Sweep = Sweep()

    @model_validator(mode="after")
    def _pruning_fits(self) -> TrainConfig:
        if self.sweep.prune and not self.data.val_size:
            raise ValueError(f"sweep.prune={self.sweep.prune} needs validation examples: give data.val_size above 0")
        return self


class RunConfig(Config):
    run: str | None = Field(None, description="id of an MLflow run")


class CompareConfig(Config):
    a: str | None = Field(None, description="a recipe, run id, group of seeds, sweep id, or an MLflow filter")
    b: str | None = Field(None, description="like `a`; if both are null, the recipes of `dvc repro` are compared")


class AdoptConfig(Config):
    path: str | None = Field(None, description="folder of this repository, with a folder of pictures per class")
    skip_damaged: bool = Field(False, description="leave out pictures that cannot be read")


class PredictorConfig(RunConfig):
    alias: str | None = Field(None, description="alias in MLflow's model registry, for example champion")
    confidence: float = Field(
        0.999,
        gt=0,
        le=1,
        description="the model abstains below the lowest probability above which this share of validation is correct",
    )


class PredictConfig(PredictorConfig):
    input: Any = Field(None, description="an image, a folder of images, or a list of either")
    show: bool = Field(False, description="draw each page with boxes, digits and what the model saw")


class ServeConfig(PredictorConfig):
    host: str = Field("127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="0 for any free port")


class ExportConfig(RunConfig):
    alias: str | None = Field(None, description="alias in MLflow's model registry, for example champion")
    format: Literal["saved_model", "litert", "onnx"] = Field(
        "saved_model", description="a folder for TensorFlow; model.tflite; model.onnx (after `make runtimes`)"
    )
