"""The user's own metrics, as the training loop calls them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.base import own
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.data.examples import Examples
from pipeline.model.inference import Metric, user_metrics


def load_metrics(project: Project, config: Config, val: Examples) -> dict[str, Metric]:
    """Return the functions of train.metrics, tried on random probabilities: an epoch later is late to learn of a typo.

    One that raises, or returns no finite number, is a UserError that names it, now and later.
    """
    if config.train.metrics and own.source_sha256(project.root, config.train.metrics.values()) != (
        expected := config.train.source_sha256
    ):
        raise UserError(f"train.metrics: the code is not that of the run ({expected}): check out its commit first")

    def loaded(key: str, name: str) -> Metric:
        function = own.load(project.root, name)

        def metric(labels: NDArray[np.int64], probabilities: NDArray[np.float64]) -> float:
            with own.errors_named(project.root, name):
                returned = function(labels, probabilities)
                if math.isfinite(value := float(returned)):
                    return value
            raise UserError(f"train.metrics.{key}: {name} returned {value}: return a finite number")

        return metric

    metrics = {key: loaded(key, name) for key, name in config.train.metrics.items()}
    logits = np.random.default_rng(0).normal(size=(len(val.labels), len(config.data.classes)))
    user_metrics(metrics, logits.astype(np.float32), val.labels)
    return metrics
