"""Files from elsewhere that would run a command if they were trusted: each is read, and the command does not run."""

from __future__ import annotations

import json
import marshal
import os
import pickle
import shutil
import stat
import sys
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import yaml
from conftest import COPIED, ROOT, generated_digits, run
from faults_report import record

from pipeline import comparison, data, engine, files, model, reproduce, tracking
from pipeline.config import Model, PipelineError, to_dict

pytestmark = pytest.mark.faults

SMALL = Model(2, [], False, "flatten", [], 1 / 255, "float32")
EVIL_MODULE = "from pathlib import Path\nPath({!r}).touch()\nclass Evil: pass\n"


class Command:
    """What runs a shell command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


class Trap:
    """A folder where hostile files are made, and the marker that appears if one of them runs its command."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.marker = folder, folder / "ran"
        self.command = f"touch {self.marker}"

    def sprung(self) -> bool:
        found = self.marker.exists()
        self.marker.unlink(missing_ok=True)
        return found


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Iterator[Trap]:
    """With a module on the path that would touch the marker when it is imported."""
    made = Trap(tmp_path)
    (tmp_path / "evil_module.py").write_text(EVIL_MODULE.format(str(made.marker)))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield made
    sys.modules.pop("evil_module", None)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("good") / "model.keras"
    engine.start(0)
    model.save_model(path, model.build_cnn(SMALL, (4, 4), 2))
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, of in content.items():
            archive.writestr(name, of)
    return path


def with_layer(good: Path, trap: Trap, **layer: Any) -> Path:
    """The good model, its rescaling replaced by this layer."""
    content = members(good)
    config = json.loads(content["config.json"])
    [place] = [of for of in config["config"]["layers"] if of["name"] == "pixels"]
    place |= layer
    content["config.json"] = json.dumps(config).encode()
    return packed(trap.folder / "model.keras", content)


def function(module: str, name: str) -> dict[str, str]:
    return {"class_name": "function", "module": module, "config": name, "registered_name": name}


def python_lambda(good: Path, trap: Trap) -> Path:
    """As Keras itself saves one: marshalled."""
    path, command = trap.folder / "model.keras", trap.command
    images = keras.Input((2,))
    ran = keras.layers.Lambda(lambda x: [x, __import__("os").system(command)][0])(images)
    keras.Model(images, ran).save(path)
    trap.sprung()
    return path


def marshalled_lambda(good: Path, trap: Trap) -> Path:
    code = compile(f"lambda x: [x, __import__('os').system({trap.command!r})][0]", "x", "eval").co_consts[0]
    value = {
        "class_name": "__lambda__",
        "config": {"code": b64encode(marshal.dumps(code)).decode(), "defaults": None, "closure": None},
    }
    settings = {"name": "pixels", "function": value}
    return with_layer(good, trap, module="keras.layers", class_name="Lambda", config=settings)


def named_lambda(module: str, name: str, **arguments: Any) -> Callable[[Path, Trap], Path]:
    def made(good: Path, trap: Trap) -> Path:
        filled = json.loads(json.dumps(arguments).replace("{command}", trap.command))
        settings = {"name": "pixels", "function": function(module, name), "arguments": filled}
        return with_layer(good, trap, module="keras.layers", class_name="Lambda", config=settings)

    return made


def layer_of(module: str, name: str, registered: str | None = None, /, **settings: Any) -> Callable[[Path, Trap], Path]:
    def made(good: Path, trap: Trap) -> Path:
        filled = json.loads(json.dumps(settings).replace("{command}", trap.command))
        return with_layer(good, trap, module=module, class_name=name, registered_name=registered, config=filled)

    return made


def initializer(good: Path, trap: Trap) -> Path:
    content = members(good)
    config = json.loads(content["config.json"])
    [dense] = [of for of in config["config"]["layers"] if of["name"] == "logits"]
    dense["config"]["kernel_initializer"] = {
        "module": "os",
        "class_name": "system",
        "config": {"command": trap.command},
    }
    return packed(trap.folder / "model.keras", content | {"config.json": json.dumps(config).encode()})


