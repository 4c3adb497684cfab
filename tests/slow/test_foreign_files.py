"""Files made by somebody else, damaged or written to run a command: each is one line, and no command runs."""

from __future__ import annotations

import json
import marshal
import os
import pickle
import shutil
import zipfile
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT
from faults_report import record

from pipeline import reproduce
from pipeline.base import files
from pipeline.base.errors import UserError
from pipeline.base.project import open_project
from pipeline.base.schema import ARRAYS, Model
from pipeline.data.examples import Examples, load_examples
from pipeline.data.readers import KERAS_NAMES, load_raw, read_source
from pipeline.model import build, inference
from pipeline.model import files as model_files
from pipeline.reports import verdicts
from pipeline.tracking import queries

pytestmark = pytest.mark.faults

SMALL = Model(filters=2, convolutions=[], batch_norm=False, pooling="flatten", units=[], pixel_scale=1 / 255)


class Command:
    """What runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


class Trap:
    """A folder where such files are made, and the marker that appears if one of them runs its command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, folder / "ran"
        self.command = f"touch {self.marker}"

    def sprung(self) -> bool:
        ran = self.marker.exists()
        self.marker.unlink(missing_ok=True)
        return ran


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Trap:
    monkeypatch.chdir(tmp_path)
    return Trap(tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.keras"
    inference.start(0)
    model_files.save_model(path, build.build_cnn(SMALL, (4, 4), 2))
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, contents: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


def with_layer(good: Path, trap: Trap, **layer: Any) -> Path:
    """Return the good model, its rescaling replaced by this layer."""
    content = members(good)
    config = json.loads(content["config.json"])
    [pixels] = [one for one in config["config"]["layers"] if one["name"] == "pixels"]
    pixels |= layer
    return packed(trap.folder / "model.keras", content | {"config.json": json.dumps(config).encode()})


def marshalled_lambda(good: Path, trap: Trap) -> Path:
    code = compile(f"lambda x: [x, __import__('os').system({trap.command!r})][0]", "x", "eval").co_consts[0]
    encoded = b64encode(marshal.dumps(code)).decode()
    value = {"class_name": "__lambda__", "config": {"code": encoded, "defaults": None, "closure": None}}
    settings = {"name": "pixels", "function": value}
    return with_layer(good, trap, module="keras.layers", class_name="Lambda", config=settings)


def os_system_layer(good: Path, trap: Trap) -> Path:
    return with_layer(good, trap, module="os", class_name="system", config={"command": trap.command})


def torch_module(good: Path, trap: Trap) -> Path:
    settings = {"name": "pixels", "module": b64encode(pickle.dumps(Command(trap.command))).decode()}
    return with_layer(good, trap, module="keras.layers", class_name="TorchModuleWrapper", config=settings)


def pickled(good: Path, trap: Trap) -> Path:
    path = trap.folder / "model.keras"
    path.write_bytes(pickle.dumps(Command(trap.command)))
    return path


def older_h5(good: Path, trap: Trap) -> Path:
    """Return a file of the older format, which knows no safe mode of its own, under our name."""
    path, command = trap.folder / "model.h5", trap.command
    images = keras.Input((2,))
    ran = keras.layers.Lambda(lambda x: [x, __import__("os").system(command)][0])(images)
    keras.src.legacy.saving.legacy_h5_format.save_model_to_hdf5(keras.Model(images, ran), path)
    trap.sprung()
    return path.rename(trap.folder / "model.keras")


def linked_weights(good: Path, trap: Trap) -> Path:
    """Return a model whose weights stand in another file of the machine."""
    content = members(good)
    inner = trap.folder / "weights.h5"
    inner.write_bytes(content["model.weights.h5"])
    with h5py.File(inner, "r+") as opened:
        names: list[str] = []
        opened.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        with h5py.File(trap.folder / "secret.h5", "w") as secret:
            secret["x"] = np.full(opened[names[-1]].shape, 42, "float32")
        del opened[names[-1]]
        opened[names[-1]] = h5py.ExternalLink(str(trap.folder / "secret.h5"), "x")
    return packed(trap.folder / "model.keras", content | {"model.weights.h5": inner.read_bytes()})


MODELS = [marshalled_lambda, os_system_layer, torch_module, pickled, older_h5, linked_weights]


@pytest.mark.parametrize("make", MODELS, ids=lambda make: make.__name__)
def test_a_model_file_that_brings_code_or_other_files_is_one_line(good, trap, make):
    path = make(good, trap)
    with pytest.raises(UserError) as error:
        model_files.load_model(path)
    message = str(error.value)
    said = ("is damaged or no .keras file of ours (", "has the Lambda layer 'pixels', ", "needs '")
    assert message.startswith(tuple(f"{path} {one}" for one in said)) and message.isprintable()
    assert not trap.sprung()
    record("a model file that brings code runs nothing", 1, 1)


def test_such_a_file_runs_its_command_where_it_is_trusted(good, trap):
    path = marshalled_lambda(good, trap)
    try:
        keras.saving.load_model(path, compile=False, safe_mode=False)
    except Exception as error:  # after it ran, Keras cannot use what the command gave
        print(error)
    assert trap.sprung()


def test_a_model_that_was_exchanged_in_the_store_is_not_loaded(good, trap, monkeypatch):
    tags = {"weights_sha256": model_files.weights_sha256(good)}
    run = SimpleNamespace(info=SimpleNamespace(run_id="0" * 32), data=SimpleNamespace(tags=tags))
    (trap.folder / "data").mkdir()
    monkeypatch.setattr(queries, "artifact", lambda *_: trap.folder / "data" / "model.keras")
    shutil.copy(good, trap.folder / "data" / "model.keras")
    assert queries.recorded_model(run, trap.folder) == trap.folder / "data" / "model.keras"
    for make in (pickled, linked_weights):
        shutil.move(make(good, trap), trap.folder / "data" / "model.keras")
        with pytest.raises(UserError, match=r"holds another model than it trained|is damaged"):
            queries.recorded_model(run, trap.folder)
        record("a model exchanged in the store is not loaded", 1, 1)


READERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Any], Any]]] = {
    "raw": (ARRAYS, load_raw),
    "processed": (Examples._fields, load_examples),
    "a copy of one's own": (tuple(KERAS_NAMES), read_source),
}


