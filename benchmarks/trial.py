"""Train once, in a process of its own, and print the figures as one line of JSON, the last on stdout.

    python -m benchmarks.trial <peer or recipe> [--test] [--checkpoints] [--filters-times M] [--patience P] [<key>=… …]

Only with --test it reads the test digits, once, after the last epoch. Seconds are those of the epochs, without
validation, but for a peer with --patience.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.command import isolate
from pipeline.base.hydra import compose
from pipeline.base.keras_import import load_keras
from pipeline.base.project import open_project
from pipeline.base.schema import Config, Model
from pipeline.data.examples import Examples, head

PEERS = ("published", "keras_convnet")
Images = NDArray[np.uint8]
Predict = Callable[[Images, int], NDArray[np.floating]]  # images and the number of TTA shifts, to scores [N, K]


def main() -> None:
    isolate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trial")
    parser.add_argument("name")
    parser.add_argument("--test", action="store_true")
    parser.add_argument("--checkpoints", action="store_true")
    parser.add_argument("--filters-times", type=float, default=1)
    parser.add_argument("--patience", type=int, help="epochs after which a peer that is no better stops, at its best")
    parser.add_argument("--instructions", help="the most that oneDNN may use of the processor, such as AVX2")
    options, overrides = parser.parse_known_args()
    if options.patience and options.name not in PEERS:
        parser.error(f"--patience is for {' and '.join(PEERS)}")
    if options.instructions:
        os.environ["ONEDNN_MAX_CPU_ISA"] = options.instructions  # read when TensorFlow is imported
    from pipeline.data.readers import load_raw
    from pipeline.data.split import split

    project, is_peer = open_project(), options.name in PEERS
    if is_peer:
        os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)  # as in a program of its own, where TensorFlow itself decides
    config: Config = compose(project, f"recipe={'baseline' if is_peer else options.name}", *overrides)
    digits = split(load_raw(project.raw / f"{config.data.name}.npz", config.data), config.data)
    load_keras()
    if is_peer:
        figures, predict = _fit_peer(options.name, config, digits, options.filters_times, options.patience)
    else:
        figures, predict = _fit_recipe(config, digits["train"], options.filters_times, options.checkpoints)
    for name in ("val", "test") if options.test else ("val",):
        images, labels, _ = digits[name]
        figures[f"{name}_digits"] = len(labels)
        for shifts in sorted({1, config.evaluate.tta_shifts}):
            wrong = np.flatnonzero(predict(images, shifts).argmax(1) != labels).tolist() if len(labels) else []
            figures[f"{name}_wrong" + f"_{shifts}_views" * (shifts > 1)] = wrong
    figures["peak_memory_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)  # KiB on Linux
    print(json.dumps({"train_digits": len(digits["train"].labels), **figures}))


def _fit_recipe(config: Config, train: Examples, times: float, checkpoints: bool) -> tuple[dict[str, Any], Predict]:
    from pipeline.model import build, inference
    from pipeline.training import checkpoint, loop

    assert isinstance(config.model, Model)
    network = config.model.model_copy(update={"filters": round(config.model.filters * times)})
    inference.start(config.seed)
    model = build.build_cnn(network, config.data.image_shape, len(config.data.classes))
    figures: dict[str, Any] = {"num_params": model.count_params(), "epoch_seconds": []}
    # On the disk where a training saves them: a folder for temporary files may be in memory.
    with tempfile.TemporaryDirectory(dir="data") as folder:
        for epoch, seconds, state in loop.fit(model, config, train, head(train, 0), lambda *_: None):
            figures["epoch_seconds"].append(round(seconds, 3))
            figures["train_accuracy"] = epoch.train_accuracy
            if checkpoints:
                begin = time.perf_counter()
                checkpoint.save(Path(folder), {}, checkpoint.Checkpoint([{}] * epoch.epoch, state()))
                figures.setdefault("checkpoint_seconds", []).append(round(time.perf_counter() - begin, 4))
    return figures, lambda images, shifts: inference.predict(model, images, shifts)


def _fit_peer(
    name: str, config: Config, digits: Mapping[str, Examples], times: float, patience: int | None
) -> tuple[dict[str, Any], Predict]:
    import keras

    from benchmarks import peers

    class Clock(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.begin = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            clock.append(round(time.perf_counter() - self.begin, 3))

    def pixels(images: Images) -> NDArray[np.float32]:
        return images[..., None].astype(np.float32) * np.float32(peer.pixel_scale)

    def labels(examples: Examples) -> NDArray[Any]:
        return keras.utils.to_categorical(examples.labels, 10) if peer.one_hot else examples.labels

    keras.utils.set_random_seed(config.seed)
    peer: peers.Peer = getattr(peers, name)(times)
    clock: list[float] = []
    settings: dict[str, Any] = {"batch_size": peer.batch_size, "epochs": config.train.epochs, "verbose": 0}
    settings["callbacks"] = [Clock()]
    train, val = digits["train"], digits["val"]
    if patience:
        settings["validation_data"] = pixels(val.images), labels(val)
        settings["callbacks"].append(keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True))
    history = peer.model.fit(pixels(train.images), labels(train), **settings).history
    figures = {"num_params": peer.model.count_params(), "epoch_seconds": clock}
    figures["train_accuracy"] = history["accuracy"][-1]
    return figures, lambda images, _: peer.model.predict(pixels(images), batch_size=500, verbose=0)


if __name__ == "__main__":
    main()
