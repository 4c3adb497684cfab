"""Random affine examples, a whole batch in one operation.

Shapes: B batch, H rows, W columns.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.config import Augment

VIEWS = ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))  # pixels down, right: as it is, and moved by one


def strengths(augment: Augment, steps: int) -> NDArray[np.float32]:
    """The share of the largest amounts at every step, float32 [steps].

    Whole at first; from the share `full_until` of the steps on it falls linearly toward `last`, so that the last
    weights, and the running figures of batch norm, are of examples nearly as they are.
    """
    position = (np.arange(steps) + 0.5) / steps  # 0..1, the middle of the step
    fallen = np.clip((position - augment.full_until) / (1 - augment.full_until), 0, 1)
    return (1 - (1 - augment.last) * fallen).astype(np.float32)


def random_affine(images: tf.Tensor, seed: tf.Tensor, augment: Augment, strength: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Rotate, scale, stretch, shear and shift every example by its own random amounts, about its centre.

    Args:
      images: uint8 [B, H, W].
      seed: int32 [2]; the same seed gives the same examples.
      augment: the largest amounts, each drawn uniformly from minus to plus it: rotation in degrees, scale as a
        share of the size, stretch as one of the width, shear in pixels sideways a pixel down, shift in pixels down
        and sideways.
      strength: a share of these, 0 to 1.

    Returns:
      uint8 [B, H, W]: bilinear between pixels, rounded, paper outside.
    """
    largest = [
        math.radians(augment.rotation),
        augment.scale,
        augment.stretch,
        augment.shear,
        augment.shift,
        augment.shift,
    ]
    amounts = tf.random.stateless_uniform([6, tf.shape(images)[0]], seed, -1.0, 1.0) * strength  # [6, B]
    rotation, scale, stretch, shear, down, right = tf.unstack(amounts * tf.constant(largest)[:, None])
    return affine(images, rotation, 1.0 + scale, 1.0 + stretch, shear, down, right)


def shifted(images: tf.Tensor, down: float, right: float) -> tf.Tensor:
    """Move uint8 examples [B, H, W] by so many pixels, paper coming in."""
    still = tf.zeros(tf.shape(images)[0])
    one = still + 1
    return affine(images, still, one, one, still, still + down, still + right)


def affine(
    images: tf.Tensor,
    rotation: tf.Tensor,
    scale: tf.Tensor,
    stretch: tf.Tensor,
    shear: tf.Tensor,
    down: tf.Tensor,
    right: tf.Tensor,
) -> tf.Tensor:
    """Move uint8 examples [B, H, W] by float32 [B] amounts: radians, factors (of the size; of the width, and the height
    by its inverse), and pixels."""
    height, width = images.shape[1:]
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
        images=tf.cast(images, tf.float32)[..., None],
        transforms=transforms,
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.cast(tf.round(moved[..., 0]), tf.uint8)
