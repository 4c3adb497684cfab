"""Examples: the published formats byte by byte, the split by hand, and one error for what does not fit."""

from __future__ import annotations

import csv
import gzip
import os
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import IDX_FILES, generated_digits, write_idx

from pipeline.base.errors import UserError
from pipeline.base.files import save_json, sha256
from pipeline.base.project import Project
from pipeline.base.schema import ARRAYS
from pipeline.data.examples import (
    Examples,
    check_split,
    head,
    load_examples,
    load_split,
    save_arrays,
    save_predictions,
    split_record,
)
from pipeline.data.readers import Arrays, array_sha256, load_raw, read_idx, read_source, verify
from pipeline.data.split import stratified_fraction, stratified_split

IDX = struct.pack(">HBB3I", 0, 8, 3, 2, 2, 3) + bytes(range(12))  # two images of 2 x 3 pixels
KERAS = {"train_images": "x_train", "train_labels": "y_train", "test_images": "x_test", "test_labels": "y_test"}


@pytest.fixture
def digits() -> Examples:
    return Examples(*generated_digits(20, 0), np.arange(100, 120, dtype=np.int32))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_an_idx_file_reads_as_its_definition_says(tmp_path, pack):
    (tmp_path / "file").write_bytes(pack(IDX))
    read = read_idx(tmp_path / "file")
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
        gzip.compress(IDX)[:-8] + bytes(8),
        b"\0\0\x0d" + IDX[3:],
        b"<!doctype html><title>sign in</title>",
    ],
    ids=[
        *("empty", "no header", "half header", "short", "long"),
        *("short gzip", "damaged gzip", "wrong checksum", "of floats", "a page"),
    ],
)
def test_a_foreign_or_truncated_idx_file_is_an_error_with_its_name(tmp_path, content):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match=r"/file is not a whole IDX file \("):
        read_idx(tmp_path / "file")


def fill(folder: Path, kind: str, arrays: Arrays) -> Path:
    """Write the arrays in a form in which people have them, and return the path to give."""
    if kind in ("npz of Keras", "folder of it", "our npz"):
        names = KERAS if kind != "our npz" else {key: key for key in arrays}
        np.savez_compressed(folder / "mnist.npz", **{names[key]: array for key, array in arrays.items()})
        return folder / "mnist.npz" if kind != "folder of it" else folder
    for key, array in arrays.items():
        write_idx(folder / IDX_FILES[key], array)
        if kind == "gzipped":
            (folder / f"{IDX_FILES[key]}.gz").write_bytes(gzip.compress((folder / IDX_FILES[key]).read_bytes()))
            (folder / IDX_FILES[key]).unlink()
    return folder


@pytest.mark.parametrize("kind", ["npz of Keras", "folder of it", "our npz", "folder of IDX", "gzipped"])
def test_a_source_gives_the_four_arrays_in_every_form(tmp_path, arrays, data, kind):
    read = read_source(fill(tmp_path, kind, arrays), data)
    assert tuple(read) == ARRAYS
    for key in arrays:
        np.testing.assert_array_equal(read[key], arrays[key], strict=True)


def test_more_arrays_in_an_archive_are_left_out_and_the_order_is_ours(tmp_path, arrays, data):
    np.savez(tmp_path / "more.npz", extra=np.zeros(3), **dict(reversed(arrays.items())))
    assert tuple(read_source(tmp_path / "more.npz", data)) == ARRAYS


