"""The loop trains any Keras model as Keras's own `fit` does, and a resumed training gives the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import generated_digits
from keras import layers, regularizers

from pipeline.base.schema import Augment, Convolution, Model, Optimizer
from pipeline.model import inference
from pipeline.model.build import BRANCHES, build_cnn
from pipeline.training import checkpoint, loop
from pipeline.training.accelerate import accelerated, merge_groups

# 50 examples in batches of 5: ten steps.
ADAM = Optimizer(
    batch_size=5, learning_rate=0.001, schedule="constant", warmup=0.0, weight_decay=0.0, label_smoothing=0.0
)
NO_AUGMENT = Augment(rotation=0.0, scale=0.0, shear=0.0, shift=0.0)
IMAGES, LABELS = generated_digits(50, 0)
IMAGES = IMAGES[:, ::3, ::3]  # 10 x 10, for speed
SEED = 7
CHECKED = {"resume_key": "any"}


def functional(inner: Callable[[keras.KerasTensor], keras.KerasTensor]) -> keras.Model:
    """Put `inner` between the pixels, float32 [B, 10, 10, 1] in 0..1, and the logits."""
    images = layers.Input((10, 10), dtype="uint8")
    x = layers.Rescaling(1 / 255)(layers.Reshape((10, 10, 1))(images))
    return keras.Model(images, layers.Dense(10)(inner(x)))


def convolution(filters: int = 4, **options: object) -> layers.Layer:
    return layers.Conv2D(filters, 3, padding="same", use_bias=False, **options)


def regularised() -> keras.Model:
    """With losses of kernels, of a batch norm's scale and of activations, and a kernel whose norm is bounded."""
    l2, bound = regularizers.L2(0.1), keras.constraints.MaxNorm(0.1)

    def inner(x: keras.KerasTensor) -> keras.KerasTensor:
        x = layers.ReLU()(layers.BatchNormalization()(convolution(kernel_regularizer=l2)(x)))
        x = layers.ReLU()(layers.BatchNormalization(gamma_regularizer=l2)(convolution()(x)))
        x = layers.Dense(6, kernel_constraint=bound, activity_regularizer=regularizers.L2(0.01))(layers.Flatten()(x))
        return layers.Dense(6)(x)

    return functional(inner)


def dropout() -> keras.Model:
    """With two dropouts, and a batch norm that is fused beside them."""

    def inner(x: keras.KerasTensor) -> keras.KerasTensor:
        x = layers.ReLU()(layers.BatchNormalization()(convolution()(x)))
        x = layers.Flatten()(layers.SpatialDropout2D(0.25)(x))
        return layers.Dropout(0.5)(layers.Dense(16, activation="relu")(x))

    return functional(inner)


def branched() -> keras.Model:
    """With a residual branch, a Sequential as a layer, a batch norm that is not trained, and layer normalisation."""
    block = keras.Sequential([convolution(), layers.BatchNormalization(), layers.ReLU()])

    def inner(x: keras.KerasTensor) -> keras.KerasTensor:
        trunk = layers.BatchNormalization(trainable=False)(convolution()(x))
        branch = layers.BatchNormalization()(convolution()(block(trunk)))
        return layers.LayerNormalization()(layers.GlobalAveragePooling2D()(layers.Add()([trunk, branch])))

    return functional(inner)


def shared() -> keras.Model:
    """With a convolution and a batch norm that are used twice each."""

    def inner(x: keras.KerasTensor) -> keras.KerasTensor:
        twice, norm = convolution(), layers.BatchNormalization()
        x = convolution()(x)
        return layers.Flatten()(norm(twice(norm(twice(x)))))

    return functional(inner)


def sequential() -> keras.Model:
    return keras.Sequential(
        [
            layers.Input((10, 10), dtype="uint8"),
            layers.Reshape((10, 10, 1)),
            layers.Rescaling(1 / 255),
            convolution(),
            layers.BatchNormalization(),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10),
        ]
    )


