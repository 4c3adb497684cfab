"""Pictures in colour, the whole way: adopted, trained, evaluated, exported, and asked about."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import dvc, git, pipeline, ran, small_repository

from benchmarks import shapes

NETWORK = """
import keras

def mobilenet(image_shape, classes, alpha=0.25):
    images = keras.Input(image_shape, dtype="uint8")
    pixels = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    body = keras.applications.MobileNet(image_shape, alpha, include_top=False, weights=None, pooling="avg")
    return keras.Model(images, keras.layers.Dense(classes)(body(pixels)))
"""
RECIPE = """# @package _global_
defaults: [/recipe/baseline, _self_]
model: {build: "own.networks:mobilenet"}
optimizer: {filter_groups: 1}
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory, digits) -> Path:
    """A repository with 250 textured shapes of each of ten classes, adopted."""
    folder = tmp_path_factory.mktemp("colour")
    small_repository(folder, digits)
    shapes.draw(folder / "shapes", 250, 32)
    done = pipeline(folder, "adopt", "path=shapes", "data.channels=3", "data.image_shape=[32,32]")
    assert done.returncode == 0 and "10 classes, 2,000 training and 500 test images" in done.stdout, done.stderr
    text = (folder / "params.yaml").read_text()
    text = re.sub(r"dataset: \w+", "dataset: shapes", text).replace("epochs: 2", "epochs: 6")
    (folder / "params.yaml").write_text(text.replace("[baseline, accurate]", "[accurate]"))
    (folder / ".gitignore").write_text((folder / ".gitignore").read_text() + "/shapes/\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "start")
    return folder


@pytest.mark.slow
def test_pictures_in_colour_go_the_whole_way(repository):
    done = dvc(repository, "", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert ran(dvc(repository, "", "repro")) == []
    results = repository / "results" / "recipes" / "accurate"
    figures = json.loads((results / "metrics.json").read_text())
    assert figures["test_examples"] == 500 and figures["test_accuracy"] > 0.2  # by chance 0.1
    assert "It takes uint8 [N, 32, 32, 3], in colour" in (results / "model_card.md").read_text()
    plots = sorted(path.name for path in (results / "plots").iterdir())
    assert plots == [f"{name}.png" for name in ("confusion_matrix", "gallery", "learning_curves", "reliability")] + [
        "worst_mistakes.png"
    ]
    arrays = np.load(repository / "data" / "processed" / "test.npz")
    assert arrays["images"].shape == (500, 32, 32, 3)

    # What `predict` says of files is what `evaluate` said of the same pictures as test examples, without the shifts.
    with (results / "predictions.csv").open() as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file)}
    from PIL import Image

    asked = repository / "asked"
    asked.mkdir()
    for index in range(20):
        Image.fromarray(arrays["images"][index]).save(asked / f"{index:02}.png")
    done = pipeline(repository, "predict", "data=shapes", "input=asked", "show=true")
    assert done.returncode == 0, done.stderr
    said = re.findall(r"^\S*asked/(\d+)\.png: (\w+)\??$", done.stdout, re.MULTILINE)
    assert len(said) == 20
    names = sorted(shapes.SHAPES)
    agree = sum(names[int(rows[int(arrays["source_index"][int(n)])]["prediction"])] == name for n, name in said)
    assert agree >= 12  # the table has five looks at each, this is one
    assert len(list(repository.glob("outputs/*/*.png"))) == 20
    for kind in ("saved_model", "litert"):
        done = pipeline(repository, "export", "data=shapes", f"format={kind}")
        assert done.returncode == 0 and "0 of 200 predictions differ" in done.stdout, done.stdout + done.stderr
    done = pipeline(repository, "robustness", "data=shapes", "recipe=accurate")
    assert done.returncode == 1 and "those of shapes are in colour" in done.stderr


@pytest.mark.slow
def test_a_network_of_kerass_own_applications_goes_the_whole_way(repository):
    (repository / "own/networks.py").write_text(NETWORK)
    (repository / "conf" / "recipe" / "mobilenet.yaml").write_text(RECIPE)
    text = (repository / "params.yaml").read_text()
    (repository / "params.yaml").write_text(text.replace("[accurate]", "[mobilenet]").replace("epochs: 6", "epochs: 1"))
    done = dvc(repository, "", "repro", "evaluate@mobilenet")
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((repository / "results/recipes/mobilenet/metrics.json").read_text())
    assert figures["epochs"] == 1 and 0 <= figures["test_accuracy"] <= 1
    assert figures["num_params"] == 221_114  # 218,544 of MobileNet's own at alpha .25 without top, 257 a class
    assert np.isfinite(figures["test_loss"])
