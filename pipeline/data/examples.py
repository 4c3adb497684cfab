"""Examples: images with their labels, as they are checked, stored and loaded.

N examples, H rows, W columns, K classes: images uint8 [N, H, W], 0 (paper) to 255 (ink); labels uint8 [N], 0 to K - 1.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError, shorten
from pipeline.base.files import REMAKE, load_json, replacing, require_file, save_csv
from pipeline.base.project import Project
from pipeline.base.schema import Data


class Examples(NamedTuple):
    images: NDArray[np.uint8]  # [N, H, W]
    labels: NDArray[np.uint8]  # [N]
    source_index: NDArray[np.int32]  # [N], the position among the published training or test examples


def head(examples: Examples, count: int | None) -> Examples:
    """Return the first `count` examples, all for None."""
    return Examples(examples.images[:count], examples.labels[:count], examples.source_index[:count])


def save_arrays(path: Path, **arrays: NDArray) -> None:
    """Write an .npz whose bytes depend on the arrays alone; np.savez's depend on Python, compressed ones on zlib."""
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())


def load_arrays(path: Path) -> dict[str, NDArray]:
    """Return the arrays of an .npz file by name; a missing or damaged file, or one with pickles, is a UserError."""
    with require_file(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                return {name: np.asarray(archive[name]) for name in archive.files}
        except Exception:  # damaged bytes make NumPy, zipfile and zlib raise nearly anything
            raise UserError(f"{path} is damaged, or no .npz file of plain arrays") from None


def check_arrays(arrays: dict[str, NDArray], names: tuple[str, ...], data: Data) -> None:
    """Raise a UserError unless the arrays `names`, of images, labels and perhaps positions, fit `data`."""
    if missing := [name for name in names if name not in arrays]:
        raise UserError(f"the arrays {', '.join(missing)} are missing")
    labels = arrays[names[1]]
    shapes = [labels.size, *data.image_shape], [labels.size], [labels.size]
    for name, dtype, shape in zip(names, ("uint8", "uint8", "int32"), shapes, strict=False):
        if arrays[name].dtype != dtype or list(arrays[name].shape) != shape:
            raise UserError(f"{name} is {arrays[name].dtype}{list(arrays[name].shape)}, expected {dtype}{shape}")
    if labels.size and labels.max() >= len(data.classes):
        raise UserError(f"{names[1]} has the label {labels.max()}, expected 0 to {len(data.classes) - 1}")


def load_examples(path: Path, data: Data) -> Examples:
    """Load what preprocess wrote; a file that is missing, damaged, empty or of other data is a UserError."""
    require_file(path)
    try:
        arrays = load_arrays(path)
        check_arrays(arrays, Examples._fields, data)
    except UserError as error:
        raise UserError(f"{path} has no examples of {data.name}: {error}: {REMAKE}") from None
    if not arrays["labels"].size and path.stem != "val":  # a split may hold out no example for validation
        raise UserError(f"{path} is empty: give a larger data.fraction and run `dvc repro`")
    return Examples(*(arrays[name] for name in Examples._fields))


def split_record(data: Data) -> dict[str, Any]:
    """Return the values that decide the split, to be kept beside it."""
    return data.model_dump(include={"name", "classes", "val_size", "split_seed", "fraction", "sha256"})


def check_split(project: Project, data: Data) -> None:
    """Raise a UserError where `data` asks for another split than the one in data/processed."""
    record = load_json(project.processed / "split.json")
    for key, value in split_record(data).items():
        if record.get(key) != value:
            made = f"the split in {project.processed} was made with {shorten(record.get(key))}"
            fix = f"give {'data' if key == 'name' else f'data.{key}'}=<that>, or run `dvc repro preprocess`"
            raise UserError(f"data.{key}={shorten(value)}, but {made}: {fix}")


def load_split(project: Project, name: str, data: Data) -> Examples:
    """Load the examples "train", "val" or "test" of data/processed; a split of other data is a UserError."""
    check_split(project, data)
    return load_examples(project.processed / f"{name}.npz", data)


def save_predictions(path: Path, examples: Examples, probabilities: NDArray[np.float64]) -> None:
    """Write a CSV row per example: its index, label, prediction, and probabilities [N, K] to six significant digits."""
    columns = {"index": examples.source_index, "label": examples.labels, "prediction": probabilities.argmax(1)}
    rounded = {f"probability_{k}": [f"{value:.6g}" for value in column] for k, column in enumerate(probabilities.T)}
    save_csv(path, columns | rounded)
