"""The split: its sizes, its shares, and every digit traced back to the published arrays."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, generated_digits, run, write_composed

from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.schema import ARRAYS, Data
from pipeline.data.examples import Examples, load_examples, save_arrays
from pipeline.data.readers import Arrays, array_sha256
from pipeline.data.split import split
from pipeline.preprocess import preprocess

COUNTS = [11, 9, 10, 10, 13, 7, 10, 10, 12, 8]  # training digits of each class, times two


@pytest.fixture(scope="module")
def raw() -> Arrays:
    """200 training examples with classes of different sizes, and 50 test examples, all images different."""
    generator = np.random.default_rng(0)
    labels = generator.permutation(np.repeat(np.arange(10), np.multiply(COUNTS, 2))).astype(np.uint8)
    parts = [generated_digits(200, 0)[0], labels, *generated_digits(50, 1)]
    return dict(zip(ARRAYS, parts, strict=True))


def settings(val_size: int, seed: int = 0, fraction: float = 1.0, name: str = "mnist", **sha256: str) -> Data:
    return Data(
        name=name,
        image_shape=[28, 28],
        classes=list("0123456789"),
        published=True,
        val_size=val_size,
        split_seed=seed,
        fraction=fraction,
        sha256=dict.fromkeys(ARRAYS, "0" * 64) | sha256,
    )


def assert_traced(digits: Examples, raw: Arrays, part: str) -> None:
    """Each digit is the one of the published arrays that its index names, once, and in their order."""
    assert list(digits.source_index) == sorted(set(digits.source_index.tolist()))
    np.testing.assert_array_equal(digits.images, raw[f"{part}_images"][digits.source_index], strict=True)
    np.testing.assert_array_equal(digits.labels, raw[f"{part}_labels"][digits.source_index], strict=True)


def test_validation_is_drawn_by_class_and_nothing_is_lost_or_in_both(raw):
    splits = split(raw, settings(100))
    assert list(splits) == ["train", "val", "test"]
    for name in ("train", "val"):  # half of each class in each
        assert_traced(splits[name], raw, "train")
        assert np.bincount(splits[name].labels).tolist() == COUNTS
    indices = [*splits["train"].source_index, *splits["val"].source_index]
    assert sorted(indices) == list(range(200))


def test_the_test_digits_are_untouched_and_in_order(raw):
    for val_size, seed in ((0, 0), (100, 1)):
        test = split(raw, settings(val_size, seed))["test"]
        np.testing.assert_array_equal(test.images, raw["test_images"], strict=True)
        np.testing.assert_array_equal(test.labels, raw["test_labels"], strict=True)
        assert test.source_index.tolist() == list(range(50))


def test_no_validation_digits_leave_all_to_training(raw):
    splits = split(raw, settings(0))
    assert splits["train"].source_index.tolist() == list(range(200))
    assert splits["val"].images.shape == (0, 28, 28) and splits["val"].labels.shape == (0,)


def test_a_fraction_thins_training_and_test_by_class_before_validation_is_drawn(raw):
    splits = split(raw, settings(20, fraction=0.5))
    assert {name: len(digits.labels) for name, digits in splits.items()} == {"train": 80, "val": 20, "test": 25}
    for name, digits in splits.items():
        assert_traced(digits, raw, "test" if name == "test" else "train")
    both = np.bincount(splits["train"].labels) + np.bincount(splits["val"].labels)
    assert both.tolist() == COUNTS
    assert set(np.bincount(splits["test"].labels)) == {2, 3}  # of 5 each
    assert not set(splits["train"].source_index.tolist()) & set(splits["val"].source_index.tolist())


def test_the_split_seed_decides_which_digits_and_not_how_many(raw):
    first, again, other = (split(raw, settings(40, seed))["val"] for seed in (3, 3, 4))
    assert first.source_index.tolist() == again.source_index.tolist() != other.source_index.tolist()
    assert np.bincount(first.labels).tolist() == np.bincount(other.labels).tolist()


@pytest.mark.parametrize(("size", "fraction", "total"), [(201, 1.0, 200), (150, 0.5, 100)])
def test_more_validation_digits_than_there_are_is_an_error(raw, size, fraction, total):
    with pytest.raises(UserError, match=rf"cannot draw {size} of {total} examples: give data\.val_size 0 to {total}"):
        split(raw, settings(size, fraction=fraction))


@pytest.mark.parametrize(
    ("size", "fraction", "left"), [(200, 1.0, "0 training and 50"), (0, 0.005, "1 training and 0")]
)
def test_no_training_or_no_test_digits_are_an_error(raw, size, fraction, left):
    with pytest.raises(UserError, match=rf"data\.fraction={fraction} and data\.val_size={size} leave {left} test exam"):
        split(raw, settings(size, fraction=fraction))


def test_the_verb_writes_the_split_of_its_project(compose, raw, tmp_path, capsys):
    data = settings(100, seed=7, name="mine", **{key: array_sha256(array) for key, array in raw.items()})
    config = compose().model_copy(update={"data": data})
    project = Project(tmp_path / "root", tmp_path / "root", job_folder=tmp_path / "job")
    with pytest.raises(UserError, match=r"root/data/raw/mine\.npz is missing: run `dvc repro` first"):
        preprocess(project, config)
    save_arrays(project.raw / "mine.npz", **raw)
    preprocess(project, config)
    assert capsys.readouterr().out == "train 100, val 100, test 50 examples\n"
    assert files(tmp_path / "job") == ["samples.png", "split.json", "test.npz", "train.npz", "val.npz"]
    assert_traced(load_examples(tmp_path / "job" / "train.npz", data), raw, "train")
    preprocess(dataclasses.replace(project, stage="preprocess"), config)
    assert files(project.root) == ["mine.npz", "samples.png", "split.json", "test.npz", "train.npz", "val.npz"]
    for name in ("train.npz", "val.npz", "test.npz", "split.json"):
        assert (project.processed / name).read_bytes() == (tmp_path / "job" / name).read_bytes()


BOTH = """
import os, sys
from pipeline.base.command import main
from pipeline.fetch import fetch
from pipeline.preprocess import preprocess
for verb in (fetch, preprocess):
    os.environ["DVC_STAGE"] = verb.__name__
    main(verb)
