"""The training loop, compiled: one step, one epoch, and prediction.

Shapes: N examples, B batch, H rows, W columns, K classes, S steps an epoch.
All randomness comes from (seed, epoch) and (seed, step), so nothing random has to be remembered between epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.augment import VIEWS, random_affine, shifted, strengths
from pipeline.checkpoint import State
from pipeline.config import Augment, Config, Optimizer, PipelineError
from pipeline.data import Examples
from pipeline.model import fuse_batch_norm, in_strips, join_strips
from pipeline.optimizer import Adam, learning_rates

CHUNKS = 20  # calls of the compiled loop an epoch, for the progress bar to move
PREDICT_BATCH = 500


class Epoch(NamedTuple):
    """One row of history.csv. Losses are the mean cross-entropy in nats; accuracies are shares, 0 to 1.

    The training figures are running ones, as Keras prints them: taken while the weights still move, on augmented
    examples where the recipe augments. The validation figures are taken at the end of the epoch, and are absent (NaN)
    where no examples were set aside.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float


class Schedule(NamedTuple):
    """What changes from step to step."""

    learning_rate: NDArray[np.float32]  # [S]
    strength: NDArray[np.float32]  # [S], of the augmentation, 0 to 1


def start(seed: int) -> None:
    """Seed Keras and fix the threads. Call it before anything else of TensorFlow.

    One thread an operation and two operations at once: how a sum is cut among threads decides its last bits, so
    the cut is in the graph, and the machine's number of cores cannot change a result.
    """
    tf.get_logger().setLevel("ERROR")  # a sweep compiles for every job, of which TensorFlow warns
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)


