"""Print where the time of a training step goes, by TensorFlow's operations.

    python -m benchmarks.profile recipe=accurate        50 steps; any key=value of a training can follow

It needs the data of `dvc repro`, and writes nothing.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipeline.base.hydra import compose
from pipeline.base.project import open_project
from pipeline.base.schema import Config, Model
from pipeline.data.examples import Examples, load_split
from pipeline.model.build import build_cnn
from pipeline.model.inference import start
from pipeline.training.augment import strengths
from pipeline.training.feed import Chunk
from pipeline.training.loop import Schedule, Trainer
from pipeline.training.optimizer import learning_rates


def profile(config: Config, examples: Examples, steps: int = 50) -> str:
    """Return a table of the operations of `steps` training steps, those that take most time first.

    Times are summed over threads, so with two operations at a time they add up to more than the time that passes.
    """
    # Where TensorFlow keeps the definition of what its profiler writes (seen in 2.21); no public name leads there.
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    start(config.seed)
    assert isinstance(config.model, Model)
    model = build_cnn(config.model, config.data.image_shape, len(config.data.classes))
    trainer = Trainer(model, config.optimizer, config.augment, config.seed)
    order = np.resize(np.arange(len(examples.labels), dtype=np.int32), (steps + 1) * config.optimizer.batch_size)
    schedule = Schedule(learning_rates(config.optimizer, steps + 1), strengths(config.augment, steps + 1))
    images, labels = tf.constant(examples.images), tf.constant(examples.labels, tf.int32)
    chunk = Chunk(images, labels, order, np.int32(0), np.int32(0), np.int32(steps))
    trainer.run_steps(chunk._replace(first=chunk.last, last=np.int32(steps + 1)), schedule, np.int32(0))  # compiles
    space, spent, calls = xplane_pb2.XSpace(), Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        with tf.profiler.experimental.Profile(folder):
            trainer.run_steps(chunk, schedule, np.int32(0))
        passed = (time.perf_counter() - begin) * 1000 / steps
        for file in Path(folder).rglob("*.xplane.pb"):
            space.MergeFromString(file.read_bytes())
    for plane in (plane for plane in space.planes if plane.name == "/host:CPU"):
        for event in (event for line in plane.lines for event in line.events):
            # An operation is named "<its name in the graph>:<its kind>"; everything else is the runtime around it.
            name, _, kind = plane.event_metadata[event.metadata_id].name.rpartition(":")
            if name and not name.endswith(":") and not kind.lstrip().startswith("__"):
                spent[kind] += event.duration_ps / 1e9 / steps  # milliseconds
                calls[kind] += 1
    total = sum(spent.values())
    rows = [f"{'operation':40} {'ms/step':>9} {'share':>6} {'calls/step':>12}"]
    for kind, time_ in spent.most_common(20):
        rows.append(f"{kind:40} {time_:9.2f} {100 * time_ / total:5.1f}% {calls[kind] / steps:12.1f}")
    return "\n".join([*rows, f"{'all, summed over threads':40} {total:9.2f}", f"{'time that passed':40} {passed:9.2f}"])


if __name__ == "__main__":
    project = open_project()
    settings: Config = compose(project, *sys.argv[1:], name="train")
    print(profile(settings, load_split(project, "train", settings.data)))
