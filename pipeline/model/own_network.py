"""Networks of the user's own: built by a function of theirs, and tried before anything is trained.

Shapes: B batch, H rows, W columns, K classes.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

from pipeline.base import own
from pipeline.base.errors import UserError
from pipeline.base.schema import OwnModel
from pipeline.model.files import save_model

TRIED = 2  # random images
CLOSE = 1e-4  # what logits may differ by, of a model and of its file, relative to the largest


def build_own(root: Path, model: OwnModel, image_shape: Sequence[int], classes: int, seed: int) -> keras.Model:
    """Return the network of `model.build`, with weights and dropouts that `seed` decides.

    It takes uint8 [B, H, W], or [B, H, W, 3] for colour, and returns logits, float32 [B, K]. Code other than that of
    `model.source_sha256`, or a network that could not be trained, saved, loaded or built again, is a UserError.
    """
    function = own.load_recorded(root, model.build, model.source_sha256)

    def build() -> Any:
        keras.backend.clear_session()  # the names of layers count from 1
        keras.utils.set_random_seed(seed)
        with own.errors_named(root, model.build):
            return function(tuple(image_shape), classes, **copy.deepcopy(model.args))

    tried = build()  # by the trial's calls a layer may move its variables: another one is trained
    _check_form(model.build, tried, image_shape, classes)
    _check_layers(model.build, tried)
    with own.errors_named(root, model.build):
        _check_logits(model.build, tried, image_shape)
    before = [(variable.path, np.array(variable)) for variable in tried.variables]
    network = build()
    after = [(variable.path, np.array(variable)) for variable in network.variables]
    differing = [was[0] for was, now in zip(before, after, strict=False) if not _same(was, now)]
    if differing or len(before) != len(after) or network.to_json() != tried.to_json():
        where = f", as {differing[0]}" if differing else ""
        raise UserError(
            f"{model.build}: two calls with one seed give different networks{where}: let it depend on its arguments "
            "alone, on no variable of the module and no generator of its own"
        )
    return network


def _same(was: tuple[str, np.ndarray], now: tuple[str, np.ndarray]) -> bool:
    return was[0] == now[0] and np.array_equal(was[1], now[1])


def _check_form(name: str, model: Any, image_shape: Sequence[int], classes: int) -> None:
    if not isinstance(model, keras.Model):
        raise UserError(f"{name} returns {_article(type(model).__name__)}, expected a keras.Model")
    try:
        graph = getattr(model, "_functional", model)  # of a Sequential, as seen in Keras 3.15
        ends = [("takes", graph.input, "uint8", tuple(image_shape)), ("returns", graph.output, "float32", (classes,))]
    except AttributeError:
        raise UserError(
            f"{name} returns a model without symbolic inputs: return keras.Model(inputs, outputs), or a Sequential "
            "that begins with a keras.Input"
        ) from None
    for does, end, dtype, shape in ends:
        given = f"{end.dtype} {list(end.shape)}" if isinstance(end, keras.KerasTensor) else f"a {type(end).__name__}"
        if given != (expected := f"{dtype} {[None, *shape]}"):
            what = "images" if does == "takes" else "logits"
            raise UserError(f"the network of {name} {does} {given}, expected {what}, {expected}")


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiouAEIOU' else 'a'} {noun}"


def _check_layers(name: str, model: keras.Model) -> None:
    """Refuse by name what no file of a model brings back."""
    for layer in model._flatten_layers():  # not public, as seen in Keras 3.15: with those inside of others
        kind = type(layer)
        if isinstance(layer, layers.Lambda):
            raise UserError(
                f"{name} has the Lambda layer {layer.name!r}, whose code no model file may bring: make it a class, a "
                "keras.layers.Layer under @keras.saving.register_keras_serializable()"
            )
        is_registered = keras.saving.get_registered_name(kind) != kind.__name__
        if not (is_registered or kind.__module__.startswith("keras.")):
            raise UserError(
                f"{name} has the layer {layer.name!r}, whose class {kind.__name__} is not registered, so no model "
                "file of it could be loaded: put @keras.saving.register_keras_serializable() above the class"
            )


def _check_logits(name: str, model: keras.Model, image_shape: Sequence[int]) -> None:
    """Refuse what is no logits on two random images, and a model that its file brings back as another one."""
    images = np.random.default_rng(0).integers(0, 256, (TRIED, *image_shape), np.uint8)
    logits = np.array(model(images, training=False))
    if not np.isfinite(logits).all():
        raise UserError(f"the network of {name} returns {logits.min()} for random images: scale pixels, 0 to 255")
    if (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-5):
        raise UserError(f"the network of {name} returns probabilities, expected logits: leave out its softmax")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        try:
            save_model(file, model)
            again = np.array(keras.saving.load_model(file, compile=False, safe_mode=True)(images, training=False))
        except Exception as error:  # Keras's, or of the user's code: nearly anything
            said = str(error).rpartition("Exception encountered: ")[2].partition(" Full object config")[0]
            said = said.strip().partition("\n")[0]
            raise UserError(
                f"the network of {name} cannot be loaded from its file ({said}): get_config of a layer of yours has to "
                "return all that its __init__ takes, and functions of yours have to be registered"
            ) from error
    if np.abs(again - logits).max() > CLOSE * np.abs(logits).max():
        raise UserError(
            f"the network of {name}, loaded from its file, returns other logits: get_config of a layer of yours has to "
            "return all that its __init__ takes"
        )