class Trainer:
    """Trains `model` in place on examples held in memory."""

    def __init__(
        self, model: keras.Model, optimizer: Optimizer, augment: Augment, seed: int, state: State | None = None
    ) -> None:
        """`state` is that of an earlier trainer of the same network, to go on from."""
        if state:
            model.set_weights(state.weights)
        self.model = model
        self.settings = optimizer
        amounts = (augment.rotation, augment.scale, augment.stretch, augment.shear, augment.shift)
        self.augment = augment if any(amounts) else None
        self.seed = seed
        self.last_loss = math.nan  # of the last batch whose loss was finite
        strips = optimizer.row_strips
        self.network = in_strips(model, strips) if strips > 1 else fuse_batch_norm(model)
        self.variables = [variable.value for variable in self.network.trainable_variables]
        self.optimizer = Adam(self.variables, optimizer.weight_decay)
        if state:
            self.optimizer.restore(state.first, state.second)

    def state(self) -> State:
        """What the next epoch starts from; to be asked for after run_epoch."""
        return State(self.model.get_weights(), *self.optimizer.moments())

    def _gradients(
        self, images: tf.Tensor, labels: tf.Tensor, batch_size: tf.Tensor
    ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor]:
        """Of one shard, its share of the batch's mean: gradients, summed cross-entropy, number right.

        Batch norm sees the shard alone, and moves its running figures once a shard. The loss is written out, as what is
        learnt is smoothed and what is shown is not.
        """
        with tf.GradientTape() as tape:
            logits = self.network(images, training=True)  # [B, K]
            log_probabilities = tf.nn.log_softmax(logits)
            losses = -tf.gather(log_probabilities, labels, axis=1, batch_dims=1)  # [B]
            smoothing = self.settings.label_smoothing
            smoothed = (1 - smoothing) * losses - smoothing * tf.reduce_mean(log_probabilities, 1)
            mean = tf.reduce_sum(smoothed) / tf.cast(batch_size, tf.float32)
        right = tf.argmax(logits, 1, tf.int32) == labels
        return (
            tape.gradient(mean, self.variables),
            tf.reduce_sum(losses),
            tf.reduce_sum(tf.cast(right, tf.int32)),
        )

    def _step(
        self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, strength: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """One batch, uint8 [B, H, W] and int32 [B]: summed cross-entropy and number right."""
        batch_size = tf.shape(labels)[0]
        if self.augment is not None:
            images = random_affine(images, tf.stack([self.seed, step]), self.augment, strength)
        shards = self.settings.batch_shards
        parts = [self._gradients(images[part::shards], labels[part::shards], batch_size) for part in range(shards)]
        gradients, losses, right = zip(*parts, strict=True)
        self.optimizer.apply([tf.add_n(of) for of in zip(*gradients, strict=True)], rate, step)
        return tf.add_n(losses), tf.add_n(right)

    @tf.function
    def run_steps(
        self,
        images: tf.Tensor,  # uint8 [N, H, W]
        labels: tf.Tensor,  # int32 [N]
        order: tf.Tensor,  # int32 [N], the epoch's shuffle
        schedule: Schedule,
        first: tf.Tensor,  # int32, the steps from `first` to below `last` of this epoch
        last: tf.Tensor,
        before: tf.Tensor,  # int32, steps of all epochs before
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Run some steps: summed cross-entropy, number right, the first step whose loss is not finite (or -1), and the
        loss of the step before that one (or NaN)."""
        losses, right, bad, good = tf.constant(0.0), tf.constant(0), tf.constant(-1), tf.constant(math.nan)
        size = self.settings.batch_size
        for step in tf.range(first, last):
            if bad >= 0:
                break
            batch = order[step * size : (step + 1) * size]
            rate, strength = schedule.learning_rate[step], schedule.strength[step]
            loss, hits = self._step(tf.gather(images, batch), tf.gather(labels, batch), rate, strength, before + step)
            bad = tf.where(tf.math.is_finite(loss), bad, step)
            good = tf.where(bad < 0, loss / tf.cast(tf.shape(batch)[0], tf.float32), good)
            losses += loss
            right += hits
        return losses, right, bad, good

    def run_epoch(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        schedule: Schedule,
        epoch: int,
        on_progress: Callable[[int, float], None],
    ) -> tuple[float, float]:
        """Visit every example once, in an order of this epoch's own: running loss and accuracy.

        `epoch` counts from 0, `schedule` is this epoch's; `on_progress` gets examples seen and running accuracy.
        A loss or weights that are not finite are a PipelineError.
        """
        size, steps = len(labels), len(schedule.learning_rate)
        order = np.random.default_rng([self.seed, epoch]).permutation(size).astype(np.int32)
        edges = np.linspace(0, steps, min(CHUNKS, steps) + 1).astype(np.int32)
        before = np.int32(epoch * steps)
        loss, right = 0.0, 0
        for first, last in pairwise(edges):
            losses, hits, bad, good = self.run_steps(images, labels, order, schedule, first, last, before)
            self.last_loss = self.last_loss if tf.math.is_nan(good) else float(good)
            if bad >= 0:
                raise self._not_finite("loss", epoch, int(bad), steps)
            loss, right = loss + float(losses), right + int(hits)
            seen = min(int(last) * self.settings.batch_size, size)
            on_progress(seen, right / seen)
        if self.settings.row_strips > 1:
            join_strips(self.model, self.network)
        if not all(np.isfinite(weight).all() for weight in self.model.get_weights()):
            raise self._not_finite("network", epoch, steps - 1, steps)
        return loss / size, right / size

    def _not_finite(self, what: str, epoch: int, step: int, steps: int) -> PipelineError:
        return PipelineError(
            f"the {what} is not finite in epoch {epoch + 1}, step {step + 1} of {steps} (last finite loss: "
            f"{self.last_loss:.4f}): lower optimizer.learning_rate={self.settings.learning_rate}"
        )


def fit(
    model: keras.Model,
    config: Config,
    train: Examples,
    val: Examples,
    on_progress: Callable[[int, float], None],
    done: int = 0,
    state: State | None = None,
) -> Iterator[tuple[Epoch, float, Callable[[], State]]]:
    """Train `model` in place, giving after each epoch its figures, its seconds (validation not among them), and a way
    to its state.

    With `done` epochs behind it, and the state after them, training goes on with the next; the bits are the same.
    """
    size = config.optimizer.batch_size
    steps = math.ceil(len(train.labels) / size)
    if 0 < len(train.labels) % size < config.optimizer.batch_shards:
        raise PipelineError(
            f"{len(train.labels)} examples leave a last batch smaller than "
            f"optimizer.batch_shards={config.optimizer.batch_shards}: give another optimizer.batch_size than {size}"
        )
    trainer = Trainer(model, config.optimizer, config.augment, config.seed, state)
    images, labels = tf.constant(train.images), tf.constant(train.labels, tf.int32)
    whole = steps * config.train.epochs
    schedule = Schedule(learning_rates(config.optimizer, whole), strengths(config.augment, whole))
    infer = inference(model)
    for epoch in range(done, config.train.epochs):
        begin = time.perf_counter()
        of_epoch = Schedule(*(values[epoch * steps : (epoch + 1) * steps] for values in schedule))
        loss, accuracy = trainer.run_epoch(images, labels, of_epoch, epoch, on_progress)
        seconds = time.perf_counter() - begin
        val_loss, val_accuracy = assess(infer(val.images), val.labels)
        rate = float(of_epoch.learning_rate[-1])
        yield Epoch(epoch + 1, loss, accuracy, val_loss, val_accuracy, rate), seconds, trainer.state


def assess(logits: NDArray[np.float32], labels: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy over all examples; NaN for none."""
    if not len(labels):
        return math.nan, math.nan
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    right = logits.argmax(1) == labels
    return float(np.mean(losses, dtype=np.float64)), float(np.mean(right))


def inference(model: keras.Model, views: int = 1) -> Callable[[NDArray[np.uint8]], NDArray[np.float32]]:
    """The logits, float32 [N, K], that `model` gives for examples uint8 [N, H, W], batch norm by its running figures.

    With several `views` of an example (augment.VIEWS, the first so many) they are the mean over these.
    """

    @tf.function(reduce_retracing=True)
    def mean_logits(batch: tf.Tensor) -> tf.Tensor:
        seen = [batch, *(shifted(batch, down, right) for down, right in VIEWS[1:views])]
        return tf.add_n([model(view, training=False) for view in seen]) / views

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        starts = range(0, len(images), PREDICT_BATCH)
        parts = [mean_logits(images[i : i + PREDICT_BATCH]).numpy() for i in starts]
        return np.concatenate([np.empty((0, model.output_shape[-1]), np.float32), *parts])

    return infer


def predict(model: keras.Model, images: NDArray[np.uint8], views: int = 1) -> NDArray[np.float32]:
    """The logits of `inference`, once."""
    return inference(model, views)(images)
