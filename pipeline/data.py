"""Examples: reading and checking the published files, splitting, storing.

Shapes: N examples, H rows, W columns, K classes.
Images are uint8 [N, H, W], 0 (paper) to 255 (ink); labels are uint8 [N], 0 to K - 1.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.config import ARRAYS, ROOT, Data, PipelineError, shortened
from pipeline.files import REMAKE, existing, load_json, replacing, save_csv

PROCESSED = ROOT / "data" / "processed"
KERAS_NAMES = dict(zip(ARRAYS, ("x_train", "y_train", "x_test", "y_test"), strict=True))
LIMIT = 64 << 20  # bytes of a file, packed and unpacked: all of MNIST has 52 MiB
TOO_MUCH = f"holds more than {LIMIT >> 20} MiB"


class Examples(NamedTuple):
    images: NDArray[np.uint8]  # [N, H, W]
    labels: NDArray[np.uint8]  # [N]
    source_index: NDArray[np.int32]  # [N], the position among the published training or test examples


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one file of unsigned bytes in the IDX format, gzipped or not.

    The format is described at the foot of the MNIST page (LeCun, Cortes, Burges): two zero bytes, the type (8),
    the number of dimensions, each size as a big-endian 32-bit number, then the values.
    """
    content = read_bounded(path)
    try:
        if content[:2] == b"\x1f\x8b":
            content = unpacked(content)
        zeros, kind, dimensions = struct.unpack_from(">HBB", content)
        if (zeros, kind) != (0, 8):
            raise ValueError("no IDX header")
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
        if math.prod(shape) != len(values):
            raise ValueError(f"its header promises another size than the {len(values)} bytes after it")
        return values.reshape(shape)
    except (ValueError, struct.error, zlib.error) as error:
        raise PipelineError(f"{path} is not a whole IDX file ({error})") from None