class Subclassed(keras.Model):
    """Python code with dropout, a regularisation loss of its own, and a variable that has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm = layers.Dense(16, use_bias=False), layers.BatchNormalization()
        self.drop = layers.Dropout(0.5)
        self.logits = layers.Dense(10)

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.unused = self.add_weight(shape=(2,), name="unused")
        super().build(shape)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.hidden(tf.reshape(tf.cast(images, tf.float32) / 255, (-1, 100)))
        self.add_loss(0.01 * tf.reduce_sum(self.hidden.kernel**2))
        return self.logits(self.drop(tf.nn.relu(self.norm(x, training=training)), training=training))


def subclassed() -> keras.Model:
    model = Subclassed()
    model(IMAGES[:1])
    return model


class Inherited(keras.Model):
    """A functional model of a class of its own."""

    def __init__(self, filters: int) -> None:
        images = layers.Input((10, 10), dtype="uint8")
        x = layers.BatchNormalization()(convolution(filters)(layers.Rescaling(1 / 255)(images[..., None])))
        super().__init__(images, layers.Dense(10)(layers.Flatten()(x)))


def inherited() -> keras.Model:
    return Inherited(3)


POOLED = Convolution(multiple=1, kernel_size=3, strides=1, padding="same", pool=2)
VALID = Convolution(multiple=1, kernel_size=3, strides=1, padding="valid", pool=1)


def built_in(layer: Convolution = POOLED, batch_norm: bool = True) -> keras.Model:
    """The network of the configuration's keys, with dropout before each dense layer."""
    settings = Model(
        filters=4,
        convolutions=[layer],
        batch_norm=batch_norm,
        pooling="flatten",
        units=[8],
        pixel_scale=1 / 255,
        dropout=0.3,
    )
    model = build_cnn(settings, (10, 10), 10)
    kinds = [type(layer) for layer in model.layers[-5:]]
    assert kinds == [layers.Flatten, layers.Dropout, layers.Dense, layers.Dropout, layers.Dense]
    assert {layer.rate for layer in model.layers if isinstance(layer, layers.Dropout)} == {0.3}
    return model


SELDOM = [built_in, shared, sequential, inherited]
BUILDERS = [regularised, dropout, branched, subclassed, *(pytest.param(one, marks=pytest.mark.slow) for one in SELDOM)]


def built(build: Callable[[], keras.Model], seed: int = 0) -> keras.Model:
    """Build a model whose weights and dropouts are decided by `seed`."""
    inference.start(seed)
    return build()


def train(trainer: loop.Trainer, steps: int, epoch: int) -> tuple[float, float]:
    """Run one epoch of `steps` batches on the first examples."""
    count = steps * ADAM.batch_size
    schedule = loop.Schedule(np.full(steps, ADAM.learning_rate, np.float32), np.ones(steps, np.float32))
    images, labels = tf.constant(IMAGES[:count]), tf.constant(LABELS[:count], tf.int32)
    return trainer.run_epoch(images, labels, schedule, epoch, lambda *_: None)


