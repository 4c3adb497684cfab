"""The configuration: its sources, its limits, and how a command refuses what it is given."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, run
from omegaconf import OmegaConf

from pipeline import command
from pipeline import config as configuration
from pipeline.config import ARRAYS, Config, PipelineError, network, validate

RECIPES = sorted((ROOT / "conf" / "recipe").rglob("*.yaml"))
DATA = sorted((ROOT / "conf" / "data").rglob("*.yaml"))


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """All that is no section, under its dotted key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_composes_within_the_limits_under_its_own_name(compose, path):
    name = path.relative_to(ROOT / "conf" / "recipe").with_suffix("").as_posix()
    config = compose(f"recipe={name}")
    validate(config)
    assert config.name == name
    own = load(path)
    composed = configuration.to_dict(config)
    for section in own.keys() - {"defaults"}:
        assert composed[section] == composed[section] | own[section]


def test_overfit_takes_every_digit_as_it_is(compose):
    amounts = dataclasses.asdict(compose("recipe=debug/overfit").augment)
    assert {key for key, amount in amounts.items() if amount} <= {"full_until", "last"} and len(amounts) == 7


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_a_data_file_composes_within_the_limits_under_its_own_name(compose, path):
    config = compose(f"data={path.stem}")
    validate(config)
    assert config.data.name == path.stem and set(config.data.sha256) == set(config.data.files)


WHOLE, DELTAS = ([path for path in RECIPES if ("defaults" in load(path)) == delta] for delta in (False, True))


@pytest.mark.parametrize("recipe", DELTAS, ids=lambda path: path.stem)
def test_a_recipe_that_changes_another_gives_only_what_differs(compose, recipe):
    own = load(recipe)
    (base, itself) = own.pop("defaults")
    assert itself == "_self_"
    before = flat(configuration.to_dict(compose(f"recipe={Path(base).name}")))
    assert flat(own).keys() <= before.keys()
    assert [key for key, value in flat(own).items() if before[key] == value] == []


@pytest.mark.parametrize("recipe", WHOLE, ids=lambda path: path.stem)
def test_every_value_has_exactly_one_source(compose, recipe):
    given = [*flat(load(ROOT / "params.yaml")), *flat(load(recipe)), *flat({"data": load(DATA[0])})]
    assert sorted([*given, "name", "data.name"]) == sorted(flat(configuration.to_dict(compose())))


def test_what_one_verb_alone_takes_is_no_configuration_of_a_run(compose):
    config = compose()
    assert configuration.to_dict(configuration.RunConfig(**vars(config), run="some")) == configuration.to_dict(config)


def test_what_dvc_builds_exists_and_every_listed_name_is_a_file(compose):
    config = compose()
    assert set(config.recipes) <= {path.stem for path in RECIPES} and config.recipes
    assert config.dataset in {path.stem for path in DATA}


# A default of the schema stands for every run that was recorded before the key was there.
AS_BEFORE = {
    "train.examples": None,  # all
    "evaluate.views": 1,
    "model.precision": "float32",
    "optimizer.row_strips": 1,
    "augment.stretch": 0.0,
    "augment.full_until": 0.0,
    "augment.last": 1.0,  # the amounts do not fall
}


def test_a_key_of_the_schema_has_no_value_but_for_those_that_came_later(compose):
    sections = {"": configuration.Config} | {
        f"{name}.": type(section) for name, section in vars(compose()).items() if dataclasses.is_dataclass(section)
    }
    defaults = {
        f"{name}{field.name}": field.default for name, kind in sections.items() for field in dataclasses.fields(kind)
    }
    assert {key: default for key, default in defaults.items() if default != "???"} == AS_BEFORE
    assert len(defaults) > 40


