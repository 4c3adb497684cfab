"""Examples: images with their labels, as they are checked, stored and loaded.

N examples, H rows, W columns, K classes: images uint8 [N, H, W], 0 (paper) to 255 (ink), or [N, H, W, 3] in colour;
labels [N], 0 to K - 1, uint8 for up to 256 classes and uint16 for more. Large arrays are mapped: see blocks.py.
"""

from __future__ import annotations

import hashlib
import io
import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError, shorten
from pipeline.base.files import REMAKE, load_json, replacing, require_file, save_csv
from pipeline.base.project import Project
from pipeline.base.schema import Data
from pipeline.data.blocks import IN_MEMORY, Rows, blocks, map_member

TOP = 5  # classes of an example that predictions.csv holds where there are more than SMALL_LABELS
SMALL_LABELS = 256  # classes whose labels are uint8


class Examples(NamedTuple):
    images: NDArray[np.uint8]  # [N, H, W] or [N, H, W, 3]
    labels: NDArray[np.uint8] | NDArray[np.uint16]  # [N]
    source_index: NDArray[np.int32]  # [N], the position among the published training or test examples


def head(examples: Examples, count: int | None) -> Examples:
    """Return the first `count` examples, all for None."""
    return Examples(examples.images[:count], examples.labels[:count], examples.source_index[:count])


def save_arrays(path: Path, **arrays: NDArray | Rows) -> dict[str, str]:
    """Write an .npz whose bytes depend on the arrays alone; np.savez's depend on Python, compressed ones on zlib.

    It is written block by block. Return the SHA-256 of each array's bytes, in C order.
    """
    digests = {}
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            dtype = array.array.dtype if isinstance(array, Rows) else array.dtype
            header, digest = io.BytesIO(), hashlib.sha256()
            form = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": array.shape}
            np.lib.format.write_array_header_1_0(header, form)
            member = zipfile.ZipInfo(f"{name}.npy")
            member.file_size = len(header.getvalue()) + dtype.itemsize * math.prod(array.shape)
            with archive.open(member, "w") as file:
                file.write(header.getvalue())
                for block in blocks(array):
                    file.write(block.data)
                    digest.update(block.data)
            digests[name] = digest.hexdigest()
    return digests


def load_arrays(path: Path) -> dict[str, NDArray]:
    """Return the arrays of an .npz file by name, those mapped that are large and not packed.

    A missing or damaged file, or one with pickles, is a UserError. A changed pixel of a mapped array is not noticed.
    """
    with require_file(path).open("rb") as file:
        try:
            with np.load(file, allow_pickle=False) as archive:
                members = {member.filename.removesuffix(".npy"): member for member in archive.zip.infolist()}
                large = {
                    name: member
                    for name, member in members.items()
                    if member.file_size > IN_MEMORY and member.compress_type == zipfile.ZIP_STORED
                }
                return {
                    name: map_member(path, large[name]) if name in large else np.asarray(archive[name])
                    for name in archive.files
                }
        except Exception:  # damaged bytes make NumPy, zipfile and zlib raise nearly anything
            raise UserError(f"{path} is damaged, or no .npz file of plain arrays") from None


def check_arrays(arrays: dict[str, NDArray], names: tuple[str, ...], data: Data) -> None:
    """Raise a UserError unless the arrays `names`, of images, labels and perhaps positions, fit `data`."""
    if missing := [name for name in names if name not in arrays]:
        raise UserError(f"the arrays {', '.join(missing)} are missing")
    labels = arrays[names[1]]
    shapes = [labels.size, *data.shape], [labels.size], [labels.size]
    for name, dtype, shape in zip(names, ("uint8", label_type(len(data.classes)), "int32"), shapes, strict=False):
        if arrays[name].dtype != dtype or list(arrays[name].shape) != shape:
            raise UserError(f"{name} is {arrays[name].dtype}{list(arrays[name].shape)}, expected {dtype}{shape}")
    if labels.size and labels.max() >= len(data.classes):
        raise UserError(f"{names[1]} has the label {labels.max()}, expected 0 to {len(data.classes) - 1}")


def label_type(classes: int) -> str:
    """Return the type of labels of so many classes."""
    return "uint8" if classes <= SMALL_LABELS else "uint16"


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
            fix = f"give {'data' if key == 'name' else f'data.{key}'}=<that>, or prepare this one: "
            fix += f"`dvc exp run -S dataset={data.name} preprocess`, or `dataset:` in params.yaml and `dvc repro`"
            raise UserError(f"data.{key}={shorten(value)}, but {made}: {fix}")


def load_split(project: Project, name: str, data: Data) -> Examples:
    """Load the examples "train", "val" or "test" of data/processed; a split of other data is a UserError."""
    check_split(project, data)
    return load_examples(project.processed / f"{name}.npz", data)


def save_predictions(path: Path, examples: Examples, probabilities: NDArray[np.float64]) -> None:
    """Write a CSV row per example: its index, label, prediction, and probabilities [N, K] to six significant digits.

    Of more than SMALL_LABELS classes these are the TOP highest, each with its class, and that of the label.
    """
    columns = {"index": examples.source_index, "label": examples.labels, "prediction": probabilities.argmax(1)}
    chosen = {f"probability_{k}": column for k, column in enumerate(probabilities.T)}
    if probabilities.shape[1] > SMALL_LABELS:
        rows = np.arange(len(probabilities))
        top = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP].T  # [TOP, N]
        columns |= {f"top_{k}": classes for k, classes in enumerate(top)}
        chosen = {f"probability_top_{k}": probabilities[rows, classes] for k, classes in enumerate(top)}
        chosen["probability_label"] = probabilities[rows, examples.labels]
    rounded = {key: [f"{value:.6g}" for value in column] for key, column in chosen.items()}
    save_csv(path, columns | rounded)
