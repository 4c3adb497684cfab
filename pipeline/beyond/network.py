"""A trained network to predict with: a recipe's, an MLflow run's, or the champion's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import engine, metrics
from pipeline.beyond import chosen
from pipeline.beyond.sheet import FIELD
from pipeline.config import Config, PipelineError
from pipeline.files import load_csv
from pipeline.model import load_model


class Network(NamedTuple):
    """A network, ready to predict."""

    probabilities: Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # uint8 [N, H, W] to [N, K]
    sure_above: float  # a probability: below it, the prediction is "not sure"; infinite for never sure
    words: str  # which one it is
    classes: list[str]  # names of the K


def load_network(
    config: Config, run: str | None, alias: str | None, sure: float, shape: Sequence[int] = (FIELD, FIELD)
) -> Network:
    """Load the network of run `run`, of the registry's `alias`, or of the recipe; a PipelineError where there is none,
    and where it takes images of another shape.

    It is sure above the least probability at which a share `sure` of its validation digits is right.
    """
    with chosen.files_of(config, run, alias) as files:
        return _network(files.model, files.validation(), sure, files.words, config.data.classes, shape)


def _network(
    model_file: Path, predictions: Path, sure: float, words: str, classes: list[str], shape: Sequence[int]
) -> Network:
    engine.start(seed=0)
    model = load_model(model_file)
    if model.input_shape[1:] != tuple(shape):
        raise PipelineError(f"{words} takes images of {model.input_shape[1:]}, expected {tuple(shape)}: name another")
    infer = engine.inference(model)
    any_set_aside = len(predictions.read_bytes().splitlines()) > 1
    rows = load_csv(predictions, ["label", "prediction", "probability_0"]) if any_set_aside else []
    confidence = np.array([max(value for key, value in row.items() if key.startswith("probability_")) for row in rows])
    right = np.array([row["label"] == row["prediction"] for row in rows])
    above = sure_above(confidence, right, sure)
    return Network(lambda images: metrics.softmax(infer(images)), above, words, classes)


def sure_above(confidence: NDArray[np.float64], right: NDArray[np.bool_], share: float) -> float:
    """The least confidence [N] such that of all examples with as much, at least `share` are right; infinite where none
    is: wrong ones may be as sure as a number can be.
    """
    order = np.argsort(-confidence, kind="stable")
    of_surest = np.cumsum(right[order]) / np.arange(1, len(right) + 1)
    falls = np.append(np.diff(confidence[order]) < 0, True)[: len(right)]  # equals are taken together
    enough = np.flatnonzero((of_surest >= share) & falls)
    return float(confidence[order][enough[-1]]) if len(enough) else math.inf
