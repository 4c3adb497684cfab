"""The training loop against formulas, against Keras's own, and bit by bit against itself."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, generated_digits, run

from pipeline.base.errors import UserError
from pipeline.base.schema import Augment, Convolution, Model, Optimizer
from pipeline.base.validation import AnySection
from pipeline.data.examples import Examples
from pipeline.metrics import metrics
from pipeline.model import build, inference
from pipeline.training import feed, loop, optimizer


def replace(section: AnySection, **values: object) -> AnySection:
    return section.model_copy(update=values)


STRIDED = Convolution(multiple=1, kernel_size=3, strides=2, padding="valid", pool=1)
PLAIN = Model(filters=2, convolutions=[STRIDED], batch_norm=False, pooling="flatten", units=[], pixel_scale=1 / 255)
NORMED = replace(PLAIN, batch_norm=True)
PUBLISHED = replace(PLAIN, filters=3, convolutions=[replace(STRIDED, strides=1)], units=[6, 5])
LINEAR = replace(PLAIN, convolutions=[])
# 46 examples in batches of 5: ten steps, the last one of 1.
ADAM = Optimizer(
    batch_size=5, learning_rate=0.01, schedule="constant", warmup=0.0, weight_decay=0.0, label_smoothing=0.0
)
NO_AUGMENT = Augment(rotation=0.0, scale=0.0, shear=0.0, shift=0.0)
AUGMENT = Augment(rotation=10.0, scale=0.1, stretch=0.1, shear=0.1, shift=2.0)
STEPS = 10
IMAGES, LABELS = generated_digits(46, 0)
IMAGES = IMAGES[:, ::3, ::3]  # 10 x 10, for speed
# Prints the digest of weights trained with so many operations at once.
TRAIN_ELSEWHERE = "import sys; from test_loop import digest; print(*digest(int(sys.argv[1])))"


@pytest.fixture(scope="module", autouse=True)
def started() -> None:
    """TensorFlow takes its threads before its first operation or never."""
    inference.start(0)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[list[Future]]:
    """Two processes that train meanwhile, with one and with four operations at once."""
    words = [sys.executable, "-c", TRAIN_ELSEWHERE]
    with ThreadPoolExecutor() as pool:
        yield [
            pool.submit(run, *words, n, cwd=Path(__file__).parent, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
            for n in ("1", "4")
        ]


def built(settings: Model = PLAIN, seed: int = 0) -> keras.Model:
    inference.start(seed)
    return build.build_cnn(settings, IMAGES.shape[1:], 10)


def constant(rate: float, steps: int) -> loop.Schedule:
    return loop.Schedule(np.full(steps, rate, np.float32), np.ones(steps, np.float32))


def trained(
    cnn: keras.Model,
    optimizer: Optimizer = ADAM,
    augment: Augment = NO_AUGMENT,
    seed: int = 0,
    epochs: int = 1,
    rate: float = 0.01,
    size: int = 46,
) -> list[tuple[float, float]]:
    """Train on the first `size` digits: running loss and accuracy of each epoch."""
    trainer = loop.Trainer(cnn, optimizer, augment, seed)
    images, labels = tf.constant(IMAGES[:size]), tf.constant(LABELS[:size], tf.int32)
    at = constant(rate, math.ceil(size / optimizer.batch_size))
    return [trainer.run_epoch(images, labels, at, epoch, lambda *_: None) for epoch in range(epochs)]


def assert_close(weights, expected, **tolerance) -> None:
    for weight, other in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight, other, **tolerance)


def same_bits(weights, others) -> bool:
    return all(np.array_equal(weight, other) for weight, other in zip(weights, others, strict=True))


def digest(threads: int) -> tuple[int, int, str]:
    """Return threads per operation, operations at once, and the SHA-256 of two trained models: batch norm on two ghost
    batches of augmented images, and the published model in two groups of filters."""
    inference.start(3)
    if tf.config.threading.get_inter_op_parallelism_threads() != threads:
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    images, labels = generated_digits(300, 5)
    content = b""
    decayed = replace(ADAM, batch_size=32, weight_decay=0.02, label_smoothing=0.02)
    for settings, parts in ((NORMED, {"ghost_batches": 2}), (PUBLISHED, {"filter_groups": 2})):
        cnn = build.build_cnn(settings, (28, 28), 10)
        trainer = loop.Trainer(cnn, replace(decayed, **parts), AUGMENT, 3)
        for epoch in range(3):
            trainer.run_epoch(
                tf.constant(images), tf.constant(labels, tf.int32), constant(0.01, 10), epoch, lambda *_: None
            )
        content += b"".join(weight.tobytes() for weight in cnn.get_weights())
    threading = tf.config.threading
    return (
        threading.get_intra_op_parallelism_threads(),
        threading.get_inter_op_parallelism_threads(),
        hashlib.sha256(content).hexdigest(),
    )


def test_learning_rates_constant_and_one_cycle_by_hand():
    assert optimizer.learning_rates(replace(ADAM, learning_rate=0.5), 3).tolist() == [0.5, 0.5, 0.5]
    cycle = replace(ADAM, schedule="one_cycle", learning_rate=0.8, warmup=0.25)
    # The middles of 8 steps are 1/16, 3/16, ...: up to the peak at 4/16, then down over the other 12/16.
    expected = [0.8 * share for share in (1 / 4, 3 / 4, 11 / 12, 9 / 12, 7 / 12, 5 / 12, 3 / 12, 1 / 12)]
    np.testing.assert_allclose(optimizer.learning_rates(cycle, 8), expected, rtol=1e-6)
    falling = [0.8 * share for share in (7 / 8, 5 / 8, 3 / 8, 1 / 8)]
    np.testing.assert_allclose(optimizer.learning_rates(replace(cycle, warmup=0.0), 4)[1:], falling[1:], rtol=1e-6)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("steps", [1, 7, 1000])
@pytest.mark.parametrize("schedule", ["one_cycle", "cosine"])
def test_a_schedule_rises_once_falls_once_and_never_passes_its_peak(warmup, steps, schedule):
    rates = optimizer.learning_rates(replace(ADAM, schedule=schedule, learning_rate=0.3, warmup=warmup), steps)
    peak = int(rates.argmax())
    assert rates.dtype == np.float32 and len(rates) == steps
    assert rates.min() > 0 and rates.max() <= np.float32(0.3)
    assert (np.diff(rates[: peak + 1]) > 0).all() and (np.diff(rates[peak + 1 :]) < 0).all()
    assert abs(peak - warmup * steps) <= 1
    if steps == 1000:
        assert rates.max() > 0.29 and rates[-1] <= 0.3 / 1000 / (1 - warmup)
    if warmup == 0.5 and schedule == "one_cycle":
        np.testing.assert_allclose(rates, rates[::-1], rtol=1e-5)


def test_cosine_by_hand():
    cosine = replace(ADAM, schedule="cosine", learning_rate=0.8, warmup=0.25)
    # The middles of 8 steps: two up to the peak at 4/16, then six at (2 i + 1)/12 of half a cosine.
    expected = [0.2, 0.6, *(0.4 * (1 + math.cos(math.pi * (2 * i + 1) / 12)) for i in range(6))]
    np.testing.assert_allclose(optimizer.learning_rates(cosine, 8), expected, rtol=1e-6)
    falling = [0.4 * (1 + math.cos(math.pi * (2 * i + 1) / 8)) for i in range(4)]
    np.testing.assert_allclose(optimizer.learning_rates(replace(cosine, warmup=0.0), 4), falling, rtol=1e-6)


def test_one_step_of_adam_by_hand():
    kernel, bias = keras.Variable([[1.0, -2.0]]), keras.Variable([3.0])
    optimizer.Adam([kernel, bias], weight_decay=0.5).apply(
        [tf.constant([[0.25, -8.0]]), tf.constant([0.0])], tf.constant(0.125), tf.constant(0)
    )
    # Kernels shrink by 1 - 0.125 * 0.5; then the first step is rate * gradient / (|gradient| + epsilon), a sign.
    np.testing.assert_allclose(kernel, [[0.9375 - 0.125, -1.875 + 0.125]], rtol=1e-5)
    assert bias.numpy().tolist() == [3.0]


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_adam_is_kerass_with_decay_of_kernels_alone(decay):
    generator = np.random.default_rng(0)
    shapes = [(3, 3, 1, 2), (2,), (8, 4), (4,)]
    begin = [generator.normal(size=shape).astype(np.float32) for shape in shapes]
    ours = [keras.Variable(value) for value in begin]
    theirs = [keras.Variable(value, name="bias" if value.ndim == 1 else "kernel") for value in begin]
    adam, reference = optimizer.Adam(ours, decay), keras.optimizers.Adam(0.05, weight_decay=decay or None)
    reference.exclude_from_weight_decay(var_names=["bias"])
    for step in range(6):
        gradients = [tf.constant(generator.normal(size=shape).astype(np.float32)) for shape in shapes]
        adam.apply(gradients, tf.constant(0.05), tf.constant(step))
        reference.apply(gradients, theirs)
    assert_close(ours, [value.numpy() for value in theirs], rtol=1e-5, atol=5e-6)
    assert min(np.abs(value - was).max() for value, was in zip(ours, begin, strict=True)) > 0.05


def test_ten_steps_of_baseline_are_ten_steps_of_kerass_fit(compose):
    """The model as published but for its width: groups of filters, raw pixels, batches of 32, a short last one."""
    config = compose("recipe=baseline", "model.filters=8")
    assert (config.optimizer.filter_groups, config.optimizer.batch_size, config.model.pixel_scale) == (8, 32, 1.0)
    images, labels = generated_digits(9 * 32 + 5, 3)
    models = []
    for _ in range(2):
        inference.start(0)
        models.append(build.build_cnn(config.model, (28, 28), 10))
    ours, theirs = models
    trainer = loop.Trainer(ours, config.optimizer, config.augment, 7)
    at = constant(config.optimizer.learning_rate, 10)
    loss, accuracy = trainer.run_epoch(tf.constant(images), tf.constant(labels, tf.int32), at, 0, lambda *_: None)
    objective = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    theirs.compile("adam", objective, metrics=["accuracy"], jit_compile=False, run_eagerly=True)
    order = np.random.default_rng([7, 0]).permutation(len(labels))
    history = theirs.fit(images[order], labels[order], batch_size=32, shuffle=False, verbose=0).history
    assert loss == pytest.approx(history["loss"][0], rel=1e-4)
    assert accuracy == pytest.approx(history["accuracy"][0], abs=1e-6)
    assert_close(ours.get_weights(), theirs.get_weights(), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_label_smoothing_is_that_of_keras_and_the_loss_shown_is_not_smoothed():
    ours, theirs = built(LINEAR), built(LINEAR)
    measured = [keras.metrics.CategoricalCrossentropy("nats", from_logits=True), "categorical_accuracy"]
    smoothed = keras.losses.CategoricalCrossentropy(True, 0.1)
    theirs.compile("adam", smoothed, metrics=measured, jit_compile=False, run_eagerly=True)
    epochs = trained(ours, replace(ADAM, label_smoothing=0.1), seed=7, epochs=2, rate=0.001)
    for epoch, (loss, accuracy) in enumerate(epochs):
        order = np.random.default_rng([7, epoch]).permutation(46)
        history = theirs.fit(IMAGES[order], np.eye(10)[LABELS[order]], batch_size=5, shuffle=False, verbose=0).history
        assert loss == pytest.approx(history["nats"][0], rel=1e-5) and loss != history["loss"][0]
        assert accuracy == pytest.approx(history["categorical_accuracy"][0], abs=1e-6)
    assert_close(ours.get_weights(), theirs.get_weights(), rtol=1e-4, atol=5e-6)
    assert not np.allclose(ours.get_weights()[0], built(LINEAR).get_weights()[0], atol=1e-3), "nothing moved"


def test_without_batch_norm_two_ghost_batches_are_one_batch_in_two_parts():
    one, two = built(), built()
    figures = [trained(cnn, replace(ADAM, ghost_batches=n, batch_size=7), size=44) for cnn, n in ((one, 1), (two, 2))]
    np.testing.assert_allclose(*figures, rtol=1e-6)  # 7 = 4 + 3, and a last batch of 2
    assert_close(one.get_weights(), two.get_weights(), rtol=1e-4, atol=1e-5)


def test_batch_norm_sees_each_ghost_batch_by_itself():
    """Its moving mean is updated once per ghost batch, by the mean of that one's own images."""
    cnn = built(NORMED)
    loop.Trainer(cnn, replace(ADAM, batch_size=46, ghost_batches=2), NO_AUGMENT, 0).run_epoch(
        tf.constant(IMAGES), tf.constant(LABELS, tf.int32), constant(0.0, 1), 0, lambda *_: None
    )
    order = np.random.default_rng([0, 0]).permutation(46)
    untrained = built(NORMED)
    until = keras.Model(untrained.input, untrained.get_layer("convolution_1").output)
    means = [until(IMAGES[half]).numpy().mean((0, 1, 2)) for half in np.split(order, 2)]
    [norm] = [layer for layer in cnn.layers if isinstance(layer, keras.layers.BatchNormalization)]
    either = [0.05 * (0.95 * first + second) for first, second in (means, means[::-1])]  # the order is the graph's
    assert any(np.allclose(norm.moving_mean, one, rtol=1e-4, atol=1e-7) for one in either)
    assert not np.allclose(*either, rtol=1e-3)


