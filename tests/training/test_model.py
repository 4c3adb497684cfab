"""The networks layer by layer, one forward pass by hand, and the file they are kept in."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import keras
import numpy as np
import pytest
from conftest import ROOT, generated_digits, run

from pipeline.base.errors import UserError
from pipeline.base.schema import Convolution, Model
from pipeline.model import build, inference
from pipeline.model import files as model_files
from pipeline.training.accelerate import accelerated

FIRST = Convolution(multiple=1, kernel_size=3, strides=2, padding="valid", pool=1)
SECOND = Convolution(multiple=3, kernel_size=3, strides=1, padding="same", pool=2)
SMALL = Model(
    filters=2, convolutions=[FIRST, SECOND], batch_norm=True, pooling="average", units=[5], pixel_scale=1 / 255
)
# In another process objects lie at other addresses, and the clock has gone on.
SAVE_ELSEWHERE = "import sys, pathlib, test_model; test_model.save(pathlib.Path(sys.argv[1]))"


def save(path: Path) -> None:
    """Build SMALL from seed 7 and save it."""
    inference.start(7)
    model_files.save_model(path, build.build_cnn(SMALL, (28, 28), 10))


@pytest.fixture(scope="module", autouse=True)
def started() -> None:
    """TensorFlow takes its threads before its first operation or never."""
    inference.start(0)


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory) -> Iterator[tuple[Path, Future]]:
    """A file, and the process that writes it meanwhile."""
    path = tmp_path_factory.mktemp("elsewhere") / "model.keras"
    words = [sys.executable, "-c", SAVE_ELSEWHERE, str(path)]
    with ThreadPoolExecutor() as pool:
        yield path, pool.submit(run, *words, cwd=Path(__file__).parent, PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("kept") / "model.keras"
    save(path)
    return path


def test_baseline_is_the_published_model_layer_by_layer(compose):
    cnn = build.build_cnn(compose("recipe=baseline").model, (28, 28), 10)
    counted = [(layer.count_params(), layer.output.shape[1:]) for layer in cnn.layers if layer.count_params()]
    assert counted == [(640, (26, 26, 64)), (2_768_960, (64,)), (4_160, (64,)), (650, (10,))]
    assert cnn.count_params() == 2_774_410 and cnn.input_shape == (None, 28, 28)
    images, _ = generated_digits(3, 0)
    pixels = cnn.get_layer("pixels")(cnn.get_layer("channel")(images))
    np.testing.assert_array_equal(pixels, images[..., None])  # raw, 0 to 255


def test_macs_by_hand(compose):
    baseline, accurate = (
        build.build_cnn(compose(f"recipe={recipe}").model, (28, 28), 10) for recipe in ("baseline", "accurate")
    )
    # 26 x 26 x 9 x 64 for the convolution, then 43,264 x 64 + 64 x 64 + 64 x 10.
    assert build.count_macs(baseline) == 389_376 + 2_768_896 + 4_096 + 640
    # Of 24 x 24: 20² x 25 x 16, pooled to 10; 8² x 9 x 16 x 32; 6² x 9 x 32 x 64, pooled to 3; 9 x 64 x 256; 256 x 10.
    assert build.count_macs(accurate) == 160_000 + 294_912 + 663_552 + 147_456 + 2_560


def test_accurate_has_the_parameters_of_its_formula(compose):
    cnn = build.build_cnn(compose("recipe=accurate").model, (28, 28), 10)
    filters = [16, 32, 64, 256]
    kernels = 25 * 16 + 9 * (16 * 32 + 32 * 64 + 64 * 256)
    assert cnn.count_params() == kernels + 4 * sum(filters) + (256 + 1) * 10 == 174_938
    shapes = [layer.output.shape[1:] for layer in cnn.layers if layer.name.startswith(("convolution", "max"))]
    assert shapes == [(20, 20, 16), (10, 10, 16), (8, 8, 32), (6, 6, 64), (3, 3, 64), (1, 1, 256)]
    images, _ = generated_digits(3, 0)
    pixels = cnn.get_layer("pixels")(cnn.get_layer("crop")(cnn.get_layer("channel")(images)))
    np.testing.assert_allclose(pixels, images[:, 2:-2, 2:-2, None] / 255, rtol=1e-6)


# Halved: [[1, 0, 2], [0, 3, 0], [4, 0, 1]]. Under the kernel [[1, 2], [0, -1]] less 1: [[-3, 3], [5, 1]], then ReLU.
IMAGE = np.array([[[2, 0, 4], [0, 6, 0], [8, 0, 2]]], np.uint8)
KERNEL = np.array([[1, 2], [0, -1]], np.float32).reshape(2, 2, 1, 1)


def test_a_forward_pass_by_hand_flattened_through_a_hidden_layer():
    convolution = Convolution(multiple=1, kernel_size=2, strides=1, padding="valid", pool=1)
    settings = Model(
        filters=1, convolutions=[convolution], batch_norm=False, pooling="flatten", units=[2], pixel_scale=0.5
    )
    cnn = build.build_cnn(settings, (3, 3), 2)
    hidden, logits = [[7, 7], [1, 0], [0, -1], [2, 1]], [[2, -1], [9, 9]]
    weights = [KERNEL, [-1], hidden, [0.5, 1], logits, [-20, 0]]
    cnn.set_weights([np.array(weight, np.float32) for weight in weights])
    # [0, 3, 5, 1] -> [3 + 2 + 0.5, -5 + 1 + 1] -> ReLU [5.5, 0]; the logits are no probabilities.
    np.testing.assert_allclose(cnn(IMAGE), [[11 - 20, -5.5]], rtol=1e-6)


def test_a_forward_pass_by_hand_pooled_normalised_and_averaged():
    convolution = Convolution(multiple=1, kernel_size=2, strides=1, padding="valid", pool=2)
    settings = Model(
        filters=1, convolutions=[convolution], batch_norm=True, pooling="average", units=[], pixel_scale=0.5
    )
    cnn = build.build_cnn(settings, (3, 3), 2)
    # Convolved [[-2, 4], [6, 2]], pooled 6; batch norm with mean 1, standard deviation 2 and scale 2 gives 5.
    weights = [KERNEL, [2], [0], [1], [4 - 1e-3], [[2, -4]], [1, 0]]
    cnn.set_weights([np.array(weight, np.float32) for weight in weights])
    np.testing.assert_allclose(cnn(IMAGE, training=False), [[2 * 5 + 1, -4 * 5]], rtol=1e-6)


def test_fused_batch_norm_moves_the_variables_of_the_model_as_kerass_does():
    ours, reference = build.build_cnn(SMALL, (28, 28), 10), build.build_cnn(SMALL, (28, 28), 10)
    reference.set_weights(ours.get_weights())
    before = [variable.numpy() for variable in ours.non_trainable_variables]
    fused = accelerated(ours, 1)
    assert [id(variable) for variable in fused.variables] == [id(variable) for variable in ours.variables]
    images, _ = generated_digits(64, 0)
    for _ in range(3):
        np.testing.assert_allclose(fused(images, training=True), reference(images, training=True), rtol=1e-4, atol=1e-4)
    for one, other in zip(ours.get_weights(), reference.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    moved = zip(before, ours.non_trainable_variables, strict=True)
    assert all(np.abs(start - now).max() > 1e-3 for start, now in moved)


def test_the_file_is_what_it_was_built_from(kept, tmp_path):
    inference.start(7)
    cnn = build.build_cnn(SMALL, (28, 28), 10)
    images, _ = generated_digits(5, 1)
    loaded = model_files.load_model(kept)
    np.testing.assert_array_equal(loaded(images), cnn(images))
    assert loaded.count_params() == cnn.count_params()
    model_files.save_model(tmp_path / "again.keras", loaded)
    assert model_files.load_model(tmp_path / "again.keras")(images).numpy().tolist() == cnn(images).numpy().tolist()


def test_other_weights_are_other_bytes(kept, tmp_path):
    other = model_files.load_model(kept)
    other.set_weights([weight + 1 for weight in other.get_weights()])
    model_files.save_model(tmp_path / "other.keras", other)
    assert (tmp_path / "other.keras").read_bytes() != kept.read_bytes()


def without_weights(content: bytes, path: Path) -> bytes:
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config)
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, _: content[: len(content) // 2],
        lambda content, _: content[:-10],
        lambda content, _: content[: len(content) // 2] + b"\0" * 100 + content[len(content) // 2 + 100 :],
        lambda *_: b"",
        lambda *_: b"no zip at all",
        without_weights,
    ],
    ids=["half", "end missing", "middle overwritten", "empty", "text", "no weights"],
)
def test_a_damaged_file_is_refused_by_name(kept, tmp_path, damage):
    path = tmp_path / "model.keras"
    path.write_bytes(damage(kept.read_bytes(), tmp_path / "scratch.zip"))
    with pytest.raises(UserError) as refused:
        model_files.load_model(path)
    assert str(refused.value).startswith(f"{path} is damaged") and "dvc repro" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ("99.10.0", f"was written by Keras 99.10.0, which Keras {keras.__version__} cannot read: install that version"),
        ("3.0.0", "is damaged or no .keras file of ours"),
        (keras.__version__, "is damaged or no .keras file of ours"),
    ],
)
def test_a_file_of_a_newer_keras_is_not_called_damaged(kept, tmp_path, version, said):
    path = tmp_path / "model.keras"
    with zipfile.ZipFile(kept) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["metadata.json"] = json.dumps({"keras_version": version}).encode()
    members["config.json"] = members["config.json"].replace(b'"dtype":', b'"unheard_of": 1, "dtype":')
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError) as refused:
        model_files.load_model(path)
    assert str(refused.value).startswith(f"{path} {said}") and "\n" not in str(refused.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError) as refused:
        model_files.load_model(tmp_path / "model.keras")
    assert str(refused.value).startswith(f"{tmp_path / 'model.keras'} is missing: run `dvc repro`")


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(kept, elsewhere):
    path, writer = elsewhere
    assert writer.result().returncode == 0, writer.result().stderr
    assert path.read_bytes() == kept.read_bytes()
