"""The examples of an epoch, chunk by chunk.

A set that fits into memory is one tensor; a larger one is gathered from the disk in the epoch's order, each chunk while
the one before it is trained on. The weights are the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.data.blocks import BLOCK_BYTES, gather, is_large

CHUNKS = 20  # calls of the compiled loop per epoch, so that the progress bar moves

Images: TypeAlias = "tf.Tensor | NDArray[np.uint8]"  # [N, H, W] or [N, H, W, 3]: in memory, or too large for it


class Chunk(NamedTuple):
    """Examples for the steps from `first` to below `last`."""

    images: tf.Tensor
    labels: tf.Tensor  # int32
    order: tf.Tensor  # int32, in which they are visited
    start: np.int32  # the step that the order begins with
    first: np.int32
    last: np.int32


def in_memory(images: NDArray[np.uint8]) -> Images:
    """Return the images as a tensor, unless they are too large."""
    return images if is_large(images) else tf.constant(images)


def chunks(images: Images, labels: tf.Tensor, order: NDArray[np.int32], batch_size: int) -> Iterator[Chunk]:
    """Yield an epoch in CHUNKS parts, or in as many as are needed for each to be a block."""
    steps, size = math.ceil(len(order) / batch_size), 0 if isinstance(images, tf.Tensor) else images.nbytes
    number = min(steps, max(CHUNKS, math.ceil(size / BLOCK_BYTES)))
    steps_of = list(pairwise(np.linspace(0, steps, number + 1).astype(np.int32)))
    if isinstance(images, tf.Tensor):
        for first, last in steps_of:
            yield Chunk(images, labels, order, np.int32(0), first, last)
        return
    parts = [order[first * batch_size : last * batch_size] for first, last in steps_of]
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(gather, images, parts[0])
        for (first, last), part, after in zip(steps_of, parts, [*parts[1:], None], strict=True):
            gathered = tf.constant(ahead.result())
            if after is not None:
                ahead = pool.submit(gather, images, after)
            in_order = tf.range(len(part))
            yield Chunk(gathered, tf.gather(labels, part), in_order, first, first, last)