def test_a_source_that_is_missing_or_lacks_an_array_is_an_error_with_its_name(tmp_path, arrays, data):
    with pytest.raises(UserError, match=r"nosuch is no \.npz file, and no folder with a-idx3 or a-idx3\.gz"):
        read_source(tmp_path / "nosuch", data)
    (fill(tmp_path, "folder of IDX", arrays) / "b-idx1").unlink()
    with pytest.raises(UserError, match=r"no folder with b-idx1 or b-idx1\.gz"):
        read_source(tmp_path, data)
    np.savez(tmp_path / "mnist.npz", x_train=arrays["train_images"], y_train=arrays["train_labels"])
    with pytest.raises(UserError, match="the arrays test_images, test_labels are missing"):
        read_source(tmp_path, data)


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (
            "train_images",
            lambda images: images[:, :, :27],
            r"train_images is uint8\[60, 28, 27\], expected uint8\[60, 28",
        ),
        (
            "train_images",
            lambda images: images[1:],
            r"train_images is uint8\[59, 28, 28\], expected uint8\[60, 28, 28\]",
        ),
        (
            "test_images",
            lambda images: images.astype("float32"),
            r"test_images is float32\[20, 28, 28\], expected uint8",
        ),
        ("test_labels", lambda labels: labels[:, None], r"test_labels is uint8\[20, 1\], expected uint8\[20\]"),
        ("test_labels", lambda labels: labels + np.uint8(1), "test_labels has the label 10, expected 0 to 9"),
        ("train_labels", lambda labels: labels[::-1], r"\Atrain_labels has SHA-256 \w{12}…, expected \w{12}…\Z"),
        ("train_images", lambda images: b"text", r"train_images is \|S4\[\], expected uint8"),
    ],
    ids=["width", "fewer images", "type", "column of labels", "label", "order", "no array"],
)
def test_published_arrays_of_another_shape_type_range_or_order_are_an_error(
    tmp_path, arrays, data, key, change, message
):
    np.savez(tmp_path / "own.npz", **(arrays | {key: change(arrays[key])}))
    with pytest.raises(UserError, match=message):
        read_source(tmp_path / "own.npz", data)


def test_one_changed_pixel_is_an_error_with_the_name_of_its_array(arrays, data):
    changed = arrays["test_images"].copy()
    changed[3, 14, 14] ^= 1
    with pytest.raises(UserError, match=r"\Atest_images has SHA-256 \w{12}…, expected \w{12}…\Z"):
        verify(arrays | {"test_images": changed}, data)
    columns_first = np.asfortranarray(arrays["test_images"])  # the same values, laid out otherwise in memory
    assert array_sha256(columns_first) == data.sha256["test_images"]


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
    rest, chosen = stratified_split(labels, size, seed=0)
    assert tuple(np.bincount(labels[chosen], minlength=3)) == drawn
    assert rest.dtype == chosen.dtype == np.int32
    assert sorted([*rest, *chosen]) == list(range(sum(counts)))
    assert list(rest) == sorted(rest) and list(chosen) == sorted(chosen)


@pytest.mark.parametrize("seed", range(5))
def test_a_split_of_any_labels_is_complete_and_within_one_digit_of_the_shares(seed):
    generator = np.random.default_rng(seed)
    labels = generator.choice(10, 997, p=generator.dirichlet(np.ones(10))).astype(np.uint8)
    rest, chosen = stratified_split(labels, 101, seed)
    assert len(chosen) == 101 and sorted([*rest, *chosen]) == list(range(997))
    shares = np.bincount(labels, minlength=10) * 101 / 997
    assert np.all(np.abs(np.bincount(labels[chosen], minlength=10) - shares) < 1)


