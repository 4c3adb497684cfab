"""Export formats: what Keras's own `export` writes, and how the runtime of each format loads it, without our code.

An exported model takes raw images, uint8 [N, H, W], and gives logits, float32 [N, K], for any N.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
BATCH = 500  # images at once; the whole test set would need gigabytes


def check_packages(name: str) -> None:
    """Raise a UserError where a format's packages are not installed; nothing is imported."""
    missing = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"format={name} needs {', '.join(missing)}: `make runtimes` installs what is missing")


def write(model: Any, name: str, path: Path) -> None:
    """Export a Keras model to `path`, a file or a folder."""
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras tries NumPy's former names on behalf of tf2onnx
        # With its inputs named, the model need not have been called before, which Keras asks of it for ONNX.
        model.export(str(path), FORMATS[name].keras_name, verbose=False, input_signature=model.inputs)


def load(name: str, path: Path) -> Infer:
    """Return the logits of an exported model as a function, with one thread per operation as in training."""
    infer = FORMATS[name].load(path)
    return lambda images: np.concatenate([infer(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])


def _saved_model(path: Path) -> Infer:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.serve(images).numpy()


def _litert(path: Path) -> Infer:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # TensorFlow has the same one, and warns that a later version will not
        from tensorflow.lite.python.interpreter import Interpreter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = Interpreter(model_path=str(path), num_threads=1)
    [images_in], [logits_out] = interpreter.get_input_details(), interpreter.get_output_details()

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        interpreter.resize_tensor_input(images_in["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(images_in["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(logits_out["index"])

    return infer


def _onnx(path: Path) -> Infer:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]


class Format(NamedTuple):
    keras_name: str  # of the format in Keras's `export`
    name: str  # of the file or folder
    load: Callable[[Path], Infer]
    packages: tuple[str, ...] = ()  # needed besides requirements.lock


FORMATS = {
    "saved_model": Format("tf_saved_model", "saved_model", _saved_model),
    "litert": Format("litert", "model.tflite", _litert),
    "onnx": Format("onnx", "model.onnx", _onnx, ("onnx", "onnxruntime", "tf2onnx")),
}
