"""What the recipes are measured against: two networks trained as their authors show it, in plain Keras.

Both read uint8 [N, 28, 28, 1] and are trained by `fit` with whatever threads TensorFlow takes. `times` scales
the number of filters.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
from keras import layers


class Peer(NamedTuple):
    model: keras.Model  # compiled
    batch_size: int
    pixel_scale: float
    one_hot: bool


def published(times: float = 1) -> Peer:
    """The published notebook: one convolution, two dense layers, raw pixels, Keras's Adam and batch size of 32.

    Its network is described in https://github.com/sgspencer2618/MNIST_CNN_Handwritten_Digit_Recognition.
    """
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(round(64 * times), 3, activation="relu"),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dense(64, activation="relu"),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return Peer(model, 32, 1.0, False)


def keras_convnet(times: float = 1) -> Peer:
    """The example of Keras's documentation: two convolutions with pooling, dropout, batches of 128, 34,826 weights.

    Written from the description of https://keras.io/examples/vision/mnist_convnet (F. Chollet).
    """
    model = keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(round(32 * times), 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(round(64 * times), 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dropout(0.5),
            layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return Peer(model, 128, 1 / 255, True)
