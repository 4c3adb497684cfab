"""Digits moved by known amounts, and the limits of the random ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
from conftest import generated_digits

from pipeline.base.schema import Augment
from pipeline.model import inference
from pipeline.model.inference import affine
from pipeline.training.augment import random_affine, strengths

NONE = Augment(rotation=0.0, scale=0.0, shear=0.0, shift=0.0)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> None:
    inference.start(0)


def moved(images, rotation=0.0, scale=1.0, stretch=1.0, shear=0.0, down=0.0, right=0.0) -> np.ndarray:
    amounts = [tf.fill([len(images)], float(amount)) for amount in (rotation, scale, stretch, shear, down, right)]
    result = affine(tf.constant(images), *amounts).numpy()
    assert result.dtype == np.uint8 and result.shape == images.shape
    return result


def dots(row: int, column: int, copies: int) -> np.ndarray:
    """One bright pixel in 21 x 21, whose centre (10, 10) is a pixel."""
    images = np.zeros((copies, 21, 21), np.uint8)
    images[:, row, column] = 240
    return images


def centroids(images: np.ndarray) -> np.ndarray:
    """Rows and columns [B, 2] of the ink's centre."""
    weights = images / images.sum((1, 2), keepdims=True)
    return np.stack([weights.sum(2) @ np.arange(21), weights.sum(1) @ np.arange(21)], 1)


@pytest.fixture
def blocks() -> np.ndarray:
    """Unlike under every turn and reflection, with paper all round."""
    images = np.zeros((2, 12, 12), np.uint8)
    images[0, 3:5, 4:9] = 200
    images[0, 5, 4] = 90
    images[1, 4:8, 3:5] = 255
    return images


def test_no_amounts_leave_every_pixel_as_it_is():
    images, _ = generated_digits(20, 0)
    np.testing.assert_array_equal(moved(images), images)
    unmoved = random_affine(tf.constant(images), tf.constant([1, 2]), NONE)
    np.testing.assert_array_equal(unmoved, images)


@pytest.mark.parametrize(("down", "right"), [(2, 1), (-1, 2), (0, -3)])
def test_a_shift_by_whole_pixels(blocks, down, right):
    np.testing.assert_array_equal(moved(blocks, down=down, right=right), np.roll(blocks, (down, right), (1, 2)))


def test_ink_shifted_over_the_edge_is_gone_and_paper_comes_in():
    images = np.full((1, 5, 5), 100, np.uint8)
    expected = np.zeros((1, 5, 5), np.uint8)
    expected[:, 2:, :-1] = 100
    np.testing.assert_array_equal(moved(images, down=2, right=-1), expected)


@pytest.mark.parametrize("quarters", [1, 2, -1])
def test_a_positive_rotation_turns_clockwise_about_the_centre(blocks, quarters):
    # np.rot90 turns counterclockwise for a positive k.
    turned = moved(blocks, rotation=quarters * math.pi / 2)
    np.testing.assert_array_equal(turned, np.rot90(blocks, -quarters, axes=(1, 2)))


def test_scale_2_doubles_about_the_centre():
    images = np.zeros((1, 7, 7), np.uint8)
    images[0, 3, 2:5] = 200  # 3 pixels wide, 1 high, in the middle
    expected = np.zeros((1, 7, 7))
    # At distance d from the centre stands what stood at d / 2: between pixels, half of each neighbour.
    across = np.array([100, 200, 200, 200, 200, 200, 100])
    expected[0, 2:5] = np.array([0.5, 1, 0.5])[:, None] * across
    np.testing.assert_array_equal(moved(images, scale=2.0), expected)
    np.testing.assert_array_equal(moved(expected.astype(np.uint8), scale=0.5)[0, 3], [0, 0, 200, 200, 200, 0, 0])


def test_stretch_2_doubles_the_width_and_halves_the_height_about_the_centre():
    images = np.zeros((1, 9, 9), np.uint8)
    images[0, 2:7, 3:6] = 200  # 3 pixels wide, 5 high, in the middle
    half = np.array([0, 0, 0, 1, 1, 1, 0, 0, 0])  # rows at -1, 0, 1 show what stood at -2, 0, 2
    across = np.array([0, 100, 200, 200, 200, 200, 200, 100, 0])
    np.testing.assert_array_equal(moved(images, stretch=2.0)[0], half[:, None] * across)


