"""One training in a process of its own: its figures as one line of JSON, the last on stdout.

    python -m benchmarks.trial <peer or recipe> [--test] [--filters-times M] [--instructions ISA] [key=value ...]

It trains on the split that the key=value words ask for, and reads the test digits only with --test, once, after the
last epoch. The clock of a peer and of a recipe runs over its epochs alone, without validation.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import data
from pipeline.config import CONF, ROOT, Config, compose
from pipeline.console import quiet_import
from pipeline.isolation import isolate

PEERS = ("published", "keras_convnet")
Predict = Callable[[NDArray[np.uint8], int], NDArray[np.floating]]  # of so many views a digit


def main() -> None:
    isolate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trial")
    parser.add_argument("what")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--checkpoints", action="store_true")
    parser.add_argument("--filters-times", type=float, default=1)
    parser.add_argument("--instructions", help="the most that oneDNN may use of the processor, such as AVX2")
    given, words = parser.parse_known_args()
    if given.instructions:
        os.environ["ONEDNN_MAX_CPU_ISA"] = given.instructions  # read when TensorFlow is imported
    is_recipe = (CONF / "recipe" / f"{given.what}.yaml").is_file()
    if not is_recipe and given.what not in PEERS:
        parser.error(f"{given.what} is neither a recipe of conf/recipe nor {' nor '.join(PEERS)}")
    config = compose(f"recipe={given.what if is_recipe else 'baseline'}", *words)
    raw = data.load_raw(ROOT / "data" / "raw" / f"{config.data.name}.npz", config.data)
    digits = data.split(raw, config.data)

    if is_recipe:
        figures, predict = _fit_recipe(given.what, config, digits["train"], given.filters_times, given.checkpoints)
    else:
        figures, predict = _fit_peer(given.what, config, digits["train"], given.filters_times)
    for name in ("val", "test") if given.test else ("val",):
        images, labels, _ = digits[name]
        figures[f"{name}_digits"] = len(labels)
        for views in sorted({1, config.evaluate.views}):
            wrong = np.flatnonzero(predict(images, views).argmax(1) != labels).tolist() if len(labels) else []
            figures[f"{name}_wrong" + f"_{views}_views" * (views > 1)] = wrong
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # KiB on Linux
    figures["peak_memory_mb"] = round(peak)
    print(json.dumps({"train_digits": len(digits["train"].labels), **figures}))


def _fit_recipe(
    recipe: str, config: Config, train: data.Examples, times: float, checkpoints: bool
) -> tuple[dict[str, Any], Predict]:
    with quiet_import():
        from pipeline import checkpoint, engine, model

    config.model.filters = round(config.model.filters * times)
    nobody = data.Examples(train.images[:0], train.labels[:0], train.source_index[:0])
    engine.start(config.seed)
    cnn = model.build_cnn(config.model, config.data.image_shape, len(config.data.classes))
    figures: dict[str, Any] = {"num_params": cnn.count_params(), "epoch_seconds": []}
    saving = []
    # On the disk where a training saves them: a folder for temporary files may be in memory.
    with tempfile.TemporaryDirectory(dir=ROOT / "data") as folder:
        for epoch, seconds, state in engine.fit(cnn, config, train, nobody, lambda *_: None):
            figures["epoch_seconds"].append(round(seconds, 3))
            figures["train_accuracy"] = epoch.train_accuracy
            if checkpoints:
                begin = time.perf_counter()
                checkpoint.save(Path(folder), {}, checkpoint.Checkpoint([{}] * epoch.epoch, state()))
                saving.append(round(time.perf_counter() - begin, 4))
    if checkpoints:
        figures["checkpoint_seconds"] = saving
    return figures, lambda images, views: engine.predict(cnn, images, views)


def _fit_peer(peer: str, config: Config, train: data.Examples, times: float) -> tuple[dict[str, Any], Predict]:
    with quiet_import():
        import keras

        from benchmarks import peers

    keras.utils.set_random_seed(config.seed)
    built = getattr(peers, peer)(times)

    def prepared(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        return images[..., None].astype(np.float32) * np.float32(built.pixel_scale)

    clock: list[float] = []

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            clock.append(round(time.perf_counter() - self.begin, 3))

    labels = keras.utils.to_categorical(train.labels, 10) if built.one_hot else train.labels
    history = built.model.fit(
        prepared(train.images),
        labels,
        batch_size=built.batch_size,
        epochs=config.train.epochs,
        callbacks=[Clock()],
        verbose=0,
    )
    figures = {
        "num_params": built.model.count_params(),
        "epoch_seconds": clock,
        "train_accuracy": history.history["accuracy"][-1],
    }
    return figures, lambda images, _: built.model.predict(prepared(images), batch_size=500, verbose=0)


if __name__ == "__main__":
    main()
