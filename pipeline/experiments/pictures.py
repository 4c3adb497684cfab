"""Pictures of a training as it goes by: what it gets wrong, and the filters of its first convolution.

They are named as MLflow's log_image would name them, which its page shows with a slider over the steps; but one picture
has one name, so that a record that is sent twice has them once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import keras
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.base.files import replacing
from pipeline.base.schema import Config
from pipeline.data.examples import Examples, head
from pipeline.model.inference import Inference
from pipeline.tracking.record import Record, now

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAG = "mlflow.loggedImages"
EXAMPLES = 5_000  # of the validation examples, that are looked at
SHOWN, COLUMNS = 12, 6  # examples
FILTERS, FILTER_COLUMNS = 32, 8
THUMBNAIL = (256, 256)  # pixels at most


def tags_with_pictures(config: Config, tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags of a run, with the one that lets MLflow's page look for pictures; a sweep's jobs draw none."""
    is_drawn = config.train.pictures_every and "swept" not in tags
    return {**tags, **({TAG: "True"} if is_drawn else {})}


class Pictures:
    """Draws pictures every train.pictures_every epochs into images/ of a record."""

    def __init__(self, config: Config, record: Record, model: keras.Model, val: Examples, infer: Inference) -> None:
        self.every = config.train.pictures_every if TAG in record.info["tags"] else None
        self.config, self.record, self.model = config, record, model
        self.val = head(val, EXAMPLES)
        self.infer = infer

    def draw(self, epoch: int) -> None:
        """Draw the model after an epoch, 0 for before the first, where the epoch is one of those to draw."""
        if self.every is None or epoch % self.every:
            return
        from pipeline.reports.plots import save_figure  # Matplotlib: most runs draw nothing

        for key, figure in self._figures(f"{self.config.name} epoch {epoch}"):
            unique = uuid.uuid5(uuid.UUID(self.record.info["id"]), f"{key} {epoch}")
            folder = self.record.folder / "images"
            if not list(folder.glob(f"*{unique}+compressed.webp")):  # a process that was killed has perhaps drawn it
                file = folder / f"{key}+step+{epoch}+timestamp+{now()}+{unique}.png"
                save_figure(file, figure)
                with replacing(file.with_name(f"{file.stem}+compressed.webp")) as small, Image.open(file) as image:
                    image.thumbnail(THUMBNAIL)
                    image.save(small)

    def _figures(self, heading: str) -> Iterator[tuple[str, Figure]]:
        from pipeline.reports import sheets

        images, labels, _ = self.val
        if len(labels):
            predictions, classes = self.infer(images).argmax(1), self.config.data.classes
            wrong = np.flatnonzero(predictions != labels)
            titles = [f"{classes[labels[i]]}, not {classes[predictions[i]]}" for i in wrong[:SHOWN]]
            counted = f"{heading}: {len(wrong):,} of {len(labels):,} validation examples misclassified"
            yield "misclassified", sheets.plot_examples(images[wrong[:SHOWN]], titles, COLUMNS, counted)
        kernels = [one for one in self.model.trainable_variables if one.name == "kernel" and len(one.shape) == 4]
        if kernels:
            filters = as_images(kernels[0].numpy())[:FILTERS]
            titles = [str(number) for number in range(len(filters))]
            named = f"{heading}: filters of the first convolution, grey is 0"
            yield "filters", sheets.plot_examples(filters, titles, FILTER_COLUMNS, named)


def as_images(kernel: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the filters of a kernel [H, W, C, N] as images [N, H, W], or [N, H, W, 3] of colours.

    All have one scale: 0 is half the ink, and the weight furthest from it is none or all. Of other numbers of channels
    than 1 and 3 it is the mean.
    """
    filters = np.moveaxis(kernel, -1, 0)
    if filters.shape[-1] != 3:
        filters = filters.mean(-1)
    return np.round(127.5 + 127.5 * filters / max(np.abs(filters).max(), 1e-12)).astype(np.uint8)
