"""The training loop, compiled: one step, one epoch, one training. It trains any Keras model from images to logits.

Shapes: N images, B batch, H rows, W columns, K classes, S steps. Images of shape [B, H, W] may as well be [B, H, W, 3],
in colour.
The randomness of this loop comes from (seed, epoch) and (seed, step), so nothing random has to be kept between epochs;
what a layer keeps, such as the seed of a dropout, is among the model's variables.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.schema import Augment, Config, Optimizer
from pipeline.data.examples import Examples
from pipeline.model.inference import Inference, Metric, cross_entropies, inference, loss_and_accuracy, user_metrics
from pipeline.training.accelerate import accelerated, merge_groups
from pipeline.training.augment import random_affine, strengths
from pipeline.training.checkpoint import State
from pipeline.training.feed import Chunk, Images, chunks, in_memory
from pipeline.training.optimizer import climb, learning_rates, make_optimizer


class Epoch(NamedTuple):
    """One row of history.csv. Losses are the mean cross-entropy in nats; accuracies are shares, 0 to 1.

    The training metrics are averaged over the epoch while the weights change, as Keras prints them: on augmented images
    where the recipe augments, with the weights that `climb` leads to where it has a sam_radius. The validation metrics
    are taken at the end of the epoch, and are NaN where no examples were held out.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    own: Mapping[str, float] = MappingProxyType({})  # the metrics of train.metrics, by name

    @classmethod
    def of_row(cls, row: Mapping[str, Any], names: Iterable[str]) -> Epoch:
        """Return the epoch of a row; `names` are those of the user's own metrics."""
        return cls(**{key: row[key] for key in cls._fields[:-1]}, own={name: row[name] for name in names})

    def row(self) -> dict[str, float]:
        """Return the row of history.csv: the user's own metrics come last, in columns of their own."""
        values = self._asdict()
        own = values.pop("own")
        return {**values, **own}


class Schedule(NamedTuple):
    """What changes from step to step: of the whole training, or of one epoch."""

    learning_rate: NDArray[np.float32]  # [S]
    strength: NDArray[np.float32]  # [S], of the augmentation, 0 to 1


