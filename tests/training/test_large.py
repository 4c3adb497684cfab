"""Colour, and sets that do not fit into memory: the same images, bits and weights as for those that do."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import generated_digits

from pipeline.base.errors import UserError
from pipeline.base.schema import Augment, Config, Convolution, Model
from pipeline.data import blocks, examples
from pipeline.data.examples import Examples, load_arrays, save_arrays
from pipeline.model import build, inference
from pipeline.training import feed, loop
from pipeline.training.augment import random_affine

IMAGES, LABELS = generated_digits(46, 0)
GREY = IMAGES[:, ::3, ::3]  # 10 x 10, for speed
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], 3)
STRIDED = Convolution(multiple=1, kernel_size=3, strides=2, padding="valid", pool=1)
SMALL = Model(filters=2, convolutions=[STRIDED], batch_norm=True, pooling="flatten", units=[4], pixel_scale=1 / 255)
AUGMENT = Augment(rotation=20.0, scale=0.2, stretch=0.1, shear=0.1, shift=2.0)


@pytest.fixture(scope="module", autouse=True)
def _threads() -> None:
    inference.start(0)


@pytest.fixture
def config(compose) -> Config:
    return compose("recipe=accurate", "optimizer.batch_size=5", "optimizer.ghost_batches=1", "train.epochs=2")


@pytest.fixture
def tiny_blocks(monkeypatch) -> None:
    """Everything is large, and a block is 3 images of 10 x 10 x 3."""
    for module in (blocks, examples):
        monkeypatch.setattr(module, "IN_MEMORY", 10)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(feed, "BLOCK_BYTES", 1000)


def fitted(config: Config, train: Examples) -> tuple[list[np.ndarray], list[loop.Epoch], int]:
    """Return the weights, the epochs, and how often the loop was compiled."""
    inference.start(3)
    cnn = build.build_cnn(SMALL, train.images.shape[1:], 10)
    traced = []

    class Watched(loop.Trainer):
        def run_epoch(self, *arguments):
            result = super().run_epoch(*arguments)
            traced.append(self.run_steps.experimental_get_tracing_count())
            return result

    original, loop.Trainer = loop.Trainer, Watched
    try:
        epochs = [epoch for epoch, _, _ in loop.fit(cnn, config, train, train, lambda *_: None)]
    finally:
        loop.Trainer = original
    return cnn.get_weights(), epochs, traced[-1]


@pytest.mark.parametrize("images", [GREY, pytest.param(COLOUR, marks=pytest.mark.slow)], ids=["grey", "colour"])
def test_a_set_on_the_disk_gives_the_weights_of_one_in_memory(config, tmp_path, tiny_blocks, monkeypatch, images):
    save_arrays(tmp_path / "train.npz", images=images, labels=LABELS, source_index=np.arange(46, dtype=np.int32))
    mapped = Examples(**load_arrays(tmp_path / "train.npz"))
    assert isinstance(mapped.images, np.memmap)
    weights, epochs, compiled = fitted(config, mapped)
    assert compiled == 1
    for module in (blocks, examples):
        monkeypatch.setattr(module, "IN_MEMORY", 2**20)
    expected_weights, expected, compiled = fitted(config, Examples(images, LABELS, mapped.source_index))
    assert compiled == 1
    assert all(map(np.array_equal, weights, expected_weights))
    assert epochs == expected  # 10 steps are 10 chunks for both


def test_a_chunk_holds_the_examples_of_its_steps_in_their_order(tiny_blocks):
    order = np.random.default_rng(0).permutation(46).astype(np.int32)
    seen = list(feed.chunks(COLOUR, tf.constant(LABELS, tf.int32), order, 5))
    assert [(chunk.first, chunk.last) for chunk in seen] == [(step, step + 1) for step in range(10)]
    np.testing.assert_array_equal(np.concatenate([chunk.images for chunk in seen]), COLOUR[order])
    np.testing.assert_array_equal(np.concatenate([chunk.labels for chunk in seen]), LABELS[order])


def test_large_arrays_are_mapped_and_read_and_hashed_as_small_ones(tmp_path, tiny_blocks):
    order = np.random.default_rng(1).permutation(46)
    arrays = {"images": COLOUR, "labels": LABELS.astype(np.uint16), "none": COLOUR[:0]}
    digests = save_arrays(tmp_path / "a.npz", **arrays, some=blocks.Rows(COLOUR, order[:20]))
    read = load_arrays(tmp_path / "a.npz")
    for name, expected in {**arrays, "some": COLOUR[order[:20]]}.items():
        np.testing.assert_array_equal(read[name], expected, strict=True)
        assert digests[name] == blocks.array_sha256(expected)
    with np.load(tmp_path / "a.npz") as archive:  # NumPy checks the sums of the zip format
        np.testing.assert_array_equal(archive["some"], COLOUR[order[:20]], strict=True)
    np.testing.assert_array_equal(blocks.gather(read["images"], order), COLOUR[order], strict=True)
    content = (tmp_path / "a.npz").read_bytes()
    for damaged in (content[:3000], content.replace(b"PK\3\4", b"PK\3\5", 1), content.replace(b"46, 10", b"99, 10", 1)):
        (tmp_path / "b.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"b\.npz is damaged, or no \.npz file of plain arrays"):
            load_arrays(tmp_path / "b.npz")


def resident() -> int:
    """MiB of this process that are pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) // 1024


