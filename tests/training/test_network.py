"""From which probability on a network is sure, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline import engine
from pipeline.beyond import network
from pipeline.beyond.network import sure_above
from pipeline.config import Model, PipelineError
from pipeline.model import build_cnn, save_model


@pytest.mark.parametrize(
    ("confidence", "right", "share", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], 1.0, 0.6),  # all right: all are sure
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 1.0, 0.8),
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 0.75, 0.6),  # 3 of 4
        ([0.6, 0.7, 0.8, 0.9], [1, 0, 1, 1], 1.0, 0.8),  # whatever their order
        ([0.9, 0.8], [0, 1], 0.9, math.inf),  # none: even the surest is wrong
        ([1.0] * 100, [0] * 5 + [1] * 95, 0.999, math.inf),  # as the original, whose outputs are saturated
        ([0.8, 0.8, 0.8], [1, 1, 0], 1.0, math.inf),  # equals are sure or not together
        ([0.9, 0.8, 0.8], [1, 1, 0], 1.0, 0.9),
        ([], [], 0.9, math.inf),
    ],
)
def test_it_is_sure_where_so_many_of_the_validation_digits_are_right(confidence, right, share, expected):
    assert sure_above(np.array(confidence), np.array(right, bool), share) == expected


def test_a_network_without_validation_images_is_never_sure(tmp_path):
    engine.start(0)
    small = Model(2, [], False, "flatten", [], 1 / 255, "float32")
    save_model(tmp_path / "model.keras", build_cnn(small, (28, 28), 2))
    (tmp_path / "val_predictions.csv").write_text("index,label,prediction,probability_0,probability_1\n")
    found = network._network(
        tmp_path / "model.keras", tmp_path / "val_predictions.csv", 0.999, "mine", ["a", "b"], (28, 28)
    )
    assert not (np.array([1.0]) >= found.sure_above).any()
    probabilities = found.probabilities(np.zeros((3, 28, 28), np.uint8))
    assert probabilities.shape == (3, 2) and np.allclose(probabilities.sum(1), 1)


def test_a_network_for_images_of_another_shape_predicts_where_that_shape_is_asked_for(tmp_path):
    engine.start(0)
    small = Model(2, [], False, "flatten", [], 1 / 255, "float32")
    files = tmp_path / "model.keras", tmp_path / "val_predictions.csv"
    save_model(files[0], build_cnn(small, (12, 10), 2))
    files[1].write_text("index,label,prediction,probability_0,probability_1\n0,1,1,0.25,0.75\n")
    found = network._network(*files, 0.999, "mine", ["a", "b"], [12, 10])
    assert found.sure_above == 0.75 and found.probabilities(np.zeros((3, 12, 10), np.uint8)).shape == (3, 2)
    with pytest.raises(PipelineError, match=r"mine takes images of \(12, 10\), expected \(28, 28\): name another"):
        network._network(*files, 0.999, "mine", ["a", "b"], [28, 28])
