"""Drawing validation examples from the training examples, by class. Positions are int32, from 0, ascending."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.schema import Data
from pipeline.data.blocks import gather
from pipeline.data.examples import Examples


def stratified_split(labels: NDArray[np.integer], size: int, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Split the positions of `labels` [N] into (rest, drawn), with `size` drawn; more than N is a UserError.

    Each class gives its share of `size`, rounded so that the shares add up (largest remainders first).
    """
    if not 0 <= size <= len(labels):
        raise UserError(f"cannot draw {size} of {len(labels)} examples: give data.val_size 0 to {len(labels)}")
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * size / max(len(labels), 1)
    rounded = np.floor(shares).astype(int)
    rounded[np.argsort(rounded - shares, kind="stable")[: size - rounded.sum()]] += 1
    generator = np.random.default_rng(seed)
    drawn = np.zeros(len(labels), bool)
    for value, number in zip(classes, rounded, strict=True):
        drawn[generator.permutation(np.flatnonzero(labels == value))[:number]] = True
    return np.flatnonzero(~drawn).astype(np.int32), np.flatnonzero(drawn).astype(np.int32)


def stratified_fraction(labels: NDArray[np.integer], fraction: float, seed: int) -> NDArray[np.int32]:
    """Return the positions of a share of the examples, 0 to 1, drawn by class."""
    return stratified_split(labels, round(len(labels) * fraction), seed)[1]


def positions(raw: Mapping[str, NDArray[Any]], data: Data) -> dict[str, tuple[str, NDArray[np.int32]]]:
    """Return of "train", "val" and "test" where they are drawn from, "train" or "test", and which examples.

    A `fraction` below 1 draws from training and test first, and validation from the training examples that are left. A
    split without training or test examples is a UserError.
    """
    kept = stratified_fraction(raw["train_labels"], data.fraction, data.split_seed)
    test = stratified_fraction(raw["test_labels"], data.fraction, data.split_seed)
    rest, drawn = stratified_split(raw["train_labels"][kept], data.val_size, data.split_seed)
    if not len(rest) or not len(test):
        raise UserError(
            f"data.fraction={data.fraction} and data.val_size={data.val_size} leave {len(rest)} training and "
            f"{len(test)} test examples: give a larger fraction, or a smaller val_size"
        )
    return {"train": ("train", kept[rest]), "val": ("train", kept[drawn]), "test": ("test", test)}


def split(raw: Mapping[str, NDArray[Any]], data: Data) -> dict[str, Examples]:
    """Return the examples "train", "val" and "test", in memory."""
    return {
        name: Examples(gather(raw[f"{source}_images"], index), raw[f"{source}_labels"][index], index)
        for name, (source, index) in positions(raw, data).items()
    }
