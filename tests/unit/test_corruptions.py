"""Corruptions: the ones with a definition by hand, all of them by what holds of each."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import generated_digits
from scipy import ndimage

from pipeline.apps.corruptions import CORRUPTIONS, corrupted

DIGITS = generated_digits(40, seed=0)[0]


def square() -> np.ndarray:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 9:19, 9:19] = 200
    return image


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_the_same_for_the_same_seed_alone_and_leaves_what_it_is_given(name):
    before = DIGITS.copy()
    once, again, other = (corrupted(DIGITS, name, seed) for seed in (0, 0, 1))
    assert np.array_equal(DIGITS, before)
    assert once.dtype == np.uint8 and once.shape == DIGITS.shape
    assert np.array_equal(once, again)
    by_chance = name not in ("identity", "scale", "brightness", "stripe", "edges", "inverse")
    assert np.array_equal(once, other) != by_chance
    assert np.array_equal(once, DIGITS) == (name == "identity")


def test_two_kinds_of_noise_have_the_strength_that_is_published():
    grey = np.full((50, 28, 28), 128, np.uint8)
    struck = corrupted(grey, "impulse_noise", 0)
    assert np.mean(struck == 0) == pytest.approx(0.085, abs=0.01)
    assert np.mean(struck == 255) == pytest.approx(0.085, abs=0.01)
    photons = corrupted(np.full((50, 28, 28), 51, np.uint8), "shot_noise", 0) / 255 * 3
    assert np.allclose(photons, np.rint(photons), atol=0.01)
    # Poisson's of 0.2 x 3, with more than 3 cut off.
    assert np.mean(photons) == pytest.approx(0.6, abs=0.02)
    assert np.mean(np.rint(photons) == 0) == pytest.approx(np.exp(-0.6), abs=0.01)


def test_brightness_stripe_and_inverse_by_hand():
    bright, striped, inverted = (corrupted(square(), name, 0)[0] for name in ("brightness", "stripe", "inverse"))
    assert bright[0, 0] == 128 and bright[14, 14] == 255
    assert striped[0, 0] == striped[0, 27] == 255 and striped[0, 7] == striped[0, 20] == 0
    assert striped[14, 9] == 200 and (striped[:, :7] == 255).all()
    assert inverted[0, 0] == 255 and inverted[14, 14] == 55


def test_translate_moves_by_three_pixels_each_way():
    corners = {tuple(np.argwhere(image > 100)[0]) for image in corrupted(np.repeat(square(), 40, 0), "translate", 0)}
    assert corners == {(6, 6), (6, 12), (12, 6), (12, 12)}


def test_scale_rotate_and_shear_keep_the_centre_and_have_their_size():
    bar = np.zeros((40, 28, 28), np.uint8)
    bar[:, 4:24, 13:15] = 255
    for name, height, slope in (
        ("scale", 14, 0),
        ("rotate", 20 * np.cos(0.4), np.tan(0.4)),
        ("shear", 20, np.tan(0.4)),
    ):
        images = corrupted(bar, name, 0).astype(float)
        slopes = set()
        for image in images:
            assert np.allclose(ndimage.center_of_mass(image), 13.5, atol=0.1)
            rows = np.flatnonzero(image.sum(1) > 128)
            assert np.ptp(rows) + 1 == pytest.approx(height, abs=2)
            middle = [np.average(np.arange(28), weights=image[row]) for row in rows[2:-2]]
            slopes.add(round(np.polyfit(rows[2:-2], middle, 1)[0], 1))
        assert slopes == ({round(slope, 1), -round(slope, 1)} if slope else {0.0})


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur"])
def test_blurs_keep_the_ink_and_spread_it(name):
    image = np.repeat(square(), 20, 0)
    blurred = corrupted(image, name, 0)
    assert blurred.sum(dtype=float) == pytest.approx(image.sum(dtype=float), rel=0.1)
    assert (blurred > 5).sum() > (image > 5).sum() * 1.2


@pytest.mark.parametrize("name", ["dotted_line", "zigzag"])
def test_lines_are_added_and_nothing_is_taken_away(name):
    image = np.repeat(square(), 20, 0)
    added = corrupted(image, name, 0).astype(int) - image
    assert added.min() >= 0 and all(line.max() > 150 for line in added)
    columns = [np.flatnonzero(line.max(0) > 100) for line in added]
    assert all(np.ptp(line) > 15 for line in columns)


@pytest.mark.parametrize("shape", [(40, 60), (12, 8), (1, 1)])
def test_lines_reach_from_side_to_side_of_images_of_any_shape(shape):
    dotted, zigzag = (corrupted(np.zeros((20, *shape), np.uint8), name, 0) for name in ("dotted_line", "zigzag"))
    if shape[1] > 1:
        assert all(image[:, -2].any() for image in dotted), "the last dot"
        assert dotted[:, shape[0] * 3 // 4 :].any(), "to the lowest rows"
        assert zigzag[:, :, shape[1] - 4].any() and zigzag[:, :, 3].any()


def test_edges_are_thin_lines_around_the_ink():
    [edges] = corrupted(square(), "edges", 0)
    assert set(np.unique(edges)) == {0, 255}
    assert 30 < (edges > 0).sum() < 60  # a square of side 10 has 36 to 40 pixels around it
    assert not edges[12:16, 12:16].any() and not edges[:6].any()