def test_the_seed_alone_decides_a_split():
    labels = generated_digits(200, 0)[1]
    first, again, other = (stratified_split(labels, 50, seed)[1].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_a_fraction_is_a_rounded_share_of_each_class():
    labels = np.repeat(np.arange(2), (30, 10)).astype(np.uint8)
    drawn = stratified_fraction(labels, 0.25, seed=0)  # 7.5 of 30 and 2.5 of 10: ten, the first of equal remainders
    assert np.bincount(labels[drawn]).tolist() == [8, 2] and drawn.dtype == np.int32


@pytest.mark.parametrize("size", [-1, 201])
def test_a_split_of_more_digits_than_there_are_is_an_error(size):
    with pytest.raises(UserError, match=f"cannot draw {size} of 200 examples: give data.val_size 0 to 200"):
        stratified_split(np.zeros(200, np.uint8), size, 0)


def test_the_head_is_the_first_examples_or_all(digits):
    three = head(digits, 3)
    assert three.source_index.tolist() == [100, 101, 102] and three.labels.tolist() == digits.labels[:3].tolist()
    assert three.images.shape == (3, 28, 28)
    assert all(map(np.array_equal, head(digits, None), digits))


def test_saved_digits_read_back_and_have_the_same_bytes_each_time(tmp_path, digits, data):
    for name in ("a.npz", "b.npz"):
        save_arrays(tmp_path / name, **digits._asdict())
    read = load_examples(tmp_path / "a.npz", data)
    for array, expected in zip(read, digits, strict=True):
        np.testing.assert_array_equal(array, expected, strict=True)
    assert sha256(tmp_path / "a.npz") == sha256(tmp_path / "b.npz")
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:  # no time of writing, and no compressor's bytes
        for member in archive.infolist():
            assert member.date_time == (1980, 1, 1, 0, 0, 0) and member.compress_type == zipfile.ZIP_STORED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((20, 28, 27), np.uint8)}, r"images is uint8\[20, 28, 27\], expected uint8\[20, 28, 28\]"),
        ({"images": np.zeros((20, 28, 28))}, r"images is float64\[20, 28, 28\], expected uint8\[20, 28, 28\]"),
        ({"images": np.zeros((19, 28, 28), np.uint8)}, r"images is uint8\[19, 28, 28\], expected uint8\[20, 28, 28\]"),
        ({"labels": np.full(20, 10, np.uint8)}, "labels has the label 10, expected 0 to 9"),
        ({"labels": np.zeros((20, 1), np.uint8)}, r"labels is uint8\[20, 1\], expected uint8\[20\]"),
        ({"labels": np.full(20, -1, np.int64)}, r"labels is int64\[20\], expected uint8\[20\]"),
        ({"source_index": np.arange(19, dtype=np.int32)}, r"source_index is int32\[19\], expected int32\[20\]"),
    ],
    ids=["width", "type", "fewer images", "label", "column of labels", "negative label", "short index"],
)
def test_digits_of_another_shape_or_range_are_an_error(tmp_path, digits, data, changes, message):
    save_arrays(tmp_path / "train.npz", **(digits._asdict() | changes))
    with pytest.raises(UserError, match=rf"train\.npz .*{message}: remove it and run `dvc repro`"):
        load_examples(tmp_path / "train.npz", data)


def test_no_example_at_all_is_an_error_except_for_validation(tmp_path, digits, data):
    for name in ("train", "val"):
        save_arrays(tmp_path / f"{name}.npz", **head(digits, 0)._asdict())
    assert load_examples(tmp_path / "val.npz", data).images.shape == (0, 28, 28)
    with pytest.raises(UserError, match=r"train\.npz is empty: give a larger data\.fraction"):
        load_examples(tmp_path / "train.npz", data)


def damages(path: Path) -> Iterator[None]:
    """Write the file again and again, cut short or with one byte changed, half of these in the directory at its end."""
    content, generator = path.read_bytes(), random.Random(0)
    for _ in range(300):
        path.write_bytes(content[: generator.randrange(len(content))])
        yield
        position = -generator.randint(1, generator.choice([300, len(content)]))
        damaged = bytearray(content)
        damaged[position] ^= generator.randint(1, 255)
        path.write_bytes(damaged)
        yield


def test_no_damage_to_our_file_gives_other_digits_or_anything_but_a_user_error(tmp_path, digits, data):
    save_arrays(tmp_path / "train.npz", **digits._asdict())
    errors = 0
    for _ in damages(tmp_path / "train.npz"):
        try:
            read = load_examples(tmp_path / "train.npz", data)
        except UserError as error:
            assert "train.npz" in str(error) and "`dvc repro`" in str(error)
            errors += 1
        else:  # the damage was to what no one reads
            assert all(map(np.array_equal, read, digits))
    assert errors > 300


@pytest.mark.parametrize("kind", ["npz of Keras", "gzipped"])
def test_no_damage_to_a_published_file_gives_anything_but_a_user_error(tmp_path, arrays, data, kind):
    path, errors = fill(tmp_path, kind, arrays), 0
    for _ in damages(path if path.is_file() else path / "a-idx3.gz"):
        try:
            read_source(path, data)
        except UserError:
            errors += 1
    assert errors > 300