def test_each_branch_is_trained_as_it_would_be_alone_and_the_answer_is_their_mean():
    """The loss is the mean of the branches', so each has half of the gradient that it would have alone."""
    sgd = replace(ADAM, name="sgd", args={"momentum": 0.5}, label_smoothing=0.1)
    both = built(replace(NORMED, branches=2))
    branches = [keras.Model(both.input, logits) for logits in both.layers[-1].input]
    alone = [keras.models.clone_model(branch) for branch in branches]
    for one, branch in zip(alone, branches, strict=True):
        one.set_weights(branch.get_weights())
        trained(one, sgd, AUGMENT, rate=0.01)
    assert not np.allclose(alone[0].get_weights()[0], alone[1].get_weights()[0], atol=0.1)
    trained(both, sgd, AUGMENT, rate=0.02)
    for one, branch in zip(alone, branches, strict=True):
        assert_close(branch.get_weights(), one.get_weights(), rtol=1e-4, atol=1e-6)
    mean = np.mean([inference.predict(one, IMAGES) for one in alone], axis=0)
    np.testing.assert_allclose(inference.predict(both, IMAGES), mean, rtol=1e-3, atol=1e-5)


def test_with_sam_the_gradients_are_those_of_a_place_further_along_the_momentum():
    settings = replace(ADAM, sam_radius=0.5)
    ours, by_hand = built(NORMED), built(NORMED)
    trained(ours, settings, size=15)
    order, variables = np.random.default_rng([0, 0]).permutation(15), by_hand.trainable_variables
    adam = optimizer.Adam(variables, 0.0)
    for step in range(3):
        batch, before = order[5 * step : 5 * step + 5], [variable.numpy() for variable in variables]
        momenta = [first.numpy() for first in adam.first]
        norm = np.sqrt(sum(np.sum(momentum**2) for momentum in momenta)) or 1.0
        for variable, value, momentum in zip(variables, before, momenta, strict=True):
            variable.assign(value + 0.5 / norm * momentum)
        with tf.GradientTape() as tape:
            losses = keras.losses.sparse_categorical_crossentropy(
                LABELS[batch], by_hand(IMAGES[batch], training=True), True
            )
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        adam.apply(gradients, tf.constant(0.01), tf.constant(step))
    assert_close(ours.get_weights(), by_hand.get_weights(), rtol=2e-3, atol=2e-5)
    plain = built(NORMED)
    trained(plain, ADAM, size=15)
    assert np.abs(plain.get_weights()[0] - ours.get_weights()[0]).max() > 1e-3


