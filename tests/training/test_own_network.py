"""Networks of the user's own: built from a file, refused in one line, resumed to the same bits, brought back."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, generated_digits
from keras import layers

from pipeline.base import own
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.schema import Augment, Optimizer, OwnModel
from pipeline.model import files, inference
from pipeline.model.build import build_model, count_macs
from pipeline.model.own_network import build_own
from pipeline.training import checkpoint, loop

SHAPE, CLASSES = (10, 10), 10
NETS = """
import itertools
import keras
import numpy as np
from keras import layers

COUNT = itertools.count()
GENERATOR = np.random.default_rng(0)


def net(inner=lambda x: x, shape=(10, 10), dtype="uint8", classes=10, end=lambda x: x):
    images = layers.Input(shape, dtype=dtype)
    x = layers.Rescaling(1 / 255)(layers.Flatten()(images))
    return keras.Model(images, end(layers.Dense(classes)(inner(x))))


def dense(**options):
    return layers.Dense(4, **options)


class Unregistered(layers.Layer):
    def call(self, x):
        return 2 * x


@keras.saving.register_keras_serializable()
class Forgets(layers.Layer):
    def __init__(self, by=1.0, **options):
        super().__init__(**options)
        self.by = by

    def call(self, x):
        return x * self.by

    def get_config(self):
        return super().get_config()


@keras.saving.register_keras_serializable()
class Lacks(Forgets):
    def __init__(self, by, **options):
        super().__init__(by, **options)


@keras.saving.register_keras_serializable()
class Scaled(Forgets):
    def get_config(self):
        return {**super().get_config(), "by": self.by}


class Subclassed(keras.Model):
    def call(self, x):
        return x


def twice(x):
    return 2 * x


def drops(image_shape, classes, width=4, rate=0.5, trace=[]):
    trace.append(1)
    return net(lambda x: layers.Dropout(rate)(Scaled(3.0)(dense()(x))))


def raises(image_shape, classes):
    raise KeyError(classes)