class Trainer:
    """Trains `model` in place."""

    def __init__(
        self, model: keras.Model, optimizer: Optimizer, augment: Augment, seed: int, state: State | None = None
    ) -> None:
        """`state` is that of an earlier trainer of the same model, to continue from."""
        if state:  # before `accelerated` copies a kernel
            for variable, value in zip(model.variables, state.variables, strict=True):
                variable.assign(value)
        self.model = model
        self.settings = optimizer  # the section of the configuration; self.optimizer is what moves the variables
        self.augment = augment if augment.is_on else None
        self.seed = seed
        self.last_loss = math.nan  # of the last batch whose loss was finite
        self.trained = accelerated(model, optimizer.filter_groups)  # what the steps run, mostly on `model`'s variables
        self.variables = [variable.value for variable in self.trained.trainable_variables]
        self.optimizer = make_optimizer(optimizer, self.trained.trainable_variables)
        if state:
            for variable, value in zip(self.optimizer.state, state.optimizer, strict=True):
                variable.assign(value)

    def state(self) -> State:
        """Return what the next epoch starts from; to be called after run_epoch, which merges the groups."""
        return State([one.numpy() for one in self.model.variables], [one.numpy() for one in self.optimizer.state])

    def _gradients(
        self, images: tf.Tensor, labels: tf.Tensor, batch_size: tf.Tensor
    ) -> tuple[list[tf.Tensor | None], tf.Tensor, tf.Tensor]:
        """Return the gradients, the summed cross-entropy and the number correct of one ghost batch.

        `batch_size` is that of the whole batch. Batch norm sees the ghost batch alone, and moves its averages once for
        each. The loss is written out: smoothed for the gradients, each branch's own, and not smoothed to be shown.
        """
        smoothing = self.settings.label_smoothing
        with tf.GradientTape() as tape:
            outputs = self.trained(images, training=True)
            branches = outputs if isinstance(outputs, list) else [outputs]  # logits [B, K]
            both = [cross_entropies(logits, labels) for logits in branches]
            smoothed = [(1 - smoothing) * own + smoothing * uniform for own, uniform in both]
            loss = tf.reduce_sum(smoothed) / tf.cast(batch_size, tf.float32) / len(branches)
            if self.trained.losses:  # regularisation, once per batch
                loss += tf.add_n(self.trained.losses) / self.settings.ghost_batches
        logits = tf.add_n(branches) / len(branches)  # as the network answers
        losses, _ = cross_entropies(logits, labels)
        correct = tf.argmax(logits, 1, tf.int32) == labels
        return tape.gradient(loss, self.variables), tf.reduce_sum(losses), tf.reduce_sum(tf.cast(correct, tf.int32))

    @tf.autograph.experimental.do_not_convert  # as Keras's fit does; it halves the time of tracing
    def _step(
        self, images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, strength: tf.Tensor, step: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Train on one batch, uint8 [B, H, W] and int32 [B]; return summed cross-entropy and number correct."""
        batch_size = tf.shape(labels)[0]
        if self.augment is not None:
            images = random_affine(images, tf.stack([self.seed, step]), self.augment, strength)
        before = []
        if self.settings.sam_radius:
            before = climb(self.variables, self.optimizer.directions, self.settings.sam_radius)
        ghosts = self.settings.ghost_batches
        bounds = [batch_size * part // ghosts for part in range(ghosts + 1)]
        parts = [self._gradients(images[i:j], labels[i:j], batch_size) for i, j in itertools.pairwise(bounds)]
        gradients, losses, correct = zip(*parts, strict=True)
        summed = [None if shares[0] is None else tf.add_n(shares) for shares in zip(*gradients, strict=True)]
        for variable, value in zip(self.variables, before, strict=False):
            variable.assign(value)
        self.optimizer.apply(summed, rate, step)
        return tf.add_n(losses), tf.add_n(correct)

    @tf.function
    def run_steps(
        self,
        chunk: Chunk,
        schedule: Schedule,  # of this epoch
        steps_before: tf.Tensor,  # int32, of all earlier epochs
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Run the steps of a chunk. Return summed cross-entropy, number correct, the first step whose loss is not
        finite (or -1), and the loss of the step before that one (or NaN)."""
        losses, correct = tf.constant(0.0), tf.constant(0)
        bad_step, last_finite = tf.constant(-1), tf.constant(math.nan)
        images, labels, order, start, first, last = chunk
        size = self.settings.batch_size
        for step in tf.range(first, last):
            if bad_step >= 0:
                break
            batch = order[(step - start) * size : (step - start + 1) * size]  # `order` begins with the step `start`
            inputs = tf.gather(images, batch), tf.gather(labels, batch)
            rate, strength = schedule.learning_rate[step], schedule.strength[step]
            loss, hits = self._step(*inputs, rate, strength, steps_before + step)
            bad_step = tf.where(tf.math.is_finite(loss), bad_step, step)
            last_finite = tf.where(bad_step < 0, loss / tf.cast(tf.shape(batch)[0], tf.float32), last_finite)
            losses += loss
            correct += hits
        return losses, correct, bad_step, last_finite

    def run_epoch(
        self,
        images: Images,
        labels: tf.Tensor,
        schedule: Schedule,
        epoch: int,
        on_progress: Callable[[int, float], None],
    ) -> tuple[float, float]:
        """Visit every example once, in an order of this epoch's own; return loss and accuracy averaged over the epoch.

        `epoch` counts from 0, `schedule` is this epoch's; `on_progress` gets examples seen and accuracy so far.
        A loss or weights that are not finite are a UserError.
        """
        size, steps = len(labels), len(schedule.learning_rate)
        order = np.random.default_rng([self.seed, epoch]).permutation(size).astype(np.int32)
        run_steps = self.run_steps if isinstance(images, tf.Tensor) else self._for_any_size(images)
        steps_before = np.int32(epoch * steps)
        loss, correct = 0.0, 0
        for chunk in chunks(images, labels, order, self.settings.batch_size):
            losses, hits, bad_step, last_finite = run_steps(chunk, schedule, steps_before)
            self.last_loss = self.last_loss if tf.math.is_nan(last_finite) else float(last_finite)
            if bad_step >= 0:
                raise self._not_finite("loss", epoch, int(bad_step), steps)
            loss, correct = loss + float(losses), correct + int(hits)
            seen = min(int(chunk.last) * self.settings.batch_size, size)
            on_progress(seen, correct / seen)
        merge_groups(self.model, self.trained)
        if not all(np.isfinite(weight).all() for weight in self.model.get_weights()):
            raise self._not_finite("model", epoch, steps - 1, steps)
        return loss / size, correct / size

    def _for_any_size(self, images: NDArray[np.uint8]) -> Callable[..., tuple[tf.Tensor, ...]]:
        """Return `run_steps` compiled once, as chunks from the disk differ in size."""
        many, one = tf.TensorSpec([None], tf.int32), tf.TensorSpec([], tf.int32)
        rates = tf.TensorSpec([None], tf.float32)
        chunk = Chunk(tf.TensorSpec([None, *images.shape[1:]], tf.uint8), many, many, one, one, one)
        return self.run_steps.get_concrete_function(chunk, Schedule(rates, rates), one)

    def _not_finite(self, what: str, epoch: int, step: int, steps: int) -> UserError:
        return UserError(
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
    is_over: Callable[[], bool] = lambda: False,
    metrics: Mapping[str, Metric] = MappingProxyType({}),
    infer: Inference | None = None,
) -> Iterator[tuple[Epoch, float, Callable[[], State]]]:
    """Train `model` in place. Yield after each epoch its metrics, its seconds (without validation), and a function that
    returns its state.

    With `done` epochs behind it, and the state after them, training continues with the next; the bits are the same.
    `is_over` is asked before each epoch. `metrics` are the user's own, called with the labels and probabilities of
    `val` after each epoch. `infer` is the model's `inference`, where the caller has one.
    """
    size = config.optimizer.batch_size
    steps = math.ceil(len(train.labels) / size)
    if 0 < len(train.labels) % size < config.optimizer.ghost_batches:
        raise UserError(
            f"{len(train.labels)} examples leave a last batch smaller than "
            f"optimizer.ghost_batches={config.optimizer.ghost_batches}: give another optimizer.batch_size than {size}"
        )
    trainer = Trainer(model, config.optimizer, config.augment, config.seed, state)
    images, labels = in_memory(train.images), tf.constant(train.labels, tf.int32)
    total_steps = steps * config.train.epochs
    schedule = Schedule(learning_rates(config.optimizer, total_steps), strengths(config.augment, total_steps))
    infer = infer or inference(model)
    for epoch in range(done, config.train.epochs):
        if is_over():
            break
        begin = time.perf_counter()
        this_epoch = Schedule(*(values[epoch * steps : (epoch + 1) * steps] for values in schedule))
        loss, accuracy = trainer.run_epoch(images, labels, this_epoch, epoch, on_progress)
        seconds = time.perf_counter() - begin
        logits = infer(val.images)
        val_loss, val_accuracy = loss_and_accuracy(logits, val.labels)
        rate, own = float(this_epoch.learning_rate[-1]), user_metrics(metrics, logits, val.labels)
        yield Epoch(epoch + 1, loss, accuracy, val_loss, val_accuracy, rate, own), seconds, trainer.state
