"""Figures against hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.metrics import metrics

LABELS = np.array([0, 0, 1, 1, 1, 3], np.uint8)
PREDICTIONS = np.array([0, 1, 1, 1, 0, 0])
# Of 4 classes, 2 never occurs and is never predicted, 3 occurs and is never predicted.
CONFUSION = [[1, 1, 0, 0], [1, 2, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("right", "total", "confidence", "z"),
    [
        (9753, 10_000, 0.95, 1.959963984540054),
        (9753, 10_000, 0.99, 2.5758293035489004),
        (0, 40, 0.95, 1.959963984540054),
        (40, 40, 0.95, 1.959963984540054),
    ],
)
def test_wilson_interval_is_the_formula_of_1927(right, total, confidence, z):
    share = right / total
    centre = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    reach = z / (1 + z**2 / total) * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    assert metrics.wilson_interval(right, total, confidence) == pytest.approx(
        (centre - reach, centre + reach), abs=1e-9
    )


def test_wilson_interval_stays_inside_0_to_1_and_has_its_known_ends():
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263 gives 0.2553 to 0.3662, 0 of 20 gives 0 to 0.1611.
    assert metrics.wilson_interval(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert metrics.wilson_interval(0, 20, 0.95) == pytest.approx((0, 0.1611), abs=5e-5)
    assert metrics.wilson_interval(0, 20, 0.95).low == 0.0
    assert metrics.wilson_interval(20, 20, 0.95).high == 1.0


def test_accuracy_is_a_share():
    assert metrics.accuracy(LABELS, PREDICTIONS) == 0.5
    nothing = np.array([], np.uint8)
    assert math.isnan(metrics.accuracy(nothing, nothing))


def test_confusion_matrix_has_truth_in_rows():
    assert metrics.confusion_matrix(LABELS, PREDICTIONS, 4).tolist() == CONFUSION
    # 25 * 26 does not fit into the labels' own 8 bits.
    large = metrics.confusion_matrix(np.array([25], np.uint8), np.array([3], np.uint8), 26)
    assert large[25, 3] == 1 and large.sum() == 1


def test_class_figures_are_nan_where_there_is_nothing_to_divide_by():
    figures = metrics.class_figures(LABELS, PREDICTIONS, 4)
    np.testing.assert_allclose(figures["precision"], [1 / 3, 2 / 3, math.nan, math.nan])
    np.testing.assert_allclose(figures["recall"], [1 / 2, 2 / 3, math.nan, 0])
    np.testing.assert_allclose(figures["f1"], [2 / 5, 2 / 3, math.nan, 0])
    assert figures["support"].tolist() == [2, 3, 0, 1]


def test_calibration_by_hand():
    confidence = np.array([0.5, 0.5, 0.625, 0.75, 0.875, 1.0])  # all exact in binary, as are the edges of 4 bins
    probabilities = np.stack([confidence, 1 - confidence], 1)
    labels = np.array([0, 1, 0, 1, 0, 0])  # 0 is predicted everywhere (of equal ones the first)
    found = metrics.calibration(labels, probabilities, 4)
    assert found.size.tolist() == [0, 2, 2, 2]
    np.testing.assert_allclose(found.confidence, [math.nan, 0.5, 0.6875, 0.9375])
    np.testing.assert_allclose(found.accuracy, [math.nan, 0.5, 0.5, 1.0])
    assert found.error == pytest.approx((0 * 2 + 0.1875 * 2 + 0.0625 * 2) / 6)


@pytest.mark.parametrize("bins", [4, 15, 100])
def test_calibration_puts_every_edge_into_the_bin_below(bins):
    edges = np.arange(bins // 2 + 1, bins + 1) / bins  # above 1/2, so that class 0 is predicted
    found = metrics.calibration(np.zeros(len(edges), int), np.stack([edges, 1 - edges], 1), bins)
    assert found.size.tolist() == [0] * (bins // 2) + [1] * len(edges)


@pytest.mark.parametrize(("labels", "error"), [([0, 0], 0.0), ([1, 1], 1.0), ([0, 1], 0.5)])
def test_calibration_of_the_certain(labels, error):
    found = metrics.calibration(np.array(labels), np.array([[1.0, 0.0], [1.0, 0.0]]), 15)
    assert found.size.tolist() == [0] * 14 + [2] and found.error == error


def test_cross_entropy_is_the_mean_log_and_finite_for_a_probability_of_0():
    probabilities = np.array([[0.25, 0.75], [0.5, 0.5]])
    assert metrics.cross_entropy(np.array([0, 1]), probabilities) == pytest.approx((math.log(4) + math.log(2)) / 2)
    # -ln of the smallest normal float64, 2 ** -1022.
    assert metrics.cross_entropy(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(1022 * math.log(2))


def test_softmax_by_hand_and_for_large_logits():
    logits = np.array([[0, math.log(3)], [1000, 1000], [-1000, 1000]], np.float32)
    probabilities = metrics.softmax(logits)
    np.testing.assert_allclose(probabilities, [[0.25, 0.75], [0.5, 0.5], [0, 1]], atol=1e-7)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-15)


def test_worst_mistakes_come_least_probable_first():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.99, 0.01], [0.8, 0.2]])
    labels = np.array([0, 1, 0, 1, 1])  # 0 is right; 1 and 4 are equally wrong and keep their order
    assert metrics.worst_mistakes(labels, probabilities, most=24).tolist() == [3, 1, 4, 2]
    assert metrics.worst_mistakes(labels, probabilities, most=2).tolist() == [3, 1]
    assert metrics.worst_mistakes(labels[:1], probabilities[:1], most=24).tolist() == []
