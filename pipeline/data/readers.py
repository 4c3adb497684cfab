"""Reading the published files, and checking that their arrays are the ones that the configuration names."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.files import REMAKE, require_file
from pipeline.base.schema import ARRAYS, Data
from pipeline.data.blocks import array_sha256
from pipeline.data.examples import check_arrays, load_arrays

Arrays = dict[str, NDArray[Any]]  # by the names in ARRAYS: uint8, labels of more than 256 classes uint16
KERAS_NAMES = dict(zip(("x_train", "y_train", "x_test", "y_test"), ARRAYS, strict=True))


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read unsigned bytes from a file in the IDX format, gzipped or not; another or damaged file is a UserError.

    The format, from the foot of the MNIST page (LeCun, Cortes, Burges): two zero bytes, the type (8), the number of
    dimensions, each size as a big-endian 32-bit number, then the values.
    """
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        zeros, dtype, dimensions = struct.unpack_from(">HBB", content)
        if (zeros, dtype) != (0, 8):
            raise ValueError("no IDX header")
        shape = struct.unpack_from(f">{dimensions}I", content, 4)
        values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)  # another number of them has no such shape
        return values.reshape(shape)
    except (ValueError, EOFError, struct.error, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path} is not a whole IDX file ({error})") from None


def read_source(path: Path, data: Data) -> Arrays:
    """Read the four arrays of `data` from an .npz file, with Keras's names or ours, or from a folder, and verify them.

    The folder holds <name>.npz or the four IDX files, gzipped or not. Anything else is a UserError.
    """
    if (path / f"{data.name}.npz").is_file():
        path = path / f"{data.name}.npz"
    if path.is_file():
        arrays = {KERAS_NAMES.get(name, name): array for name, array in load_arrays(path).items()}
    else:
        arrays = {}
        for key in ARRAYS:
            name = data.files.get(key, key)
            file = path / name if (path / name).is_file() else path / f"{name}.gz"
            if not file.is_file():
                raise UserError(f"{path} is no .npz file, and no folder with {name} or {name}.gz")
            arrays[key] = read_idx(file)
    verify(arrays, data)
    return {key: arrays[key] for key in ARRAYS}


def verify(arrays: Arrays, data: Data) -> None:
    """Raise a UserError unless the arrays have the types, shapes, labels and SHA-256 that `data` names."""
    for part in ("train", "test"):
        check_arrays(arrays, (f"{part}_images", f"{part}_labels"), data)
    for key in ARRAYS:
        if (actual := array_sha256(arrays[key])) != data.sha256[key]:
            raise UserError(f"{key} has SHA-256 {actual[:12]}…, expected {data.sha256[key][:12]}…")


def load_raw(path: Path, data: Data) -> Arrays:
    """Load what fetch wrote; a file that is missing, damaged or of other data is a UserError."""
    require_file(path)
    try:
        arrays = load_arrays(path)
        verify(arrays, data)
    except UserError as error:
        raise UserError(f"{path} is not {data.name}: {error}: {REMAKE}") from None
    return arrays