def test_a_recorded_configuration_lacks_keys_that_came_later_and_has_some_that_went(composed):
    recorded = configuration.to_dict(composed)
    for key in AS_BEFORE:
        section, _, name = key.partition(".")
        del recorded[section][name]
    recorded["train"]["profile_steps"] = 0
    read = configuration.from_dict(recorded, "config.yaml")
    assert read.optimizer.row_strips == 1 and composed.optimizer.row_strips == 2
    assert {key: flat(configuration.to_dict(read))[key] for key in AS_BEFORE} == AS_BEFORE
    assert recorded["train"]["profile_steps"] == 0, "what was handed over stays as it is"
    with pytest.raises(PipelineError, match="was written by other code"):
        configuration.from_dict(recorded | {"unheard_of": 1}, "config.yaml")


def test_what_is_written_and_hashed_leaves_out_keys_that_have_their_default(compose):
    plain, cut = (compose("recipe=baseline", f"optimizer.row_strips={count}") for count in (1, 2))
    left_out = flat(configuration.to_dict(plain)).keys() - flat(configuration.explicit(plain)).keys()
    assert left_out == AS_BEFORE.keys()
    assert configuration.explicit(cut)["optimizer"] == configuration.explicit(plain)["optimizer"] | {"row_strips": 2}
    assert configuration.from_dict(configuration.explicit(cut), "config.yaml") == cut


def test_a_copied_file_has_a_name_of_its_own(copy):
    for group in ("recipe", "data"):
        folder = copy / "conf" / group
        shutil.copy(folder / {"recipe": "accurate.yaml", "data": "mnist.yaml"}[group], folder / "mine.yaml")
    done = run(sys.executable, "-m", "pipeline.compose", "recipe=mine", "data=mine", cwd=copy)
    values = yaml.safe_load(done.stdout)
    assert (values["name"], values["data"]["name"]) == ("mine", "mine")
    with (copy / "conf/recipe/mine.yaml").open("a") as file:
        file.write("name: accurate\n")  # as recipes had it once
    expected = "error: name=accurate: the name is that of the file, recipe=mine: remove the key\n"
    assert refusal(copy, "recipe=mine") == expected


SEED, SHARE = "a whole number from 0 to 2147483647", "a number from 0 to below 1"
SIZE, UNITS = "a whole number from 1 to 1000", "at most 50 whole numbers from 1 to 100000"
NAME = "plain names: letters, digits, _ - and . alone, at most 64 and no . first"
EACH = "one each for train_images, train_labels, test_images, test_labels"
LIMITS = {  # what is given: what is asked for instead
    "name=../elsewhere": NAME,
    "name=<b>x</b>": NAME,
    "name=a/": NAME,
    "data.name=a|b": NAME,
    "seed=-1": SEED,
    "seed=2147483648": SEED,
    "train.epochs=0": "a whole number from 1 to 10000",
    "train.examples=0": "a whole number from 1 to 2147483647, or null for all",
    "train.examples=2147483648": "a whole number from 1 to 2147483647, or null for all",
    "data.image_shape=[]": "two whole numbers from 1 to 1000",
    "data.image_shape=[28, [28]]": "two whole numbers from 1 to 1000",
    "data.classes=['a']": "2 to 256 different names of at most 40 characters",
    "data.classes=['a', 'a']": "2 to 256 different names of at most 40 characters",
    "data.val_size=-1": SEED,
    "data.split_seed=-1": SEED,
    "data.fraction=0.0": "a number above 0, at most 1",
    "data.fraction=1.01": "a number above 0, at most 1",
    "evaluate.confidence=1.0": "a number from 0.5 to below 1",
    "evaluate.calibration_bins=1": "a whole number from 2 to 1000",
    "evaluate.views=3": "1 or 5",
    "model.filters=0": "a whole number from 1 to 10000",
    "model.pooling=max": "flatten or average",
    "model.units=[64, 0]": UNITS,
    "model.units=[[1]]": UNITS,
    "model.pixel_scale=1.5": "a number above 0, at most 1",
    "model.precision=float16": "float32 or mixed_bfloat16",
    "optimizer.batch_size=0": "a whole number from 1 to 65536",
    "optimizer.batch_shards=17": "a whole number from 1 to 16",
    "optimizer.row_strips=27": "a whole number from 1 to 26",
    "optimizer.learning_rate=nan": "a number above 0, at most 10",
    "optimizer.schedule=cosine": "constant or one_cycle",
    "optimizer.warmup=1.0": SHARE,
    "optimizer.weight_decay=-0.1": SHARE,
    "optimizer.label_smoothing=1.0": SHARE,
    "augment.rotation=180.0": "a number from 0 to below 180",
    "augment.scale=1.0": SHARE,
    "augment.stretch=1.0": SHARE,
    "augment.shear=-0.1": SHARE,
    "augment.shift=28.0": "a number from 0 to below 28",
    "augment.full_until=1.0": SHARE,
    "augment.last=1.1": "a number from 0 to 1",
    "name=../../x": NAME,
    "name=-x": NAME,
    "dataset=/x": NAME,
    "data.name=.x": NAME,
    "recipes=['a b']": NAME,
    "recipes=[['a']]": NAME,
}
LAYER = {"multiple": 1, "kernel_size": 3, "strides": 1, "padding": "same", "pool": 1}
LAYERS = {  # the value given of a convolution: what is asked for instead
    "multiple=0": SIZE,
    "kernel_size=0": SIZE,
    "strides=0": SIZE,
    "padding=full": "valid or same",
    "pool=0": SIZE,
}
CUT = "optimizer.row_strips=2"
UNCUT = "1: only one valid convolution, 'flatten' and units can be cut"


