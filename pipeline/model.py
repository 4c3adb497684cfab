"""The networks, as ordinary Keras models.

Shapes: B batch, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from pipeline.config import Model, PipelineError
from pipeline.files import REMAKE, existing, replacing

BATCH_NORM_MOMENTUM = 0.95  # Keras's 0.99 is still near its start after the 50 steps of a quick try


def build_cnn(model: Model, image_shape: Sequence[int], classes: int) -> keras.Model:
    """Build convolutions, pooling, hidden dense layers and one logit a class.

    The network takes raw examples, uint8 [B, H, W] in 0..255, and gives logits, float32 [B, K]: scaling is inside.
    Logits and weights are float32 whatever the precision, which is one of Keras's policies, of what lies between.
    With one 'valid' convolution of 64 filters, no batch norm, 'flatten' and units 64, 64 it is the published one.
    """
    images = layers.Input(tuple(image_shape), dtype="uint8", name="images")  # [B, H, W]
    x = layers.Reshape((*image_shape, 1), name="channel")(images)  # [B, H, W, 1]
    of = {} if model.precision == "float32" else {"dtype": model.precision}  # float32 is what Keras takes by itself
    x = layers.Rescaling(model.pixel_scale, name="pixels", **of)(x)
    for number, layer in enumerate(model.convolutions, start=1):
        x = layers.Conv2D(
            model.filters * layer.multiple,
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            use_bias=not model.batch_norm,  # batch norm has a bias of its own
            name=f"convolution_{number}",
            **of,
        )(x)
        if layer.pool > 1:  # first, so that what follows has fewer pixels to move
            x = layers.MaxPooling2D(layer.pool, **of)(x)
        if model.batch_norm:
            x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM, **of)(x)
        x = layers.ReLU(**of)(x)
    # [B, H', W', C] -> [B, features]
    x = layers.Flatten(**of)(x) if model.pooling == "flatten" else layers.GlobalAveragePooling2D(**of)(x)
    for number, units in enumerate(model.units, start=1):
        x = layers.Dense(units, activation="relu", name=f"hidden_{number}", **of)(x)
    logits = layers.Dense(classes, name="logits")(x)  # [B, K]
    return keras.Model(images, logits)


class FusedBatchNorm(layers.Layer):
    """A batch norm layer in training, its own variables moved, as one operation where Keras's is a dozen."""

    def __init__(self, norm: layers.BatchNormalization) -> None:
        super().__init__(name=f"fused_{norm.name}", dtype=norm.dtype_policy)
        self.norm = norm

    def call(self, x: tf.Tensor, mask: None = None) -> tf.Tensor:  # clone_model hands a mask on
        norm = self.norm
        y, mean, variance = tf.compat.v1.nn.fused_batch_norm(
            x, norm.gamma.value, norm.beta.value, epsilon=norm.epsilon, is_training=True
        )
        size = tf.cast(tf.size(x), tf.float32) / x.shape[-1]
        variance *= (size - 1) / size  # TensorFlow divides by size - 1, Keras by size
        for running, found in ((norm.moving_mean.value, mean), (norm.moving_variance.value, variance)):
            running.assign(running * norm.momentum + found * (1 - norm.momentum))
        return y


def fuse_batch_norm(cnn: keras.Model) -> keras.Model:
    """The same network for training, on the variables of `cnn`."""

    def clone(layer: layers.Layer) -> layers.Layer:
        return FusedBatchNorm(layer) if isinstance(layer, layers.BatchNormalization) else layer

    return keras.models.clone_model(cnn, clone_function=clone)


def in_strips(cnn: keras.Model, count: int) -> keras.Model:
    """The same network for training, read in horizontal strips that can be worked on side by side.

    `cnn` has one 'valid' convolution, 'flatten' and hidden units. Each strip of the convolution's rows meets its own
    part of the first dense kernel; the parts start as those of `cnn`. All other variables are those of `cnn` itself.
    """
    convolution, dense = cnn.get_layer("convolution_1"), cnn.get_layer("hidden_1")
    rows = convolution.output.shape[1]
    edges = np.linspace(0, rows, count + 1).round().astype(int)
    kernel, bias = dense.get_weights()
    features_a_row = len(kernel) // rows
    kernels = np.split(kernel, edges[1:-1] * features_a_row)
    pixels = cnn.get_layer("pixels").output
    parts = []
    for number, (top, bottom) in enumerate(pairwise(edges)):
        strip = pixels[:, top : bottom + convolution.kernel_size[0] - 1]
        of = {"dtype": dense.dtype_policy}
        features = layers.Flatten(**of)(layers.ReLU(**of)(convolution(strip)))
        part = layers.Dense(dense.units, use_bias=number == 0, name=f"strip_{number}", **of)
        parts.append(part(features))
        part.set_weights([kernels[number], bias][: len(part.weights)])
    x = layers.Activation(dense.activation)(layers.Add()(parts))
    for layer in cnn.layers[cnn.layers.index(dense) + 1 :]:
        x = layer(x)
    return keras.Model(cnn.input, x)


def join_strips(cnn: keras.Model, strips: keras.Model) -> None:
    """Put the parts of the first dense layer of `in_strips` back into `cnn`."""
    parts = [layer for layer in strips.layers if layer.name.startswith("strip_")]
    kernels = [part.get_weights()[0] for part in parts]
    cnn.get_layer("hidden_1").set_weights([np.concatenate(kernels), parts[0].get_weights()[1]])


def save_model(path: Path, model: keras.Model) -> None:
    """Write a .keras file whose bytes depend on the model alone: Keras puts in the date, zip the time, and
    shared_object_id is an address in memory."""
    with replacing(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary) as archive:
            members = {name: archive.read(name) for name in sorted(archive.namelist())}
        metadata = json.loads(members["metadata.json"]) | {"date_saved": "1980-01-01@00:00:00"}
        members["metadata.json"] = json.dumps(metadata).encode()
        numbers: dict[str, str] = {}  # address -> order of first appearance
        members["config.json"] = re.sub(
            r'(?<="shared_object_id": )\d+',
            lambda found: numbers.setdefault(found[0], str(len(numbers) + 1)),
            members["config.json"].decode(),
        ).encode()
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)


def load_model(path: Path) -> keras.Model:
    """Load a .keras file; a missing or damaged one, one of a newer Keras that this one cannot read, and one that brings
    code of its own, is a PipelineError."""
    existing(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # what a file says makes Keras raise nearly anything
        written_by = _keras_version(path)
        if _numbers(written_by) > _numbers(keras.__version__):
            raise PipelineError(
                f"{path} is of Keras {written_by}, which Keras {keras.__version__} cannot read: install that version, "
                "as `make env` does"
            ) from None
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise PipelineError(f"{path} is damaged or no .keras file of ours ({reason}): {REMAKE}") from None


def _keras_version(path: Path) -> str:
    """Return the version of Keras that wrote a .keras file, or "" where it does not say."""
    with suppress(Exception), zipfile.ZipFile(path) as archive:
        return str(json.loads(archive.read("metadata.json"))["keras_version"])
    return ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
