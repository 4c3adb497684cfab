"""The jobs of a sweep: paired values, what a run is named by, and which keys decide how a sweep runs."""

from __future__ import annotations

import hydra
import pytest
from conftest import ROOT
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from pipeline.base.errors import UserError
from pipeline.base.validation import without_own_keys
from pipeline.base.verb_schemas import TrainConfig, labels
from pipeline.experiments import jobs
from pipeline.experiments.jobs import grid, named, run_just

SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


@pytest.fixture(autouse=True)
def composing():
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield


def test_the_values_of_paired_keys_go_together_and_cross_the_others():
    words = [
        "recipe=fast",
        "model.filters=2,4,8",
        "seed=range(0,2)",
        "optimizer.learning_rate=.1,.2,.3",
        "model.units=[1],[2],[3]",
    ]
    factors, found = grid(words, ["model.filters", "optimizer.learning_rate", "model.units"])
    assert factors == ["model.filters,optimizer.learning_rate,model.units", "seed"]
    assert found == [
        [
            f"model.filters={filters}",
            f"optimizer.learning_rate={rate}",
            f"model.units={units}",
            "recipe=fast",
            f"seed={seed}",
        ]
        for filters, rate, units in ((2, 0.1, "[1]"), (4, 0.2, "[2]"), (8, 0.3, "[3]"))
        for seed in (0, 1)
    ]
    _, again = grid([*words, "model.filters=range(1,4)"], ["model.filters", "optimizer.learning_rate", "model.units"])
    assert [job[0] for job in again[::2]] == [f"model.filters={filters}" for filters in (1, 2, 3)], (
        "the last one counts"
    )


def test_many_pairs_are_counted_as_jobs_and_not_as_combinations():
    words = [f"{key}=range(1,101)" for key in ("seed", "model.filters", "train.epochs")]
    assert len(grid(words, ["seed", "model.filters", "train.epochs"])[1]) == 100
    with pytest.raises(UserError, match="10,000 jobs, expected 1 to 1,000"):
        grid(words, ["seed", "model.filters"])


@pytest.mark.parametrize(
    ("zipped", "message"),
    [
        (
            ["seed", "train.epochs"],
            "sweep.zip takes the i-th values together, but seed has 3, train.epochs has 2: give as",
        ),
        (
            ["seed", "model.filters"],
            "sweep.zip names model.filters, which has one value or none: give model.filters=a,b",
        ),
        (["seed", "recipe"], "sweep.zip names recipe, which has one value or none"),
    ],
)
def test_pairs_that_do_not_fit_are_refused_in_one_line(zipped, message):
    with pytest.raises(UserError, match=rf"\A{message}[^\n]*\Z"):
        grid(["recipe=fast", "seed=1,2,3", "train.epochs=1,2"], zipped)


def test_hydras_sweeper_runs_just_the_jobs_that_were_checked(monkeypatch):
    kind = type(Plugins.instance()._instantiate(OmegaConf.create({"_target_": SWEEPER, "max_batch_size": 2})))
    monkeypatch.setattr(kind, "split_arguments", kind.split_arguments)  # undone afterwards
    run_just([["a=1"], ["a=2"], ["a=3"]])
    assert kind.split_arguments([], 2) == [[["a=1"], ["a=2"]], [["a=3"]]]
    assert kind.split_arguments([], None) == [[["a=1"], ["a=2"], ["a=3"]]]


def test_note_tags_and_how_a_sweep_runs_are_no_part_of_a_training(compose):
    words = ["recipe=fast", "note='it, (really) works: 7'", "tags.owner=me", "+tags.try=2", "sweep.zip=[a,b]"]
    given = compose(*words, "sweep.fail_fast=true", schema=TrainConfig, name="train")
    assert labels(given) == {"owner": "me", "try": "2", "note": "it, (really) works: 7"}
    assert given.sweep.zip == ["a", "b"] and given.sweep.fail_fast
    plain = compose("recipe=fast", name="train")
    assert without_own_keys(given) == plain and labels(plain) == {}
    assert named(words) == ["recipe=fast", "sweep.zip=[a,b]"]
    assert set(jobs.OWN_KEYS) == {"note", "tags", "sweep"}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tags.recipe=mine", "tags.recipe is a tag of ours: give yours another name"),
        ("tags.copied_from=paper", "tags.copied_from is a tag of ours"),
        ("tags.progress=half", "tags.progress is a tag of ours"),
        ("tags.content_sha256=0", "tags.content_sha256 is a tag of ours"),
        ("tags.a.b=1", "tags.a={'b': 1}: give a text or a number, in a name without dots"),
        ("sweep.zip=seed", "sweep.zip=seed: input should be a valid list"),
        ("sweep.zap=1", "sweep.zap is no key: did you mean sweep.zip?"),
    ],
)
def test_a_wrong_label_or_way_to_run_is_refused(compose, word, message):
    with pytest.raises(UserError) as refused:
        compose(word, schema=TrainConfig, name="train")
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)
