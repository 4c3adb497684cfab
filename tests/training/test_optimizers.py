"""Keras's optimizers in our loop: step by step what `fit` does with them, and resumed to the same bits."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, get_args

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import generated_digits
from keras import layers

from pipeline.base.errors import UserError
from pipeline.base.optimizers import ARGUMENTS, CLIPPING, CONV_MUON, REFUSED, OptimizerName
from pipeline.base.schema import Augment, Optimizer
from pipeline.model import inference
from pipeline.training import checkpoint, loop, optimizer

IMAGES, LABELS = generated_digits(50, 0)
IMAGES = IMAGES[:, ::3, ::3]  # 10 x 10, for speed; in batches of 5: ten steps
RATES = np.linspace(0.002, 0.001, 10).astype(np.float32)  # another one at each step
NO_AUGMENT = Augment(rotation=0.0, scale=0.0, shear=0.0, shift=0.0)
SEED = 7
CHECKED = {"resume_key": "any"}
NESTEROV = {"momentum": 0.9, "nesterov": True}


def settings(name: str, args: dict[str, Any], decay: float = 0.0) -> Optimizer:
    return Optimizer(
        batch_size=5,
        name=name,
        args=args,
        learning_rate=0.001,
        schedule="constant",
        warmup=0.0,
        weight_decay=decay,
        label_smoothing=0.0,
    )


def built(batch_norm: bool = False, dropout: float = 0.0, seed: int = 0) -> keras.Model:
    """A small network with kernels of four and of two dimensions."""
    inference.start(seed)
    images = layers.Input((10, 10), dtype="uint8")
    x = layers.Conv2D(4, 3, strides=2, use_bias=not batch_norm)(
        layers.Rescaling(1 / 255)(layers.Reshape((10, 10, 1))(images))
    )
    x = layers.ReLU()(layers.BatchNormalization()(x) if batch_norm else x)
    x = layers.Dropout(dropout)(layers.Dense(8, activation="relu")(layers.Flatten()(x)))
    return keras.Model(images, layers.Dense(10, name="logits")(x))


def train(trainer: loop.Trainer, first: int, last: int, epoch: int = 0) -> float:
    """Train on the batches from `first` to below `last`, as one epoch; return its loss."""
    part = slice(5 * first, 5 * last)
    schedule = loop.Schedule(RATES[first:last], np.ones(last - first, np.float32))
    images, labels = tf.constant(IMAGES[part]), tf.constant(LABELS[part], tf.int32)
    return trainer.run_epoch(images, labels, schedule, epoch, lambda *_: None)[0]


def fitted(model: keras.Model, reference: keras.Optimizer) -> float:
    """Train by Keras's own `fit` on the same batches at the same rates; return its loss."""
    reference.exclude_from_weight_decay(var_list=[one for one in model.trainable_variables if len(one.shape) < 2])
    model.compile(reference, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    order = np.random.default_rng([SEED, 0]).permutation(50)
    rate = keras.callbacks.LambdaCallback(on_train_batch_begin=lambda i, logs: reference.learning_rate.assign(RATES[i]))
    shuffled = IMAGES[order], LABELS[order]
    return model.fit(*shuffled, batch_size=5, shuffle=False, verbose=0, callbacks=[rate]).history["loss"][0]


FAST = [
    ("sgd", NESTEROV, 0.0, keras.optimizers.SGD),
    ("adamw", {}, 0.02, keras.optimizers.AdamW),
]
SLOW = [
    ("muon", {"exclude_layers": ["logits"]}, 0.02, keras.optimizers.Muon),
    ("sgd", {"momentum": 0.9, "clipvalue": 0.01}, 0.02, keras.optimizers.SGD),
    ("adam", {"beta_2": 0.99, "amsgrad": True}, 0.02, keras.optimizers.Adam),
    ("adam", {"global_clipnorm": 0.1}, 0.0, keras.optimizers.Adam),
    ("adamax", {}, 0.0, keras.optimizers.Adamax),
    ("nadam", {}, 0.02, keras.optimizers.Nadam),
    ("rmsprop", {"momentum": 0.5, "centered": True}, 0.0, keras.optimizers.RMSprop),
    ("adagrad", {}, 0.02, keras.optimizers.Adagrad),
    ("adadelta", {}, 0.0, keras.optimizers.Adadelta),
    ("ftrl", {"l2_regularization_strength": 0.01}, 0.0, keras.optimizers.Ftrl),
    ("lamb", {}, 0.02, keras.optimizers.Lamb),
    ("lion", {}, 0.02, keras.optimizers.Lion),
]


@pytest.mark.parametrize(
    ("name", "args", "decay", "kind"), [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]
)
@pytest.mark.parametrize("batch_norm", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ten_steps_are_ten_steps_of_fit(name, args, decay, kind, batch_norm):
    ours, theirs = built(batch_norm), built(batch_norm)
    before = ours.get_weights()
    loss = train(loop.Trainer(ours, settings(name, args, decay), NO_AUGMENT, SEED), 0, 10)
    decays = {"weight_decay": decay or None} | ({"adam_weight_decay": decay} if name == "muon" else {})
    expected = fitted(theirs, kind(**args, **decays))
    assert loss == pytest.approx(expected, rel=1e-4)
    tolerance = 2e-3 if batch_norm else 1e-6  # fused batch norm rounds otherwise
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance)
    moved = [np.abs(one - was).max() for one, was in zip(ours.get_weights(), before, strict=True)]
    assert min(moved) > (1e-6 if name == "adadelta" else 1e-4)


@pytest.mark.slow  # tests/tracking/test_patience.py has one such training whole
@pytest.mark.parametrize(("name", "args"), [("sgd", NESTEROV), *((name, {}) for name in ARGUMENTS)])
def test_a_training_resumed_after_five_steps_gives_the_same_bits(name, args, tmp_path: Path):
    """Dropout's seeds among them."""
    asked = settings(name, args, 0.02)
    uninterrupted = loop.Trainer(built(dropout=0.5), asked, NO_AUGMENT, SEED)
    train(uninterrupted, 0, 5)
    state = uninterrupted.state()
    train(uninterrupted, 5, 10, 1)
    file = checkpoint.save(tmp_path, CHECKED, checkpoint.Checkpoint([{"epoch": 1}], state))
    resumed = loop.Trainer(built(dropout=0.5, seed=1), asked, NO_AUGMENT, SEED, checkpoint.load(file, CHECKED).state)
    train(resumed, 5, 10, 1)
    for one, other in zip(uninterrupted.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)
    if not args and name in ("sgd", "ftrl"):  # the one remembers nothing, the other divides by what it remembers
        return
    lost = state._replace(optimizer=[np.zeros_like(array) for array in state.optimizer])
    without = loop.Trainer(built(dropout=0.5, seed=1), asked, NO_AUGMENT, SEED, lost)
    train(without, 5, 10, 1)
    assert not np.array_equal(without.model.get_weights()[0], resumed.model.get_weights()[0])


def orthogonal_by_hand(matrix: np.ndarray, steps: int) -> np.ndarray:
    """Return what the iteration makes of the singular values, by their decomposition instead of products."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt(np.sum(values**2))
    for _ in range(steps):
        values = 3.4445 * values - 4.775 * values**3 + 2.0315 * values**5
    return (left * values) @ right


def test_conv_muon_moves_kernels_of_convolutions_by_an_orthogonal_matrix_and_adam_moves_the_rest():
    generator = np.random.default_rng(0)
    shapes = [(2, 2, 3, 5), (1, 1, 2, 8), (4, 3), (5,)]  # a tall kernel, a wide one, of a dense layer, a bias
    begin = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    gradients = [[generator.normal(size=shape).astype(np.float32) for shape in shapes] for _ in range(2)]
    moved = [keras.Variable(value, name="kernel") for value in begin]
    ours = optimizer.make_optimizer(settings(CONV_MUON, {"adam_lr_ratio": 0.25, "momentum": 0.5}, 0.5), moved)
    rest = [keras.Variable(value) for value in begin[2:]]
    adam = optimizer.Adam(rest, 0.5)
    for step, values in enumerate(gradients):
        ours.apply([tf.constant(value) for value in values], tf.constant(0.125), tf.constant(step))
        adam.apply([tf.constant(value) for value in values[2:]], tf.constant(0.03125), tf.constant(step))
    for one, other in zip(moved[2:], rest, strict=True):
        np.testing.assert_array_equal(one, other)
    for index, length in ((0, 1.0), (1, 2.0)):  # the square root of 8 filters for 2 inputs
        first, second = (values[index].astype(np.float64) for values in gradients)
        kernel = begin[index].astype(np.float64)
        for ahead in (1.5 * first, second + 0.5 * (0.5 * first + second)):
            change = orthogonal_by_hand(ahead.reshape(-1, shapes[index][-1]), 5).reshape(shapes[index])
            kernel = kernel * (1 - 0.125 * 0.5) - 0.125 * length * change
        np.testing.assert_allclose(moved[index], kernel, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "steps"), [((40, 8), 1), ((40, 8), 5), ((8, 40), 5), ((40, 8), 7)])
def test_many_steps_on_a_matrix_with_small_singular_values_are_those_of_each_value(shape, steps):
    """On one Gram matrix the rounding of seven steps would grow to 1e-7 times twelve to that power, 3.6."""
    left, _, right = np.linalg.svd(np.random.default_rng(0).normal(size=shape), full_matrices=False)
    matrix = (left * np.logspace(0, -4, 8)) @ right
    expected = orthogonal_by_hand(matrix, steps)
    np.testing.assert_allclose(optimizer.nearly_orthogonal(tf.constant(matrix, tf.float32), steps), expected, atol=1e-3)


def test_five_steps_bring_singular_values_above_a_hundredth_near_one():
    values = np.array([1.0, 0.5, 0.1, 0.01])
    left, right = (np.linalg.qr(np.random.default_rng(n).normal(size=(size, 4)))[0] for n, size in ((0, 9), (1, 6)))
    matrix = tf.constant((left * values) @ right.T, tf.float32)
    after = np.linalg.svd(optimizer.nearly_orthogonal(matrix, 5), compute_uv=False)[:4]
    assert after.min() > 0.65 and after.max() < 1.25, after


def test_decay_multiplies_kernels_alone_whatever_the_optimizer():
    """At a gradient of zero a step of SGD is the decay alone."""
    kernel = keras.Variable(np.full((2, 3), 2.0, np.float32))
    scale = keras.Variable(np.full(3, 2.0, np.float32))
    moving = optimizer.make_optimizer(settings("sgd", NESTEROV, 0.5), [kernel, scale])
    moving.apply([tf.zeros((2, 3)), tf.zeros(3)], tf.constant(0.125), tf.constant(0))
    assert kernel.numpy().tolist() == [[2 * (1 - 0.125 * 0.5)] * 3] * 2 and scale.numpy().tolist() == [2.0] * 3


@pytest.mark.parametrize("name", ["ftrl", "adam", "sgd"])
def test_a_variable_without_a_gradient_stays_as_it_is(name):
    """Ftrl would set it to 0 at a gradient of zero."""
    used, unused = (keras.Variable(np.full((2, 2), 2.0, np.float32)) for _ in range(2))
    moving = optimizer.make_optimizer(settings(name, {}, 0.5), [used, unused])
    moving.apply([tf.ones((2, 2)), None], tf.constant(0.125), tf.constant(0))
    assert unused.numpy().tolist() == [[2.0, 2.0]] * 2 and not (used.numpy() == 2).any()


def test_adam_as_it_is_stays_our_own_and_with_arguments_it_is_kerass():
    variables = [keras.Variable(np.ones((2, 2), np.float32))]
    assert isinstance(optimizer.make_optimizer(settings("adam", {}, 0.1), variables), optimizer.Adam)
    kept = optimizer.make_optimizer(settings("adam", {"beta_1": 0.8}), variables)
    assert isinstance(kept, optimizer.KerasOptimizer) and kept.optimizer.beta_1 == 0.8


def test_what_is_said_of_the_arguments_is_what_the_constructors_take():
    assert set(ARGUMENTS) == set(get_args(OptimizerName))
    kinds = {name.lower(): kind for name, kind in vars(keras.optimizers).items()}
    for name, ours in ARGUMENTS.items():
        own = optimizer.ConvMuon if name == CONV_MUON else None
        signature = inspect.signature((own or kinds[name]).__init__).parameters
        theirs = {
            key: one.default for key, one in signature.items() if key not in ("self", "variables", "kwargs", *REFUSED)
        }
        ours = ours | CLIPPING if own is None else ours
        assert ours == {key: [] if key == "exclude_layers" else value for key, value in theirs.items()}, name


def test_a_value_that_the_optimizer_refuses_is_one_line():
    with pytest.raises(UserError, match=r"\Aoptimizer\.args: [^\n]*\Z"):
        optimizer.make_optimizer(settings("sgd", {"clipnorm": 1.0, "clipvalue": 1.0}), [])
