"""Files: whole or not at all, read back exactly, refused when they are damaged."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import yaml

from pipeline.base.errors import UserError
from pipeline.base.files import (
    load_csv,
    load_json,
    process_name,
    remembered,
    replacing,
    require_file,
    save_csv,
    save_json,
    save_yaml,
    sha256,
)

FLOATS = [0.1, 1 / 3, 1e-300, 0.9975666403770447, -0.0, 5e-324, 1.7976931348623157e308]


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_block_that_ends_well_makes_folders_and_replaces_the_old_content(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    for content in ("old", "new"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent and temporary.suffix == ".txt"
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "old"
        assert path.read_text() == content
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_content_and_no_temporary(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = process_name().rpartition("-")[0]
    living = f"{here}-{os.getppid()}"
    elsewhere = f"{here}x-{ended.pid}"  # the same number on another machine, which shares the folder
    for writer in (f"{here}-{ended.pid}", living, elsewhere):
        (tmp_path / f".other.{writer}.partial.txt").write_text("half")
    save_json(tmp_path / "file.json", {})
    assert set(names(tmp_path)) == {f".other.{living}.partial.txt", f".other.{elsewhere}.partial.txt", "file.json"}


def test_a_block_that_writes_nothing_leaves_the_old_content(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_columns_of_different_lengths_leave_the_old_table(tmp_path):
    path = tmp_path / "table.csv"
    save_csv(path, {"a": [1]})
    with pytest.raises(ValueError, match="shorter"):
        save_csv(path, {"a": [1, 2], "b": [1]})
    assert path.read_text() == "a\n1\n" and names(tmp_path) == ["table.csv"]


def test_a_table_reads_back_the_same_floats_to_the_last_bit(tmp_path):
    save_csv(tmp_path / "table.csv", {"epoch": range(1, 8), "loss": FLOATS})
    rows = load_csv(tmp_path / "table.csv", ["epoch", "loss"])
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["loss"].hex() for row in rows] == [value.hex() for value in FLOATS]
    assert (tmp_path / "table.csv").read_bytes().startswith(b"epoch,loss\n1,0.1\n2,0.3333333333333333\n")


def test_absent_figures_read_back_as_nan(tmp_path):
    save_csv(tmp_path / "table.csv", {"loss": [math.nan]})
    assert math.isnan(load_csv(tmp_path / "table.csv", ["loss"])[0]["loss"])


def test_what_is_no_number_is_null_in_json(tmp_path):
    value = {"none": math.nan, "rows": {"x": [1.5, math.inf, (np.float64("nan"), -math.inf)]}, "text": "NaN"}
    save_json(tmp_path / "value.json", value)
    read = json.loads((tmp_path / "value.json").read_text(), parse_constant=pytest.fail)
    assert read == {"none": None, "rows": {"x": [1.5, None, [None, None]]}, "text": "NaN"}


def test_json_and_yaml_read_back_with_their_order_and_exact_floats(tmp_path):
    value = {"b": FLOATS, "a": {"text": "0 – 9", "nothing": None, "flag": True, "whole": 3}}
    save_json(tmp_path / "value.json", value)
    save_yaml(tmp_path / "value.yaml", value)
    for read in (load_json(tmp_path / "value.json"), yaml.safe_load((tmp_path / "value.yaml").read_text("utf-8"))):
        assert read == value and list(read) == ["b", "a"]
        assert [number.hex() for number in read["b"]] == [number.hex() for number in FLOATS]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"epoch,loss\n",
        b"epoch,loss\n1,half\n",
        b"epoch,loss\n1\n",
        b"epoch,loss\n1,2,3\n",
        b"epoch,accuracy\n1,0.5\n",
        b"\xff\xfe\x00",
        b"x" * 200_000,
    ],
    ids=["empty", "no row", "no number", "short row", "long row", "other columns", "no text", "one long word"],
)
def test_a_damaged_table_is_refused_by_name(tmp_path, content):
    path = tmp_path / "table.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"table\.csv is damaged.*: remove it and run `dvc repro`"):
        load_csv(path, ["epoch", "loss"])


def test_a_table_may_be_of_no_rows_but_not_without_its_header(tmp_path):
    path = tmp_path / "val_predictions.csv"
    path.write_text("index,prediction\n")
    assert load_csv(path, ["index"], least=0) == []
    for content in ("", "index,label\n"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"is damaged, not a table of index, prediction"):
            load_csv(path, ["index", "prediction"], least=0)


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff{}"])
def test_damaged_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "value.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"value\.json is damaged.*: remove it and run `dvc repro`"):
        load_json(path)


@pytest.mark.parametrize("load", [load_json, sha256, require_file, lambda path: load_csv(path, ["a"])])
def test_a_missing_file_or_a_folder_in_its_place_is_refused_with_what_makes_it(tmp_path, load):
    for path in (tmp_path / "file", tmp_path):
        with pytest.raises(UserError) as refused:
            load(path)
        assert str(refused.value) == f"{path} is missing: run `dvc repro` first, which makes it"


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "long").write_bytes(bytes(3_000_000))
    assert sha256(tmp_path / "long") == hashlib.sha256(bytes(3_000_000)).hexdigest()


def test_a_hash_of_a_large_file_is_taken_once_until_the_file_changes(tmp_path):
    path, taken = tmp_path / "data", []

    def compute() -> str:
        taken.append(path.read_text())
        return f"hash of {taken[-1]}"

    path.write_text("one")
    assert [remembered(path, "sha256", compute) for _ in range(2)] == ["hash of one"] * 2 and taken == ["one"]
    assert remembered(path, "other", compute) == "hash of one" and len(taken) == 2
    path.write_text("three")
    assert remembered(path, "sha256", compute) == "hash of three" and taken[2:] == ["three"]
    kept = tmp_path / ".data.known.json"
    kept.write_text(kept.read_text()[:-9])  # cut short
    assert remembered(path, "sha256", compute) == "hash of three" and len(taken) == 4
