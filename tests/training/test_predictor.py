"""Which predictor a configuration names, and below which probability it abstains, by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.looks import compare_looks
from pipeline.apps.predictor import (
    JOINED,
    SIGN,
    UNSURE,
    Predictor,
    confidence_threshold,
    load_predictor,
    unsure_below,
)
from pipeline.base.errors import UserError
from pipeline.base.files import save_json, write_text
from pipeline.base.project import Project
from pipeline.base.schema import Model
from pipeline.base.validation import validate
from pipeline.base.verb_schemas import PredictorConfig
from pipeline.data.examples import Examples, split_record
from pipeline.metrics.metrics import softmax
from pipeline.model.build import build_cnn
from pipeline.model.files import load_model, save_model
from pipeline.model.inference import inference, looks_again, predict, start

COLUMNS = "index,label,prediction,probability_0,probability_1\n"


@pytest.mark.parametrize(
    ("probability", "correct", "share", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 1, 1], 1.0, 0.6),  # all are correct: it never abstains
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 1.0, 0.8),
        ([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], 0.75, 0.6),  # 3 of 4
        ([0.6, 0.7, 0.8, 0.9], [1, 0, 1, 1], 1.0, 0.8),  # whatever their order
        ([0.9, 0.8], [0, 1], 0.9, math.inf),  # none: even the most probable one is wrong
        ([1.0] * 100, [0] * 5 + [1] * 95, 0.999, math.inf),  # as of the original, whose outputs are saturated
        ([0.8, 0.8, 0.8], [1, 1, 0], 1.0, math.inf),  # equals are taken together
        ([0.9, 0.8, 0.8], [1, 1, 0], 1.0, 0.9),
        ([], [], 0.9, math.inf),
    ],
)
def test_it_abstains_below_where_so_many_validation_predictions_are_correct(probability, correct, share, expected):
    assert confidence_threshold(np.array(probability), np.array(correct, bool), share) == expected


def project_with_model(compose, folder: Path, shape: list[int], predictions: str) -> tuple[Project, PredictorConfig]:
    """A project with an untrained model of two classes as recipe baseline, and its validation predictions."""
    config = validate(PredictorConfig, compose("recipe=baseline").model_dump())
    data = config.data.model_copy(update={"image_shape": shape, "classes": ["a", "b"]})
    project = Project(folder, folder)
    start(0)
    model = Model(filters=2, convolutions=[], batch_norm=False, pooling="flatten", units=[], pixel_scale=1 / 255)
    save_model(project.model("baseline"), build_cnn(model, shape, 2))
    write_text(project.recipe_results("baseline") / "val_predictions.csv", COLUMNS + predictions)
    save_json(project.processed / "split.json", split_record(data))
    return project, config.model_copy(update={"data": data})


def test_a_recipes_model_predicts_images_of_its_shape_and_abstains_below_its_threshold(compose, tmp_path):
    project, config = project_with_model(compose, tmp_path, [12, 10], "0,1,1,0.25,0.75\n1,0,1,0.4,0.6\n")
    predictor = load_predictor(project, config)
    assert (predictor.threshold, predictor.description) == (0.75, "recipe baseline")
    assert predictor.abstains(np.array([[0.25, 0.75], [0.26, 0.74]])).tolist() == [False, True]
    probabilities = predictor.probabilities(np.zeros((3, 12, 10), np.uint8))
    assert probabilities.shape == (3, 2) and np.allclose(probabilities.sum(1), 1)
    data = config.data.model_copy(update={"image_shape": [28, 28]})
    with pytest.raises(UserError, match=r"recipe baseline takes images of \[12, 10\], expected \[28, 28\]: name anot"):
        load_predictor(project, config.model_copy(update={"data": data}))


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        ([i / 100 for i in range(100)], 0.06),  # six of a hundred are below it
        ([0.9] * 10 + [0.5] * 3, 0.5),  # three equals are more than 6 %: none is below
        ([0.25], 0.25),
        ([], 0.0),
    ],
)
def test_at_most_six_percent_of_the_validation_predictions_are_unsure(probability, expected):
    assert unsure_below(np.array(probability)) == expected
    assert np.mean(np.array(probability) < expected) <= 0.06 if probability else expected == 0


def small_network(shape: tuple[int, int]):
    """An untrained network of two classes that tells images and their shifts apart."""
    start(0)
    model = Model(filters=2, convolutions=[], batch_norm=False, pooling="flatten", units=[4], pixel_scale=1 / 255)
    return build_cnn(model, shape, 2)


def test_only_what_one_look_is_unsure_of_gets_five():
    network = small_network((12, 10))
    images = np.random.default_rng(0).integers(0, 256, (40, 12, 10)).astype(np.uint8)
    once, five = predict(network, images), predict(network, images, 5)
    assert not np.isclose(once, five).any()
    probability = softmax(once).max(1)
    below = float(np.sort(probability)[10])
    unsure = probability < below
    assert unsure.sum() == 10
    logits = looks_again(network, below)(images)
    assert np.array_equal(logits[~unsure], once[~unsure])
    assert np.allclose(logits[unsure], five[unsure], atol=1e-5)
    assert np.array_equal(looks_again(network, 0.0)(images), once)


def test_the_other_looks_are_the_four_shifts():
    network = small_network((12, 10))
    images = np.zeros((1, 12, 10), np.uint8)
    images[0, 5, 4] = 255
    moved = [np.roll(images, shift, axis) for shift, axis in ((1, 1), (-1, 1), (1, 2), (-1, 2))]
    expected = np.mean([predict(network, image) for image in moved], axis=0)
    assert np.allclose(inference(network, 5, first=1)(images), expected, atol=1e-6)


@pytest.mark.slow
def test_the_benchmark_counts_the_errors_of_each_way_to_look(tmp_path):
    network = small_network((12, 10))
    images = np.random.default_rng(0).integers(0, 256, (100, 12, 10)).astype(np.uint8)
    once, five = predict(network, images), predict(network, images, 5)
    differ = int(np.sum(once.argmax(1) != five.argmax(1)))
    again = looks_again(network, unsure_below(softmax(once).max(1)))(images)
    left = int(np.sum(again.argmax(1) != five.argmax(1)))
    assert 0 < left < differ  # else the three counts say nothing
    save_model(tmp_path / "model.keras", network)
    labels = five.argmax(1).astype(np.uint8)
    table = compare_looks(tmp_path / "model.keras", Examples(images, labels, np.arange(100, dtype=np.int32)), 0.5)
    errors = [int(line.split("|")[2]) for line in table.splitlines()[2:5]]
    assert errors == [differ, left, 0] and "n = 100, 6.0 % below the limit" in table


@pytest.mark.parametrize(("shifts", "again", "looks"), [(1, True, 1), (5, True, 5), (5, False, 1)])
def test_a_model_evaluated_with_test_time_augmentation_predicts_with_it_where_it_is_unsure(
    compose, tmp_path, shifts, again, looks
):
    project, config = project_with_model(compose, tmp_path, [12, 10], "0,1,1,0.0,1.0\n")  # 1.0: all is unsure
    evaluated = config.evaluate.model_copy(update={"tta_shifts": shifts})
    predictor = load_predictor(project, config.model_copy(update={"evaluate": evaluated}), again)
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 10)).astype(np.uint8)
    expected = softmax(predict(load_model(project.model("baseline")), images, looks))
    assert np.allclose(predictor.probabilities(images), expected, atol=1e-6)


def test_it_says_why_it_abstains_and_what_weighs_most_first(compose):
    """Of each image by its first pixel: digits that touch, a sign, a low probability, and one that it is sure of."""

    def probabilities(images):
        highest = np.where(images[:, 0, 0] % 2, 0.4, 0.9)
        return np.stack([highest, 1 - highest], 1)

    predictor = Predictor(probabilities, 0.7, "", compose().data, lambda images: images[:, 0, 0] >= 4)
    images = np.zeros((8, 28, 28), np.uint8)
    images[:, 0, 0] = range(8)
    joined = np.array([0, 0, 1, 1, 0, 0, 1, 1], bool)
    expected = ["", UNSURE, JOINED, JOINED, SIGN, SIGN, JOINED, JOINED]
    assert predictor.answers(images, joined)[1] == expected
    assert predictor.answers(images)[1] == ["", UNSURE, "", UNSURE, SIGN, SIGN, SIGN, SIGN]


def test_a_model_without_validation_examples_always_abstains(compose, tmp_path):
    predictor = load_predictor(*project_with_model(compose, tmp_path, [28, 28], ""))
    assert predictor.abstains(np.array([[0.0, 1.0]])).all()


def test_a_threshold_of_a_rounded_probability_is_reached_by_that_probability(compose, tmp_path):
    """The file says 1 of 0.9999997, and the model abstained on all that it was sure of."""
    predictor = load_predictor(*project_with_model(compose, tmp_path, [28, 28], "0,1,1,3e-7,1\n1,0,1,0.4,0.6\n"))
    assert predictor.threshold == 1
    assert predictor.abstains(np.array([[3e-7, 0.9999997], [3e-6, 0.999997]])).tolist() == [False, True]


def test_two_models_or_one_of_another_split_are_an_error(compose, tmp_path):
    project, config = project_with_model(compose, tmp_path, [28, 28], "")
    with pytest.raises(UserError, match="run=x and alias=champion: give one of them"):
        load_predictor(project, config.model_copy(update={"run": "x", "alias": "champion"}))
    data = config.data.model_copy(update={"split_seed": 1})
    with pytest.raises(UserError, match=r"data\.split_seed=1, but the split in .* was made with 0"):
        load_predictor(project, config.model_copy(update={"data": data}))
