"""Digits: the published formats byte by byte, the split by hand, and what is refused."""

from __future__ import annotations

import csv
import gzip
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import generated_digits, write_idx

from pipeline import data
from pipeline.config import Data, PipelineError
from pipeline.data import Examples
from pipeline.files import sha256

IDX = struct.pack(">HBB3I", 0, 8, 3, 2, 2, 3) + bytes(range(12))  # two images of 2 x 3 pixels
FILES = {"train_images": "a-idx3", "train_labels": "a-idx1", "test_images": "b-idx3", "test_labels": "b-idx1"}


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    parts = [array for size, seed in ((60, 0), (20, 1)) for array in generated_digits(size, seed)]
    return dict(zip(data.ARRAYS, parts, strict=True))


@pytest.fixture
def settings(arrays) -> Data:
    sha256 = {key: data.array_sha256(array) for key, array in arrays.items()}
    return Data("mnist", [28, 28], [str(digit) for digit in range(10)], True, 5, 0, 1.0, FILES, [], sha256)


@pytest.fixture
def digits() -> Examples:
    return Examples(*generated_digits(20, 0), np.arange(100, 120, dtype=np.int32))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_reads_as_its_definition_says(tmp_path, pack):
    (tmp_path / "file").write_bytes(pack(IDX))
    read = data.read_idx(tmp_path / "file")
    assert read.dtype == np.uint8 and read.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        IDX[:3],
        IDX[:9],
        IDX[:-1],
        IDX + b"\0",
        gzip.compress(IDX)[:-9],
        gzip.compress(IDX)[:15] + b"damage" + gzip.compress(IDX)[21:],
        b"\0\0\x0d" + IDX[3:],
        b"<!doctype html><title>sign in</title>",
    ],
    ids=["empty", "no header", "half header", "short", "long", "short gzip", "damaged gzip", "of floats", "a page"],
)
def test_a_foreign_or_truncated_idx_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(PipelineError, match=r"/file is not a whole IDX file \("):
        data.read_idx(tmp_path / "file")


def fill(folder: Path, kind: str, arrays: dict[str, np.ndarray]) -> Path:
    """The arrays as people have them: the path to give."""
    if kind in ("npz of Keras", "folder of it", "our npz"):
        names = data.KERAS_NAMES if kind != "our npz" else {key: key for key in arrays}
        np.savez_compressed(folder / "mnist.npz", **{names[key]: array for key, array in arrays.items()})
        return folder / "mnist.npz" if kind != "folder of it" else folder
    for key, array in arrays.items():
        write_idx(folder / FILES[key], array)
        if kind == "gzipped":
            (folder / f"{FILES[key]}.gz").write_bytes(gzip.compress((folder / FILES[key]).read_bytes()))
            (folder / FILES[key]).unlink()
    return folder


@pytest.mark.parametrize("kind", ["npz of Keras", "folder of it", "our npz", "folder of IDX", "gzipped"])
def test_a_source_gives_the_four_arrays_in_every_form(tmp_path, arrays, settings, kind):
    read = data.read_source(fill(tmp_path, kind, arrays), settings)
    assert tuple(read) == data.ARRAYS
    for key in arrays:
        np.testing.assert_array_equal(read[key], arrays[key], strict=True)
    data.verify(read, settings)


def test_a_source_that_is_not_there_or_lacks_an_array_is_refused_by_name(tmp_path, arrays, settings):
    with pytest.raises(PipelineError, match="nosuch is neither a file nor a folder"):
        data.read_source(tmp_path / "nosuch", settings)
    (fill(tmp_path, "folder of IDX", arrays) / "b-idx1").unlink()
    with pytest.raises(PipelineError, match=r"has neither b-idx1 nor b-idx1\.gz"):
        data.read_source(tmp_path, settings)
    np.savez(tmp_path / "mnist.npz", x_train=arrays["train_images"], y_train=arrays["train_labels"])
    with pytest.raises(PipelineError, match="lacks the arrays x_test, y_test"):
        data.read_source(tmp_path, settings)


