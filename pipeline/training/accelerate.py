"""The same model in a form that trains faster, for models that are recognised; every other model is left alone.

What is trained shares the variables of the model it was made from. The groups of a dense kernel alone are copies, which
`merge_groups` writes back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from numpy.typing import NDArray

from pipeline.model.build import BRANCHES

_linear = keras.activations.linear
REGULARIZERS = ("kernel_regularizer", "bias_regularizer", "activity_regularizer")


class FusedBatchNorm(layers.Layer):
    """A BatchNormalization layer in training, as one operation instead of a dozen; it updates that layer's averages."""

    def __init__(self, norm: layers.BatchNormalization) -> None:
        super().__init__(name=f"fused_{norm.name}", dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, x: tf.Tensor, mask: None = None) -> tf.Tensor:  # clone_model passes a mask on
        norm = self.norm
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, norm.gamma.value, norm.beta.value, epsilon=norm.epsilon, is_training=True
        )
        count = tf.cast(tf.size(x), tf.float32) / x.shape[-1]  # values per channel
        variance *= (count - 1) / count  # TensorFlow divides by count - 1, Keras by count
        for average, value in ((norm.moving_mean.value, mean), (norm.moving_variance.value, variance)):
            average.assign(average * norm.momentum + value * (1 - norm.momentum))
        return y


