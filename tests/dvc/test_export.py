"""`pipeline.export` in a clone that was run through, and its files read where nothing of ours is."""

from __future__ import annotations

import importlib.util
import json
import re
import signal
import sys

import pytest
from conftest import pipeline, run, runs

from pipeline.apps.export_formats import FORMATS

RECIPES = ("baseline", "accurate")
INSTALLED = {name for name, of in FORMATS.items() if all(map(importlib.util.find_spec, of.packages))}
ALONE = importlib.util.find_spec("ai_edge_litert") is not None  # otherwise TensorFlow brings the same interpreter
WRITES = """
import sys, numpy as np
from pathlib import Path
from pipeline.apps import export_formats
from pipeline.model.files import load_model
from pipeline.model.inference import predict, start
start(0)
images = np.load("data/processed/test.npz")["images"]
for recipe in ("baseline", "accurate"):
    folder = Path(sys.argv[1]) / recipe
    folder.mkdir()
    model = load_model(Path(f"models/{recipe}/model.keras"))
    for name in sys.argv[2:]:
        export_formats.write(model, name, folder / export_formats.FORMATS[name].name)
    np.save(folder / "keras.npy", predict(model, images))
"""
READS = {
    "saved_model": """
import tensorflow as tf
def reader(path):
    loaded = tf.saved_model.load(path)
    return lambda images: loaded.serve(images).numpy()
""",
    "litert": f"""
{"from ai_edge_litert import interpreter as lite" if ALONE else "from tensorflow import lite"}
def reader(path):
    interpreter = lite.Interpreter(model_path=path)
    [of], [to] = interpreter.get_input_details(), interpreter.get_output_details()
    def infer(images):
        interpreter.resize_tensor_input(of["index"], images.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(of["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(to["index"])
    return infer
""",
    "onnx": """
import onnxruntime
def reader(path):
    session = onnxruntime.InferenceSession(path)
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]
""",
}
COMPARES = """
import json, sys, numpy as np
images = np.load(sys.argv[1])["images"]
found = {}
for path in sys.argv[3:]:
    infer, expected = reader(path), np.load(path.rpartition("/")[0] + "/keras.npy")
    logits, first = infer(images), infer(images[:1])
    differ = int((logits.argmax(1) != expected.argmax(1)).sum())
    found[path] = [len(logits), differ, float(abs(logits - expected).max()), float(abs(first - expected[:1]).max())]
loaded = [name for name in sys.argv[2].split() if name in sys.modules]
print(json.dumps([found, loaded]))
"""


@pytest.fixture(scope="module")
def exports(clone, tmp_path_factory):
    """A folder a recipe, with every format that is installed and Keras's logits."""
    folder = tmp_path_factory.mktemp("exports")
    done = run("python", "-c", WRITES, str(folder), *sorted(INSTALLED), cwd=clone)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name != "onnx")) for name in FORMATS])
def test_a_process_with_the_runtime_alone_predicts_as_keras_does(clone, exports, name):
    if name not in INSTALLED:
        pytest.skip("`make runtimes` was not run")
    paths = [exports / recipe / FORMATS[name].name for recipe in RECIPES]
    assert all(max(file.stat().st_size for file in [path, *path.rglob("*")]) > 10_000 for path in paths)
    without = "pipeline" if name == "saved_model" or (name == "litert" and not ALONE) else "pipeline tensorflow keras"
    words = [str(clone / "data/processed/test.npz"), without, *map(str, paths)]
    done = run(sys.executable, "-c", READS[name] + COMPARES, *words, cwd=exports)
    assert done.returncode == 0, done.stderr
    found, loaded = json.loads(done.stdout.splitlines()[-1])
    assert loaded == [] and len(found) == len(RECIPES)
    for digits, differ, largest, of_one in found.values():
        assert (digits, differ) == (100, 0) and largest < 1e-3 and of_one < 1e-3


def patched(clone, patch: str, *words: str):
    """The command, after a change to what it works with."""
    code = f"import os, sys\nimport numpy as np\n{patch}\nfrom pipeline.base.command import main\n"
    return run("python", "-c", f"{code}from pipeline.export import export\nmain(export)", *words, cwd=clone)


@pytest.mark.slow
def test_a_killed_export_leaves_nothing_under_the_final_name_and_the_next_one_writes_it(clone):
    words = ["recipe=baseline", "format=litert", "hydra.run.dir=outputs/killed"]
    kill = "from pipeline.apps import export_formats\nexport_formats.load = lambda *_: os.kill(os.getpid(), 9)"
    assert patched(clone, kill, *words).returncode == -signal.SIGKILL
    [left] = (clone / "outputs/killed").iterdir()
    assert left.name.startswith(".") and list(left.iterdir())
    done = pipeline(clone, "export", *words)
    assert (done.returncode, done.stderr) == (0, "")
    file, size = clone / "outputs/killed/model.tflite", (clone / "outputs/killed/model.tflite").stat().st_size
    assert size > 10_000
    said = rf"wrote {file}, {size / 1e6:.2f} MB, of recipe baseline: 0 of 50 predictions differ from Keras's, "
    assert re.fullmatch(re.escape(said) + r"logits by at most \d\.\de-\d\d\n", done.stdout)


def test_an_export_that_predicts_otherwise_is_not_kept(clone):
    other = (
        "from pipeline.apps import export_formats\n"
        "export_formats.load = lambda *_: lambda x: np.eye(10)[np.arange(len(x)) % 3]"
    )
    done = patched(clone, other, "recipe=baseline", "hydra.run.dir=outputs/other")
    assert done.returncode == 1 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert re.fullmatch(
        r"error: recipe baseline as saved_model: [1-9]\d of 50 predictions differ from Keras's, .*: "
        "saved_model is not kept",
        line,
    )
    assert not (clone / "outputs/other").exists()


def test_a_run_of_mlflow_is_exported_as_its_recipe_is(clone):
    found = runs(clone, "tags.dvc_stage = 'train@accurate' and attributes.status = 'FINISHED'")[0].info.run_id
    done = pipeline(clone, "export", f"run={found}", "format=saved_model", "hydra.run.dir=outputs/run")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"of MLflow run {found}: 0 of 50 predictions differ" in done.stdout
    assert [path.name for path in (clone / "outputs/run").iterdir()] == ["saved_model"]


BLOCKED = "sys.modules['tensorflow'] = sys.modules['keras'] = None"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["format=h5"], "format=h5: input should be 'saved_model', 'litert' or 'onnx'"),
        (["recipe=fast"], "models/fast/model.keras is missing"),
        (["run=" + 32 * "0"], "is no run of"),
        (["alias=champions"], "the registry has no champions of mnist"),
        (["run=" + 32 * "0", "alias=champion"], "give one of them"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_tensorflow_is_loaded(clone, words, said):
    done = patched(clone, BLOCKED, *words)
    assert done.returncode == 1 and done.stdout == ""
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_absent_validation_digits_and_packages_are_refused_too(clone):
    val = clone / "data/processed/val.npz"
    val.rename(val.with_suffix(".away"))
    try:
        done = patched(clone, BLOCKED, "recipe=baseline")
    finally:
        val.with_suffix(".away").rename(val)
    assert done.returncode == 1 and "val.npz is missing: run `dvc repro`" in done.stderr
    none = f"{BLOCKED}\nimport importlib.util\nimportlib.util.find_spec = lambda name: None"
    done = patched(clone, none, "recipe=baseline", "format=onnx")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr == "error: format=onnx needs onnx, onnxruntime, tf2onnx: `make runtimes` installs what is missing\n"
    )
