"""A residual network (He et al. 2015, arXiv 1512.03385), as an example of a network of your own.

conf/recipe/residual.yaml names `residual`. What such a function takes and returns: docs/your-own.md.
"""

import keras
from keras import layers


def residual(image_shape, classes, width=16, stages=2):
    """Return a network of `stages` residual blocks; each but the first halves the image and doubles the `width`."""
    images = layers.Input(image_shape, dtype="uint8")  # [B, H, W], or [B, H, W, 3] for colour
    x = layers.Rescaling(1 / 255)(layers.Reshape((*image_shape[:2], -1))(images))
    x = convolution(x, width, 1)
    for stage in range(stages):
        filters, strides = width * 2**stage, 1 if stage == 0 else 2
        y = convolution(layers.ReLU()(convolution(x, filters, strides)), filters, 1)
        shortcut = x if strides == 1 else layers.Conv2D(filters, 1, strides)(x)
        x = layers.ReLU()(layers.Add()([shortcut, y]))
    return keras.Model(images, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))


def convolution(x, filters, strides):
    x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
    return layers.BatchNormalization(momentum=0.95)(x)
