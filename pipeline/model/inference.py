"""Inference, with test-time augmentation: the same bits on every machine of one kind.

Shapes: N images, B batch, H rows, W columns, K classes. Images [B, H, W] may as well be [B, H, W, 3], in colour.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.base.errors import UserError
from pipeline.data.blocks import give_back

# Test-time augmentation: pixels down and right. The first is the image unmodified.
SHIFTS = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))
BATCH = 500  # images per call
BATCH_VALUES = 4_000_000  # pixel values per call: bounds the memory of large images
MOST_AT_ONCE = 8  # operations; a recipe has no more to do side by side


def start(seed: int) -> None:
    """Seed Keras and fix the threads. Call it before anything else of TensorFlow.

    How a sum is divided among threads decides its last bits: with one thread per operation none is divided. What runs
    side by side are operations of the graph, as many as there are cores, which changes no bit.
    """
    tf.get_logger().setLevel("ERROR")  # a sweep compiles for every job, of which TensorFlow warns
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(max(2, min(os.cpu_count() or 2, MOST_AT_ONCE)))
    except RuntimeError:
        raise UserError("TensorFlow was used in this process before: restart the kernel, and run this first") from None
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)


Inference = Callable[[NDArray[np.uint8]], NDArray[np.float32]]  # of images [N, H, W] to logits [N, K]
Metric = Callable[[NDArray[np.int64], NDArray[np.float64]], float]  # of labels [N] and probabilities [N, K]


def inference(model: keras.Model, tta_shifts: int = 1, first: int = 0) -> Inference:
    """Return a function from images, uint8 [N, H, W], to logits, float32 [N, K]; batch norm uses moving averages.

    They are the mean over SHIFTS[first:tta_shifts].
    """
    plain_and_mean = _plain_and_mean(model, SHIFTS[first:tta_shifts])
    return lambda images: plain_and_mean(images)[1]


def _plain_and_mean(
    model: keras.Model, shifts: Sequence[tuple[float, float]]
) -> Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Return a function from images to the logits of the first shift, and the mean over all."""

    @tf.function(reduce_retracing=True, autograph=False)  # as in training: it halves the time of tracing
    def of_batch(batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        images = [shifted(batch, down, right) if down or right else batch for down, right in shifts]
        logits = [model(image, training=False) for image in images]
        return logits[0], tf.add_n(logits) / len(logits)

    def infer(images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        if not len(images):  # TensorFlow fails on an empty batch (2.21): the graph tells the number of classes
            graph = of_batch.get_concrete_function(tf.TensorSpec((None, *images.shape[1:]), tf.uint8))
            empty = np.empty((0, graph.structured_outputs[1].shape[-1]), np.float32)
            return empty, empty
        batches, size = [], min(BATCH, max(1, BATCH_VALUES // math.prod(images.shape[1:])))
        for first in range(0, len(images), size):
            batches.append([logits.numpy() for logits in of_batch(images[first : first + size])])
            give_back(images)  # the memory of an array that is mapped from the disk
        plain, mean = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return plain, mean

    return infer


def predict(model: keras.Model, images: NDArray[np.uint8], tta_shifts: int = 1) -> NDArray[np.float32]:
    """Return the logits of `inference`. It compiles anew: keep an `inference` to call it again."""
    return inference(model, tta_shifts)(images)


def predict_without_and_with_tta(
    model: keras.Model, images: NDArray[np.uint8], tta_shifts: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits of images as they are, and of `tta_shifts`, in one pass."""
    return _plain_and_mean(model, SHIFTS[:tta_shifts])(images)


def looks_again(model: keras.Model, below: float) -> Inference:
    """Return a function as `inference`: the logits of the image itself, and where its highest probability is less than
    `below`, the mean over all SHIFTS."""
    look, look_again = inference(model), inference(model, len(SHIFTS), first=1)

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits = look(images)
        unsure = softmax(logits.astype(np.float64), axis=1).max(1) < below
        if unsure.any():
            logits[unsure] = (logits[unsure] + (len(SHIFTS) - 1) * look_again(images[unsure])) / len(SHIFTS)
        return logits

    return infer


def cross_entropies(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the cross-entropies [B] of logits [B, K] with labels [B], and with a label of all classes alike."""
    log_probabilities = tf.nn.log_softmax(logits)
    return -tf.gather(log_probabilities, labels, axis=1, batch_dims=1), -tf.reduce_mean(log_probabilities, 1)


def loss_and_accuracy(logits: NDArray[np.float32], labels: NDArray[np.integer]) -> tuple[float, float]:
    """Return mean cross-entropy in nats and accuracy, 0 to 1; NaN for no images."""
    if not len(labels):
        return math.nan, math.nan
    losses = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    return float(np.mean(losses, dtype=np.float64)), float(np.mean(logits.argmax(1) == labels))


def user_metrics(
    metrics: Mapping[str, Metric], logits: NDArray[np.float32], labels: NDArray[np.integer]
) -> dict[str, float]:
    """Return the user's metrics of logits [N, K] and labels [N], NaN of no examples; each may change its arrays."""
    if not metrics or not len(labels):
        return dict.fromkeys(metrics, math.nan)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    return {name: metric(labels.astype(np.int64), probabilities.copy()) for name, metric in metrics.items()}


def shifted(images: tf.Tensor, down: float, right: float) -> tf.Tensor:
    """Move images, uint8 [B, H, W], by so many pixels; pixels that come in are 0."""
    zero = tf.zeros(tf.shape(images)[0])
    one = zero + 1
    return affine(images, zero, one, one, zero, zero + down, zero + right)


def affine(
    images: tf.Tensor,
    rotation: tf.Tensor,
    scale: tf.Tensor,
    stretch: tf.Tensor,
    shear: tf.Tensor,
    down: tf.Tensor,
    right: tf.Tensor,
) -> tf.Tensor:
    """Transform images, uint8 [B, H, W], about their centre by amounts, float32 [B].

    Rotation is in radians, scale a factor of the size, stretch one of the width (its inverse of the height), shear
    horizontal pixels per vertical pixel, shifts are in pixels. Bilinear between pixels, rounded, 0 outside.
    """
    height, width = images.shape[1:3]
    is_grey = len(images.shape) == 3
    # The operation wants the inverse map, from a pixel of the result (column x, row y) to one of the source:
    # undo the shift, then shear, rotate, shrink and squeeze about the centre.
    cosine, sine = tf.cos(rotation) / scale, tf.sin(rotation) / scale
    xx, xy = cosine / stretch, (cosine * shear + sine) / stretch
    yx, yy = -sine * stretch, (cosine - sine * shear) * stretch
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    start_x = centre_x - xx * (centre_x + right) - xy * (centre_y + down)
    start_y = centre_y - yx * (centre_x + right) - yy * (centre_y + down)
    zero = tf.zeros_like(xx)
    transforms = tf.stack([xx, xy, start_x, yx, yy, start_y, zero, zero], axis=1)  # [B, 8]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32)[..., None] if is_grey else tf.cast(images, tf.float32),
        transforms=transforms,
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.cast(tf.round(moved[..., 0] if is_grey else moved), tf.uint8)
