"""The configuration of the verbs that have keys of their own; no stage of DVC depends on them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pipeline.base.schema import Config, Name, Section

# The tags that runs have from MLflow and from us.
OUR_TAGS = re.compile(
    r"(mlflow|found)\..*|(dvc|git|test)_\w+|\w+_sha256|adopted|best|best_run|command|compared|copied_from|environment"
    r"|evaluated_by|group|hardware|kept|note|process|progress|pruned_at|recipe|record|sweep|swept|swept_keys|threads|versions"
)


class Sweep(Section):
    """How a sweep runs: nothing that is trained depends on it."""

    zip: list[str] = Field([], description="keys whose i-th values belong together, instead of every combination")
    fail_fast: bool = Field(False, description="begin no further job once one has failed")
    prune: Literal["median", "halving"] | None = Field(
        default=None,
        description="end jobs early whose train.monitor is worse than their siblings' after the same epoch",
    )


class TrainConfig(Config):
    note: Annotated[str, Field(max_length=8_000)] | None = Field(
        None, description="kept with the run, as its tag `note`"
    )
    tags: dict[Name, Any] = Field({}, description="more tags of the run: tags.owner=me")
    sweep: Sweep = Sweep.model_validate({})

    @model_validator(mode="after")
    def _tags_fit(self) -> TrainConfig:
        if taken := [key for key in self.tags if OUR_TAGS.fullmatch(key)]:
            raise ValueError(f"tags.{taken[0]} is a tag of ours: give yours another name")
        if nested := [key for key, value in self.tags.items() if isinstance(value, (dict, list))]:
            raise ValueError(
                f"tags.{nested[0]}={self.tags[nested[0]]}: give a text or a number, in a name without dots"
            )
        return self

    @model_validator(mode="after")
    def _pruning_fits(self) -> TrainConfig:
        if self.sweep.prune and self.train.folds is not None:
            raise ValueError(f"sweep.prune={self.sweep.prune} with train.folds: a mean needs every fold: leave one out")
        if self.sweep.prune and not self.data.val_size:
            raise ValueError(f"sweep.prune={self.sweep.prune} needs validation examples: give data.val_size above 0")
        return self


def labels(config: Config) -> dict[str, str]:
    """Return the tags that the user gives a run, the note among them. A plain Config, as in a notebook, has none."""
    if not isinstance(config, TrainConfig):
        return {}
    note = {} if config.note is None else {"note": config.note}
    return {key: str(value) for key, value in config.tags.items()} | note


class RunConfig(Config):
    run: str | None = Field(None, description="id of an MLflow run")


class CompareConfig(Config):
    a: str | None = Field(None, description="a recipe, run id, group of seeds, sweep id, or an MLflow filter")
    b: str | None = Field(None, description="like `a`; if both are null, the recipes of `dvc repro` are compared")


class SyncConfig(Config):
    to: str | None = Field(
        None, description="MLflow store to copy this one to: sqlite:///<path>/mlflow.db, or the address of a server"
    )


class CleanConfig(Config):
    yes: bool = Field(False, description="remove what is listed")


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
    cors: list[str] = Field([], description="origins whose web pages may ask too, such as https://example.org")


class ExportConfig(RunConfig):
    alias: str | None = Field(None, description="alias in MLflow's model registry, for example champion")
    format: Literal["saved_model", "litert", "onnx"] = Field(
        "saved_model", description="a folder for TensorFlow; model.tflite; model.onnx (after `make runtimes`)"
    )
