"""TensorBoard: the metrics of every epoch and the configuration as event files, <output folder>/tensorboard.

    trackers: [pipeline.tracking.tensorboard:TensorBoard]       # in params.yaml
    tensorboard --logdir outputs                                # pip install tensorboard, best elsewhere

TensorFlow writes event files by itself; its tf.summary.scalar and .text want TensorBoard installed, so what these would
write is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import tensorflow as tf

from pipeline.base.validation import flatten

SCALAR, TENSOR = 1, 2  # DataClass of TensorBoard's protocol


class TensorBoard:
    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Continue with what stands in `folder`; a step that an earlier process has written is not written again."""
        self.folder = folder / "tensorboard"
        self.known = written(self.folder)
        self.writer = tf.summary.create_file_writer(str(self.folder))
        rows = [f"| {key} | {value} |" for key, value in flatten(config).items()]
        self._write(0, {"configuration": tf.constant("\n".join(["| key | value |", "| - | - |", *rows]))}, "text")

    def epoch(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write(step, {key: tf.constant(value, tf.float32) for key, value in metrics.items()}, "scalars")

    def end(self, status: str, files: list[Path]) -> None:
        self.writer.close()

    def _write(self, step: int, values: Mapping[str, tf.Tensor], plugin: str) -> None:
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data=tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin),
            data_class=SCALAR if plugin == "scalars" else TENSOR,
        )
        with self.writer.as_default(step):
            for key, value in values.items():
                if (key, step) not in self.known:
                    tf.summary.write(key, value, metadata=metadata)
        self.writer.flush()


def written(folder: Path) -> set[tuple[str, int]]:
    """Return tag and step of all that the event files of a folder hold; the last may be cut short, by a kill."""
    found = set()
    for file in folder.glob("*.tfevents.*"):
        with suppress(tf.errors.DataLossError):
            for event in tf.compat.v1.train.summary_iterator(str(file)):
                found |= {(value.tag, event.step) for value in event.summary.value}
    return found
