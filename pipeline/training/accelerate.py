"""The same model in a form that trains faster, for models that are recognised; every other model is left alone.

What is trained shares the variables of the model it was made from, except the row partitions of a dense kernel.
"""

from __future__ import annotations

from itertools import pairwise

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from pipeline.base.errors import UserError

PARTITION = "partition_"
REGULARIZED = ("kernel", "bias", "activity")


class FusedBatchNorm(layers.Layer):
    """A batch norm layer in training, moving its own variables, as one operation where Keras takes a dozen."""

    def __init__(self, norm: layers.BatchNormalization) -> None:
        super().__init__(name=f"fused_{norm.name}", dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, x: tf.Tensor, mask: None = None) -> tf.Tensor:  # clone_model passes a mask on
        norm = self.norm
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, norm.gamma.value, norm.beta.value, epsilon=norm.epsilon, is_training=True
        )
        size = tf.cast(tf.size(x), tf.float32) / x.shape[-1]
        variance *= (size - 1) / size  # TensorFlow divides by size - 1, Keras by size
        for average, value in ((norm.moving_mean.value, mean), (norm.moving_variance.value, variance)):
            average.assign(average * norm.momentum + value * (1 - norm.momentum))
        return y


def accelerated(model: keras.Model, dense_partitions: int) -> keras.Model:
    """Return the model to train: with row partitions of the first dense layer where asked for, else with fused batch
    norm where there is any. A UserError where partitions are asked for and do not fit."""
    if dense_partitions > 1:
        return _partitioned(model, dense_partitions)
    fusible = {layer.name for layer in _layers(model) if _is_fusible(layer)}
    if not fusible:
        return model

    def clone(layer: layers.Layer) -> layers.Layer:
        return FusedBatchNorm(layer) if layer.name in fusible else layer

    return keras.models.clone_model(model, clone_function=clone)


def merge_partitions(model: keras.Model, trained: keras.Model) -> None:
    """Put the row partitions of the first dense layer back into `model`."""
    parts = [layer for layer in trained.layers if layer.name.startswith(PARTITION)]
    kernels = [part.get_weights()[0] for part in parts]
    model.get_layer("hidden_1").set_weights([np.concatenate(kernels), parts[0].get_weights()[1]])


def _layers(model: keras.Model) -> list[layers.Layer]:
    """The layers of a functional model; a subclassed one cannot be cloned."""
    return list(model.layers) if isinstance(model, keras.src.models.functional.Functional) else []


def _is_fusible(layer: layers.Layer) -> bool:
    return (
        type(layer) is layers.BatchNormalization
        and layer.trainable
        and layer.center
        and layer.scale
        and len(layer.output.shape) == 4
        and layer.axis in (-1, 3)
        and not (layer.gamma_regularizer or layer.beta_regularizer or layer.synchronized)
    )


def _partitioned(model: keras.Model, count: int) -> keras.Model:
    """Read the image in horizontal strips that can be worked on side by side.

    Each strip of the convolution's rows meets its own partition of the first dense kernel. The partitions start as
    those of `model`; all other variables are those of `model` itself.
    """
    names = [layer.name for layer in model.layers]
    convolutions = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    if "hidden_1" not in names or len(convolutions) != 1 or "pixels" not in names or not _is_partitionable(model):
        raise UserError(
            "optimizer.dense_partitions: only one valid convolution, 'flatten' and hidden units can be cut, "
            "without batch norm, pooling or regularisation: give 1"
        )
    [convolution], dense = convolutions, model.get_layer("hidden_1")
    rows = convolution.output.shape[1]
    if count > rows:
        raise UserError(f"optimizer.dense_partitions={count}: give at most {rows}, the rows after the convolution")
    edges = np.linspace(0, rows, count + 1).round().astype(int)
    kernel, bias = dense.get_weights()
    features_a_row = len(kernel) // rows
    kernels = np.split(kernel, edges[1:-1] * features_a_row)
    pixels = model.get_layer("pixels").output
    policy = {"dtype": dense.dtype_policy}
    dropouts = [layer for layer in _between(model, convolution, dense) if isinstance(layer, layers.Dropout)]
    parts = []
    for number, (top, bottom) in enumerate(pairwise(edges)):
        strip = pixels[:, top : bottom + convolution.kernel_size[0] - 1]
        features = layers.Flatten(**policy)(layers.ReLU(**policy)(convolution(strip)))
        for dropout in dropouts:
            features = dropout(features)
        part = layers.Dense(dense.units, use_bias=number == 0, name=f"{PARTITION}{number}", **policy)
        parts.append(part(features))
        part.set_weights([kernels[number], bias][: len(part.weights)])
    x = layers.Activation(dense.activation)(layers.Add()(parts))
    for layer in model.layers[names.index("hidden_1") + 1 :]:
        x = layer(x)
    return keras.Model(model.input, x)


def _is_partitionable(model: keras.Model) -> bool:
    """Return whether the first dense layer reads the flattened rows of a convolution, and each layer after it the one
    before alone; a regularised or constrained dense kernel would have to be whole."""
    [convolution] = [layer for layer in model.layers if isinstance(layer, layers.Conv2D)]
    dense = model.get_layer("hidden_1")
    position = model.layers.index(dense)
    between = [type(layer) for layer in _between(model, convolution, dense)]
    return (
        between in ([layers.ReLU, layers.Flatten], [layers.ReLU, layers.Flatten, layers.Dropout])
        and (convolution.padding, convolution.strides) == ("valid", (1, 1))
        and not any(getattr(layer, f"{name}_regularizer") for layer in (convolution, dense) for name in REGULARIZED)
        and not (dense.kernel_constraint or dense.bias_constraint)
        and all(after.input is before.output for before, after in pairwise(model.layers[position:]))
    )


def _between(model: keras.Model, first: layers.Layer, last: layers.Layer) -> list[layers.Layer]:
    return list(model.layers[model.layers.index(first) + 1 : model.layers.index(last)])
