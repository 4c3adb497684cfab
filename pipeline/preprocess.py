"""Stage 2: split the training examples, keep the test examples apart, and draw some."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline import data
from pipeline.command import entry_point, job_folder
from pipeline.config import ROOT, Config, in_dvc_stage
from pipeline.files import save_json


@entry_point
def preprocess(config: Config) -> None:
    raw = data.load_raw(ROOT / "data" / "raw" / f"{config.data.name}.npz", config.data)
    splits = data.split(raw, config.data)
    folder = ROOT / "data" / "processed" if in_dvc_stage() else job_folder()
    for name, examples in splits.items():
        data.save_arrays(folder / f"{name}.npz", **examples._asdict())
    save_json(folder / "split.json", data.split_record(config.data))
    _draw_samples(raw, config.data.classes, ROOT / "results" if in_dvc_stage() else folder)
    print(", ".join(f"{name} {len(examples.labels):,}" for name, examples in splits.items()), "examples")


def _draw_samples(raw: dict[str, np.ndarray], names: list[str], folder: Path) -> None:
    """The first training example, and the first of each class, as they are: grey, upright."""
    from pipeline import plots

    labels = raw["train_labels"]
    chosen = [0, *(int(np.argmax(labels == value)) for value in np.unique(labels))]
    titles = ["the first", *(f"label {names[labels[i]]}" for i in chosen[1:])]
    figure = plots.plot_examples(raw["train_images"][chosen], titles, 6, "training examples")
    plots.save_figure(folder / "samples.png", figure)


if __name__ == "__main__":
    preprocess()