@tf.custom_gradient
def _dense_product(
    features: tf.Tensor, kernel: tf.Tensor
) -> tuple[tf.Tensor, Callable[..., tuple[tf.Tensor, tf.Tensor]]]:
    """Return the product of the transposed features [N, B] and the kernel [N, units].

    The gradient of the kernel is computed last. Nothing reads the kernel any more then, so the optimizer can change it
    in place; otherwise TensorFlow copies it first.
    """

    def gradients(d_product: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        d_features = tf.matmul(kernel, d_product, transpose_b=True)
        with tf.control_dependencies([d_features]):
            return d_features, tf.matmul(features, d_product)

    return tf.matmul(features, kernel, transpose_a=True), gradients


class FilterGroups(layers.Layer):
    """A convolution, ReLU, flattening and a dense layer, computed side by side for groups of the filters.

    The batch is the last axis, so the product of the convolution's kernel and the patches of the images, [f, H' W' B],
    becomes the transposed features of the dense layer, [f H' W', B], without moving data: no step transposes the large
    kernel.

    Shapes: B batch, C channels, H' rows and W' columns after the convolution, F filters, f filters of one group.
    """

    def __init__(self, chain: Sequence[layers.Layer], groups: int) -> None:
        """`chain`: the convolution, ReLU, Flatten, perhaps Dropout, and the dense layer, with their variables."""
        super().__init__(name="filter_groups")
        convolution, *between, dense = chain
        self.rows, self.columns, filters = convolution.output.shape[1:]
        self.kernel_size = convolution.kernel_size
        self.convolution_variables = [convolution.kernel, convolution.bias]
        self.bias = dense.bias
        self.dropouts = [layer for layer in between if isinstance(layer, layers.Dropout)]
        self.sizes = [len(group) for group in np.array_split(range(filters), min(groups, filters))]  # each group's f
        by_filter = np.moveaxis(dense.kernel.numpy().reshape(self.rows, self.columns, filters, -1), 2, 0)
        parts = [part.reshape(-1, dense.units) for part in np.split(by_filter, np.cumsum(self.sizes)[:-1])]
        self.kernels = [  # each [f H' W', units]
            self.add_weight(part.shape, "zeros", name=f"kernel_{number}") for number, part in enumerate(parts)
        ]
        for kernel, part in zip(self.kernels, parts, strict=True):
            kernel.assign(part)

    def whole_kernel(self) -> NDArray[np.float32]:
        """Return the kernel as the dense layer has it, with its inputs in the order row, column, filter again."""
        whole = np.concatenate([kernel.numpy() for kernel in self.kernels])
        return np.moveaxis(whole.reshape(-1, self.rows, self.columns, whole.shape[1]), 0, 2).reshape(whole.shape)

    def call(self, pixels: tf.Tensor) -> tf.Tensor:
        planes = tf.transpose(pixels, [3, 1, 2, 0])  # [C, H, W, B]
        height, width = self.kernel_size
        shifted = [planes[:, i : i + self.rows, j : j + self.columns] for i in range(height) for j in range(width)]
        shifted.append(tf.ones_like(shifted[0][:1]))  # whose weight is the bias
        patches = tf.reshape(tf.concat(shifted, 0), [-1, self.rows * self.columns * tf.shape(pixels)[0]])
        kernel, bias = self.convolution_variables
        weights = tf.concat([tf.reshape(kernel, [-1, kernel.shape[-1]]), bias[None]], 0)  # [height width C + 1, F]
        products = []
        for group_weights, dense_kernel in zip(tf.split(weights, self.sizes, 1), self.kernels, strict=True):
            features = tf.nn.relu(tf.matmul(group_weights, patches, transpose_a=True))  # [f, H' W' B]
            features = tf.reshape(features, [dense_kernel.shape[0], -1])  # [f H' W', B]
            for dropout in self.dropouts:
                features = dropout(features)
            products.append(_dense_product(features, dense_kernel.value.read_value()))
        return tf.add_n(products) + self.bias


def accelerated(model: keras.Model, filter_groups: int) -> keras.Model:
    """Return the model to train: in groups of filters where they are asked for and possible, else with fused batch norm
    where there is any that can be fused, else the model itself. One in branches has the outputs of each."""
    if filter_groups > 1 and (chain := _groupable(model)):
        convolution, *_, dense = chain
        x = layers.Activation(dense.activation)(FilterGroups(chain, filter_groups)(convolution.input))
        for layer in model.layers[model.layers.index(dense) + 1 :]:
            x = layer(x)
        return keras.Model(model.input, x)
    if (every := _layers(model)) and type(every[-1]) is layers.Average and every[-1].name == BRANCHES:
        model = keras.Model(model.input, every[-1].input)
    if not any(map(_is_fusible, _layers(model))):
        return model

    def clone(layer: layers.Layer) -> layers.Layer:
        return FusedBatchNorm(layer) if _is_fusible(layer) else layer

    return keras.models.clone_model(model, clone_function=clone)


def merge_groups(model: keras.Model, trained: keras.Model) -> None:
    """Put the groups of the dense kernel back into `model`, where `trained` has any."""
    for layer in _layers(trained):
        if isinstance(layer, FilterGroups):
            _groupable(model)[-1].kernel.assign(layer.whole_kernel())


def _layers(model: keras.Model) -> list[layers.Layer]:
    """Return the layers of a functional model, none of a subclassed one, which cannot be cloned."""
    is_functional = isinstance(model, keras.src.models.functional.Functional)  # not public, as seen in Keras 3.15
    return list(model.layers) if is_functional else []


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


def _groupable(model: keras.Model) -> list[layers.Layer]:
    """Return the layers that FilterGroups can take the place of, or none: the only convolution and those after it up to
    the first dense one. Each layer of the model has to read the one before it alone; a kernel that is regularised or
    constrained would have to be whole."""
    every = _layers(model)
    kinds = [type(layer) for layer in every]
    if kinds.count(layers.Conv2D) != 1 or layers.Dense not in kinds:
        return []
    first, last = kinds.index(layers.Conv2D), kinds.index(layers.Dense)
    convolution, dense = every[first], every[last]
    plain = {"padding": "valid", "strides": (1, 1), "dilation_rate": (1, 1), "groups": 1, "activation": _linear}
    fits = (
        kinds[first + 1 : last] in ([layers.ReLU, layers.Flatten], [layers.ReLU, layers.Flatten, layers.Dropout])
        and all(getattr(convolution, key) == value for key, value in plain.items())
        and all(layer.use_bias and layer.compute_dtype == "float32" for layer in (convolution, dense))
        and not any(getattr(layer, name) for layer in (convolution, dense) for name in REGULARIZERS)
        and not (dense.kernel_constraint or dense.bias_constraint)
        and all(after.input is before.output for before, after in pairwise(every))
    )
    return every[first : last + 1] if fits else []
