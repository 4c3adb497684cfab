"""The configuration: where its values come from, what is accepted, and how a command says what is not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, run

from pipeline.base import hydra
from pipeline.base.errors import UserError
from pipeline.base.project import open_project
from pipeline.base.schema import DERIVED, Config
from pipeline.base.validation import fields, from_recorded, non_defaults, validate
from pipeline.base.verb_schemas import PredictConfig, RunConfig

RECIPES = sorted((ROOT / "conf" / "recipe").rglob("*.yaml"))
DATA = sorted((ROOT / "conf" / "data").rglob("*.yaml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return all that is no section, under its dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_composes_under_its_own_name_with_its_own_values(compose, path):
    name = path.relative_to(ROOT / "conf" / "recipe").with_suffix("").as_posix()
    composed = compose(f"recipe={name}").model_dump()
    assert composed["name"] == name
    own = load(path)
    for section in own.keys() - {"defaults"}:
        assert composed[section] == composed[section] | own[section]


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_a_data_file_composes_under_its_own_name(compose, path):
    config = compose(f"data={path.stem}")
    assert config.data.name == path.stem and set(config.data.sha256) == set(config.data.files)


def test_overfit_takes_every_example_unmodified(compose):
    augment = compose("recipe=debug/overfit").augment
    assert not augment.is_on and {key for key, amount in augment if amount} <= {"full_until", "last"}


WHOLE, DELTAS = ([path for path in RECIPES if ("defaults" in load(path)) == delta] for delta in (False, True))


@pytest.mark.parametrize("recipe", DELTAS, ids=lambda path: path.stem)
def test_a_recipe_that_changes_another_gives_only_what_differs(compose, recipe):
    own = load(recipe)
    (base, itself) = own.pop("defaults")
    assert itself == "_self_"
    before = flat(compose(f"recipe={Path(base).name}").model_dump())
    if "build" in own.get("model", {}):  # a network of its own has no key in common with the built-in one
        assert own.pop("model").keys() <= {"build", "args"}
    own.get("optimizer", {}).pop("args", None)  # each optimizer has its own
    assert flat(own).keys() <= before.keys()
    assert [key for key, value in flat(own).items() if before[key] == value] == []


@pytest.mark.parametrize("recipe", WHOLE, ids=lambda path: path.stem)
def test_every_value_has_one_source(recipe):
    sources = [*flat(load(ROOT / "params.yaml")), *flat(load(recipe)), *flat({"data": load(DATA[0])})]
    assert len(sources) == len(set(sources))
    whole = {key.partition(".sha256.")[0].partition(".files.")[0] for key in sources}
    missing = {key for key, field in fields(Config).items() if field.is_required()} - whole
    assert missing <= {"name", "data.name", "data.sha256", "model.build"}


def test_the_keys_of_one_verb_are_no_keys_of_another(compose):
    extra = set(fields(PredictConfig)) - set(fields(Config))
    assert extra == {"run", "alias", "confidence", "input", "show"}
    with pytest.raises(UserError, match=r"^run is no key"):
        compose("run=some")


def test_what_dvc_builds_exists(compose):
    config = compose()
    assert set(config.recipes) <= {path.stem for path in RECIPES} and config.recipes
    assert config.dataset in {path.stem for path in DATA}


# A default of the schema stands for every run that was recorded before the key was there.
AS_BEFORE = {
    "train.examples": None,  # all
    "evaluate.tta_shifts": 1,
    "data.files": {},
    "data.sources": [],
    "model.precision": "float32",
    "optimizer.ghost_batches": 1,
    "optimizer.filter_groups": 1,
    "model.crop": 0,
    "model.branches": 1,
    "optimizer.sam_radius": 0.0,
    "augment.stretch": 0.0,
    "augment.full_until": 0.0,
    "augment.last": 1.0,  # the amounts do not fall
    "trackers": [],
    "data.channels": 1,
    "model.dropout": 0.0,
    "model.pixel_mean": [],
    "model.pixel_std": [],
    "model.args": {},
    "model.source_sha256": None,
    "optimizer.name": "adam",
    "optimizer.args": {},
    "train.patience": None,
    "train.pictures_every": None,
    "train.folds": None,
    "train.fold": None,
    "train.monitor": "val_accuracy",
    "train.metrics": {},
    "train.source_sha256": None,
    "evaluate.plots": {},
    "evaluate.source_sha256": None,
}


def test_a_key_of_the_schema_has_no_default_but_for_those_that_came_later():
    assert {key: field.default for key, field in fields(Config).items() if not field.is_required()} == AS_BEFORE
    assert len(fields(Config)) > 30


def test_a_recorded_configuration_lacks_keys_that_came_later_and_has_some_that_went(compose):
    config = compose("optimizer.filter_groups=2")
    old = config.model_dump()
    for key in AS_BEFORE:
        section, _, name = key.rpartition(".")
        (old[section] if section else old).pop(name, None)
    old["train"]["profile_steps"] = 0
    old["optimizer"] |= {"batch_shards": 4, "row_strips": 3, "dense_partitions": 2}
    old["evaluate"]["views"] = 5
    read = from_recorded(old, "config.yaml")
    assert (read.optimizer.ghost_batches, read.optimizer.filter_groups, read.evaluate.tta_shifts) == (4, 1, 5)
    assert read.augment.last == 1.0 and read.train.examples is None and read.model == config.model
    with pytest.raises(UserError, match=r"^config.yaml was written by other code \(unheard_of is no key"):
        from_recorded(old | {"unheard_of": 1}, "config.yaml")


def test_what_is_written_and_hashed_leaves_out_keys_that_have_their_default(compose):
    plain, cut = (compose("recipe=baseline", f"optimizer.filter_groups={count}") for count in (1, 2))
    assert "filter_groups" not in non_defaults(plain)["optimizer"]
    assert non_defaults(cut)["optimizer"] == non_defaults(plain)["optimizer"] | {"filter_groups": 2}
    read = from_recorded(non_defaults(cut), "config.yaml")
    assert read.model_copy(update={"data": cut.data}) == cut and read.data.sha256 == cut.data.sha256


LAYER = {"multiple": 1, "kernel_size": 3, "strides": 1, "padding": "same", "pool": 1}


def convolutions(**values: object) -> str:
    return f"model.convolutions={json.dumps([LAYER | values])}".replace('"', "")


# What is given; the key and value that are named; and what is said to be accepted.
OUT_OF_RANGE = [
    ("seed=-1", "seed=-1", "0"),
    ("seed=2147483648", "seed=2147483648", "2147483648"),
    ("seed='3'", "seed=3", "integer"),
    ("dataset=/x", "dataset=/x", "A-Za-z0-9"),
    ("recipes=[accurate, /etc]", "recipes.1=/etc", "A-Za-z0-9"),
    ("recipes=baseline", "recipes=baseline", "list"),
    ("train.epochs=0", "train.epochs=0", "1"),
    ("train.epochs=many", "train.epochs=many", "integer"),
    ("train.examples=0", "train.examples=0", "1"),
    ("data.image_shape=[]", "data.image_shape=[]", "2"),
    ("data.image_shape=[28, [28]]", "data.image_shape.1=[28]", "integer"),
    ("data.classes=['a']", "data.classes=['a']", "2"),
    ("data.published=1", "data.published=1", "boolean"),
    ("data.val_size=-1", "data.val_size=-1", "0"),
    ("data.split_seed=-1", "data.split_seed=-1", "0"),
    ("data.fraction=0.0", "data.fraction=0.0", "0"),
    ("data.fraction=1.01", "data.fraction=1.01", "1"),
    ("data.files={train_images: ../x}", "data.files.train_images=../x", "A-Za-z0-9"),
    ("data.sources=[a]", "data.sources.0=a", "Source"),
    ("data.sha256={train_images: x}", "data.sha256.train_images=x", "0-9a-f"),
    ("evaluate.confidence=1.0", "evaluate.confidence=1.0", "1"),
    ("evaluate.calibration_bins=1", "evaluate.calibration_bins=1", "2"),
    ("evaluate.tta_shifts=3", "evaluate.tta_shifts=3", "1 or 5"),
    ("model.filters=0", "model.filters=0", "1"),
    (f"model.convolutions=[{', '.join(['{}'] * 51)}]", "model.convolutions=[", "50"),
    ("model.convolutions=[1]", "model.convolutions.0=1", "Convolution"),
    (convolutions(multiple=0), "model.convolutions.0.multiple=0", "1"),
    (convolutions(kernel_size=0), "model.convolutions.0.kernel_size=0", "1"),
    (convolutions(strides=0), "model.convolutions.0.strides=0", "1"),
    (convolutions(padding="full"), "model.convolutions.0.padding=full", "'valid' or 'same'"),
    (convolutions(pool=0), "model.convolutions.0.pool=0", "1"),
    ("model.batch_norm=1", "model.batch_norm=1", "boolean"),
    ("model.pooling=max", "model.pooling=max", "'flatten' or 'average'"),
    ("model.units=[64, 0]", "model.units.1=0", "1"),
    ("model.pixel_scale=1.5", "model.pixel_scale=1.5", "1"),
    ("model.precision=float16", "model.precision=float16", "'float32' or 'mixed_bfloat16'"),
    ("optimizer.batch_size=0", "optimizer.batch_size=0", "1"),
    ("optimizer.ghost_batches=17", "optimizer.ghost_batches=17", "16"),
    ("optimizer.filter_groups=0", "optimizer.filter_groups=0", "1"),
    ("model.crop=14", "model.crop=14", "no pixel"),
    ("model.branches=0", "model.branches=0", "1"),
    ("optimizer.sam_radius=-0.1", "optimizer.sam_radius=-0.1", "0"),
    ("optimizer.learning_rate=nan", "optimizer.learning_rate=nan", "10"),
    ("optimizer.schedule=linear", "optimizer.schedule=linear", "'constant', 'one_cycle' or 'cosine'"),
    ("optimizer.name=sdg", "optimizer.name=sdg", "'sgd'"),
    ("optimizer.args=3", "optimizer.args=3", "dictionary"),
    ("trackers=[os]", "trackers.0=os", ":"),
    ("data.channels=2", "data.channels=2", "1 or 3"),
    ("model.dropout=1.0", "model.dropout=1.0", "1"),
    ("model.pixel_mean=[x]", "model.pixel_mean.0=x", "number"),
    ("model.pixel_std=[0.0]", "model.pixel_std.0=0.0", "0"),
    ("model.build=my_network", "model.build=my_network", ":"),
    ("train.patience=0", "train.patience=0", "1"),
    ("train.pictures_every=0", "train.pictures_every=0", "1"),
    ("train.folds=1", "train.folds=1", "2"),
    ("train.fold=-1", "train.fold=-1", "0"),
    ("train.monitor=/x", "train.monitor=/x", "A-Za-z0-9"),
    ("+train.metrics.a=b", "train.metrics.a=b", ":"),
    ("+evaluate.plots.a=b", "evaluate.plots.a=b", ":"),
    ("+evaluate.plots.own_one=b", "evaluate.plots.own_one=b", ":"),
    ("optimizer.warmup=1.0", "optimizer.warmup=1.0", "1"),
    ("optimizer.weight_decay=-0.1", "optimizer.weight_decay=-0.1", "0"),
    ("optimizer.label_smoothing=1.0", "optimizer.label_smoothing=1.0", "1"),
    ("augment.rotation=180.0", "augment.rotation=180.0", "180"),
    ("augment.scale=1.0", "augment.scale=1.0", "1"),
    ("augment.stretch=1.0", "augment.stretch=1.0", "1"),
    ("augment.shear=-0.1", "augment.shear=-0.1", "0"),
    ("augment.shift=-1.0", "augment.shift=-1.0", "0"),
    ("augment.shift=100.0", "augment.shift=100.0", "100"),
    ("augment.full_until=1.0", "augment.full_until=1.0", "1"),
    ("augment.last=1.1", "augment.last=1.1", "1"),
    # Values that do not fit together.
    (convolutions(kernel_size=29, padding="valid"), "model.convolutions.0", "fewer or smaller"),
    (convolutions(pool=29), "model.convolutions.0", "fewer or smaller"),
]


@pytest.mark.parametrize(("override", "named", "accepted"), OUT_OF_RANGE)
def test_a_value_out_of_range_is_named_with_what_is_accepted(compose, override, named, accepted):
    with pytest.raises(UserError) as error:
        compose(override)
    message = str(error.value)
    assert message.startswith(named) and accepted in message.removeprefix(named) and "\n" not in message


def test_every_key_of_the_schema_is_tried_above():
    tried = {named.partition("=")[0] for _, named, _ in OUT_OF_RANGE}
    untried = [key for key in fields(Config) if not any(name == key or name.startswith(f"{key}.") for name in tried)]
    assert set(untried) == {*DERIVED, "model.args"}


ON_THE_EDGE = """data.fraction=1 data.val_size=0 evaluate.confidence=0.5 evaluate.calibration_bins=2 seed=2147483647
    model.units=[1] model.pixel_scale=1 optimizer.ghost_batches=16 augment.shift=99.9 optimizer.filter_groups=1000
    train.examples=1 train.examples=null"""


@pytest.mark.parametrize("override", ON_THE_EDGE.split())
def test_a_value_on_the_edge_is_accepted_as_given(compose, override):
    section, _, key = override.partition("=")[0].rpartition(".")
    config = compose(override)
    assert getattr(getattr(config, section) if section else config, key) == yaml.safe_load(override.partition("=")[2])


def test_ghost_batches_are_no_more_than_examples_and_a_missing_key_is_named(compose):
    with pytest.raises(UserError, match=r"^optimizer\.ghost_batches: give at most the batch_size 4$"):
        compose("optimizer.batch_size=4", "optimizer.ghost_batches=5")
    values = compose().model_dump()
    del values["optimizer"]["warmup"]
    with pytest.raises(UserError, match=r"^optimizer\.warmup is missing: give it a value \(share of"):
        validate(Config, values)


@pytest.fixture
def copy(tmp_path) -> Path:
    """Return the commands and their configuration, without data, in a folder of their own."""
    for name in ("pipeline", "conf", "reference"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def error_of(copy: Path, *words: str) -> str:
    """Return the one line of a training that fails, and leaves nothing behind."""
    before = sorted(path.name for path in copy.iterdir())
    done = run("python", "-m", "pipeline.train", *words, cwd=copy)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    assert sorted(path.name for path in copy.iterdir()) == before
    return done.stderr


ERRORS = {
    "train.epoch=3": "train.epoch is no key: did you mean train.epochs?",
    "learning_rate=3": "learning_rate is no key: did you mean optimizer.learning_rate?",
    "+train.epoch=3": "train.epoch is no key: did you mean train.epochs?",
    "train.epochs=many": "train.epochs=many: input should be a valid integer",
    "train.epochs=0": "train.epochs=0: input should be greater than or equal to 1",
    "~seed": "seed is missing",
    "recipe=nosuch": "Could not find 'recipe/nosuch' Available options in 'recipe': accurate baseline",
    "train.epochs": "Error parsing override 'train.epochs' missing EQUAL",
    "seed=${oc.env:HOME}": "Unsupported interpolation type oc.env",
    "name=x": "name is no key",
}


@pytest.mark.parametrize("word", ERRORS)
def test_a_wrong_word_is_one_line(copy, word):
    assert ERRORS[word] in error_of(copy, word)


BROKEN = {  # what is put at the end of params.yaml, and the one line; {line} is the first line put there
    "unclosed list": ("extra: [1}\n", "params.yaml:{line}:10: broken YAML, "),
    "repeated key": ("seed: 1\n", "params.yaml:{line}"),
    "mistyped key": ("ephocs: 1\n", "ephocs is no key: did you mean train.epochs?"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_one_line(copy, case):
    added, expected = BROKEN[case]
    text = (ROOT / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text + added)
    assert expected.format(line=text.count("\n") + 1) in error_of(copy)


def test_a_key_mistyped_in_a_recipe_is_named_and_not_that_it_is_missing(copy):
    file = copy / "conf/recipe/baseline.yaml"
    text = file.read_text()
    file.write_text(text.replace("  batch_size:", "  batchsize:"))
    assert file.read_text() != text
    expected = "error: optimizer.batchsize is no key: did you mean optimizer.batch_size?\n"
    assert error_of(copy) == expected


def test_a_copied_file_has_a_name_of_its_own(copy):
    for group, name in (("recipe", "accurate"), ("data", "mnist")):
        folder = copy / "conf" / group
        shutil.copy(folder / f"{name}.yaml", folder / "mine.yaml")
    config = hydra.compose(open_project(copy), "recipe=mine", "data=mine")
    assert (config.name, config.data.name) == ("mine", "mine")
    with (copy / "conf/recipe/mine.yaml").open("a") as file:
        file.write("name: accurate\n")  # as recipes had it once
    assert hydra.compose(open_project(copy), "recipe=mine").name == "mine"


def test_two_projects_in_one_process_have_values_of_their_own(copy, compose):
    text = (copy / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text.replace("seed: 0", "seed: 5"))
    other = open_project(copy)
    assert [hydra.compose(other).seed, compose().seed, hydra.compose(other, "seed=7").seed] == [5, 0, 7]
    assert (other.conf, other.model("fast")) == (copy / "conf", copy / "models/fast/model.keras")


def composed(folder: Path, *words: str, **variables: str) -> dict[str, Any]:
    """Return what `python -m pipeline.compose` prints."""
    done = run("python", "-m", "pipeline.compose", *words, cwd=folder, **variables)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return yaml.safe_load(done.stdout)


def test_hydra_works_as_its_documentation_says(copy, tmp_path):
    assert composed(copy, "data.split_seed=3", "seed=${data.split_seed}")["seed"] == 3
    assert composed(copy, "++train.examples=7")["train"]["examples"] == 7
    assert composed(copy, "--cfg", "job")["optimizer"]["batch_size"] == 32
    (tmp_path / "elsewhere" / "recipe").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - /recipe/fast\n  - _self_\nseed: 5\n"
    (tmp_path / "elsewhere" / "recipe" / "mine.yaml").write_text(text)
    mine = composed(copy, "recipe=mine", "--config-dir", str(tmp_path / "elsewhere"))
    assert (mine["name"], mine["seed"], mine["model"]["filters"]) == ("mine", 5, 32)


def test_no_environment_variable_gets_into_a_file_of_the_configuration_or_a_sweep(copy):
    (copy / "conf/sweep/mine.yaml").write_text(
        "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '${oc.env:HOME}'}}}\n"
    )
    assert "Unsupported interpolation type oc.env" in error_of(copy, "sweep=mine")
    with (copy / "conf/recipe/fast.yaml").open("a") as file:
        file.write("dataset: ${oc.env:HOME}\n")
    assert "Unsupported interpolation type oc.env" in error_of(copy, "recipe=fast")


@pytest.mark.parametrize("words", [["-m", "train.epochs=1,many"], ["recipe=fast", "-m", "train.epochs=1,many"]])
def test_a_sweep_with_one_wrong_value_ends_before_its_first_job(repository, words):
    """The words may stand before and after the option."""
    line = error_of(repository, *words)
    assert "train.epochs=many: input should be a valid integer" in line
    assert not [path for path in repository.glob("multirun/*/*") if path.is_dir()]


def test_only_train_sweeps(copy):
    done = run("python", "-m", "pipeline.compose", "-m", "seed=3,4", cwd=copy)
    expected = "error: compose does not sweep: give one value per key, without -m\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


HELP = """
import sys
from pipeline.base.command import main
from pipeline import compare, evaluate, fetch, preprocess, reproduce, train
verbs = [fetch.fetch, preprocess.preprocess, train.train, evaluate.evaluate, compare.compare, reproduce.reproduce]
for verb, word in [*((verb, "--help") for verb in verbs), (train.train, "train.epochs=0")]:
    sys.argv = ["verb", word]
    try:
        main(verb)
    except SystemExit as end:
        print(end.code)