class Planted:
    """Sets an environment variable where it is unpickled."""

    def __reduce__(self):
        return os.putenv, ("UNPICKLED", "1")


def test_an_array_file_one_of_pickles_and_a_missing_one_are_errors(tmp_path, digits, data):
    np.save(tmp_path / "array.npy", digits.images)
    shutil.move(tmp_path / "array.npy", tmp_path / "array.npz")
    np.savez(tmp_path / "pickle.npz", **dict.fromkeys(Examples._fields, np.array([Planted()], object)))
    for name, message in (
        ("array.npz", r"is damaged, or no \.npz file of plain arrays: remove it and run `dvc repro`"),
        ("pickle.npz", r"is damaged, or no \.npz file of plain arrays: remove it and run `dvc repro`"),
        ("nosuch.npz", r"nosuch\.npz is missing: run `dvc repro` first, which makes it\Z"),
    ):
        with pytest.raises(UserError, match=message):
            load_examples(tmp_path / name, data)
    with os.popen("echo $UNPICKLED") as shell:  # putenv changes the environment of commands, not os.environ
        assert shell.read() == "\n"


def test_raw_arrays_are_those_of_the_configuration_or_an_error(tmp_path, arrays, data):
    path = tmp_path / "mnist.npz"
    save_arrays(path, **arrays)
    read = load_raw(path, data)
    assert all(np.array_equal(read[key], arrays[key]) for key in ARRAYS)
    save_arrays(path, **(arrays | {"test_labels": arrays["test_labels"][::-1]}))
    with pytest.raises(UserError, match=r"mnist\.npz is not mnist: test_labels has SHA-256 .*: remove it and run"):
        load_raw(path, data)
    save_arrays(path, train_images=arrays["train_images"], test_images=arrays["test_images"])
    with pytest.raises(UserError, match=r"mnist\.npz is not mnist: the arrays train_labels are missing: remove it"):
        load_raw(path, data)
    path.unlink()
    with pytest.raises(UserError, match=r"mnist\.npz is missing: run `dvc repro` first, which makes it\Z"):
        load_raw(path, data)


@pytest.mark.parametrize(
    ("key", "value", "option"),
    [
        ("name", "fashion", "data"),
        ("val_size", 6, "data.val_size"),
        ("split_seed", 1, "data.split_seed"),
        ("fraction", 0.5, "data.fraction"),
        ("sha256", {"train_images": "0"}, "data.sha256"),
    ],
)
def test_a_split_made_with_another_value_is_an_error_in_its_own_project_alone(
    tmp_path, digits, data, key, value, option
):
    other, same = (Project(tmp_path / name, tmp_path / name) for name in ("other", "same"))
    record = split_record(data)
    assert tuple(record) == ("name", "classes", "val_size", "split_seed", "fraction", "sha256")
    for project, values in ((other, record | {key: value}), (same, record)):
        save_json(project.processed / "split.json", values)
        save_arrays(project.processed / "val.npz", **digits._asdict())
    assert load_split(same, "val", data).labels.tolist() == digits.labels.tolist()
    expected = rf"data\.{key}=.*, but the split in .*other/data/processed was made with {re.escape(str(value))}: "
    for check in (lambda: check_split(other, data), lambda: load_split(other, "val", data)):
        with pytest.raises(
            UserError, match=rf"{expected}give {re.escape(option)}=<that>, or prepare this one: `dvc exp run -S"
        ):
            check()
    save_json(other.processed / "split.json", {name: kept for name, kept in record.items() if name != key})
    with pytest.raises(UserError, match="was made with None"):
        check_split(other, data)


def test_predictions_read_back_to_six_digits(tmp_path):
    digits = Examples(np.zeros((2, 28, 28), np.uint8), np.array([1, 0], np.uint8), np.array([7, 9], np.int32))
    save_predictions(tmp_path / "p.csv", digits, np.array([[0.25, 0.75], [1 - 1.23456789e-7, 1.23456789e-7]]))
    with (tmp_path / "p.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["index", "label", "prediction", "probability_0", "probability_1"],
            ["7", "1", "1", "0.25", "0.75"],
            ["9", "0", "0", "1", "1.23457e-07"],
        ]
