"""The real digits, where they can be had: from MNIST_SOURCE, an earlier download, or the network."""

from __future__ import annotations

import os

import numpy as np
import pytest
from conftest import ROOT

from pipeline.base.errors import UserError
from pipeline.data.split import split
from pipeline.fetch import find_arrays
from pipeline.model import build, inference
from pipeline.training import loop


def test_one_epoch_of_accurate_on_real_digits(compose, tmp_path):
    config = compose("recipe=accurate", "train.epochs=1", "data.fraction=0.2", "data.val_size=1000")
    kept = ROOT / "data" / "downloads"
    try:
        raw = find_arrays(config.data, os.environ.get("MNIST_SOURCE"), kept if kept.is_dir() else tmp_path)
    except UserError as error:
        pytest.skip(f"real MNIST cannot be had here: {error}")
    assert raw["train_images"].shape == (60_000, 28, 28) and raw["test_images"].shape == (10_000, 28, 28)
    assert list(raw["train_labels"][:5]) == [5, 0, 4, 1, 9] and list(raw["test_labels"][:3]) == [7, 2, 1]
    digits = split(raw, config.data)
    assert [len(digits[name].labels) for name in ("train", "val", "test")] == [11_000, 1_000, 2_000]

    inference.start(config.seed)
    cnn = build.build_cnn(config.model, (28, 28), 10)
    [(epoch, _, _)] = list(loop.fit(cnn, config, digits["train"], digits["val"], lambda done, accuracy: None))
    assert epoch.val_accuracy > 0.95  # 0.1 by chance; five epochs of a linear model give 0.92
    predictions = inference.predict(cnn, digits["test"].images).argmax(1)
    assert np.mean(predictions == digits["test"].labels) > 0.95