def convolutions(**values: object) -> str:
    return f"model.convolutions={json.dumps([LAYER | values])}"


CASES = [(given, given, expected) for given, expected in LIMITS.items()]
CASES += [
    (convolutions(**dict([given.split("=")])), f"model.convolutions[0].{given}", expected)
    for given, expected in LAYERS.items()
]
CASES += [
    ("recipes=[accurate, /etc]", "recipes=['accurate', '/etc']", NAME),
    (convolutions(kernel_size=29, padding="valid"), "model.convolutions=[0, 0]", "fewer or smaller ones"),  # of 28
    (convolutions(pool=29), "model.convolutions=[0, 0]", "fewer or smaller ones"),
    *((given, CUT, UNCUT) for given in ("model.batch_norm=true", "model.pooling=average", "model.units=[]")),
    *((convolutions(**given), CUT, UNCUT) for given in ({}, {"padding": "valid", "strides": 2})),
    (f"model.convolutions={json.dumps([LAYER] * 51)}", "model.convolutions=51 layers", "at most 50 layers"),
    ("model.filters=10000", "model=432,744,874 weights", "fewer or smaller layers: at most 100,000,000 weights"),
    (
        "model={filters: 10000, pooling: average, units: []}",
        "model=6,760,794 values",  # 28² and 26² x 10,000 and 10
        "fewer or smaller layers: at most 2,000,000 values that they compute for an example",
    ),
    ("optimizer.batch_size=65536", "optimizer.batch_size=65536", "at most 22631, which this network can hold"),
    ("data.sources=[[a]]", "data.sources=[['a']]", "a list of addresses"),
]


@pytest.fixture(scope="module")
def composed(compose) -> Config:
    return compose(CUT)


def changed(config: Config, override: str) -> Config:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config), OmegaConf.from_dotlist([override])))


DATA_CASES = [
    ("files", {"train_images": "x"}, "data.files", EACH),
    ("files", dict.fromkeys(ARRAYS, "../x"), "data.files.train_images", NAME),
    ("sha256", {}, "data.sha256", EACH),
    ("sha256", dict.fromkeys(ARRAYS, "x" * 64), "data.sha256.train_images", "64 hexadecimal digits"),
]