def test_one_changed_pixel_is_refused_by_the_name_of_its_array(arrays, settings):
    changed = arrays["test_images"].copy()
    changed[3, 14, 14] ^= 1
    with pytest.raises(PipelineError, match=r"\Atest_images has SHA-256 \w{12}…, expected \w{12}…\Z"):
        data.verify(arrays | {"test_images": changed}, settings)
    columns_first = np.asfortranarray(arrays["test_images"])  # the same values, laid out otherwise in memory
    assert data.array_sha256(columns_first) == settings.sha256["test_images"]


@pytest.mark.parametrize(
    ("counts", "size", "drawn"),
    [
        ((5, 3, 2), 4, (2, 1, 1)),  # shares 2, 1.2, 0.8: the last has the largest remainder
        ((6, 3, 1), 5, (3, 2, 0)),  # shares 3, 1.5, 0.5: the first of equal remainders
        ((7, 7, 6), 19, (7, 6, 6)),  # shares 6.65, 6.65, 5.7: two are left, for 5.7 and the first 6.65
        ((5, 3, 2), 0, (0, 0, 0)),
        ((5, 3, 2), 10, (5, 3, 2)),
    ],
)
def test_a_split_draws_of_each_class_its_share(counts, size, drawn):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(3), counts)).astype(np.uint8)
    rest, chosen = data.stratified_split(labels, size, seed=0)
    assert tuple(np.bincount(labels[chosen], minlength=3)) == drawn
    assert rest.dtype == chosen.dtype == np.int32
    assert sorted([*rest, *chosen]) == list(range(sum(counts)))
    assert list(rest) == sorted(rest) and list(chosen) == sorted(chosen)


@pytest.mark.parametrize("seed", range(5))
def test_a_split_of_any_labels_is_complete_and_within_one_digit_of_the_shares(seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(10, 997, p=generator.dirichlet(np.ones(10))).astype(np.uint8)
    rest, chosen = data.stratified_split(labels, 101, seed)
    assert len(chosen) == 101 and sorted([*rest, *chosen]) == list(range(997))
    shares = np.bincount(labels, minlength=10) * 101 / 997
    assert np.all(np.abs(np.bincount(labels[chosen], minlength=10) - shares) < 1)


def test_the_seed_alone_decides_a_split():
    labels = generated_digits(200, 0)[1]
    first, again, other = (data.stratified_split(labels, 50, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("size", [-1, 201])
def test_a_split_of_more_digits_than_there_are_is_refused(size):
    with pytest.raises(PipelineError, match=f"cannot draw {size} of 200 examples: give data.val_size 0 to 200"):
        data.stratified_split(np.zeros(200, np.uint8), size, 0)


def test_saved_digits_read_back_and_have_the_same_bytes_each_time(tmp_path, digits, settings):
    for name in ("a.npz", "b.npz"):
        data.save_arrays(tmp_path / name, **digits._asdict())
    read = data.load_examples(tmp_path / "a.npz", settings)
    for array, expected in zip(read, digits, strict=True):
        np.testing.assert_array_equal(array, expected, strict=True)
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:  # no time of writing, and no compressor's bytes
        for member in archive.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0) and member.compress_type == zipfile.ZIP_STORED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"images": np.zeros((20, 28, 27), np.uint8)},
            r"holds images uint8\[20, 28, 27\], expected uint8\[20, 28, 28\]",
        ),
        ({"images": np.zeros((20, 28, 28))}, r"holds images float64\[20, 28, 28\], expected uint8\[20, 28, 28\]"),
        ({"images": np.zeros((19, 28, 28), np.uint8)}, r"holds images uint8\[19, 28, 28\]"),
        ({"labels": np.full(20, 10, np.uint8)}, "holds the label 10, expected 0 to 9"),
        ({"labels": np.zeros((20, 1), np.uint8)}, "labels"),
        ({"labels": np.full(20, -1, np.int64)}, "label"),
        ({"source_index": np.arange(19, dtype=np.int32)}, "source_index"),
        ({"extra": np.zeros(1)}, "is damaged, it lacks arrays"),
    ],
    ids=["width", "type", "fewer images", "label", "column of labels", "negative label", "short index", "fourth array"],
)
def test_digits_of_another_shape_or_range_are_refused(tmp_path, digits, settings, changes, message):
    data.save_arrays(tmp_path / "train.npz", **(digits._asdict() | changes))
    with pytest.raises(PipelineError, match=rf"train\.npz .*{message}.*: remove it and run `dvc repro`"):
        data.load_examples(tmp_path / "train.npz", settings)


