"""What the recipes are compared with: two networks in plain Keras, trained by `fit` with TensorFlow's default threads.

Both read uint8 [N, 28, 28, 1]. `times` multiplies the number of filters.
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
    """Build the original: one convolution, two dense layers, raw pixels, Keras's Adam and batch size of 32.

    Written from the description in https://github.com/sgspencer2618/MNIST_CNN_Handwritten_Digit_Recognition.
    """
    dense = [layers.Dense(64, activation="relu"), layers.Dense(64, activation="relu")]
    first = layers.Conv2D(round(64 * times), 3, activation="relu")
    top = layers.Dense(10, activation="softmax")
    model = keras.Sequential([layers.Input((28, 28, 1)), first, layers.Flatten(), *dense, top])
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return Peer(model, 32, 1.0, False)


def keras_convnet(times: float = 1) -> Peer:
    """Build the example of Keras's documentation: two convolutions with pooling, dropout, batches of 128.

    Written from the description in https://keras.io/examples/vision/mnist_convnet (F. Chollet).
    """
    first, second = (layers.Conv2D(round(filters * times), 3, activation="relu") for filters in (32, 64))
    features = [layers.Input((28, 28, 1)), first, layers.MaxPooling2D(2), second, layers.MaxPooling2D(2)]
    top = layers.Dense(10, activation="softmax")
    model = keras.Sequential([*features, layers.Flatten(), layers.Dropout(0.5), top])
    model.compile(optimizer="adam", loss="categorical_crossentropy", metrics=["accuracy"])
    return Peer(model, 128, 1 / 255, True)