@pytest.mark.parametrize(("field", "value", "named", "expected"), DATA_CASES)
def test_data_that_name_no_whole_set_of_arrays_are_refused(composed, field, value, named, expected):
    data = dataclasses.replace(composed.data, **{field: value})
    with pytest.raises(PipelineError, match=f"^{named}=.* is out of range: give {re.escape(expected)}$"):
        validate(dataclasses.replace(composed, data=data))


@pytest.mark.parametrize(("override", "named", "expected"), CASES)
def test_a_value_out_of_range_is_refused_with_what_to_give(composed, override, named, expected):
    with pytest.raises(PipelineError) as refused:
        validate(changed(composed, override))
    assert str(refused.value).startswith(f"{named} is out of range: give {expected}")


def test_every_limit_is_tried_above(composed):
    tried = {named.partition("=")[0] for _, named, _ in CASES} | {named for *_, named, _ in DATA_CASES}
    limited = {key for key, *_ in configuration._limits(composed)}
    assert {key for key in limited if not key.endswith(("train_labels", "test_images", "test_labels"))} <= tried


def test_multiply_adds_by_hand(compose):
    # Published: 26 x 26 x 9 x 64 for the convolution, then 43,264 x 64 + 64 x 64 + 64 x 10.
    assert network(compose("recipe=baseline")).multiply_adds == 389_376 + 2_768_896 + 4_096 + 640
    # 26² x 9 x 16, pooled to 13; 11² x 9 x 16 x 32; 9² x 9 x 32 x 64, pooled to 4; 2² x 9 x 64 x 256; 256 x 10.
    expected = 97_344 + 557_568 + 1_492_992 + 589_824 + 2_560
    assert network(compose("recipe=accurate")).multiply_adds == expected


ON_THE_EDGE = """data.fraction=1 data.val_size=0 evaluate.confidence=0.5 evaluate.calibration_bins=2 seed=2147483647
    model.units=[1] model.pixel_scale=1 optimizer.batch_shards=16 augment.shift=27.9 optimizer.row_strips=26
    train.examples=1 train.examples=null"""


@pytest.mark.parametrize("override", ON_THE_EDGE.split())
def test_a_value_on_the_edge_is_accepted_as_given(composed, override):
    config = changed(composed, override)
    validate(config)
    section, _, key = override.partition("=")[0].rpartition(".")
    value = getattr(getattr(config, section) if section else config, key)
    assert value == yaml.safe_load(override.partition("=")[2])