def test_the_loss_shown_of_branches_is_that_of_their_mean():
    both = built(replace(PLAIN, branches=3))
    expected = inference.loss_and_accuracy(inference.predict(both, IMAGES), LABELS)
    np.testing.assert_allclose(trained(both, ADAM, rate=0.0), [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "parts"),
    [(NORMED, {"ghost_batches": 2}), pytest.param(PUBLISHED, {"filter_groups": 2}, marks=pytest.mark.slow)],
)
def test_variables_and_moments_are_all_that_is_needed_to_continue(settings, parts):
    adam = replace(ADAM, batch_size=8, **parts)
    images, labels = tf.constant(IMAGES), tf.constant(LABELS, tf.int32)

    def run(trainer: loop.Trainer, *epochs: int) -> None:
        for epoch in epochs:
            trainer.run_epoch(images, labels, constant(0.01, 6), epoch, lambda *_: None)

    through = loop.Trainer(built(settings), adam, AUGMENT, 3)
    run(through, 0, 1)
    before = loop.Trainer(built(settings), adam, AUGMENT, 3)
    run(before, 0)
    after = loop.Trainer(built(settings, seed=9), adam, AUGMENT, 3, before.state())
    run(after, 1)
    assert same_bits(after.model.get_weights(), through.model.get_weights())