print({"tensorflow", "keras", "mlflow"} & set(sys.modules))
"""


def python(folder: Path, script: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", script, *words, cwd=folder, **variables)


def test_help_and_a_wrong_value_load_neither_tensorflow_nor_mlflow(copy):
    done = python(copy, HELP)
    for verb in ("fetch", "preprocess", "train", "evaluate", "compare", "reproduce"):
        assert f"python -m pipeline.{verb} key=value ..." in done.stdout
    assert done.stdout.count("error: train.epochs=0: input should be") == 1
    assert done.stdout.endswith("\nset()\n"), done.stdout + done.stderr


def test_help_lists_every_key_with_its_value_range_and_meaning(copy):
    done = run("python", "-m", "pipeline.evaluate", "--help", "recipe=fast", cwd=copy)
    assert done.returncode == 0, done.stderr
    listed = {line.partition("=")[0] for line in done.stdout.splitlines() if line and not line.startswith(" ")}
    assert set(fields(RunConfig)) - set(DERIVED) <= listed
    assert "optimizer.batch_size=64\n    examples; whole number from 1 to 65,536\n" in done.stdout
    recipes = "accurate, baseline, debug/one_batch, debug/overfit, fast, one_look, residual"
    assert f"  recipe=<name>  {recipes}\n" in done.stdout


FOLDERS = """
import json
from pathlib import Path
from pipeline.base.command import main
from pipeline.base.project import Project
from pipeline.base.schema import Config

