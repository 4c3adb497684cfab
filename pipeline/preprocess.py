"""Stage 2: split the training examples, keep the test examples apart, and draw some."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.base.command import main
from pipeline.base.files import save_json
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.data.blocks import Rows
from pipeline.data.examples import save_arrays, split_record
from pipeline.data.readers import Arrays, load_raw
from pipeline.data.split import positions

MOST_DRAWN = 256  # classes


def preprocess(project: Project, config: Config) -> None:
    """Write train.npz, val.npz, test.npz and split.json of the fetched arrays, and samples.png."""
    raw = load_raw(project.raw / f"{config.data.name}.npz", config.data)
    splits, folder = positions(raw, config.data), project.output(project.processed)
    for name, (source, index) in splits.items():
        images, labels = (Rows(raw[f"{source}_{part}"], index) for part in ("images", "labels"))
        save_arrays(folder / f"{name}.npz", images=images, labels=labels, source_index=index)
    save_json(folder / "split.json", split_record(config.data))
    _draw_samples(raw, config.data.classes, project.output(project.results) / "samples.png")
    print(", ".join(f"{name} {len(index):,}" for name, (_, index) in splits.items()), "examples")


def _draw_samples(raw: Arrays, classes: list[str], path: Path) -> None:
    """Draw the first training example and the first of each class (of MOST_DRAWN), upright, as the files hold them."""
    from pipeline.reports import plots, sheets

    labels, firsts = np.unique(raw["train_labels"], return_index=True)  # the first position of each label
    labels, firsts = labels[:MOST_DRAWN], firsts[:MOST_DRAWN]
    titles = ["the first", *(f"label {classes[label]}" for label in labels)]
    plots.save_figure(path, sheets.plot_examples(raw["train_images"][[0, *firsts]], titles, 6, "training examples"))


if __name__ == "__main__":
    main(preprocess)
