"""The whole way as a user goes it: a clone, real `dvc repro`, a real store, on a few hundred generated digits."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, generated_digits, run, write_idx

pytestmark = pytest.mark.pipeline

SMALL = {"conf/recipe/baseline.yaml": ("filters: 64 ", "filters: 2 "), "params.yaml": ("epochs: 15", "epochs: 2")}
COPIED = [
    "conf",
    "pipeline",
    "reference",
    "mlruns",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "dvc.yaml",
    "params.yaml",
]


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    for split, size, seed in (("train", 400, 0), ("t10k", 100, 1)):
        images, labels = generated_digits(size, seed)
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return folder


@pytest.fixture(scope="module")
def clone(tmp_path_factory, digits) -> Path:
    """A git clone of the working tree for the generated digits, committed and run through once."""
    folder = tmp_path_factory.mktemp("clone")
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=lambda _, names: {n for n in names if n == "__pycache__" or len(n) > 30},
            )
        else:
            shutil.copy(ROOT / name, folder / name)
    for name, (old, new) in SMALL.items():
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    settings = (folder / "conf/data/mnist.yaml").read_text().replace("val_size: 5000", "val_size: 50")
    for name, header in (("images-idx3", 16), ("labels-idx1", 8)):
        for split, key in (("train", "train"), ("t10k", "test")):
            content = (digits / f"{split}-{name}-ubyte").read_bytes()[header:]
            key = f"{key}_{name.split('-')[0]}"
            settings = re.sub(rf"{key}: \w{{64}}", f"{key}: {hashlib.sha256(content).hexdigest()}", settings)
    (folder / "conf/data/mnist.yaml").write_text(settings)
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        git(folder, *words)
    done = dvc(folder, digits, "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "results")
    return folder


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def dvc(folder: Path, source: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return run(sys.executable, "-m", "dvc", *words, cwd=folder, PATH=path, MNIST_SOURCE=str(source), **variables)


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r"^Running stage '(.+)':", done.stdout, re.MULTILINE)


def load_metrics(clone: Path, recipe: str) -> dict:
    return json.loads((clone / f"results/recipes/{recipe}/metrics.json").read_text())


PLAIN_KERAS = """
import sys, keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
print(*model(np.load(sys.argv[2])["images"]).numpy().argmax(1))
"""


def keras_predictions(model_file: Path, digits_file: Path) -> list[int]:
    """As README says to use the model, elsewhere."""
    done = run(sys.executable, "-c", PLAIN_KERAS, str(model_file), str(digits_file))
    return [int(word) for word in done.stdout.split()]


def store(place: Path | str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{place / 'mlflow.db'}" if isinstance(place, Path) else place)


def test_every_output_is_there_and_agrees_with_the_others(clone):
    for recipe in ("baseline", "accurate"):
        figures = load_metrics(clone, recipe)
        assert {"train_accuracy", "val_accuracy", "test_accuracy", "test_errors", "num_params", "epochs"} <= set(
            figures
        )
        rows = np.genfromtxt(clone / f"results/recipes/{recipe}/predictions.csv", delimiter=",", names=True)
        assert len(rows) == 100 and list(rows["index"]) == list(range(100))
        assert figures["test_errors"] == np.sum(rows["label"] != rows["prediction"])
        assert figures["test_accuracy"] == pytest.approx(1 - figures["test_errors"] / 100)
        plain = keras_predictions(clone / f"models/{recipe}/model.keras", clone / "data/processed/test.npz")
        assert figures["test_errors_one_view"] == np.sum(rows["label"] != plain)
        assert figures["test_views"] == {"baseline": 1, "accurate": 5}[recipe]
        history = np.genfromtxt(clone / f"results/recipes/{recipe}/history.csv", delimiter=",", names=True)
        assert figures["epochs"] == len(history) == 2 and figures["val_accuracy"] == history["val_accuracy"][-1]
        val = np.genfromtxt(clone / f"results/recipes/{recipe}/val_predictions.csv", delimiter=",", names=True)
        assert np.mean(val["label"] == val["prediction"]) == pytest.approx(figures["val_accuracy"])
        assert len(list((clone / f"results/recipes/{recipe}/plots").glob("*.png"))) == 5
    rows = json.loads((clone / "results/comparison.json").read_text())["rows"]
    assert list(rows) == ["published", "baseline", "accurate"]
    assert rows["accurate"]["test_errors"] == load_metrics(clone, "accurate")["test_errors"]


def test_nothing_runs_twice_and_the_tree_stays_clean(clone, digits):
    done = dvc(clone, digits, "repro")
    assert ran(done) == [] and "up to date" in done.stdout
    assert git(clone, "status", "--porcelain") == ""


def test_forced_reproduction_gives_the_same_lock_byte_for_byte(clone, digits):
    before = (clone / "dvc.lock").read_bytes()
    done = dvc(clone, digits, "repro", "--force")
    assert done.returncode == 0 and len(ran(done)) == 7
    assert (clone / "dvc.lock").read_bytes() == before
    assert git(clone, "status", "--porcelain") == ""


def test_the_store_holds_one_finished_run_a_training_with_its_test_figures(clone):
    client = store(clone)
    runs = client.search_runs([client.get_experiment_by_name("mnist").experiment_id])
    staged = [found for found in runs if found.data.tags["dvc_stage"] == "train@accurate"]
    assert staged and all(found.info.status == "FINISHED" for found in staged)
    for found in staged:
        assert found.data.metrics["test_errors"] == load_metrics(clone, "accurate")["test_errors"]
        assert found.data.tags["model_sha256"] == load_metrics(clone, "accurate")["model_sha256"]
        assert {given.dataset.name for given in found.inputs.dataset_inputs} == {"train", "val", "test"}
        plots = {item.path for item in client.list_artifacts(found.info.run_id, "plots")}
        assert "plots/confusion_matrix.png" in plots and len(plots) == 5
        assert str(Path.home()) not in json.dumps(
            {**found.data.params, "source": found.data.tags["mlflow.source.name"]}
        )


def test_a_lost_store_is_filled_again_from_the_files(clone, digits, tmp_path):
    uri = f"sqlite:///{tmp_path / 'new.db'}"
    done = dvc(clone, digits, "repro", "--force", "--single-item", "evaluate@baseline", MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stderr
    client = store(uri)
    [found] = client.search_runs([client.get_experiment_by_name("mnist").experiment_id])
    assert found.data.tags["dvc_stage"] == "train@baseline" and "adopted" in found.data.tags
    losses = [metric.value for metric in client.get_metric_history(found.info.run_id, "train_loss")]
    history = np.genfromtxt(clone / "results/recipes/baseline/history.csv", delimiter=",", names=True)
    assert losses == list(history["train_loss"])
    assert git(clone, "status", "--porcelain") == ""


def test_an_experiment_runs_only_what_its_value_touches_and_keeps_the_comments(clone, digits):
    done = dvc(clone, digits, "exp", "run", "-S", "conf/recipe/accurate.yaml:model.filters=3")
    assert done.returncode == 0, done.stderr
    assert ran(done) == ["train@accurate", "evaluate@accurate", "compare"]
    recipe = (clone / "conf/recipe/accurate.yaml").read_text()
    assert yaml.safe_load(recipe)["model"]["filters"] == 3
    original = (ROOT / "conf/recipe/accurate.yaml").read_text()
    assert re.findall("#.*", recipe) == re.findall("#.*", original)
    assert "model.filters" in dvc(clone, digits, "params", "diff").stdout
    assert "num_params" in dvc(clone, digits, "metrics", "diff").stdout
    git(clone, "restore", ".")
    assert dvc(clone, digits, "checkout").returncode == 0
    assert ran(dvc(clone, digits, "repro")) == []


def test_a_refused_value_leaves_the_last_good_results(clone, digits):
    before = {path: path.read_bytes() for path in sorted((clone / "results").rglob("*")) if path.is_file()}
    done = dvc(clone, digits, "exp", "run", "-S", "train.epochs=-1")
    assert (
        done.returncode != 0 and "error: train.epochs=-1 is out of range: give a whole number, 1 or more" in done.stderr
    )
    assert {path: path.read_bytes() for path in before} == before
    git(clone, "restore", ".")


def test_a_run_outside_dvc_has_its_own_folder_and_leaves_dvcs_outputs_alone(clone, digits):
    words = [sys.executable, "-m", "pipeline.train", "recipe=baseline", "train.epochs=1"]
    done = run(*words, cwd=clone)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    [folder] = (clone / "outputs").iterdir()
    assert {path.name for path in folder.iterdir()} == {
        "model.keras",
        "history.csv",
        "val_predictions.csv",
        "config.yaml",
    }
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["epochs"] == 1
    assert git(clone, "status", "--porcelain") == "" and ran(dvc(clone, digits, "repro")) == []


def test_a_sweep_trains_every_combination_and_tracks_each(clone):
    words = [sys.executable, "-m", "pipeline.train", "-m", "train.epochs=1,2", "model.filters=2,4"]
    done = run(*words, cwd=clone)
    assert done.returncode == 0, done.stderr
    assert len(list((clone / "multirun").glob("*/*/model.keras"))) == 4
    client = store(clone)
    found = client.search_runs([client.get_experiment_by_name("mnist").experiment_id], max_results=4)
    assert sorted((f.data.params["train.epochs"], f.data.params["model.filters"]) for f in found) == [
        ("1", "2"), ("1", "4"), ("2", "2"), ("2", "4"),
    ]  # fmt: skip


def test_a_loss_that_is_not_finite_stops_the_run_which_is_marked_as_failed(clone):
    growing = ["optimizer.learning_rate=10", "optimizer.weight_decay=0.99", "optimizer.batch_size=4"]
    done = run(sys.executable, "-m", "pipeline.train", "recipe=baseline", *growing, cwd=clone)
    assert done.returncode == 1 and done.stderr.startswith("error: the loss is not finite in epoch 1, step ")
    assert done.stderr.count("\n") == 1 and "lower optimizer.learning_rate=10" in done.stderr
    client = store(clone)
    [newest] = client.search_runs([client.get_experiment_by_name("mnist").experiment_id], max_results=1)
    assert newest.info.status == "FAILED" and newest.data.params["optimizer.learning_rate"] == "10.0"


def test_a_stage_whose_loss_is_not_finite_leaves_the_last_good_results(clone, digits):
    kept = [clone / "models/baseline/model.keras", *sorted((clone / "results").rglob("*"))]
    before = {path: path.read_bytes() for path in kept if path.is_file()}
    values = ("learning_rate=10", "weight_decay=0.99", "batch_size=4")
    words = [word for value in values for word in ("-S", f"conf/recipe/baseline.yaml:optimizer.{value}")]
    done = dvc(clone, digits, "exp", "run", *words)
    assert done.returncode != 0 and "error: the loss is not finite in epoch 1, step " in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    git(clone, "restore", ".")
    assert ran(dvc(clone, digits, "repro")) == []


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str, str]] = {
    "truncated digits": ("data/processed/train.npz", lambda content: content[:1000], "train", "train.npz is damaged"),
    "empty digits": ("data/processed/val.npz", lambda content: b"", "train", "val.npz is damaged"),
    "truncated model": (
        "models/baseline/model.keras",
        lambda content: content[:5000],
        "evaluate",
        "model.keras is damaged",
    ),
    "broken history": (
        "results/recipes/baseline/history.csv",
        lambda content: b"x",
        "evaluate",
        "history.csv is damaged",
    ),
    "broken metrics": (
        "results/recipes/baseline/metrics.json",
        lambda content: b"{",
        "compare",
        "metrics.json is damaged",
    ),
    "other raw digits": (
        "data/raw/mnist.npz",
        lambda content: content[:-900] + b"x" * 900,
        "preprocess",
        "mnist.npz is",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_file_is_refused_in_one_line(clone, case):
    name, damage, verb, message = DAMAGES[case]
    content = (clone / name).read_bytes()
    (clone / name).unlink()  # DVC's cache may share the file
    (clone / name).write_bytes(damage(content))
    done = run(sys.executable, "-m", f"pipeline.{verb}", "recipe=baseline", cwd=clone)
    (clone / name).write_bytes(content)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and "dvc repro" in done.stderr