def compiled(good: Path, trap: Trap) -> Path:
    content = members(good)
    config = json.loads(content["config.json"])
    config["compile_config"] = {
        "optimizer": {"module": "os", "class_name": "system", "config": {"command": trap.command}}
    }
    return packed(trap.folder / "model.keras", content | {"config.json": json.dumps(config).encode()})


def torch_module(good: Path, trap: Trap) -> Path:
    settings = {"name": "pixels", "module": b64encode(pickle.dumps(Command(trap.command))).decode()}
    return with_layer(good, trap, module="keras.layers", class_name="TorchModuleWrapper", config=settings)


def pickled(good: Path, trap: Trap) -> Path:
    path = trap.folder / "model.keras"
    path.write_bytes(pickle.dumps(Command(trap.command)))
    return path


def renamed_h5(good: Path, trap: Trap) -> Path:
    """The older format, which knows no safe mode of its own, under both names."""
    path, command = trap.folder / "model.h5", trap.command
    images = keras.Input((2,))
    ran = keras.layers.Lambda(lambda x: [x, __import__("os").system(command)][0])(images)
    keras.src.legacy.saving.legacy_h5_format.save_model_to_hdf5(keras.Model(images, ran), path)
    trap.sprung()
    return Path(shutil.copy(path, trap.folder / "model.keras"))


def own_h5(good: Path, trap: Trap) -> Path:
    renamed_h5(good, trap)
    return trap.folder / "model.h5"


def escaping(good: Path, trap: Trap) -> Path:
    own = {"../ran": b"", "assets/../../ran": b"", str(trap.marker): b"", "assets/x": b""}
    return packed(trap.folder / "inner" / "model.keras", members(good) | own)


def symlinked(good: Path, trap: Trap) -> Path:
    """A member that is a link out of the archive, and one that would be written through it."""
    path = packed(trap.folder / "model.keras", members(good))
    link = zipfile.ZipInfo("assets/out")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, str(trap.folder))
        archive.writestr("assets/out/ran", b"")
    return path


def bigger_than_told(good: Path, trap: Trap) -> Path:
    path = packed(trap.folder / "model.keras", members(good))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (10).to_bytes(4, "little")  # uncompressed size in the directory
    path.write_bytes(content)
    return path


def weights(good: Path, trap: Trap, change: Callable[[h5py.Group, str], None]) -> Path:
    content = members(good)
    inner = trap.folder / "weights.h5"
    inner.write_bytes(content["model.weights.h5"])
    with h5py.File(inner, "r+") as opened:
        found: list[str] = []
        opened.visititems(lambda name, of: found.append(name) if isinstance(of, h5py.Dataset) else None)
        change(opened, found[-1])
    return packed(trap.folder / "model.keras", content | {"model.weights.h5": inner.read_bytes()})


def linked_weights(good: Path, trap: Trap) -> Path:
    """Weights that stand in another file of the machine."""

    def change(opened: h5py.Group, name: str) -> None:
        shape = opened[name].shape
        with h5py.File(trap.folder / "secret.h5", "w") as secret:
            secret["x"] = np.full(shape, 42, "float32")
        del opened[name]
        opened[name] = h5py.ExternalLink(str(trap.folder / "secret.h5"), "x")

    return weights(good, trap, change)


def external_weights(good: Path, trap: Trap) -> Path:
    """Weights whose bytes are those of any file of the machine."""

    def change(opened: h5py.Group, name: str) -> None:
        shape = opened[name].shape
        (trap.folder / "secret").write_bytes(b"\x42" * 4 * int(np.prod(shape)))
        del opened[name]
        opened.create_dataset(name, shape, "float32", external=[(str(trap.folder / "secret"), 0, h5py.h5f.UNLIMITED)])

    return weights(good, trap, change)


def huge_weights(good: Path, trap: Trap) -> Path:
    def change(opened: h5py.Group, name: str) -> None:
        del opened[name]
        opened.create_dataset(name, (10**13,), "float32", chunks=(1024,), compression="gzip")

    return weights(good, trap, change)


def nested(good: Path, trap: Trap) -> Path:
    return packed(
        trap.folder / "model.keras", members(good) | {"config.json": b'{"a":' * 100_000 + b"1" + b"}" * 100_000}
    )