def test_shear_moves_rows_sideways_by_their_distance_from_the_centre():
    images = np.zeros((1, 7, 7), np.uint8)
    images[0, :, 3] = 200  # a column becomes a diagonal
    np.testing.assert_array_equal(moved(images, shear=1.0)[0], 200 * np.eye(7)[:, ::-1])
    np.testing.assert_array_equal(moved(images, shear=-1.0)[0], 200 * np.eye(7))


def test_rotation_comes_before_shear_and_both_before_the_shift(blocks):
    images = np.pad(blocks, ((0, 0), (6, 6), (6, 6)))
    one_by_one = moved(moved(moved(images, rotation=math.pi / 2), shear=1.0), down=2, right=1)
    together = moved(images, rotation=math.pi / 2, shear=1.0, down=2, right=1)
    np.testing.assert_array_equal(together, one_by_one)


def test_the_seed_decides_the_digits_and_every_digit_moves_by_its_own():
    images = tf.constant(dots(6, 13, copies=50))
    augment = Augment(rotation=30.0, scale=0.2, stretch=0.2, shear=0.2, shift=3.0)
    first, again = (random_affine(images, tf.constant([4, 7]), augment).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first, axis=0)) > 45
    for other in ([4, 8], [5, 7]):
        different = (random_affine(images, tf.constant(other), augment).numpy() != first).any((1, 2))
        assert different.sum() > 45


@pytest.mark.parametrize(
    ("amount", "row", "least", "most", "blur"),
    # blur: how far a dot's centroid may lie from where the dot went: grey values are whole, and after a turn or a
    # change of size the dot's pixels no longer weigh evenly.
    [
        ({"shift": 2.5}, 10, (7.5, 7.5), (12.5, 12.5), 0.02),
        ({"shear": 0.25}, 18, (18, 8), (18, 12), 0.02),
        ({"scale": 0.25}, 18, (16, 10), (20, 10), 0.2),
        # 6 pixels below the centre: 6 / 1.25 to 6 / 0.75.
        ({"stretch": 0.25}, 16, (14.8, 10), (18, 10), 0.2),
        # 8 pixels below the centre, turned by 30 degrees: 8 sin 30 to either side, and still 8 cos 30 below.
        ({"rotation": 30.0}, 18, (10 + 4 * math.sqrt(3), 6), (18, 14), 0.2),
    ],
    ids=["shift", "shear", "scale", "stretch", "rotation"],
)
def test_the_largest_amounts_are_nearly_reached_and_never_passed(amount, row, least, most, blur):
    augment = NONE.model_copy(update=amount)
    images = random_affine(tf.constant(dots(row, 10, copies=300)), tf.constant([0, 1]), augment).numpy()
    centres = centroids(images)
    assert (centres.min(0) >= np.subtract(least, blur)).all() and (centres.max(0) <= np.add(most, blur)).all()
    assert (centres.min(0) <= np.add(least, 0.2)).all() and (centres.max(0) >= np.subtract(most, 0.2)).all()


def test_strength_is_a_share_of_the_amounts():
    images = tf.constant(dots(10, 10, copies=300))
    whole, half, none = (
        centroids(random_affine(images, tf.constant([0, 1]), NONE.model_copy(update={"shift": 4.0}), strength).numpy())
        for strength in (1.0, 0.5, 0.0)
    )
    np.testing.assert_allclose(half - 10, (whole - 10) / 2, atol=0.05)
    assert np.ptp(whole) > 7 and (none == 10).all()


def test_strength_falls_from_whole_to_the_last_share():
    # Ten steps, their middles at .05, .15, ...: from .5 on it falls by 1 - .2 over the other half.
    falling = strengths(NONE.model_copy(update={"full_until": 0.5, "last": 0.2}), 10)
    np.testing.assert_allclose(falling, [1, 1, 1, 1, 1, 0.92, 0.76, 0.6, 0.44, 0.28], rtol=1e-6)
    assert falling.dtype == np.float32 and (strengths(NONE, 4) == 1).all()
