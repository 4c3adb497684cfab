"""Arrays of any size, block by block: those that are large stay on the disk, mapped, and few of their pages in memory.

Mapped pages count as memory of the process until they are given back, so that is done after each block.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import mmap
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import ZipInfo

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

IN_MEMORY = 256 * 2**20  # bytes: smaller arrays are read whole
BLOCK_ROWS, BLOCK_BYTES = 2048, 64 * 2**20  # the most of a block
SCATTERED_ROWS = 128  # the most of one that lie apart: Linux may map 2 MB around each


class Rows(NamedTuple):
    """Rows of an array, to be gathered when they are written."""

    array: NDArray[Any]
    positions: NDArray[np.integer]  # [N], in any order

    @property
    def shape(self) -> tuple[int, ...]:
        return len(self.positions), *self.array.shape[1:]


def is_large(array: NDArray[Any]) -> bool:
    """Return whether an array is to be worked on block by block."""
    return array.nbytes > IN_MEMORY


def block_rows(array: NDArray[Any]) -> int:
    """Return how many rows of an array make a block."""
    row = array.dtype.itemsize * math.prod(array.shape[1:])
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(row, 1)))


def blocks(rows: NDArray[Any] | Rows) -> Iterator[NDArray[Any]]:
    """Yield the rows in their order, in blocks that are contiguous and in C order, each valid until the next one."""
    array, positions = rows if isinstance(rows, Rows) else (rows, None)
    size = block_rows(array)
    for start in range(0, rows.shape[0], size):
        if positions is None:
            yield np.ascontiguousarray(array[start : start + size])
        else:
            yield gather(array, positions[start : start + size])
        give_back(array)


def gather(array: NDArray[Any], positions: NDArray[np.integer]) -> NDArray[Any]:
    """Return array[positions]; of a large array the rows are read in the order in which they lie on the disk."""
    if not is_large(array):
        return array[positions]
    gathered = np.empty((len(positions), *array.shape[1:]), array.dtype)
    order, size = np.argsort(positions, kind="stable"), min(SCATTERED_ROWS, block_rows(array))
    for start in range(0, len(order), size):
        places = order[start : start + size]
        gathered[places] = array[positions[places]]
        give_back(array)
    return gathered


def join(first: NDArray[Any], second: NDArray[Any], positions: NDArray[np.integer], folder: Path) -> NDArray[Any]:
    """Return rows of two arrays by their positions in the first followed by the second, [N], ascending.

    What is large goes to a file without a name in `folder`, mapped: it is gone when nobody has it open any more.
    """
    split = np.searchsorted(positions, len(first))
    parts = Rows(first, positions[:split]), Rows(second, positions[split:] - len(first))
    row = first.dtype.itemsize * math.prod(first.shape[1:])
    if row * len(positions) <= IN_MEMORY:
        return np.concatenate([gather(*part) for part in parts])
    with tempfile.TemporaryFile(dir=folder) as file:
        for block in itertools.chain(*map(blocks, parts)):
            file.write(block.data)
        file.flush()
        return np.memmap(file, first.dtype, "r", shape=(len(positions), *first.shape[1:]))


def give_back(array: NDArray[Any]) -> None:
    """Drop the pages of a mapped array from this process's memory; they are read again where they are needed."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None:
        mapped.madvise(mmap.MADV_DONTNEED)


def map_member(path: Path, member: ZipInfo) -> NDArray[Any]:
    """Return the array of a member of an .npz file, mapped read-only; one that is cut short is a ValueError."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(30)  # of the member, as it stands before it
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), 1)
        begin = file.tell()
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = read(file)
        offset, size = file.tell(), dtype.itemsize * math.prod(shape)
        if header[:4] != b"PK\3\4" or dtype.hasobject or offset + size != begin + member.file_size:
            raise ValueError("not a plain array")
        return np.memmap(path, dtype, "r", offset, shape, "F" if is_fortran else "C")


def array_sha256(array: NDArray[Any] | Rows) -> str:
    """Return the SHA-256 of the bytes of an array, or of rows of one, in C order, in hex."""
    digest = hashlib.sha256()
    for block in blocks(array):
        digest.update(block.data)
    return digest.hexdigest()