MODELS: dict[str, Callable[[Path, Trap], Path]] = {
    "a lambda": python_lambda,
    "a marshalled lambda": marshalled_lambda,
    "a lambda that is os.system": named_lambda("os", "system", command="{command}"),
    "a lambda that is eval": named_lambda("builtins", "eval"),
    "a lambda that is get_file": named_lambda("keras.utils", "get_file", origin="file:///etc/passwd", cache_dir="."),
    "a layer that is os.system": layer_of("os", "system", command="{command}"),
    "a layer that is a process": layer_of("subprocess", "Popen", args=["sh", "-c", "{command}"]),
    "a layer of a module beside it": layer_of("evil_module", "Evil"),
    "a registered layer": layer_of("evil_module", "Evil", "evil_module>Evil", name="pixels"),
    "a layer below keras that is none": layer_of("keras.src.utils.file_utils.os", "system", command="{command}"),
    "an initializer that is os.system": initializer,
    "a pickle in a Torch module": torch_module,
    "a vocabulary from a file": layer_of("keras.layers", "StringLookup", name="pixels", vocabulary="/etc/passwd"),
    "a pickle": pickled,
    "an older file renamed": renamed_h5,
    "an older file": own_h5,
    "a link that leads out": symlinked,
    "a size that is not so": bigger_than_told,
    "weights linked from another file": linked_weights,
    "weights that are another file": external_weights,
    "weights of 40 TB": huge_weights,
    "a configuration without end": nested,
}
HARMLESS = {  # loaded, because what is hostile in them is not looked at
    "a compiled optimizer": compiled,
    "members that escape": escaping,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_file_that_brings_code_or_other_files_is_refused(good, trap, name):
    (trap.folder / "inner").mkdir()
    path = MODELS[name](good, trap)
    with pytest.raises(PipelineError) as refused:
        model.load_model(path)
    message = str(refused.value)
    assert message.startswith(f"{path} is damaged or no .keras file of ours (") and message.isprintable()
    assert not trap.sprung()
    record("a hostile model file runs nothing", 1, 1)


@pytest.mark.filterwarnings("ignore:Skipping invalid path")  # Keras's, of the members that escape
@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_hostile_beside_the_network_is_left_alone(good, trap, name):
    (trap.folder / "inner").mkdir()
    path = HARMLESS[name](good, trap)
    before = sorted(trap.folder.rglob("*"))
    images, _ = generated_digits(3, 0)
    loaded, expected = model.load_model(path), model.load_model(good)
    np.testing.assert_array_equal(loaded(images[:, :4, :4]), expected(images[:, :4, :4]))
    assert not trap.sprung() and sorted(trap.folder.rglob("*")) == before
    record("a hostile model file runs nothing", 1, 1)


@pytest.mark.parametrize("name", ["a lambda", "a marshalled lambda", "an older file", "a pickle"])
def test_these_files_run_their_command_where_they_are_trusted(good, trap, name):
    path = MODELS[name](good, trap)
    if name == "a pickle":
        pickle.loads(path.read_bytes())
    else:
        try:
            keras.saving.load_model(path, compile=False, safe_mode=False)
        except Exception as error:  # after it ran, Keras cannot use what the command gave
            print(error)
    assert trap.sprung()


def test_a_model_that_was_exchanged_in_the_store_is_not_loaded(good, trap, monkeypatch):
    of_run = SimpleNamespace(
        info=SimpleNamespace(run_id="0" * 32),
        data=SimpleNamespace(tags={"weights_sha256": tracking.weights_sha256(good)}),
    )
    (trap.folder / "data").mkdir()
    monkeypatch.setattr(tracking, "artifact", lambda *_: trap.folder)
    shutil.copy(good, trap.folder / "data" / "model.keras")
    assert tracking.recorded_model(of_run, trap.folder) == trap.folder / "data" / "model.keras"
    for name in ("a lambda", "a pickle", "weights linked from another file"):
        shutil.move(MODELS[name](good, trap), trap.folder / "data" / "model.keras")
        with pytest.raises(PipelineError, match=r"holds another model than it trained|is damaged"):
            tracking.recorded_model(of_run, trap.folder)
        assert not trap.sprung()
        record("a model exchanged in the store is refused", 1, 1)


def objects(path: Path, names: tuple[str, ...], trap: Trap) -> Path:
    np.savez(path, **{name: np.array([Command(trap.command)], object) for name in names})
    return path


READERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Any], Any]]] = {
    "raw": (data.ARRAYS, lambda path, config: data.load_raw(path, config.data)),
    "processed": (data.Examples._fields, lambda path, config: data.load_examples(path, config.data)),
    "mnist.npz of a source": (
        tuple(data.KERAS_NAMES.values()),
        lambda path, config: data.read_source(path, config.data),
    ),
}


