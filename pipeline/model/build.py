"""The CNN of a recipe, as an ordinary Keras model.

Shapes: B batch, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from pipeline.base.project import Project
from pipeline.base.schema import Config, Model
from pipeline.model.own_network import build_own

BRANCHES = "mean_of_branches"  # the layer by which training knows that each branch has a loss of its own
BATCH_NORM_MOMENTUM = 0.95  # Keras's 0.99 is still near its start after the 50 steps of a quick try


def build_model(project: Project, config: Config) -> keras.Model:
    """Build the network of a configuration: that of its keys, or what the user's own function returns."""
    shape = tuple(config.data.shape)
    if isinstance(config.model, Model):
        return build_cnn(config.model, shape, len(config.data.classes))
    return build_own(project.root, config.model, shape, len(config.data.classes), config.seed)


def build_cnn(model: Model, image_shape: Sequence[int], classes: int) -> keras.Model:
    """Build convolutions, pooling, hidden dense layers and one logit per class. `image_shape` is (H, W) or (H, W, 3).

    The model takes raw images of that shape, uint8 in 0..255, and returns logits, float32 [B, K]: scaling is inside.
    Logits and variables are float32 whatever the precision, which is a Keras policy for the layers in between.
    With one 'valid' convolution of 64 filters, no batch norm, 'flatten' and units 64, 64 it is the published model.
    """
    images = layers.Input(tuple(image_shape), dtype="uint8", name="images")
    x = images if len(image_shape) == 3 else layers.Reshape((*image_shape, 1), name="channel")(images)  # [B, H, W, C]
    if model.crop:
        x = layers.Cropping2D(model.crop, name="crop")(x)
    policy = {} if model.precision == "float32" else {"dtype": model.precision}  # float32 is Keras's own choice
    x = layers.Rescaling(*_pixel_scale(model), name="pixels", **policy)(x)
    if model.branches == 1:
        return keras.Model(images, _branch(x, model, classes, "", policy))
    every = [_branch(x, model, classes, f"branch_{number}_", policy) for number in range(1, model.branches + 1)]
    return keras.Model(images, layers.Average(name=BRANCHES)(every))


def _branch(x: keras.KerasTensor, model: Model, classes: int, prefix: str, policy: dict[str, Any]) -> keras.KerasTensor:
    """Return the logits [B, K] of one network on pixels [B, H, W, C]; `prefix` is of its layers' names."""
    for number, layer in enumerate(model.convolutions, start=1):
        x = layers.Conv2D(
            model.filters * layer.multiple,
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            use_bias=not model.batch_norm,  # batch norm has a bias of its own
            name=f"{prefix}convolution_{number}",
            **policy,
        )(x)
        if layer.pool > 1:  # first, so that what follows has fewer pixels to move
            x = layers.MaxPooling2D(layer.pool, **policy)(x)
        if model.batch_norm:
            x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, **policy)(x)
        x = layers.ReLU(**policy)(x)
    # [B, H', W', C] -> [B, features]
    x = layers.Flatten(**policy)(x) if model.pooling == "flatten" else layers.GlobalAveragePooling2D(**policy)(x)
    for number, units in enumerate(model.units, start=1):
        if model.dropout:
            x = layers.Dropout(model.dropout, **policy)(x)
        x = layers.Dense(units, activation="relu", name=f"{prefix}hidden_{number}", **policy)(x)
    if model.dropout:
        x = layers.Dropout(model.dropout, **policy)(x)
    return layers.Dense(classes, name=f"{prefix}logits")(x)


def _pixel_scale(model: Model) -> list[Any]:
    """Return what a pixel is multiplied by, and with `pixel_mean` what is added to it then, a number a channel."""
    if not model.pixel_mean:
        return [model.pixel_scale]
    pairs = list(zip(model.pixel_mean, model.pixel_std, strict=True))
    return [[model.pixel_scale / std for _, std in pairs], [-mean / std for mean, std in pairs]]


def count_macs(model: keras.Model) -> int | None:
    """Return the multiply-accumulates that one image costs in convolutions and dense layers, those of models inside of
    the model included; None where a layer of the user's own has such layers inside."""
    macs = 0
    for layer in model._flatten_layers():  # not public, as seen in Keras 3.15
        if isinstance(layer, layers.Conv2D | layers.DepthwiseConv2D | layers.SeparableConv2D | layers.Dense):
            try:
                *positions, _ = layer.output.shape[1:]
            except AttributeError:  # it is called by a layer's code
                return None
            kernels = [variable.shape for variable in layer.weights if "kernel" in variable.name]
            macs += sum(math.prod((*positions, *kernel)) for kernel in kernels)
    return macs
