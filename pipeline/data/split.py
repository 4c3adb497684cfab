"""Drawing validation examples from the training examples, by class: once, or anew for each fold of a cross-validation.

Positions are int32, from 0, ascending.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.schema import Config, Data
from pipeline.data.blocks import gather, join
from pipeline.data.examples import Examples, head, load_split


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


def training_examples(project: Project, config: Config) -> tuple[Examples, Examples]:
    """Load what a run trains on and what it validates on: the split in data/processed or, with train.folds, a fold."""
    train, val = (load_split(project, name, config.data) for name in ("train", "val"))
    if config.train.folds is not None:
        source = np.concatenate([train.source_index, val.source_index])
        labels, order = np.concatenate([train.labels, val.labels]), np.argsort(source)
        folds = np.empty(len(labels), np.int32)  # by the published order, so that data.val_size does not move them
        folds[order] = deal_folds(labels[order], config.train.folds, config.data.split_seed)
        parts = [np.flatnonzero(kept) for kept in (folds != config.train.fold, folds == config.train.fold)]
        images = [join(train.images, val.images, part, project.processed) for part in parts]
        train, val = (Examples(of, labels[part], source[part]) for of, part in zip(images, parts, strict=True))
    return head(train, config.train.examples), val


def deal_folds(labels: NDArray[np.integer], folds: int, seed: int) -> NDArray[np.int32]:
    """Return the fold of each of `labels` [N], 0 to folds - 1; more folds than labels is a UserError.

    The examples of a class are dealt out in random order, each class going on where the one before it ended: folds
    differ in size by at most one example, in all and of each class.
    """
    if folds > len(labels):
        raise UserError(f"train.folds={folds} of {len(labels)} examples: give at most one fold per example")
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    dealt = np.empty(len(labels), np.int32)
    dealt[shuffled[np.argsort(labels[shuffled], kind="stable")]] = np.arange(len(labels)) % folds
    return dealt