@pytest.mark.parametrize("kind", READERS)
def test_digits_with_pickles_among_them_are_an_error(trap, compose, kind):
    names, reader = READERS[kind]
    path = trap.folder / "digits.npz"
    np.savez(path, **{name: np.array([Command(trap.command)], object) for name in names})
    with np.load(path, allow_pickle=True) as trusted:
        trusted[names[0]]
    assert trap.sprung(), "it runs where it is trusted"
    for content in (path.read_bytes(), pickle.dumps(Command(trap.command))):
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            reader(path, compose().data)
        assert not trap.sprung()
        record("digits with a pickle among them run nothing", 1, 1)


def test_predictions_that_are_no_numbers_are_one_line(trap):
    path = trap.folder / "predictions.csv"
    header = b"index,label,prediction\n"
    rows = [b"=cmd|'/C x'!A0,1,1", b"1,2,nan", b"1,2,3.5", b"1,2", b"1,2,3,4", b"1,2,x", b"1" * 200_000 + b",2,3"]
    contents = [
        pickle.dumps(Command(trap.command)),
        b"index,label\n1,2\n",
        b"\xff\xfe\x00",
        *(header + r for r in rows),
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(UserError, match="is damaged"):
            verdicts.read_predictions(path)
        assert not trap.sprung()
    record("a CSV file with anything but numbers is an error", len(contents), len(contents))


GOOD = {"recipe": "baseline", "model_sha256": "0" * 64, "git_commit": "none"}
NONSENSE: dict[str, Any] = {
    "a list": [],
    "nothing": {},
    "numbers": dict.fromkeys(GOOD, 1),
    "a command for the commit": GOOD | {"git_commit": "x; touch ran"},
    "a path for the recipe": GOOD | {"recipe": "../../x"},
}


@pytest.fixture
def folder(trap, compose) -> Path:
    """Return the files of a run, as reproduce takes them from a folder."""
    folder = trap.folder / "run"
    folder.mkdir()
    files.save_yaml(folder / "config.yaml", compose("recipe=baseline").model_dump())
    files.save_json(folder / "tags.json", GOOD)
    (folder / "history.csv").write_text("train_accuracy,val_accuracy\n0.5,0.5\n")
    (folder / "val_predictions.csv").write_text("index,prediction\n1,2\n")
    return folder


def load_recorded(folder: Path, compose: Callable[..., Any]) -> reproduce.Recorded:
    return reproduce._load_recorded(open_project(ROOT), str(folder), compose(), folder)


def test_a_folder_of_a_run_is_read(folder, compose):
    recorded = load_recorded(folder, compose)
    data = compose("recipe=baseline").data
    assert recorded.config.model_copy(update={"data": data}) == compose("recipe=baseline") and recorded.tags == GOOD


@pytest.mark.parametrize("kind", NONSENSE)
def test_tags_that_no_run_of_ours_has_are_one_line(folder, compose, kind):
    (folder / "tags.json").write_text(json.dumps(NONSENSE[kind]))
    with pytest.raises(UserError) as error:
        load_recorded(folder, compose)
    assert str(folder / "tags.json") in str(error.value) and str(error.value).isprintable()
    record("tags that no run of ours has are one line", 1, 1)


@pytest.mark.sample
@pytest.mark.parametrize(
    "text",
    [
        "name: ${oc.env:A_SECRET}",
        "name: ../../x",
        "model: {_target_: os.system}",
        "hydra: {callbacks: {}}",
        "train: !!python/object/apply:os.system ['{command}']",
        "name: [a",
        "- a list",
    ],
)
def test_a_recorded_configuration_is_plain_values_or_one_line(folder, compose, trap, monkeypatch, text):
    monkeypatch.setenv("A_SECRET", "do not tell")
    path = folder / "config.yaml"
    kept = [line for line in path.read_text().splitlines() if line.partition(":")[0] != text.partition(":")[0]]
    path.write_text("\n".join([*kept, text.replace("{command}", trap.command)]))
    with pytest.raises(UserError) as error:
        load_recorded(folder, compose)
    assert str(path) in str(error.value)
    assert "do not tell" not in str(error.value) and "\n" not in str(error.value) and not trap.sprung()
    record("a recorded configuration fills in nothing and calls nothing", 1, 1)


def test_nothing_of_ours_loads_what_can_run_code():
    code = "\n".join(path.read_text() for path in sorted((ROOT / "pipeline").rglob("*.py")))
    for word in ("import pickle", "unsafe_load", "allow_pickle=True", "safe_mode=False", "instantiate(", "shell=True"):
        assert word not in code, word
