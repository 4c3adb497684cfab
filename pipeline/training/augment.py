"""Random affine images, a whole batch in one operation.

Shapes: B batch, H rows, W columns.
"""

from __future__ import annotations

import math

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.base.schema import Augment
from pipeline.model.inference import affine


def strengths(augment: Augment, steps: int) -> NDArray[np.float32]:
    """Return the share of the largest amounts at every step, float32 [steps], 0 to 1.

    Whole at first; from the share `full_until` of the steps on it falls linearly toward `last`, so that the last
    weights, and the moving averages of batch norm, come from nearly unmodified images.
    """
    position = (np.arange(steps) + 0.5) / steps  # 0..1, the middle of the step
    fallen = np.clip((position - augment.full_until) / (1 - augment.full_until), 0, 1)
    return (1 - (1 - augment.last) * fallen).astype(np.float32)


def random_affine(images: tf.Tensor, seed: tf.Tensor, augment: Augment, strength: tf.Tensor | float = 1.0) -> tf.Tensor:
    """Rotate, scale, stretch, shear and shift every image by random amounts of its own, about its centre.

    Args:
      images: uint8 [B, H, W] or [B, H, W, 3].
      seed: int32 [2]; the same seed gives the same images.
      augment: the largest amounts, each drawn uniformly from minus to plus it.
      strength: a share of these, 0 to 1.

    Returns:
      uint8, of the same shape: bilinear between pixels, rounded, 0 outside.
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
