"""That DVC sees what a stage will read, however a value came to its recipe; and that a stage keeps its word to DVC."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import copy, dvc, run, write_composed

from pipeline.base.validation import flatten


@pytest.fixture
def own(clone, tmp_path) -> Path:
    return copy(clone, tmp_path)


def stale(folder: Path, digits: Path) -> set[str]:
    """The stages that run again, once the configurations are composed."""
    done = dvc(folder, digits, "repro", "compose", "compose_data")
    assert done.returncode == 0, done.stderr
    stages = json.loads(dvc(folder, digits, "status", "--json").stdout)
    return stages.keys() - {"compare"}  # which depends on all of results/recipes


def inherit(folder: Path, name: str, heir: str = "") -> Path:
    """Move the values of conf/<name>.yaml to a file that it inherits from: that file."""
    file = folder / "conf" / f"{name}.yaml"
    source = file.with_name("source.yaml")
    file.rename(source)
    file.write_text(
        f"# @package _global_\ndefaults:\n  - source\n  - _self_\n{heir}".removeprefix(
            "# @package _global_\n" if name.startswith("data") else ""
        )
    )
    return source


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, (file, old)
    file.write_text(text.replace(old, new))


def test_a_value_runs_again_exactly_the_recipes_that_have_it(own, digits):
    source = inherit(own, "recipe/accurate", heir="train: {epochs: 2}\n")
    assert stale(own, digits) == set(), "the composed values are the same"
    replace(source, "learning_rate: 0.006", "learning_rate: 0.005")
    assert stale(own, digits) == {"train@accurate", "evaluate@accurate"}
    diff = json.loads(dvc(own, digits, "params", "diff", "--json").stdout)
    [(key, values)] = diff["results/recipes/accurate/config.yaml"].items()
    assert (key, values["old"], values["new"]) == ("optimizer.learning_rate", 0.006, 0.005)
    replace(source, "learning_rate: 0.005", "learning_rate: 0.006")
    replace(own / "params.yaml", "epochs: 2", "epochs: 3")  # accurate has epochs of its own
    assert stale(own, digits) == {"train@baseline", "evaluate@baseline"}


@pytest.mark.slow
def test_a_data_set_may_inherit(own, digits):
    source = inherit(own, "data/mnist")
    assert stale(own, digits) == set()
    replace(source, "val_size: 50", "val_size: 60")
    assert stale(own, digits) == {"preprocess"}
    replace(source, "published: true", "published: false")
    replace(source, "val_size: 60", "val_size: 50")
    assert stale(own, digits) == set()


def test_a_stage_by_itself_trains_nothing_that_the_lock_does_not_say(own, digits):
    replace(own / "conf/recipe/accurate.yaml", "learning_rate: 0.006", "learning_rate: 0.005")
    before = (own / "models/accurate/model.keras").read_bytes()
    done = dvc(own, digits, "repro", "--force", "--single-item", "train@accurate")
    assert done.returncode != 0
    assert (
        "error: results/recipes/accurate/config.yaml has optimizer.learning_rate=0.006, and conf/ with params.yaml now "
        "make it 0.005: run `dvc repro`" in done.stderr
    )
    assert (own / "models/accurate/model.keras").read_bytes() == before


EDITS = {
    "base/command.py": ("does not sweep", "cannot sweep"),
    "base/console.py": ("images/s", "images per second"),
    "serve.py": ("give another port", "give a port"),
    "tracking/queries.py": ("PAGE = 100", "PAGE = 200"),
    "base/errors.py": ("not enough memory", "too little memory"),
}


def test_edits_that_cannot_change_a_result_run_nothing_again(own, digits):
    for name, (old, new) in EDITS.items():
        replace(own / "pipeline" / name, old, new)
    status = dvc(own, digits, "status")
    assert status.returncode == 0 and "up to date" in status.stdout
    replace(own / "pipeline/training/optimizer.py", "beta1=0.9,", "beta1=0.8,")
    assert stale(own, digits) == {"train@accurate", "train@baseline"}


LAZY = """
from pipeline.base.command import main
from pipeline.base.project import Project
from pipeline.base.schema import Config

def train(project: Project, config: Config) -> None:
    print(config.name)

main(train)
"""


def test_a_stage_that_leaves_old_outputs_fails_by_their_name(repository, tmp_path):
    folder = copy(repository, tmp_path)
    write_composed(folder, "recipe=accurate")
    shutil.copy(folder / "data/processed/split.json", folder / "model.keras")  # anything
    (folder / "models/accurate").mkdir(parents=True, exist_ok=True)
    (folder / "model.keras").rename(folder / "models/accurate/model.keras")
    (folder / "pipeline/lazy.py").write_text(LAZY)
    done = run("python", "-m", "pipeline.lazy", "recipe=accurate", cwd=folder, DVC_STAGE="train@accurate")
    assert (done.returncode, done.stdout) == (1, "accurate\n")
    assert done.stderr == (
        "error: the stage ended without writing models/accurate/model.keras, which dvc.yaml promises\n"
    )


def test_what_is_composed_names_the_shared_values_that_a_recipe_sets_itself(repository, tmp_path):
    folder = copy(repository, tmp_path)
    words = ["recipe=fast"]
    done = run(sys.executable, "-m", "pipeline.compose", *words, cwd=folder, DVC_STAGE="compose@fast")
    assert done.stdout == "wrote results/recipes/fast/config.yaml; fast sets train.epochs=1 itself\n"
    written = flatten(yaml.safe_load((folder / "results/recipes/fast/config.yaml").read_text()))
    inherited = yaml.safe_load((folder / "conf/recipe/accurate.yaml").read_text())["optimizer"]["learning_rate"]
    assert written["optimizer.learning_rate"] == str(inherited) and written["optimizer.batch_size"] == "64"
    assert not {"recipes", "dataset"} & written.keys()