@pytest.mark.parametrize("kind", READERS)
def test_digits_with_pickles_among_them_are_refused(trap, compose, kind):
    names, reader = READERS[kind]
    path = objects(trap.folder / "digits.npz", names, trap)
    with np.load(path, allow_pickle=True) as trusted:
        trusted[names[0]]
    assert trap.sprung(), "it is hostile"
    whole = pickle.dumps(Command(trap.command))
    for content in (path.read_bytes(), whole):
        path.write_bytes(content)
        with pytest.raises(PipelineError, match="is damaged"):
            reader(path, compose())
        assert not trap.sprung()
        record("digits with a pickle among them run nothing", 1, 1)


def test_predictions_and_histories_that_are_no_numbers_are_refused(trap):
    path = trap.folder / "predictions.csv"
    contents = [
        pickle.dumps(Command(trap.command)),
        f"index,label,prediction\n=cmd|'/C {trap.command}'!A0,1,1\n".encode(),
        b"index,label,prediction\n1,2,nan\n",
        b"index,label,prediction\n1,2,inf\n",
        b"index,label,prediction\n1,2,3.5\n",
        b"index,label,prediction\n1,2\n",
        b"index,label,prediction\n1,2,3,4\n",
        b"index,label\n1,2\n",
        b"index,label,prediction\n1,2,__import__('os').system('x')\n",
        b"\xff\xfe\x00",
        b"index,label,prediction\n" + b"1" * 200_000 + b",2,3\n",
    ]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(PipelineError, match="is damaged"):
            comparison.read_predictions(path)
        assert not trap.sprung()
    record("a CSV file with anything but numbers is refused", len(contents), len(contents))


TAGS = [
    "x: !!python/object/apply:os.system ['{command}']",
    "x: !!python/object/new:subprocess.Popen [['sh', '-c', '{command}']]",
    "x: !!python/object/apply:builtins.eval [\"__import__('os').system('{command}')\"]",
    "x: !!python/module:evil_module",
    "x: !!python/name:evil_module.Evil",
]


@pytest.mark.parametrize("text", TAGS)
def test_yaml_that_makes_objects_is_refused(trap, text):
    path = trap.folder / "config.yaml"
    path.write_text(text.replace("{command}", trap.command))
    try:
        yaml.unsafe_load(path.read_text())
    finally:
        assert trap.sprung() or "Popen" in text, "it is hostile"
        sys.modules.pop("evil_module", None)
    with pytest.raises(PipelineError, match=r"the YAML tag .* give the value alone"):
        files.load_yaml(path)
    assert not trap.sprung()
    record("YAML that makes objects is refused", 1, 1)


