"""What Keras's own `export` writes a network as, and how the runtime of each format reads it back, without our code.

What is written takes raw digits, uint8 [N, H, W], and gives logits, float32 [N, K], for any N.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PipelineError
from pipeline.files import owner, remove_left_over

Infer = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
BATCH = 500  # as many digits at once as engine.inference takes: all of them would need gigabytes


class Format(NamedTuple):
    of_keras: str  # Keras's word for it
    name: str  # of the file, or folder
    packages: tuple[str, ...] = ()  # what it needs besides requirements.lock


FORMATS = {
    "saved_model": Format("tf_saved_model", "saved_model"),
    "litert": Format("litert", "model.tflite"),
    "onnx": Format("onnx", "model.onnx", ("onnx", "onnxruntime", "tf2onnx")),
}


def check_packages(name: str) -> None:
    """Refuse a format whose packages are not installed; nothing is imported."""
    absent = [package for package in FORMATS[name].packages if importlib.util.find_spec(package) is None]
    if absent:
        raise PipelineError(f"format={name} needs {', '.join(absent)}: `make runtimes` installs what is missing")


def write(model: Any, name: str, path: Path) -> None:
    """Export a Keras model to `path`, a file or a folder."""
    from tensorflow.errors import OpError

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras tries NumPy's former names on behalf of tf2onnx
        try:
            # With its inputs named it need not have been called before, which Keras asks of it for ONNX.
            model.export(str(path), FORMATS[name].of_keras, verbose=False, input_signature=model.inputs)
        except OpError as error:  # TensorFlow's word for a full disk is one of these, and no OSError
            reason = error.message.rpartition("; ")[2]
            raise PipelineError(f"{path.name} was not written ({reason}): free the disk, or mend the path") from None


def load(name: str, path: Path) -> Infer:
    """The logits that the runtime of the format gives, by one thread an operation, as engine.start has it for Keras."""
    infer = {"saved_model": _saved_model, "litert": _litert, "onnx": _onnx}[name](path)

    def logits(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.concatenate([infer(images[i : i + BATCH]) for i in range(0, len(images), BATCH)])

    return logits


def _saved_model(path: Path) -> Infer:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    return lambda images: loaded.serve(images).numpy()


def _litert(path: Path) -> Infer:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:  # TensorFlow has the same one, and says that a later version will not
        from tensorflow import lite

        Interpreter = lite.Interpreter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        interpreter = Interpreter(model_path=str(path), num_threads=1)
    [images_in], [logits_out] = interpreter.get_input_details(), interpreter.get_output_details()
    shape: tuple[int, ...] = ()

    def infer(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        nonlocal shape
        if images.shape != shape:
            shape = images.shape
            interpreter.resize_tensor_input(images_in["index"], shape)
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
    [images_in] = session.get_inputs()
    return lambda images: session.run(None, {images_in.name: images})[0]


class Check(NamedTuple):
    """How logits [N, K] compare with Keras's for the same digits."""

    differ: int  # predictions
    largest: float  # difference of two logits


def compared(found: NDArray[np.float32], expected: NDArray[np.float32]) -> Check:
    differ = (found.argmax(1) != expected.argmax(1)) | ~np.isfinite(found).all(1)
    return Check(int(differ.sum()), float(np.abs(found - expected).max()))


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    return sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file())


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Give a temporary path for a file or folder, which becomes `path` when the block ends well, and is removed when
    it does not. files.replacing does so for files alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(path.parent)
    room = path.with_name(f".{path.name}.{owner()}.partial")
    room.mkdir(exist_ok=True)
    try:
        yield room / path.name
        for file in filter(Path.is_file, room.rglob("*")):
            with file.open("rb") as content:
                os.fsync(content.fileno())
        if path.is_dir():  # a folder that is not empty cannot be replaced
            path.rename(room / "before")
        (room / path.name).replace(path)
    finally:
        shutil.rmtree(room, ignore_errors=True)