def test_mapped_pages_are_given_back(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.ones((3000, 100_000), np.uint8))  # 300 MB
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    before = resident()
    assert array.sum(dtype=np.int64) == 300_000_000 and resident() - before > 250
    assert len(blocks.array_sha256(array)) == 64 and resident() - before < 100
    assert blocks.gather(array, np.arange(2999, -1, -1)).shape == (3000, 100_000) and resident() - before < 100
    most, give_back = [], blocks.give_back
    monkeypatch.setattr(blocks, "give_back", lambda mapped: (most.append(resident() - before), give_back(mapped)))
    picked = np.random.default_rng(0).permutation(3000)[:600]  # whole pages of 2 MB around each would be all of it
    assert blocks.gather(array, picked)[0, 0] == array[picked[0], 0] and 0 < max(most) < 280


def test_each_channel_moves_as_a_grey_image_does():
    seed = tf.constant([1, 2])
    moved = random_affine(tf.constant(COLOUR), seed, AUGMENT).numpy()
    assert moved.dtype == np.uint8 and moved.shape == COLOUR.shape and (moved != COLOUR).any()
    for channel in range(3):
        np.testing.assert_array_equal(moved[..., channel], random_affine(COLOUR[..., channel], seed, AUGMENT).numpy())
    down = inference.shifted(tf.constant(COLOUR), 1.0, 0.0).numpy()
    np.testing.assert_array_equal(down[:, 1:], COLOUR[:, :-1])
    assert not down[:, 0].any()


def test_pixels_are_normalised_by_channel():
    normalised = SMALL.model_copy(update={"pixel_mean": [0.5, 0.25, 0.0], "pixel_std": [0.5, 0.25, 1.0]})
    cnn = build.build_cnn(normalised, (10, 10, 3), 10)
    assert "channel" not in [layer.name for layer in cnn.layers] and cnn.input_shape == (None, 10, 10, 3)
    pixels = keras.Model(cnn.input, cnn.get_layer("pixels").output)(np.full((1, 10, 10, 3), 255, np.uint8))
    np.testing.assert_allclose(pixels[0, 0, 0], [(1 - 0.5) / 0.5, (1 - 0.25) / 0.25, 1.0], rtol=1e-6)
    plain = keras.Model((other := build.build_cnn(SMALL, (10, 10, 3), 10)).input, other.get_layer("pixels").output)
    np.testing.assert_array_equal(plain(COLOUR), (COLOUR * np.float32(1 / 255)))


@pytest.mark.parametrize("given", ["model.pixel_mean=[0.5]", "model.pixel_std=[1,1,1]", "+model.pixel_mean=[1,1,1]"])
def test_normalisation_needs_a_number_for_each_channel_in_both_lists(compose, given):
    with pytest.raises(UserError, match=r"give both a number for each of the 1 channels of the images"):
        compose(given.lstrip("+"))
