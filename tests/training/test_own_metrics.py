"""Metrics of the user's own as the training loop calls them, and as they come back from a checkpoint's rows."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from conftest import ROOT, generated_digits

from pipeline.base import own
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.data.examples import Examples
from pipeline.experiments.own_metrics import load_metrics
from pipeline.model import build, inference
from pipeline.model.inference import user_metrics
from pipeline.training import loop
from pipeline.training.loop import Epoch

LABELS = np.array([0, 0, 1, 2], np.uint8)
LOGITS = np.log(np.array([[8, 1, 1], [1, 8, 1], [1, 8, 1], [1, 1, 8]], np.float32))  # one of four is wrong


def macro_f1(labels, probabilities):
    predictions = probabilities.argmax(1)
    pairs = [((labels == k) & (predictions == k), (labels == k), (predictions == k)) for k in range(3)]
    return np.mean([2 * right.sum() / (true.sum() + predicted.sum()) for right, true, predicted in pairs])


def spoiling(labels, probabilities):
    assert labels.dtype == np.int64 and probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities[0], [0.8, 0.1, 0.1], rtol=1e-6)
    labels[:], probabilities[:] = 0, 0
    return 1


def test_a_metric_gets_labels_and_probabilities_of_its_own():
    """Of class 0 precision 1 and recall 1/2, of 1 precision 1/2 and recall 1, of 2 both 1: F1 2/3, 2/3, 1."""
    found = user_metrics({"val_spoiling": spoiling, "val_f1": macro_f1, "val_again": spoiling}, LOGITS, LABELS)
    assert found == {"val_spoiling": 1, "val_f1": pytest.approx(7 / 9), "val_again": 1}
    assert LABELS.tolist() == [0, 0, 1, 2] and LOGITS[0, 0] == np.float32(np.log(8))
    nothing = user_metrics({"val_f1": macro_f1}, LOGITS[:0], LABELS[:0])
    assert list(nothing) == ["val_f1"] and math.isnan(nothing["val_f1"])


def test_a_row_has_them_last_and_gives_the_epoch_back():
    epoch = Epoch(1, 0.5, 0.25, 0.125, 0.75, 0.01, {"val_b": 2.0, "val_a": 1.0})
    assert list(epoch.row())[4:] == ["val_accuracy", "learning_rate", "val_b", "val_a"]
    assert Epoch.of_row(epoch.row() | {"epoch_seconds": 3, "time": 4}, ["val_b", "val_a"]) == epoch
    assert tuple(Epoch(1, 0.5, 0.25, 0.125, 0.75, 0.01).row()) == Epoch._fields[:-1]


@pytest.mark.slow
def test_the_loop_calls_them_after_each_epoch_and_trains_the_same_bits(compose):
    config = compose("recipe=baseline", "model.filters=1", "train.epochs=2", "optimizer.batch_size=20")
    digits = Examples(*generated_digits(40, 0), np.arange(40, dtype=np.int32))
    bits, histories, seen = [], [], []

    def accuracy(labels, probabilities):
        np.random.seed(len(seen))
        seen.append(labels.tolist() == digits.labels.tolist())
        return np.mean(probabilities.argmax(1) == labels)

    for metrics in ({}, {"val_mine": accuracy}):
        inference.start(config.seed)
        cnn = build.build_cnn(config.model, config.data.image_shape, 10)
        fitted = loop.fit(cnn, config, digits, digits, lambda *_: None, metrics=metrics)
        histories.append([epoch for epoch, *_ in fitted])
        bits.append([weight.tobytes() for weight in cnn.get_weights()])
    assert bits[0] == bits[1] and seen == [True, True]
    assert [epoch._replace(own={}) for epoch in histories[1]] == histories[0]
    assert [epoch.own["val_mine"] for epoch in histories[1]] == [epoch.val_accuracy for epoch in histories[1]]


@pytest.fixture
def repository(tmp_path):
    for name in ("conf", "pipeline", "params.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    yield Project(tmp_path, tmp_path)
    sys.path[:] = [path for path in sys.path if path != str(tmp_path)]
    sys.modules.pop("odd_metric", None)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 1 / 0", "odd_metric:odd in line 2 of odd_metric.py: ZeroDivisionError: division by zero"),
        (
            "return open('no such file')",
            "odd_metric:odd in line 2 of odd_metric.py: FileNotFoundError: [Errno 2] No su",
        ),
        (
            "return None",
            "odd_metric:odd: TypeError: float() argument must be a string or a real number, not 'NoneType'",
        ),
        ("return float('inf')", "train.metrics.val_odd: odd_metric:odd returned inf: return a finite number"),
        ("return 0.5 if labels.max() < 9 else float('nan')", "train.metrics.val_odd: odd_metric:odd returned nan: "),
    ],
)
def test_what_is_no_metric_is_one_line_before_training(repository, compose, body, said):
    (repository.root / "odd_metric.py").write_text(f"def odd(labels, probabilities):\n    {body}\n")
    val = Examples(*generated_digits(20, 0), np.arange(20, dtype=np.int32))
    train = compose().train.model_copy(
        update={
            "metrics": {"val_odd": "odd_metric:odd"},
            "source_sha256": own.source_sha256(repository.root, ["odd_metric:odd"]),
        }
    )
    config = compose().model_copy(update={"train": train})
    with pytest.raises(UserError) as raised:
        load_metrics(repository, config, val)
    assert str(raised.value).startswith(said) and "\n" not in str(raised.value)
    assert raised.value.__cause__ is None or raised.value.__cause__.__traceback__
    (repository.root / "odd_metric.py").write_text("def odd(labels, probabilities):\n    return 1\n")
    with pytest.raises(UserError, match=r"^train\.metrics: the code is not that of the run \([0-9a-f]{64}\): "):
        load_metrics(repository, config, val)