SGD = replace(ADAM, name="sgd", args={"momentum": 0.9}, weight_decay=0.02)


@pytest.mark.parametrize(
    ("count", "settings"), [*(pytest.param(2, one, marks=pytest.mark.slow) for one in (ADAM, SGD)), (3, ADAM)]
)
def test_filter_groups_are_the_same_model_in_parts(count, settings):
    one, cut = built(PUBLISHED), built(PUBLISHED)
    figures = [
        trained(cnn, replace(settings, filter_groups=n), epochs=2, rate=0.001) for cnn, n in ((one, 1), (cut, count))
    ]
    np.testing.assert_allclose(*figures, rtol=1e-5)
    assert_close(one.get_weights(), cut.get_weights(), rtol=1e-3, atol=1e-5)
    moved = [np.abs(a - b).max() for a, b in zip(cut.get_weights(), built(PUBLISHED).get_weights(), strict=True)]
    assert min(moved) > 1e-3, "a variable was left out"


def test_an_epoch_visits_every_example_once():
    cnn = built()
    before = cnn.get_weights()
    logits = inference.predict(cnn, IMAGES)
    losses = -np.log(metrics.softmax(logits)[np.arange(46), LABELS])
    assert np.ptp(losses) > 0.1  # so that one twice and another never would show
    for epoch in trained(cnn, epochs=3, rate=0.0):
        assert epoch == pytest.approx((losses.mean(), (logits.argmax(1) == LABELS).mean()), rel=1e-6)
    assert same_bits(cnn.get_weights(), before)