NETWORKS = {
    "nothing": lambda: None,
    "text": lambda: "a model",
    "other_size": lambda: net(shape=(28, 28)),
    "float_images": lambda: net(dtype="float32"),
    "fixed_batch": lambda: keras.Model(i := keras.Input(batch_shape=(5, 10, 10), dtype="uint8"), layers.Flatten()(i)),
    "four_classes": lambda: net(classes=4),
    "half": lambda: net(end=layers.Activation("linear", dtype="float16")),
    "two_outputs": lambda: keras.Model((model := net()).input, [model.output, model.output]),
    "named_input": lambda: keras.Model({(model := net()).input.name: model.input}, model.output),
    "nan": lambda: net(end=lambda x: keras.ops.log(-1 - x * x)),
    "softmax": lambda: net(end=layers.Softmax()),
    "counts": lambda: net(layers.Dense(4 + next(COUNT))),
    "draws": lambda: net(dense(kernel_initializer=keras.initializers.Constant(GENERATOR.random()))),
    "alternates": lambda: net(dense(activation=["relu", "tanh"][next(COUNT) % 2])),
    "lambda_": lambda: net(layers.Lambda(lambda x: 2 * x, name="twice")),
    "lambda_inside": lambda: net(keras.Sequential([layers.Lambda(lambda x: 2 * x, name="twice")])),
    "unregistered": lambda: net(Unregistered()),
    "forgets": lambda: net(Forgets(3.0)),
    "lacks": lambda: net(Lacks(3.0)),
    "own_activation": lambda: net(dense(activation=twice)),
    "subclassed": lambda: Subclassed(),
    "no_input": lambda: keras.Sequential([layers.Flatten(), layers.Dense(10)]),
}
"""
REFUSED = {
    "nothing": "returns a NoneType, expected a keras.Model",
    "text": "returns a str, expected a keras.Model",
    "other_size": "takes uint8 [None, 28, 28], expected images, uint8 [None, 10, 10]",
    "float_images": "takes float32 [None, 10, 10], expected images, uint8",
    "fixed_batch": "takes uint8 [5, 10, 10], expected images, uint8 [None, 10, 10]",
    "four_classes": "returns float32 [None, 4], expected logits, float32 [None, 10]",
    "half": "returns float16 [None, 10], expected logits, float32",
    "two_outputs": "returns a list, expected logits",
    "named_input": "takes a dict, expected images",
    "nan": "returns nan for random images",
    "softmax": "returns probabilities, expected logits: leave out its softmax",
    "counts": "two calls with one seed give different networks, as dense/kernel",
    "draws": "two calls with one seed give different networks, as dense/kernel",
    "alternates": "two calls with one seed give different networks:",
    "lambda_": "has the Lambda layer 'twice', whose code no model file may bring",
    "lambda_inside": "has the Lambda layer 'twice'",
    "unregistered": "has the layer 'unregistered', whose class Unregistered is not registered",
    "forgets": "loaded from its file, returns other logits: get_config",
    "lacks": "cannot be loaded from its file (",
    "own_activation": "cannot be loaded from its file (Could not locate function 'twice'.",
    "subclassed": "returns a model without symbolic inputs",
    "no_input": "returns a model without symbolic inputs",
    "raises": " of own/nets.py: KeyError: 10",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    inference.start(0)
    folder = tmp_path_factory.mktemp("user")
    (folder / "own").mkdir()
    names = [name for name in REFUSED if name != "raises"]
    functions = "".join(f"\n\ndef {name}(image_shape, classes):\n    return NETWORKS[{name!r}]()\n" for name in names)
    (folder / "own/nets.py").write_text(NETS + functions)
    return folder


def section(root: Path, name: str, **args: Any) -> OwnModel:
    build = f"own.nets:{name}"
    return OwnModel(build=build, args=args, source_sha256=own.source_sha256(root, [build]))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_saved_or_built_again_is_one_line(root, name):
    with pytest.raises(UserError) as refused:
        build_own(root, section(root, name), SHAPE, CLASSES, 0)
    said = str(refused.value)
    assert f"own.nets:{name}" in said and REFUSED[name] in said and "\n" not in said


def test_a_sequential_model_with_shared_objects_will_do(root):
    (root / "own/plain.py").write_text(
        "import keras\nfrom keras import layers\n\ndef plain(image_shape, classes):\n"
        "    shared = {'kernel_regularizer': keras.regularizers.L2(0.1), 'dtype': 'mixed_bfloat16'}\n"
        "    hidden = [layers.Dense(1, **shared), layers.Dense(1, **shared)]\n"
        "    first = [keras.Input(image_shape, dtype='uint8'), layers.Flatten()]\n"
        "    return keras.Sequential([*first, *hidden, layers.Dense(classes)])\n"
    )
    model = OwnModel(build="own.plain:plain", source_sha256=own.source_sha256(root, ["own.plain:plain"]))
    assert build_own(root, model, SHAPE, CLASSES, 0).count_params() == 101 + 2 + 2 * CLASSES


@pytest.mark.slow
def test_the_seed_decides_weights_and_arguments_stay_as_they_are(root):
    trace: list[int] = []
    model = section(root, "drops", trace=trace)
    first, again, other = (build_own(root, model, SHAPE, CLASSES, seed) for seed in (0, 0, 1))
    assert [one.tolist() for one in first.get_weights()] == [one.tolist() for one in again.get_weights()]
    assert first.get_weights()[0].tolist() != other.get_weights()[0].tolist() and trace == []
    assert [layer.name for layer in first.layers][2:] == ["rescaling", "dense_1", "scaled", "dropout", "dense"]


def test_code_other_than_was_hashed_is_not_run(root):
    with pytest.raises(UserError, match=r"^own\.nets:drops has other code than the model was made with"):
        build_own(root, section(root, "drops").model_copy(update={"source_sha256": "0" * 64}), SHAPE, CLASSES, 0)


@pytest.mark.slow
def test_a_training_resumed_gives_the_same_bits(root, tmp_path):
    """With dropout, whose seed is among the variables, and from a network that was built with another seed."""
    images, labels = generated_digits(50, 0)
    batches = tf.constant(images[:, ::3, ::3]), tf.constant(labels, tf.int32)
    adam = Optimizer(
        batch_size=10, learning_rate=0.01, schedule="constant", warmup=0.0, weight_decay=0.0, label_smoothing=0.0
    )
    plain = Augment(rotation=0.0, scale=0.0, shear=0.0, shift=0.0)
    schedule = loop.Schedule(np.full(5, 0.01, np.float32), np.ones(5, np.float32))

    def trainer(seed: int, state: Any = None) -> loop.Trainer:
        inference.start(seed)
        return loop.Trainer(build_own(root, section(root, "drops"), SHAPE, CLASSES, seed), adam, plain, 0, state)

    whole = trainer(0)
    losses = [whole.run_epoch(*batches, schedule, 0, lambda *_: None)[0]]
    file = checkpoint.save(tmp_path, {}, checkpoint.Checkpoint([{"epoch": 1}], whole.state()))
    losses.append(whole.run_epoch(*batches, schedule, 1, lambda *_: None)[0])
    resumed = trainer(1, checkpoint.load(file, {}).state)
    assert resumed.run_epoch(*batches, schedule, 1, lambda *_: None)[0] == losses[1] != losses[0]
    for one, other in zip(whole.model.variables, resumed.model.variables, strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)


def test_a_file_whose_class_is_unknown_or_a_lambda_says_so(root, tmp_path):
    model = build_own(root, section(root, "drops"), SHAPE, CLASSES, 0)
    files.save_model(tmp_path / "own.keras", model)
    text = json.loads(zipfile.ZipFile(tmp_path / "own.keras").read("config.json"))
    assert "Custom>Scaled" in json.dumps(text)
    kept = keras.saving.get_custom_objects().pop("Custom>Scaled")
    with pytest.raises(UserError, match=r"own\.keras needs 'Scaled' of 'own\.nets', and no"):
        files.load_model(tmp_path / "own.keras")
    keras.saving.get_custom_objects()["Custom>Scaled"] = kept
    images = np.zeros((2, *SHAPE), np.uint8)
    assert files.load_model(tmp_path / "own.keras")(images).numpy().tolist() == model(images).numpy().tolist()
    with_lambda = keras.Sequential([layers.Input(SHAPE), layers.Lambda(lambda x: x, name="same")])
    with_lambda.save(tmp_path / "lambda.keras")
    with pytest.raises(UserError, match=r"lambda\.keras has the Lambda layer 'same', which brings code of its own"):
        files.load_model(tmp_path / "lambda.keras")


@keras.saving.register_keras_serializable()
class Wrapped(layers.Layer):
    def __init__(self, **options):
        super().__init__(**options)
        self.inner = layers.Dense(3)

    def call(self, x):
        return self.inner(x)


def test_multiply_accumulates_are_those_of_all_convolutions_and_dense_layers():
    images = layers.Input((6, 6, 4))
    x = layers.SeparableConv2D(5, 3)(layers.DepthwiseConv2D(3, padding="same")(images))  # 6 x 6 x 4, then 4 x 4 x 5
    x = keras.Sequential([layers.Flatten(), layers.Dense(7)])(x)
    expected = 36 * 9 * 4 + 16 * (9 * 4 + 4 * 5) + 80 * 7
    assert count_macs(keras.Model(images, x)) == expected
    assert count_macs(keras.Model(images, Wrapped()(x))) is None


@pytest.mark.slow
def test_the_example_takes_colour_too_and_shrinks_by_stages(root, compose):
    config = compose("recipe=residual", "model.args.width=4", "model.args.stages=3")
    colour = config.model_copy(update={"data": config.data.model_copy(update={"channels": 3})})
    for given, shape in ((config, (None, 28, 28)), (colour, (None, 28, 28, 3))):
        model = build_model(Project(ROOT, ROOT), given)
        assert (model.input_shape, model.output_shape) == (shape, (None, 10))
        added = [layer.output.shape[1:] for layer in model.layers if isinstance(layer, layers.Add)]
        assert added == [(28, 28, 4), (14, 14, 8), (7, 7, 16)]