def damages(path: Path) -> Iterator[None]:
    """Write the file again and again, cut short or with one byte changed, half of these in the directory at its end."""
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(300):
        path.write_bytes(content[: generator.randrange(len(content))])
        yield
        place = -generator.randint(1, generator.choice([300, len(content)]))
        damaged = bytearray(content)
        damaged[place] ^= generator.randint(1, 255)
        path.write_bytes(damaged)
        yield


def test_no_damage_to_our_file_gives_other_digits_or_anything_but_a_refusal(tmp_path, digits, settings):
    data.save_arrays(tmp_path / "train.npz", **digits._asdict())
    refused = 0
    for _ in damages(tmp_path / "train.npz"):
        try:
            read = data.load_examples(tmp_path / "train.npz", settings)
        except PipelineError as error:
            assert "train.npz" in str(error) and "`dvc repro`" in str(error)
            refused += 1
        else:  # the damage was to what no one reads
            assert all(map(np.array_equal, read, digits))
    assert refused > 300


def test_no_damage_to_a_published_archive_gives_anything_but_a_refusal(tmp_path, arrays, settings):
    path, refused = fill(tmp_path, "npz of Keras", arrays), 0
    for _ in damages(path):
        try:
            data.verify(data.read_source(path, settings), settings)
        except PipelineError:
            refused += 1
    assert refused > 300


def test_an_array_file_and_a_missing_one_are_refused(tmp_path, digits, settings):
    np.save(tmp_path / "array.npy", digits.images)
    shutil.move(tmp_path / "array.npy", tmp_path / "array.npz")
    for name, message in (
        ("array.npz", r"is damaged,? or no \.npz"),
        ("nosuch.npz", "is missing: run `dvc repro` first"),
    ):
        with pytest.raises(PipelineError, match=message):
            data.load_examples(tmp_path / name, settings)


def test_raw_arrays_are_those_of_the_configuration_or_refused(tmp_path, arrays, settings):
    path = tmp_path / "mnist.npz"
    data.save_arrays(path, **arrays)
    read = data.load_raw(path, settings)
    assert all(np.array_equal(read[key], arrays[key]) for key in data.ARRAYS)
    data.save_arrays(path, **(arrays | {"test_labels": arrays["test_labels"][::-1]}))
    with pytest.raises(PipelineError, match=r"mnist\.npz is not mnist: test_labels has SHA-256 .*: remove it and run"):
        data.load_raw(path, settings)
    data.save_arrays(path, train_images=arrays["train_images"])
    with pytest.raises(PipelineError, match=r"mnist\.npz is damaged, it lacks arrays"):
        data.load_raw(path, settings)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "fashion"), ("val_size", 6), ("split_seed", 1), ("fraction", 0.5), ("sha256", {"train_images": "0"})],
)
def test_a_split_made_with_another_value_is_refused(settings, key, value):
    record = data.split_record(settings)
    data.check_split(record, settings, Path("data/processed"))
    expected = rf"data\.{key}=.*, but the split in data/processed was made with {re.escape(str(value))}: give data="
    for other in (record | {key: value}, {name: kept for name, kept in record.items() if name != key}):
        with pytest.raises(PipelineError, match=expected if key in other else "was made with None"):
            data.check_split(other, settings, Path("data/processed"))


def test_predictions_read_back_to_six_digits(tmp_path):
    digits = Examples(np.zeros((2, 28, 28), np.uint8), np.array([1, 0], np.uint8), np.array([7, 9], np.int32))
    data.save_predictions(tmp_path / "p.csv", digits, np.array([[0.25, 0.75], [1 - 1.23456789e-7, 1.23456789e-7]]))
    with (tmp_path / "p.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["index", "label", "prediction", "probability_0", "probability_1"],
            ["7", "1", "1", "0.25", "0.75"],
            ["9", "0", "0", "1", "1.23457e-07"],
        ]