print({"tensorflow", "keras", "mlflow"} & set(sys.modules))
"""


def test_both_stages_write_their_outputs_without_loading_tensorflow_or_mlflow(raw, tmp_path):
    for name in ("pipeline", "conf"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    np.savez(tmp_path / "own.npz", **raw)
    words = [f"data.sha256.{key}={array_sha256(array)}" for key, array in raw.items()]
    words += ["data.val_size=100", "data.split_seed=7"]
    write_composed(tmp_path, *words)
    done = run(sys.executable, "-c", BOTH, *words, cwd=tmp_path, MNIST_SOURCE="own.npz")
    assert (done.returncode, done.stderr) == (0, "")
    wrote, sizes, loaded = done.stdout.splitlines()
    assert (
        sizes == "train 100, val 100, test 50 examples" and loaded == "set()" and wrote.endswith("data/raw/mnist.npz")
    )
    expected = split(raw, settings(100, seed=7))
    for name, digits in expected.items():
        read = load_examples(tmp_path / "data" / "processed" / f"{name}.npz", settings(100))
        assert all(map(np.array_equal, read, digits))
    record = json.loads((tmp_path / "data" / "processed" / "split.json").read_text())
    assert record == {
        **{"name": "mnist", "classes": list("0123456789"), "val_size": 100, "split_seed": 7, "fraction": 1.0},
        "sha256": {name: array_sha256(array) for name, array in raw.items()},
    }
    assert (tmp_path / "results" / "samples.png").read_bytes().startswith(b"\x89PNG")
    assert files(tmp_path / "data") == ["mnist.npz", "split.json", "test.npz", "train.npz", "val.npz"]
    assert not (tmp_path / "outputs").exists() and files(tmp_path / "results") == [
        "config.yaml",
        "data.yaml",
        "samples.png",
    ]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())