def test_yaml_and_json_without_end_are_refused(trap):
    lines = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20))]
    (trap.folder / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(PipelineError, match="a YAML alias"):
        files.load_yaml(trap.folder / "config.yaml")
    (trap.folder / "config.yaml").write_text("a: " + "[" * 90_000)
    with pytest.raises(PipelineError, match="within one another"):
        files.load_yaml(trap.folder / "config.yaml")
    (trap.folder / "tags.json").write_text("[" * 100_000)
    with pytest.raises(PipelineError, match="is damaged"):
        files.load_json(trap.folder / "tags.json")


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The program and its configuration, to change."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("conf", "pipeline"):
        assert name in COPIED
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", folder)
    return folder


CALL = """
hydra:
  callbacks:
    x:
      _target_: pandas.read_pickle
      filepath_or_buffer: {pickle}
"""


@pytest.mark.parametrize("place", ["params.yaml", "conf/recipe/baseline.yaml", "conf/data/mnist.yaml"])
def test_configuration_that_makes_objects_or_calls_functions_is_refused_before_anything_runs(tree, trap, place):
    (trap.folder / "x.pickle").write_bytes(pickle.dumps(Command(trap.command)))
    before = (tree / place).read_text()
    for text in (TAGS[0].replace("{command}", trap.command), CALL.format(pickle=trap.folder / "x.pickle")):
        (tree / place).write_text(f"{before}\n{text}\n")
        done = run("python", "-m", "pipeline.train", "recipe=baseline", cwd=tree)
        (tree / place).write_text(before)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {place}:") and done.stderr.count("\n") == 1
        assert not trap.sprung()
        record("configuration that makes objects or calls functions is refused", 1, 1)


GOOD = {"recipe": "baseline", "model_sha256": "0" * 64, "git_commit": "none"}
NONSENSE: dict[str, Any] = {
    "a list": [],
    "nothing": {},
    "numbers": dict.fromkeys(GOOD, 1),
    "nested": {key: {"a": [1]} for key in GOOD},
    "a command for the commit": GOOD | {"git_commit": "x; touch ran"},
    "a terminal's escape for the commit": GOOD | {"git_commit": "\x1b]0;x\x07"},
    "HTML for the recipe": GOOD | {"recipe": "<script>alert(1)</script>"},
    "a path for the recipe": GOOD | {"recipe": "../../x"},
}


@pytest.fixture
def folder(trap, compose) -> Path:
    """The files of a run, as reproduce takes them from a folder."""
    made = trap.folder / "run"
    made.mkdir()
    files.save_yaml(made / "config.yaml", to_dict(compose("recipe=baseline")))
    files.save_json(made / "tags.json", GOOD)
    (made / "history.csv").write_text("train_accuracy,val_accuracy\n0.5,0.5\n")
    (made / "val_predictions.csv").write_text("index,prediction\n1,2\n")
    return made


def test_a_folder_of_a_run_is_taken(folder, compose):
    taken = reproduce._recorded(str(folder), "mnist", folder)
    assert taken.config == compose("recipe=baseline") and taken.tags == GOOD


@pytest.mark.parametrize("kind", NONSENSE)
def test_tags_that_no_run_of_ours_has_are_refused(folder, kind):
    (folder / "tags.json").write_text(json.dumps(NONSENSE[kind]))
    with pytest.raises(PipelineError) as refused:
        reproduce._recorded(str(folder), "mnist", folder)
    assert str(folder / "tags.json") in str(refused.value) and str(refused.value).isprintable()
    record("tags that no run of ours has are refused", 1, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"name": "${oc.env:A_SECRET}"},
        {"dataset": "${oc.env:A_SECRET}"},
        {"name": "../../x"},
        {"model": {"_target_": "os.system"}},
        {"hydra": {"callbacks": {}}},
        {"train": "!!python/object/apply:os.system"},
        {"name": ["a"]},
    ],
    ids=str,
)
def test_a_recorded_configuration_is_values_alone(folder, monkeypatch, change):
    monkeypatch.setenv("A_SECRET", "do not tell")
    recorded = files.load_yaml(folder / "config.yaml")
    files.save_yaml(folder / "config.yaml", recorded | change)
    with pytest.raises(PipelineError) as refused:
        reproduce._recorded(str(folder), "mnist", folder)
    assert "do not tell" not in str(refused.value) and "\n" not in str(refused.value)
    record("a recorded configuration fills in nothing and calls nothing", 1, 1)


def test_nothing_of_ours_loads_what_can_run_code():
    written = "\n".join(path.read_text() for path in sorted((ROOT / "pipeline").glob("*.py")))
    for word in (
        "pickle",
        "unsafe_load",
        "allow_pickle=True",
        "safe_mode=False",
        "instantiate",
        "shell=True",
        "eval(",
        "exec(",
    ):
        assert word not in written.replace("allow_pickle=False", ""), word