@pytest.mark.slow
def test_the_seed_decides_every_bit_of_the_augmentation():
    def weights(seed: int) -> list[np.ndarray]:
        cnn = built(LINEAR)
        trained(cnn, augment=AUGMENT, seed=seed, epochs=2, size=1)  # one digit has no order
        return cnn.get_weights()

    first = weights(5)
    assert same_bits(first, weights(5))
    assert not same_bits(first, weights(6))


def test_the_loop_is_compiled_once_and_reports_its_progress():
    trainer = loop.Trainer(built(LINEAR), ADAM, NO_AUGMENT, 0)
    images, labels = tf.constant(IMAGES), tf.constant(LABELS, tf.int32)
    seen: list[tuple[int, float]] = []
    for epoch in range(2):
        figures = trainer.run_epoch(images, labels, constant(0.01, STEPS), epoch, lambda *now: seen.append(now))
        assert seen[-1] == (46, figures[1])
    assert [done for done, _ in seen] == [5, 10, 15, 20, 25, 30, 35, 40, 45, 46] * 2
    assert trainer.run_steps.experimental_get_tracing_count() == 1


@pytest.mark.slow
def test_number_of_threads_and_a_busy_machine_change_no_bit(elsewhere):
    of_an_operation, at_once, quiet = digest(2)
    assert (of_an_operation, at_once) == (1, 2)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        assert digest(2)[2] == quiet
    finally:
        busy.kill()
        busy.wait()
    printed = [(other.result().stdout.split(), other.result().stderr) for other in elsewhere]
    assert [words for words, _ in printed] == [["1", "1", quiet], ["1", "4", quiet]], printed


def test_a_learning_rate_too_large_is_an_error_where_the_loss_is_no_longer_finite(monkeypatch):
    monkeypatch.setattr(feed, "CHUNKS", 1)
    cnn = built(LINEAR)
    first = np.random.default_rng([0, 0]).permutation(46)[:5]
    expected = metrics.cross_entropy(LABELS[first], metrics.softmax(inference.predict(cnn, IMAGES[first])))
    with pytest.raises(UserError, match=r"^the loss is not finite in epoch 1, step 2 of 10 ") as error:
        trained(cnn, rate=1e38)
    assert f"(last finite loss: {expected:.4f}): lower optimizer.learning_rate=0.01" in str(error.value)


def test_a_last_batch_smaller_than_the_ghost_batches_is_an_error(compose):
    config = compose("recipe=accurate", "optimizer.batch_size=5", "optimizer.ghost_batches=2")
    digits = Examples(IMAGES, LABELS, np.arange(46, dtype=np.int32))
    with pytest.raises(UserError, match=r"46 examples .* optimizer.ghost_batches=2: .* optimizer.batch_size than 5$"):
        next(loop.fit(built(), config, digits, digits, print))


