"""A network of the user's own, with a layer of its own, through everything: as typed, on generated digits."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import children, dvc, git, parent_of, pipeline, ran, run, runs, store

pytestmark = pytest.mark.slow

NETWORK = """
import keras
from keras import layers
from own.parts import WIDTH


@keras.saving.register_keras_serializable()
class Scale(layers.Layer):
    def __init__(self, by, **options):
        super().__init__(**options)
        self.by = by

    def call(self, x):
        return x * self.by

    def get_config(self):
        return {**super().get_config(), "by": self.by}


def mine(image_shape, classes, rate=0.1):
    images = layers.Input(image_shape, dtype="uint8")
    x = layers.Flatten()(Scale(1 / 255)(layers.Rescaling(1.0)(images)))
    x = layers.Dropout(rate)(layers.Dense(WIDTH, activation="relu")(x))
    return keras.Model(images, layers.Dense(classes)(x))
"""
RECIPE = """# @package _global_
defaults: [/recipe/accurate, _self_]
model:
  build: own.mine:mine
  args: {rate: 0.1}
"""
SWEEP = ("-m", "recipe=mine", "model.args.rate=0.1,0.2")


def edit_helper(clone: Path, width: int) -> None:
    (clone / "own/parts.py").write_text(f"WIDTH = {width}\n")


@pytest.fixture(scope="module")
def run_id(clone, digits) -> str:
    """The run of a recipe that DVC trained, beside the two others."""
    (clone / "own/mine.py").write_text(NETWORK)
    edit_helper(clone, 16)
    (clone / "conf/recipe/mine.yaml").write_text(RECIPE)
    params = clone / "params.yaml"
    params.write_text(params.read_text().replace("[baseline, accurate]", "[baseline, accurate, mine]"))
    done = dvc(clone, digits, "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {stage for stage in ran(done) if "@" in stage and "compose" not in stage} == {"train@mine", "evaluate@mine"}
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "mine")
    [trained] = runs(clone, "tags.dvc_stage = 'train@mine'")
    return str(trained.info.run_id)


def test_dvc_trains_it_once_and_again_when_a_helper_was_edited(clone, digits, run_id):
    assert ran(dvc(clone, digits, "repro")) == [] and "up to date" in dvc(clone, digits, "status").stdout
    edit_helper(clone, 12)
    stages = json.loads(dvc(clone, digits, "status", "--json").stdout)
    assert {stage.partition("@")[0] for stage in stages} == {"compose", "compose_data"}
    assert dvc(clone, digits, "repro", "compose", "compose_data").returncode == 0
    stages = json.loads(dvc(clone, digits, "status", "--json").stdout)
    assert stages.keys() - {"compare"} == {"train@mine", "evaluate@mine"}
    edit_helper(clone, 16)
    refused = pipeline(clone, "evaluate", "recipe=mine")
    assert refused.returncode == 1 and "own.mine:mine has other code than the model was made with" in refused.stderr
    assert dvc(clone, digits, "repro", "compose", "compose_data").returncode == 0
    assert "up to date" in dvc(clone, digits, "status").stdout


def test_a_file_that_dvc_does_not_watch_is_refused_by_the_stage_alone(clone, digits, run_id):
    shutil.copy(clone / "own/mine.py", clone / "outside.py")
    recipe = clone / "conf/recipe/mine.yaml"
    recipe.write_text(RECIPE.replace("own.mine", "outside"))
    assert pipeline(clone, "compose", "recipe=mine").returncode == 0
    done = dvc(clone, digits, "repro", "compose@mine")
    assert "error: outside.py is used by mine, and DVC would not see it change: move it into" in done.stderr
    recipe.write_text(RECIPE)
    (clone / "outside.py").unlink()


def test_the_run_keeps_the_code_to_read(clone, run_id):
    kept = Path(store(clone).download_artifacts(run_id, "source"))
    names = sorted(file.relative_to(kept).as_posix() for file in kept.rglob("*.py"))
    assert names == ["own/mine.py", "own/parts.py"]
    assert all((kept / name).read_bytes() == (clone / name).read_bytes() for name in names)
    params = store(clone).get_run(run_id).data.params
    assert params["model.build"] == "own.mine:mine" and params["model.args.rate"] == "0.1"
    assert re.fullmatch("[0-9a-f]{64}", params["model.source_sha256"])


VERBS = [
    ("evaluate", "mine: test accuracy"),
    ("predict", "abstains"),
    ("export", "0 of 50 predictions differ"),
    ("reproduce", "identical bits"),
]


@pytest.fixture(scope="module")
def picture(clone) -> str:
    code = (
        "from PIL import Image; import numpy as np\npage = np.full((60, 60), 255, np.uint8); page[10:50, 25:35] = 0\n"
        "Image.fromarray(page).save('page.png')"
    )
    assert run("python", "-c", code, cwd=clone).returncode == 0
    return "page.png"


@pytest.mark.parametrize(("verb", "said"), VERBS)
def test_what_is_done_with_models_is_done_with_it(clone, run_id, picture, verb, said):
    words = [f"input={picture}"] if verb == "predict" else []
    done = pipeline(clone, verb, f"run={run_id}", *words)
    assert done.returncode == 0 and said in done.stdout, done.stderr
    if verb in ("predict", "export"):
        assert pipeline(clone, verb, "recipe=mine", *words).returncode == 0


def test_it_is_promoted(clone, run_id):
    done = pipeline(clone, "promote", f"run={run_id}")
    assert done.returncode == 0 and "models:/mnist@champion is version 1" in done.stdout, done.stderr
    done = pipeline(clone, "export", "alias=champion")
    assert done.returncode == 0 and "0 of 50 predictions differ" in done.stdout


@pytest.mark.parametrize(("verb", "said"), VERBS)
def test_other_code_in_the_repository_is_not_run(clone, run_id, picture, verb, said):
    words = [f"input={picture}"] if verb == "predict" else []
    module, text = clone / "own/mine.py", (clone / "own/mine.py").read_text()
    for content, fault in (
        (f"open('ran', 'w')\n{text}", "has other code than the model was made with"),
        (None, "is no file of this repository"),
    ):
        module.unlink()
        if content:
            module.write_text(content)
        done = pipeline(clone, verb, f"run={run_id}", *words)
        module.write_text(text)
        [line] = done.stderr.splitlines()
        assert done.returncode == 1 and line.startswith("error: own.mine") and fault in line
        assert not (clone / "ran").exists()


def test_a_downloaded_configuration_names_no_other_function(clone, run_id, tmp_path):
    downloaded = Path(shutil.copytree(store(clone).download_artifacts(run_id, ""), clone / "run"))
    values = yaml.safe_load((downloaded / "config.yaml").read_text())
    for build, args, said in (
        ("os:system", {"command": f"touch {tmp_path / 'ran'}"}, "os is no file of this repository"),
        ("run.source.own.mine:mine", {}, "a file of the run itself"),
        ("../x:y", {}, "model.build=../x:y: string should match"),
    ):
        values["model"] |= {"build": build, "args": args}
        (downloaded / "config.yaml").write_text(yaml.safe_dump(values))
        done = pipeline(clone, "reproduce", f"run={downloaded}")
        [line] = done.stderr.splitlines()
        assert done.returncode == 1 and said in line
    assert not (tmp_path / "ran").exists()
    shutil.rmtree(downloaded)


def test_a_sweep_of_an_argument_finds_what_was_trained_until_a_helper_is_edited(clone, run_id):
    first = pipeline(clone, "train", *SWEEP)
    assert first.returncode == 0 and "2 jobs, 1 found finished" in first.stdout, first.stderr
    params = [child.data.params["model.args.rate"] for child in children(clone, parent_of(first))]
    assert params == ["0.2"]
    assert "2 jobs, 2 found finished" in pipeline(clone, "train", *SWEEP).stdout
    edit_helper(clone, 12)
    edited = pipeline(clone, "train", *SWEEP)
    edit_helper(clone, 16)
    assert edited.returncode == 0 and "2 jobs; MLflow run" in edited.stdout


def test_dropout_of_the_built_in_network_is_swept(clone):
    done = pipeline(clone, "train", "-m", "recipe=baseline", "model.dropout=0.1,0.2,0.3", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    swept = sorted(child.data.params["model.dropout"] for child in children(clone, parent_of(done)))
    assert swept == ["0.1", "0.2", "0.3"]


def test_a_run_that_waited_for_the_store_is_sent_with_its_model_by_another_process(clone, run_id):
    words = ("recipe=mine", "seed=5", "train.epochs=1")
    away = pipeline(clone, "train", *words, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert away.returncode == 0 and "python -m pipeline.sync" in away.stdout, away.stderr
    assert pipeline(clone, "sync").returncode == 0
    [sent] = runs(clone, "params.seed = '5'")
    assert pipeline(clone, "evaluate", f"run={sent.info.run_id}").returncode == 0


PYFUNC = """
import sys, mlflow, numpy as np
print(mlflow.pyfunc.load_model(sys.argv[1]).predict(np.load("data/processed/test.npz")["images"]).argmax(1).tolist())
"""


def test_the_example_of_keras_layers_is_a_plain_model_of_mlflow(clone):
    done = pipeline(clone, "train", "recipe=residual", "model.args.width=2", "train.epochs=1", "evaluate.tta_shifts=1")
    assert done.returncode == 0, done.stderr
    [trained] = re.findall(r"MLflow run (\w{32})", done.stdout)
    assert pipeline(clone, "evaluate", f"run={trained}").returncode == 0
    [model] = store(clone).search_logged_models(
        [store(clone).get_run(trained).info.experiment_id], f"source_run_id = '{trained}'"
    )
    loaded = run("python", "-c", PYFUNC, model.model_uri, cwd=clone)
    assert loaded.returncode == 0, loaded.stderr
    predictions = Path(store(clone).download_artifacts(trained, "predictions.csv")).read_text().splitlines()
    column = predictions[0].split(",").index("prediction")
    assert [int(float(line.split(",")[column])) for line in predictions[1:]] == json.loads(
        loaded.stdout.splitlines()[-1]  # below a progress bar
    )
