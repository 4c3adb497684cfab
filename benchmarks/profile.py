"""Print where the time of a training step goes, by TensorFlow's operations.

    python -m benchmarks.profile recipe=accurate        50 steps; any key=value of a training can follow

It needs the data of `dvc repro`, and keeps nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipeline import data
from pipeline.augment import strengths
from pipeline.config import Config, compose
from pipeline.data import Examples
from pipeline.engine import Schedule, Trainer, start
from pipeline.model import build_cnn
from pipeline.optimizer import learning_rates

STEPS = 50


def profile(config: Config, examples: Examples, steps: int) -> str:
    """Run `steps` training steps under TensorFlow's profiler: a table of operations, those that take most first.

    Times are summed over threads, so with two operations at once they add up to more than the time that passes.
    """
    # Where TensorFlow keeps the definition of what its profiler writes; no public name leads there.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    size = config.optimizer.batch_size
    start(config.seed)
    model = build_cnn(config.model, config.data.image_shape, len(config.data.classes))
    trainer = Trainer(model, config.optimizer, config.augment, config.seed)
    chosen = np.resize(np.arange(len(examples.labels), dtype=np.int32), (steps + 1) * size)
    schedule = Schedule(learning_rates(config.optimizer, steps + 1), strengths(config.augment, steps + 1))

    def run(first: int, last: int) -> None:
        images, labels = tf.constant(examples.images), tf.constant(examples.labels, tf.int32)
        trainer.run_steps(images, labels, chosen, schedule, np.int32(first), np.int32(last), np.int32(0))

    run(steps, steps + 1)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with tf.profiler.experimental.Profile(folder):
            run(0, steps)
        passed = (time.perf_counter() - begin) * 1000 / steps
        space = xplane_pb2.XSpace()
        for file in Path(folder).rglob("*.xplane.pb"):
            space.MergeFromString(file.read_bytes())
    milliseconds, calls = Counter[str](), Counter[str]()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                # An operation is named "<its name in the graph>:<its kind>"; all else is the machinery around it.
                name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
                if plane.name == "/host:CPU" and name and not name.endswith(":") and not kind.lstrip().startswith("__"):
                    milliseconds[kind] += event.duration_ps / 1e9 / steps
                    calls[kind] += 1
    total = sum(milliseconds.values())
    rows = [f"{'operation':40} {'ms a step':>9} {'share':>6} {'calls a step':>12}"]
    rows += [
        f"{kind:40} {spent:9.2f} {100 * spent / total:5.1f}% {calls[kind] / steps:12.1f}"
        for kind, spent in milliseconds.most_common(20)
    ]
    return "\n".join([*rows, f"{'all, summed over threads':40} {total:9.2f}", f"{'time that passed':40} {passed:9.2f}"])


if __name__ == "__main__":
    settings = compose(*sys.argv[1:], verb="train")
    print(profile(settings, data.load_split("train.npz", settings.data), STEPS))