def read_bounded(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(LIMIT + 1)
    if len(content) > LIMIT:
        raise PipelineError(f"{path} {TOO_MUCH}")
    return content


def unpacked(content: bytes) -> bytes:
    """Unpack gzip; zlib itself, unlike the module gzip, stops at a limit, and at the first of many empty members."""
    stream = zlib.decompressobj(wbits=31)
    values = stream.decompress(content, LIMIT + 1)
    if len(values) > LIMIT:
        raise ValueError(f"it {TOO_MUCH}")
    if not stream.eof or stream.unused_data:
        raise ValueError("cut short, or more follows it")
    return values


def read_source(path: Path, data: Data) -> dict[str, NDArray[np.uint8]]:
    """Read the four arrays of `data` from an .npz file as Keras's, or from a folder of it (<name>.npz) or of the four
    IDX files, gzipped or not. What cannot be read is a PipelineError.
    """
    if path.is_dir() and (path / f"{data.name}.npz").is_file():
        path = path / f"{data.name}.npz"
    if path.is_file():
        archive = _load_npz(path)
        names = KERAS_NAMES if "x_train" in archive else dict(zip(ARRAYS, ARRAYS, strict=True))
        if missing := [name for name in names.values() if name not in archive]:
            raise PipelineError(f"{path} lacks the arrays {', '.join(missing)}")
        return {key: archive[name] for key, name in names.items()}
    if not path.is_dir():
        raise PipelineError(f"{path} is neither a file nor a folder")
    arrays = {}
    for key, name in data.files.items():
        found = [file for file in (path / name, path / f"{name}.gz") if file.is_file()]
        if not found:
            raise PipelineError(f"{path} has neither {name} nor {name}.gz")
        arrays[key] = read_idx(found[0])
    return arrays


def verify(arrays: Mapping[str, NDArray[np.uint8]], data: Data) -> None:
    """Raise a PipelineError unless the arrays have the shapes, range and SHA-256 (of bytes in C order) of `data`."""
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        for name, array, shape in (("labels", labels, ()), ("images", images, data.image_shape)):
            if array.dtype != np.uint8 or array.shape != (labels.size, *shape):
                expected = f"uint8{[labels.size, *shape]}"
                raise PipelineError(f"{part}_{name} is {array.dtype}{list(array.shape)}, expected {expected}")
        if labels.size and labels.max() >= len(data.classes):
            raise PipelineError(f"{part}_labels has the label {labels.max()}, expected 0 to {len(data.classes) - 1}")
    for key in ARRAYS:
        actual, digest = array_sha256(arrays[key]), data.sha256.get(key, "none")
        if actual != digest:
            raise PipelineError(f"{key} has SHA-256 {actual[:12]}…, expected {digest[:12]}…")


def array_sha256(array: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()


def stratified_split(labels: NDArray[np.uint8], size: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Split positions into (rest, drawn), both ascending, with `size` drawn.

    Each class gives its share of `size`, rounded so that the shares add up (largest remainders first).
    """
    if not 0 <= size <= len(labels):
        raise PipelineError(f"cannot draw {size} of {len(labels)} examples: give data.val_size 0 to {len(labels)}")
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * size / max(len(labels), 1)
    whole = np.floor(shares).astype(int)
    whole[np.argsort(whole - shares, kind="stable")[: size - whole.sum()]] += 1
    generator = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), bool)
    for value, number in zip(classes, whole, strict=True):
        drawn[generator.permutation(np.flatnonzero(labels == value))[:number]] = True
    return np.flatnonzero(~drawn).astype(np.int32), np.flatnonzero(drawn).astype(np.int32)


def stratified_fraction(labels: NDArray[np.uint8], fraction: float, seed: int) -> NDArray[np.int32]:
    """Ascending positions of a share of the examples, drawn by class."""
    return stratified_split(labels, round(len(labels) * fraction), seed)[1]


def take(images: NDArray[np.uint8], labels: NDArray[np.uint8], index: NDArray[np.int32]) -> Examples:
    return Examples(images[index], labels[index], index)


def first(examples: Examples, count: int | None) -> Examples:
    """So many of them; all for None."""
    return Examples(examples.images[:count], examples.labels[:count], examples.source_index[:count])


def split(raw: Mapping[str, NDArray[np.uint8]], settings: Data) -> dict[str, Examples]:
    """Draw validation from the training examples, by class; a `fraction` below 1 thins training and test first."""
    labels, test_labels = raw["train_labels"], raw["test_labels"]
    kept = stratified_fraction(labels, settings.fraction, settings.split_seed)
    test = stratified_fraction(test_labels, settings.fraction, settings.split_seed)
    rest, drawn = stratified_split(labels[kept], settings.val_size, settings.split_seed)
    if not len(rest) or not len(test):
        raise PipelineError(
            f"data.fraction={settings.fraction} and data.val_size={settings.val_size} leave {len(rest)} training and "
            f"{len(test)} test examples: give a larger fraction, or a smaller val_size"
        )
    return {
        "train": take(raw["train_images"], labels, kept[rest]),
        "val": take(raw["train_images"], labels, kept[drawn]),
        "test": take(raw["test_images"], test_labels, test),
    }


def split_record(data: Data) -> dict[str, Any]:
    """What decides the split, to be kept beside it."""
    keys = ("name", "classes", "val_size", "split_seed", "fraction", "sha256")
    return {key: getattr(data, key) for key in keys}


def check_split(record: Mapping[str, Any], data: Data, path: Path) -> None:
    """Raise a PipelineError where the configuration asks for another split than the one recorded."""
    for key, value in split_record(data).items():
        if record.get(key) != value:
            raise PipelineError(
                f"data.{key}={shortened(value)}, but the split in {path} was made with {shortened(record.get(key))}: "
                f"give data=<what it is of>, or change conf/data/{data.name}.yaml and run `dvc repro preprocess`"
            )


def save_arrays(path: Path, **arrays: NDArray) -> None:
    """Write an .npz whose bytes depend on the arrays alone.

    Compressed ones depend on the build of zlib, and those of np.savez on Python, whose zip64 headers have changed.
    """
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.lib.format.write_array(content, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), content.getvalue())


def load_raw(path: Path, data: Data) -> dict[str, NDArray[np.uint8]]:
    """Load what fetch wrote; anything but the arrays of the configuration is a PipelineError."""
    arrays = _load_own_npz(path)
    if set(arrays) != set(ARRAYS):
        raise PipelineError(f"{path} is damaged, it lacks arrays: {REMAKE}")
    try:
        verify(arrays, data)
    except PipelineError as error:
        raise PipelineError(f"{path} is not {data.name}: {error}: {REMAKE}") from None
    return arrays


def load_split(name: str, data: Data) -> Examples:
    """Load train.npz, val.npz or test.npz of data/processed; one of other data than `data` is a PipelineError."""
    check_split(load_json(PROCESSED / "split.json"), data, PROCESSED)
    return load_examples(PROCESSED / name, data)


def load_examples(path: Path, data: Data) -> Examples:
    """Load what preprocess wrote; a missing, empty or damaged file is a PipelineError."""
    arrays = _load_own_npz(path)
    if set(arrays) != set(Examples._fields):
        raise PipelineError(f"{path} is damaged, it lacks arrays: {REMAKE}")
    examples = Examples(**arrays)
    size = len(examples.labels)
    for name, shape, kind in (
        ("images", (size, *data.image_shape), np.uint8),
        ("labels", (size,), np.uint8),
        ("source_index", (size,), np.int32),
    ):
        array = getattr(examples, name)
        if array.shape != shape or array.dtype != kind:
            raise PipelineError(
                f"{path} holds {name} {array.dtype}{list(array.shape)}, expected {kind.__name__}{list(shape)}: {REMAKE}"
            )
    if not size and path.stem != "val":  # a split may set none aside for validation
        raise PipelineError(f"{path} holds no example: give a larger data.fraction, {REMAKE}")
    if size and examples.labels.max() >= len(data.classes):
        raise PipelineError(
            f"{path} holds the label {examples.labels.max()}, expected 0 to {len(data.classes) - 1}: {REMAKE}"
        )
    return examples


def save_predictions(path: Path, examples: Examples, probabilities: NDArray[np.float64]) -> None:
    """Write a CSV row an example: its index, label, prediction, and probabilities [N, K] to six significant digits."""
    columns: dict[str, Iterable[Any]] = {
        "index": examples.source_index,
        "label": examples.labels,
        "prediction": probabilities.argmax(1),
    }
    for k, column in enumerate(probabilities.T):
        columns[f"probability_{k}"] = (f"{value:.6g}" for value in column)
    save_csv(path, columns)


def _load_npz(path: Path) -> dict[str, NDArray]:
    """Like np.load, which believes the sizes it is told and unpacks without bound."""
    content = read_bounded(path)
    try:
        if content.count(b"PK\1\2") > 100:  # each is an entry of the directory, which zipfile reads whole
            raise PipelineError(f"{path} has more than 100 members")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > LIMIT:
                raise PipelineError(f"{path} {TOO_MUCH}")
            return {
                member.filename.removesuffix(".npy"): _read_member(archive, member) for member in archive.infolist()
            }
    except PipelineError:
        raise
    except Exception:
        # Bytes that are not what they should be make NumPy, zipfile and zlib raise nearly anything.
        raise PipelineError(f"{path} is damaged, or no .npz file of plain arrays") from None


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray:
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("zipfile unpacks the other kinds without bound")
    with archive.open(member) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not as np.savez writes it")
        shape, _, kind = np.lib.format.read_array_header_1_0(file)
        if math.prod(shape) * kind.itemsize != member.file_size - file.tell():
            raise ValueError("the header promises another size")
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def _load_own_npz(path: Path) -> dict[str, NDArray]:
    existing(path)
    try:
        return _load_npz(path)
    except PipelineError as error:
        raise PipelineError(f"{error}: {REMAKE}") from None