@pytest.fixture
def copy(tmp_path) -> Path:
    """The commands and their configuration, without data, in a folder of their own."""
    for name in ("pipeline", "conf", "reference"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def refusal(copy: Path, *words: str) -> str:
    """The one line of a refused training, which left nothing behind."""
    before = sorted(path.name for path in copy.iterdir())
    done = run("python", "-m", "pipeline.train", *words, cwd=copy)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
    assert sorted(path.name for path in copy.iterdir()) == before
    return done.stderr


REFUSED = {
    "train.epoch=3": "'train.epoch': Key 'epoch' not in 'Train'",
    "+train.epoch=3": "+train.epoch=3: keys are neither added nor removed",
    "~seed": "~seed: keys are neither added nor removed",
    "+hydra.launcher.ray._target_=os.system": "keys are neither added nor removed",
    "+hydra.launcher.ray.init._target_=os.system": "keys are neither added nor removed",
    "+hydra.launcher.ray.remote.x={_target_: os.system}": "keys are neither added nor removed",
    "train.epochs=many": "train.epochs=many: Value 'many' of type 'str' could not be converted to Integer",
    "train.epochs=0": "train.epochs=0 is out of range: give a whole number from 1 to 10000",
    "recipe=nosuch": "Could not find 'recipe/nosuch' Available options in 'recipe': accurate baseline",
    "train.epochs": "'train.epochs' missing EQUAL",
    f"seed={'[' * 100_000}": "(100,005 characters): give at most 4,000 characters, all words together",
    f"seed={'[' * 300}": "(305 characters): give at most 10 brackets within one another",
    "seed=${oc.env:HOME}": "seed=${oc.env:HOME}: refers to another value: write the value out",
    "name='a\nb'": "name='a b': holds characters that do not print",
    "hydra.searchpath=[x]": "hydra.searchpath=[x]: a key of Hydra's that stays as it is",
    "--config-dir=x": "--config-dir=x: no option: give key=value, or -m, --multirun, -h, --help",
    "name=x": "name=x: the name is that of the file, recipe=baseline: remove the key",
    "recipe=null": "recipe=null: ValueError, Config group override must be a string or a list",
    "name=ä": "name=ä: LexerNoViableAltException: name=ä: give key=value, or key=\"'value'\" for other characters",
}


@pytest.mark.parametrize("word", REFUSED)
def test_a_command_refuses_a_bad_word_in_one_line(copy, word):
    assert REFUSED[word] in refusal(copy, word)


BROKEN = {  # what is put at the end of params.yaml, and the one line; {line} is the first line put there
    "unclosed list": ("extra: [1}\n", "error: params.yaml:{line}:10: broken YAML, did not find expected ',' or ']'"),
    "alias": ("extra: &a [*a]\n", "error: params.yaml:{line}: a YAML alias (*name): write the value out"),
    "repeated key": ("seed: 1\n", "error: params.yaml:{line}"),
    "tag": (
        "extra: !!python/object:os.system {}\n",
        "error: params.yaml:{line}: the YAML tag tag:yaml.org,2002:python/",
    ),
    "depth": (f"extra: {'[' * 99}\n", "error: params.yaml:{line}: more than 10 lists or mappings within one another"),
    "length": (f"#{'-' * 100_000}\n", "error: params.yaml: 100,"),
    "no UTF-8": ("\udcff", "error: params.yaml: not YAML in UTF-8"),
    "unknown key": (
        "extra: 1\n",
        "error: In '../params': ConfigKeyError raised while composing config: Key 'extra' not",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_refused_by_its_name_and_line(copy, case):
    added, expected = BROKEN[case]
    text = (ROOT / "params.yaml").read_text()
    (copy / "params.yaml").write_text(text + added, errors="surrogateescape")
    assert refusal(copy).startswith(expected.format(line=text.count("\n") + 1))


@pytest.mark.parametrize(
    "header", ["# @package&_global_", "# @package", "#@package _global_ again", "# @pack _global_"]
)
def test_a_broken_header_is_refused_by_its_file(copy, header):
    file = copy / "conf" / "recipe" / "baseline.yaml"
    whole = file.read_text()
    assert whole.startswith("# @package _global_\n")
    file.write_text(whole.replace("# @package _global_", header))
    expected = f"error: conf/recipe/baseline.yaml: the header {header}: give # @package _global_, as Hydra has it"
    try:
        assert refusal(copy) == f"{expected}\n"
    finally:
        file.write_text(whole)


@pytest.mark.parametrize("reference", ["${oc.env:HOME}", "${dataset}", "a${oc.select:dataset}"])
def test_a_reference_to_another_value_is_refused_wherever_it_stands(composed, reference, monkeypatch):
    values = configuration.to_dict(composed)
    for key in ("name", "dataset"):
        with pytest.raises(PipelineError, match=f"^{key}={re.escape(reference)} refers to another value"):
            configuration.from_dict(values | {key: reference}, "config.yaml")


def test_no_environment_variable_gets_into_a_sweep_either(copy):
    preset = copy / "conf" / "sweep" / "mine.yaml"
    preset.write_text("# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {name: '${oc.env:HOME}'}}}\n")
    assert "Unsupported interpolation type oc.env" in refusal(copy, "sweep=mine")


def test_a_sweep_of_too_many_jobs_is_refused_before_it_is_counted_out(copy):
    assert "seed=range(0,1e12): 1e+12 jobs: give values for at most" in refusal(copy, "-m", "seed=range(0,1e12)")


def test_words_may_stand_before_and_after_the_option(copy):
    assert "seed=range(0,1e12): 1e+12 jobs" in refusal(copy, "recipe=fast", "-m", "seed=range(0,1e12)")


@pytest.mark.parametrize("key", ["null", "1", "true", "{a: b}"])
def test_a_key_that_is_no_name_is_refused_with_its_file(copy, key):
    with (copy / "conf/recipe/fast.yaml").open("a") as file:
        file.write(f"{key}: 1\n")
    assert refusal(copy, "recipe=fast").startswith("error: conf/recipe/fast.yaml:")


def test_a_sweep_with_one_wrong_type_is_refused_before_its_first_job(copy):
    done = run("python", "-m", "pipeline.train", "-m", "train.epochs=1,many", cwd=copy)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stdout == ""
    assert done.stderr.startswith("error: train.epochs=many: Error merging override train.epochs=many: Value 'many' of")
    assert not [path for path in copy.glob("multirun/*/*") if path.is_dir()]


def python(folder: Path, script: str, words: Iterable[str] = (), **variables: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", script, *words, cwd=folder, **variables)


STAGES = """
import sys
from pipeline import compare, evaluate, fetch, preprocess, reproduce, train
stages = [fetch.fetch, preprocess.preprocess, train.train, evaluate.evaluate, compare.compare, reproduce.reproduce]
for stage, word in [*((stage, "--help") for stage in stages), (train.train, "train.epochs=0")]:
    sys.argv = ["stage", word]
    try:
        stage()
    except SystemExit as end:
        print(end.code)
print({"tensorflow", "keras", "mlflow"} & set(sys.modules))
"""


def test_help_of_every_stage_and_a_refusal_load_neither_tensorflow_nor_mlflow(copy):
    done = python(copy, STAGES)
    assert done.stdout.count("Change any value below with key=value:") == 6
    assert done.stdout.count("error: train.epochs=0 is out of range") == 1
    assert done.stdout.endswith("\nset()\n"), done.stdout + done.stderr


FOLDERS = """
import json
from pipeline.command import entry_point, output_folders, overrides

@entry_point
def fetch(config):
    print(json.dumps([*map(str, output_folders(config)), *overrides()]))

fetch()
"""


def test_a_dvc_stage_writes_to_its_outputs_and_any_other_run_to_a_folder_of_its_own(copy, compose, monkeypatch):
    done = python(copy, FOLDERS, ["recipe=accurate"])
    model, results, word = json.loads(done.stdout)
    assert model == results and Path(model).parent == copy / "outputs" and word == "recipe=accurate"
    assert list((copy / "outputs").iterdir()) == [Path(model)]
    monkeypatch.setenv("DVC_STAGE", "train@debug/one_batch")
    staged = command.output_folders(compose("recipe=debug/one_batch"))
    assert staged == (ROOT / "models/debug/one_batch", ROOT / "results/recipes/debug/one_batch")


def test_only_train_sweeps(copy):
    done = python(copy, FOLDERS, ["-m", "seed=3,4"])
    assert done.returncode == 1 and "error: fetch does not sweep: give one value a key, without -m" in done.stderr


@pytest.mark.parametrize(
    ("body", "last", "lines"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero", 9),
        (
            "exec('raise ImportError(\"tf.so: failed to map segment from shared object\")')",
            "error: not enough memory: end other programs, or lift the limit (ulimit -v), and give the same",
            0,
        ),
        ("open('/nosuch/file')", "error: /nosuch/file: No such file or directory: free the disk, or mend the path", 0),
    ],
)
def test_a_bug_keeps_its_traceback_and_a_system_error_is_one_line(copy, body, last, lines):
    done = python(copy, f"from pipeline.command import entry_point; entry_point(lambda config: {body})()")
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith(last)
    assert done.stderr.count("\n") > lines if lines else done.stderr.count("\n") == 1
