"""The whole way as a user goes it: a clone, real `dvc repro`, a real store, on a few hundred generated digits."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, dvc, git, ran, run, start, store
from PIL import Image


def load_metrics(clone: Path, recipe: str) -> dict:
    return json.loads((clone / f"results/recipes/{recipe}/metrics.json").read_text())


PLAIN_KERAS = """
import sys, keras, numpy as np
model = keras.saving.load_model(sys.argv[1])
print(*model(np.load(sys.argv[2])["images"]).numpy().argmax(1))
"""


def keras_predictions(model_file: Path, digits_file: Path) -> list[int]:
    """As README says to use the model, elsewhere."""
    done = run("python", "-c", PLAIN_KERAS, str(model_file), str(digits_file))
    return [int(word) for word in done.stdout.split()]


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
        assert figures["test_errors_no_tta"] == np.sum(rows["label"] != plain)
        assert figures["test_tta_shifts"] == {"baseline": 1, "accurate": 5}[recipe]
        history = np.genfromtxt(clone / f"results/recipes/{recipe}/history.csv", delimiter=",", names=True)
        assert figures["epochs"] == len(history) == 2 and figures["val_accuracy"] == history["val_accuracy"][-1]
        val = np.genfromtxt(clone / f"results/recipes/{recipe}/val_predictions.csv", delimiter=",", names=True)
        assert np.mean(val["label"] == val["prediction"]) == pytest.approx(figures["val_accuracy"])
        assert len(list((clone / f"results/recipes/{recipe}/plots").glob("*.png"))) == 5
        card = (clone / f"results/recipes/{recipe}/model_card.md").read_text()
        assert f"{100 * figures['test_accuracy']:.2f} %" in card and f"{figures['num_params']:,} parameters" in card
    rows = json.loads((clone / "results/comparison.json").read_text())["rows"]
    assert list(rows) == ["published", "baseline", "accurate"]
    assert rows["accurate"]["test_errors"] == load_metrics(clone, "accurate")["test_errors"]


def test_the_report_shows_what_the_results_say_and_nothing_that_varies(clone):
    page = (clone / "results/report.html").read_text()
    again = run("python", "-m", "pipeline.compare", cwd=clone, DVC_STAGE="compare")
    assert again.returncode == 0, again.stderr
    assert (clone / "results/report.html").read_text() == page
    answers = json.loads((clone / "results/comparison.json").read_text())["answers"]
    assert f"<p><strong>{html.escape(answers[0])}</strong></p>" in page
    pictures = [(kind, base64.b64decode(content)) for kind, content in re.findall(r'image/(\S+);base64,([^"]+)"', page)]
    assert [kind for kind, _ in pictures[:5]] == ["svg+xml"] * 5
    texts = [page.encode(), *(content for kind, content in pictures if kind == "svg+xml")]
    varying = [str(clone), str(Path.home()), git(clone, "rev-parse", "HEAD")[:12]]
    assert not [one for one in varying if any(one.encode() in text for text in texts)]
    shown = [Image.open(io.BytesIO(content)) for kind, content in pictures if kind == "png"]
    numbers = [int(number) for number in re.findall(r"<figcaption>#(\d+): ", page)]
    images = np.load(clone / "data/processed/test.npz")["images"]
    assert numbers and all(np.array_equal(255 - images[n], image) for n, image in zip(numbers, shown, strict=True))
    for recipe in ("baseline", "accurate"):
        figures = load_metrics(clone, recipe)
        assert f"{figures['macs']:,}</td>" in page and figures["model_sha256"][:16] in page
    # 2 kernels of 3 × 3 at 26 × 26 places, then dense layers of 64, 64 and 10
    assert load_metrics(clone, "baseline")["macs"] == 676 * 9 * 2 + 676 * 2 * 64 + 64 * 64 + 64 * 10


def test_nothing_runs_twice_and_the_tree_stays_clean(clone, digits):
    done = dvc(clone, digits, "repro")
    assert ran(done) == [] and "up to date" in done.stdout
    assert git(clone, "status", "--porcelain") == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("targets", "stages"), [(["evaluate@baseline"], 6), pytest.param([], 10, marks=pytest.mark.slow)]
)
def test_forced_reproduction_gives_the_same_lock_byte_for_byte(clone, digits, targets, stages):
    before = (clone / "dvc.lock").read_bytes()
    done = dvc(clone, digits, "repro", "--force", *targets)
    assert done.returncode == 0 and len(ran(done)) == stages
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


def test_the_page_has_the_figures_of_each_run_and_after_compare_the_comparison(clone):
    client = store(clone)
    experiment = client.get_experiment_by_name("mnist")
    for recipe in ("baseline", "accurate"):
        [found] = client.search_runs([experiment.experiment_id], f"tags.dvc_stage = 'train@{recipe}'", max_results=1)
        figures, note = load_metrics(clone, recipe), found.data.tags["mlflow.note.content"]
        assert f"{100 * figures['test_accuracy']:.2f} % (" in note and f" {figures['test_errors']} of 100 |" in note
    assert "mlflow.note.content" not in experiment.tags, "the stage reads and writes files alone"
    done = run("python", "-m", "pipeline.compare", cwd=clone)
    assert done.returncode == 0, done.stderr
    note = client.get_experiment(experiment.experiment_id).tags["mlflow.note.content"]
    answers = json.loads((clone / "results/comparison.json").read_text())["answers"]
    assert note.splitlines()[1] == answers[0]  # the page shows the first line until it is unfolded
    table = (clone / "results/comparison.md").read_text().partition("\n\n")[0]
    assert table.count("\n") == 4 and table in note


@pytest.mark.slow
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
    done = dvc(clone, digits, "exp", "run", "-S", "conf/recipe/baseline.yaml:model.filters=3")
    assert done.returncode == 0, done.stderr
    stages = [stage for stage in ran(done) if not stage.startswith("compose")]
    assert stages == ["train@baseline", "evaluate@baseline", "compare"]
    recipe = (clone / "conf/recipe/baseline.yaml").read_text()
    assert yaml.safe_load(recipe)["model"]["filters"] == 3
    original = (ROOT / "conf/recipe/baseline.yaml").read_text()
    assert re.findall("#.*", recipe) == re.findall("#.*", original)
    assert "model.filters" in dvc(clone, digits, "params", "diff").stdout
    assert "num_params" in dvc(clone, digits, "metrics", "diff").stdout
    git(clone, "restore", ".")
    assert dvc(clone, digits, "checkout").returncode == 0
    assert ran(dvc(clone, digits, "repro")) == []


def test_a_refused_value_leaves_the_last_good_results(clone, digits):
    before = {path: path.read_bytes() for path in sorted((clone / "results").rglob("*")) if path.is_file()}
    done = dvc(clone, digits, "exp", "run", "-S", "train.epochs=-1")
    assert done.returncode != 0 and "error: train.epochs=-1: input should be greater than or equal to 1" in done.stderr
    assert {path: path.read_bytes() for path in before} == before
    git(clone, "restore", ".")


def test_a_run_outside_dvc_has_its_own_folder_and_leaves_dvcs_outputs_alone(clone, digits):
    words = ["python", "-m", "pipeline.train", "recipe=baseline", "train.epochs=1"]
    done = run(*words, cwd=clone)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder = max((clone / "outputs").glob("2*"))
    assert not [*(clone / "outputs/stages").iterdir(), *(clone / "outputs/.pending").iterdir()], "MLflow has all of it"
    assert {path.name for path in folder.iterdir()} == {
        *("model.keras", "history.csv", "val_predictions.csv", "config.yaml", "tags.json"),
        *("packages.txt", "run.json", "metrics.jsonl", "console.log"),
    }
    assert yaml.safe_load((folder / "config.yaml").read_text())["train"]["epochs"] == 1
    assert git(clone, "status", "--porcelain") == "" and ran(dvc(clone, digits, "repro")) == []


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_and_ends_with_the_bits_of_one_that_was_not(clone):
    words = ("python", "-m", "pipeline.train", "recipe=baseline", "train.epochs=5", "seed=9")
    with start(*words, cwd=clone) as killed:
        while "epoch 1/5" not in killed.stdout.readline():
            assert killed.poll() is None
        killed.kill()
        assert "epoch 5/5" not in killed.communicate()[0]
    models = []
    for _ in range(2):
        done = run(*words, cwd=clone)
        assert (done.returncode, done.stderr) == (0, "")
        assert ("continues after epoch " in done.stdout) == (not models), "the second one begins anew"
        [model] = re.findall(r"^wrote (.+);", done.stdout, re.MULTILINE)
        models.append(Path(model).read_bytes())
    assert models[0] == models[1]


@pytest.mark.slow
def test_a_stage_that_is_stopped_leaves_the_last_good_results_and_continues(clone, digits):
    kept = [clone / "models/baseline/model.keras", *sorted((clone / "results").rglob("*"))]
    before = {path: path.read_bytes() for path in kept if path.is_file() and path.name != "config.yaml"}
    params = (clone / "params.yaml").read_text()
    (clone / "params.yaml").write_text(params.replace("epochs: 2", "epochs: 40"))
    words = ("dvc", "repro", "train@baseline")
    with start(*words, cwd=clone, MNIST_SOURCE=str(digits)) as process:
        while "baseline epoch 1/40" not in (line := process.stdout.readline()):
            assert process.poll() is None
            if touch := re.match("baseline: to stop it after an epoch: touch (.+)", line):
                stop = clone / touch[1]
        stop.touch()
        out, err = process.communicate(timeout=300)
    assert process.returncode != 0 and "epoch 40/40" not in out
    assert re.search(
        r"^error: stopped after epoch \d+/40 by the file outputs/stages/.+/stop: the same", err, re.MULTILINE
    )
    assert {path: path.read_bytes() for path in before} == before
    again = dvc(clone, digits, "repro", "train@baseline")
    assert again.returncode == 0 and "baseline: continues after epoch " in again.stdout
    git(clone, "restore", ".")
    assert dvc(clone, digits, "repro").returncode == 0 and git(clone, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_stage_whose_loss_is_not_finite_leaves_the_last_good_results(clone, digits):
    kept = [clone / "models/baseline/model.keras", *sorted((clone / "results").rglob("*"))]
    before = {path: path.read_bytes() for path in kept if path.is_file() and path.name != "config.yaml"}
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
    done = run("python", "-m", f"pipeline.{verb}", "recipe=baseline", cwd=clone)
    (clone / name).write_bytes(content)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and "dvc repro" in done.stderr