@pytest.mark.filterwarnings("ignore:Gradients do not exist for variables:UserWarning")  # Keras's, of the unused one
@pytest.mark.parametrize("build", BUILDERS)
def test_ten_steps_are_ten_steps_of_fit(build):
    ours, reference = built(build), built(build)
    before = ours.get_weights()
    loss, accuracy = train(loop.Trainer(ours, ADAM, NO_AUGMENT, SEED), 10, 0)
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = [
        keras.metrics.SparseCategoricalCrossentropy("nats", from_logits=True),
        keras.metrics.SparseCategoricalAccuracy("accuracy"),
    ]
    # Eagerly: compiling it takes longer than its ten steps.
    adam = keras.optimizers.Adam(0.001, epsilon=1e-7)
    reference.compile(adam, cross_entropy, metrics=metrics, jit_compile=False, run_eagerly=True)
    order = np.random.default_rng([SEED, 0]).permutation(50)
    history = reference.fit(IMAGES[order], LABELS[order], batch_size=5, shuffle=False, verbose=0).history
    assert loss == pytest.approx(history["nats"][0], rel=1e-4)
    assert accuracy == pytest.approx(history["accuracy"][0], abs=1e-6)
    assert len(ours.get_weights()) == len(reference.get_weights())
    for weight, expected in zip(ours.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(weight, expected, rtol=1e-3, atol=2e-5)
    assert max(np.abs(was - now).max() for was, now in zip(before, ours.get_weights(), strict=True)) > 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("build", [built_in, dropout, subclassed])
def test_a_training_resumed_after_five_steps_gives_the_same_bits(build, tmp_path: Path):
    uninterrupted = loop.Trainer(built(build), ADAM, NO_AUGMENT, SEED)
    train(uninterrupted, 5, 0)
    state = uninterrupted.state()
    train(uninterrupted, 5, 1)
    file = checkpoint.save(tmp_path, CHECKED, checkpoint.Checkpoint([{"epoch": 1}], state))
    restored = checkpoint.load(file, CHECKED).state
    resumed = loop.Trainer(built(build, seed=1), ADAM, NO_AUGMENT, SEED, restored)
    train(resumed, 5, 1)
    for one, other in zip(uninterrupted.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


@pytest.mark.slow
def test_every_step_drops_other_units_and_the_seed_decides_which():
    """Without learning, the losses of two epochs of one batch differ by the dropped units alone."""

    def losses(seed: int) -> list[float]:
        model = built(sequential)
        [drop] = [layer for layer in model.layers if isinstance(layer, layers.Dropout)]
        drop.seed_generator.state.assign([seed, 0])
        trainer = loop.Trainer(model, ADAM.model_copy(update={"batch_size": 50}), NO_AUGMENT, SEED)
        schedule = loop.Schedule(np.zeros(1, np.float32), np.ones(1, np.float32))
        images, labels = tf.constant(IMAGES), tf.constant(LABELS, tf.int32)
        return [trainer.run_epoch(images, labels, schedule, epoch, lambda *_: None)[0] for epoch in range(3)]

    first = losses(1)
    assert len(set(first)) == 3 and first == losses(1) and not set(first) & set(losses(2))


def test_a_subclassed_model_predicts_and_has_a_shape_for_no_images():
    model = built(subclassed)
    logits = inference.predict(model, IMAGES)
    np.testing.assert_allclose(logits, model(IMAGES, training=False), rtol=1e-5, atol=1e-6)
    assert inference.predict(model, IMAGES[:0]).shape == (0, 10)


def published(inner: Callable = lambda x: x, colours: int = 1, **options: object) -> keras.Model:
    """The published model in small, whose convolution can be cut into groups but for what is given."""
    images = layers.Input((10, 10, colours), dtype="uint8")
    x = layers.Flatten()(layers.ReLU()(layers.Conv2D(3, (3, 2))(layers.Rescaling(1 / 255)(images))))
    x = inner(layers.Dense(6, activation="relu", **options)(x))
    return keras.Model(images, layers.Dense(10)(x))


@pytest.mark.parametrize("groups", [2, 3, 1000])
@pytest.mark.parametrize("colours", [1, 3])
def test_groups_of_filters_compute_what_the_model_does_and_are_put_back(colours, groups):
    model = built(lambda: published(colours=colours))
    images = generated_digits(20 * colours, 1)[0][:, ::3, ::3].reshape(20, 10, 10, colours)
    grouped = accelerated(model, groups)
    assert len(grouped.get_layer("filter_groups").kernels) == min(groups, 3)
    np.testing.assert_allclose(grouped(images), model(images), rtol=1e-5, atol=1e-5)
    before = model.get_weights()
    merge_groups(model, grouped)
    assert all(np.array_equal(now, then) for now, then in zip(model.get_weights(), before, strict=True))


def test_the_gradients_of_groups_are_those_of_the_model():
    model = built(published)
    grouped = accelerated(model, 2)

    def gradients(one: keras.Model) -> dict[str, np.ndarray]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(one(IMAGES[..., None]) ** 2)
        found = tape.gradient(loss, [variable.value for variable in one.trainable_variables])
        return {variable.path: g.numpy() for variable, g in zip(one.trainable_variables, found, strict=True)}

    expected, ours = gradients(model), gradients(grouped)
    [whole] = set(expected) - set(ours)
    for path in set(expected) & set(ours):
        np.testing.assert_allclose(ours[path], expected[path], rtol=1e-4, atol=1e-3)
    # The gradient is cut as the kernel is.
    layer = grouped.get_layer("filter_groups")
    for kernel in layer.kernels:
        kernel.assign(ours[kernel.path])
    np.testing.assert_allclose(layer.whole_kernel(), expected[whole], rtol=1e-4, atol=1e-3)


def branch(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Add()([x, layers.Dense(6)(x)])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_regularizer": "l2"},
        {"activity_regularizer": "l2"},
        {"kernel_constraint": "max_norm"},
        {"use_bias": False},
        {"dtype": "mixed_bfloat16"},
        {"inner": branch},
    ],
)
def test_a_model_that_groups_would_change_is_left_alone(options):
    model = published(**options)
    assert accelerated(published(), 2).get_layer("filter_groups") and accelerated(model, 2) is model


def test_groups_of_the_built_in_network_drop_out_as_it_does():
    model = built(lambda: built_in(layer=VALID, batch_norm=False))
    parts = accelerated(model, 2)
    expected, dropped, again = (np.array(one) for one in (model(IMAGES), *(parts(IMAGES, training=True) for _ in "ab")))
    np.testing.assert_allclose(parts(IMAGES), expected, rtol=1e-5, atol=1e-6)
    assert np.abs(dropped - expected).max() > 1e-2 and np.abs(dropped - again).max() > 1e-2
    assert len(parts.variables) == len(model.variables) + 1, "the kernel is cut in two, the dropouts' seeds are shared"


def test_a_layer_that_is_named_like_the_groups_is_trained_as_any_other():
    model = functional(lambda x: layers.Dense(6, name="filter_groups")(layers.Flatten()(x)))
    before = model.get_layer("filter_groups").get_weights()
    train(loop.Trainer(model, ADAM, NO_AUGMENT, SEED), 2, 0)
    assert not np.array_equal(model.get_layer("filter_groups").get_weights()[0], before[0])


class Bare(keras.Model):
    """Without layers."""

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.kernel = self.add_weight(shape=(100, 10), name="kernel")

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return tf.reshape(tf.cast(images, tf.float32), (-1, 100)) @ self.kernel


def test_what_is_no_mean_of_branches_is_left_alone():
    images = layers.Input((10, 10), dtype="uint8")
    named = keras.Model(images, layers.Dense(10, name=BRANCHES)(layers.Flatten()(images)))
    bare = Bare()
    bare(IMAGES[:1])
    assert accelerated(named, 1) is named and accelerated(bare, 1) is bare
