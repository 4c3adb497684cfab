"""Pure figures from arrays.

Shapes: N examples, K classes, M bins. Truth comes before prediction. Accuracies are shares, 0 to 1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

Labels = NDArray[np.integer]  # [N], 0 to K - 1
Probabilities = NDArray[np.floating]  # [N, K], each row adds up to 1


class Interval(NamedTuple):
    low: float
    high: float


class Calibration(NamedTuple):
    """Bins of the confidence in the prediction, equal in width over 0 to 1; NaN in empty bins."""

    size: NDArray[np.int64]  # [M], predictions in the bin
    confidence: NDArray[np.float64]  # [M], mean of the bin
    accuracy: NDArray[np.float64]  # [M]
    error: float  # expected calibration error, weighted by size


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    return special.softmax(np.asarray(logits, np.float64), axis=1)


def accuracy(labels: Labels, predictions: Labels) -> float:
    """The share predicted right; NaN of no examples."""
    return float(np.mean(labels == predictions)) if len(labels) else math.nan


def cross_entropy(labels: Labels, probabilities: Probabilities) -> float:
    """Mean over all examples, in nats; a probability of 0 counts as the smallest normal float64."""
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.mean(np.log(np.maximum(given, np.finfo(np.float64).tiny))))


def wilson_interval(right: int, total: int, confidence: float) -> Interval:
    """Interval of a share of `right` in `total` (Wilson 1927): for other examples of the same kind, not other seeds."""
    # Of the same bits as scipy.stats has it, which takes 0.3 s to import.
    z = float(special.ndtri((1 + confidence) / 2))
    share, squared = right / total, z * z
    middle = (2 * total * share + squared) / (2 * (total + squared))
    reach = z / (2 * (total + squared)) * math.sqrt(4 * total * share * (1 - share) + squared)
    return Interval(middle - reach if right else 0.0, middle + reach if right < total else 1.0)


def confusion_matrix(labels: Labels, predictions: Labels, classes: int) -> NDArray[np.int64]:
    """Counts, [K true, K predicted]."""
    pairs = np.asarray(labels, np.int64) * classes + predictions
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def most_confused(labels: Labels, predictions: Labels, classes: int, most: int) -> NDArray[np.int64]:
    """The classes with the most mistakes, at most so many, in ascending order."""
    wrong = labels != predictions
    mistakes = np.bincount(labels[wrong], minlength=classes) + np.bincount(predictions[wrong], minlength=classes)
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def class_figures(labels: Labels, predictions: Labels, classes: int) -> dict[str, NDArray[Any]]:
    """Precision, recall, F1 and examples (support) of every class [K], NaN where there is nothing to divide by."""
    found = (labels[labels == predictions], labels, predictions)
    right, support, predicted = (np.bincount(values, minlength=classes) for values in found)
    with np.errstate(invalid="ignore"):
        shares = {"precision": right / predicted, "recall": right / support, "f1": 2 * right / (support + predicted)}
    return shares | {"support": support}


def calibration(labels: Labels, probabilities: Probabilities, bins: int) -> Calibration:
    """Reliability of the confidence (Guo et al. 2017, arXiv 1706.04599); a bin holds its upper edge, not its lower."""
    return calibration_of(probabilities.max(1), probabilities.argmax(1) == labels, bins)


def calibration_of(confidence: NDArray[np.floating], right: NDArray[np.bool_], bins: int) -> Calibration:
    """The same of the confidence in each prediction [N], and whether it is right [N]."""
    place = np.maximum(np.searchsorted(np.linspace(0, 1, bins + 1), confidence) - 1, 0)
    size = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, confidence, bins) / size
        share = np.bincount(place, right, bins) / size
    gaps = np.abs(mean - share)[size > 0] * size[size > 0]
    return Calibration(size, mean, share, float(gaps.sum() / len(right)))


def worst_mistakes(labels: Labels, probabilities: Probabilities, most: int) -> NDArray[np.int64]:
    """Positions of the wrong predictions, those least probable of their true label first."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    order = np.argsort(probabilities[wrong, labels[wrong]], kind="stable")
    return wrong[order][:most]