@pytest.mark.parametrize("size", [0, 1, inference.BATCH, inference.BATCH + 3])
def test_predict_gives_every_logit_in_order(size):
    cnn = built(NORMED)
    generator = np.random.default_rng(0)  # batch norm's moving averages become unlike those of a batch
    cnn.set_weights([generator.uniform(0.1, 1, weight.shape).astype(np.float32) for weight in cnn.get_weights()])
    images = generated_digits(size, 1)[0][:, ::3, ::3]
    logits = inference.predict(cnn, images)
    assert logits.shape == (size, 10) and logits.dtype == np.float32
    if size:
        np.testing.assert_allclose(logits, cnn(images, training=False), rtol=1e-5, atol=1e-5)


def test_five_shifts_are_the_mean_of_the_image_and_of_it_moved_by_a_pixel_each_way():
    cnn = built(NORMED)
    images = np.zeros((3, 10, 10), np.uint8)
    images[:, 2:8, 3:7] = generated_digits(3, 1)[0][:, 8:14, 9:13] | 1  # paper at the edges, so that rolling moves it
    shifts = [np.roll(images, by, (1, 2)) for by in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))]
    expected = np.mean([cnn(image, training=False) for image in shifts], axis=0)
    assert np.abs(expected - cnn(images, training=False)).max() > 1e-3
    np.testing.assert_allclose(inference.predict(cnn, images, tta_shifts=5), expected, rtol=1e-5, atol=1e-5)


def test_loss_and_accuracy_by_hand():
    logits = np.array([[0, 0], [math.log(3), 0], [0, 1000]], np.float32)
    loss, accuracy = inference.loss_and_accuracy(logits, np.array([0, 1, 0], np.uint8))
    assert loss == pytest.approx((math.log(2) + math.log(4) + 1000) / 3, rel=1e-6) and accuracy == pytest.approx(1 / 3)
    assert np.isnan(inference.loss_and_accuracy(logits[:0], np.array([], np.uint8))).all()


def test_fit_learns_and_batch_norm_has_its_averages(compose):
    config = compose("recipe=accurate", "model.filters=4", "train.epochs=4", "optimizer.batch_size=32")
    digits, val = (Examples(*generated_digits(n, n), np.arange(n, dtype=np.int32)) for n in (640, 200))
    inference.start(0)
    cnn = build.build_cnn(config.model, (28, 28), 10)
    history = [epoch for epoch, *_ in loop.fit(cnn, config, digits, val, lambda *_: None)]
    rates = optimizer.learning_rates(config.optimizer, 4 * 20)
    assert [(epoch.epoch, epoch.learning_rate) for epoch in history] == [
        (number, pytest.approx(rates[20 * number - 1])) for number in (1, 2, 3, 4)
    ]
    last = history[-1]
    assert last[3:5] == inference.loss_and_accuracy(inference.predict(cnn, val.images), val.labels)
    assert last.val_accuracy > 0.95 and last.val_loss < history[0].val_loss
    in_training, _ = inference.loss_and_accuracy(cnn(val.images, training=True).numpy(), val.labels)
    assert last.val_loss == pytest.approx(in_training, abs=0.1)


@pytest.mark.parametrize(
    "settings", [NORMED, pytest.param(PUBLISHED, marks=pytest.mark.slow)], ids=["normed", "published"]
)
def test_mixed_precision_computes_in_bfloat16_and_learns_in_float32(settings):
    grouped = replace(ADAM, batch_size=10, filter_groups=2, weight_decay=0.02)
    losses = {}
    for precision in ("float32", "mixed_bfloat16"):
        inference.start(0)
        cnn = build.build_cnn(replace(settings, precision=precision), IMAGES.shape[1:], 10)
        assert {weight.dtype for weight in cnn.weights} == {"float32"}
        assert cnn.get_layer("convolution_1").output.dtype == precision.removeprefix("mixed_")
        assert cnn.output.dtype == "float32"
        losses[precision] = [loss for loss, _ in trained(cnn, grouped if settings is PUBLISHED else ADAM, epochs=15)]
    plain, mixed = losses.values()
    assert plain != mixed  # something was rounded
    np.testing.assert_allclose(mixed, plain, rtol=0.2, atol=0.05)
    assert mixed[-1] < 0.5 * mixed[0]