def fetch(project: Project, config: Config) -> None:
    print(json.dumps([str(project.output(Path("stage"))), str(project.job_folder), *project.overrides]))

if __name__ == "__main__":
    main(fetch)
"""


def test_a_stage_of_dvc_writes_to_its_outputs_and_any_other_job_to_a_folder_of_its_own(copy):
    (copy / "pipeline/folders.py").write_text(FOLDERS)
    done = run("python", "-m", "pipeline.folders", "recipe=accurate", cwd=copy)
    output, job, word = json.loads(done.stdout)
    assert output == job and Path(job).parent == copy / "outputs" and word == "recipe=accurate"
    assert not (copy / "outputs").exists(), "a job that writes nothing leaves no folder"
    staged = open_project(copy)
    assert staged.stage is None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DVC_STAGE", "train@debug/one_batch")
        staged = open_project(copy)
    assert staged.output(staged.model("debug/one_batch")) == copy / "models/debug/one_batch/model.keras"


FAILING = """
from pipeline.base.command import main
from pipeline.base.project import Project
from pipeline.base.schema import Config

def fetch(project: Project, config: Config) -> None:
    {body}

if __name__ == "__main__":
    main(fetch)
"""


@pytest.mark.parametrize(
    ("body", "last", "is_bug"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero", True),
        ("raise MemoryError", "error: not enough memory:", False),
        ("open('/nosuch/file')", "error: /nosuch/file: No such file or directory: free the disk, or fix", False),
    ],
)
def test_a_bug_keeps_its_traceback_and_a_system_error_is_one_line(copy, body, last, is_bug):
    (copy / "pipeline/failing.py").write_text(FAILING.format(body=body))
    done = run("python", "-m", "pipeline.failing", cwd=copy)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(last)
    assert "Traceback" in done.stderr if is_bug else done.stderr.count("\n") == 1
