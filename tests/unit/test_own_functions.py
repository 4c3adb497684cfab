"""Metrics, plots and trackers of the user's own, as the configuration names them."""

from __future__ import annotations

import math
import re
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT

from pipeline.base import own
from pipeline.base.errors import UserError
from pipeline.base.hydra import compose
from pipeline.base.project import Project
from pipeline.base.schema import PLOTS, Config
from pipeline.base.validation import validate
from pipeline.experiments import ranking
from pipeline.experiments.children import rank
from pipeline.model.kept import better
from pipeline.tracking.fingerprint import fingerprint, training_values

OWN = """
def macro_f1(labels, probabilities):
    raise ValueError("two words")

class Tracker:
    pass
"""


@pytest.fixture
def repository(tmp_path) -> Project:
    for name in ("conf", "pipeline", "params.yaml"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "own_functions.py").write_text(OWN)
    return Project(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+train.metrics.macro_f1=own_functions:macro_f1", "train.metrics.macro_f1: give a name that begins with val_"),
        ("+train.metrics.val_loss=own_functions:macro_f1", "train.metrics.val_loss: give a name that begins with val_"),
        ("+train.metrics.val_f1=macro_f1", "train.metrics.val_f1=macro_f1: string should match pattern"),
        ("+train.metrics.val_f1=own_functions:f1", "own_functions.py defines no function or class f1"),
        ("+train.metrics.val_f1=os:system", "os is no file of this repository: os.py is missing"),
        ("train.monitor=val_f1", "train.monitor=val_f1: give one of train_loss, train_accuracy, val_loss, val_acc"),
        (
            "+evaluate.plots.gallery=own_functions:macro_f1",
            "evaluate.plots.gallery is a plot of ours: give yours anoth",
        ),
        ("+evaluate.plots.mine=own_plots:mine", "own_plots is no file of this repository: own_plots.py is missing"),
        ("trackers=[own_functions:Trackers]", "own_functions.py defines no function or class Trackers"),
    ],
)
def test_what_cannot_be_is_refused_when_it_is_composed(repository, override, message):
    with pytest.raises(UserError, match=rf"\A[^\n]*{re.escape(message)}[^\n]*\Z"):
        compose(repository, override)
    assert "own_functions" not in sys.modules, "nothing of it has run"


def test_the_names_of_our_plots_are_those_that_are_drawn():
    text = (ROOT / "pipeline/evaluate.py").read_text()
    assert tuple(re.findall(r'^        "(\w+)": (?:plots|sheets|confusion_figure)\b', text, re.MULTILINE)) == PLOTS


def test_a_metric_is_of_the_fingerprint_and_trackers_and_what_is_ranked_by_are_not(repository):
    """What a sweep ranks by may change without a new training, unless patience stops by it."""
    plain = compose(repository)
    assert compose(repository, "train.metrics={}").model_dump() == plain.model_dump()

    def differs(*overrides: str) -> bool:
        files = [repository.root / "params.yaml"]
        return fingerprint(repository, compose(repository, *overrides), files) != fingerprint(repository, plain, files)

    tracker = "trackers=[pipeline.tracking.tensorboard:TensorBoard,own_functions:Tracker]"
    assert not differs(tracker) and not differs("train.monitor=val_loss", "train.pictures_every=3")
    assert differs("train.monitor=val_loss", "train.patience=2")
    metric = "+train.metrics.val_f1=own_functions:macro_f1"
    assert differs(metric)
    values = training_values(compose(repository, metric, "train.monitor=val_f1"))["train"]
    assert values["metrics"] == {"val_f1": "own_functions:macro_f1"} and len(values["source_sha256"]) == 64
    (repository.root / "own_functions.py").write_text(OWN.replace("two", "other"))
    assert training_values(compose(repository, metric))["train"]["source_sha256"] != values["source_sha256"]


def test_what_own_code_raises_is_one_line_that_names_its_line_and_keeps_its_traceback(repository):
    name = "own_functions:macro_f1"
    try:
        with pytest.raises(UserError) as raised, own.errors_named(repository.root, name):
            own.load(repository.root, name)(None, None)
    finally:
        sys.path.remove(str(repository.root))
        del sys.modules["own_functions"]
    assert str(raised.value) == ("own_functions:macro_f1 in line 3 of own_functions.py: ValueError: two words")
    cause = raised.value.__cause__
    assert isinstance(cause, ValueError) and cause.__traceback__


@pytest.mark.parametrize(
    ("monitor", "score"),
    [("val_accuracy", 0.25), ("val_macro_f1", 0.25), ("val_loss", -0.25), ("train_loss", -0.25), ("val_error", -0.25)],
)
def test_more_is_better_but_of_losses_and_errors(monitor, score):
    assert better(monitor, 0.25) == score and math.isnan(better(monitor, math.nan))


def finished(name: str, **metrics: float) -> SimpleNamespace:
    tags = {"swept": f'{{"seed": "{name}"}}', "content_sha256": name, "group": "g0"}
    data = SimpleNamespace(params={}, metrics={"val_accuracy": 0.5, **metrics}, tags=tags)
    return SimpleNamespace(data=data, info=SimpleNamespace(status="FINISHED", run_id=name, run_name=name))


@pytest.mark.parametrize(("monitor", "order"), [("val_f1", "bac"), ("val_loss", "acb"), ("val_accuracy", "cab")])
def test_a_sweep_is_ranked_by_the_monitor_and_a_run_without_it_comes_last(monkeypatch, monitor, order):
    monkeypatch.setattr(ranking.queries, "curve", lambda run, key: [run.data.metrics.get(key, math.nan)])
    runs = [
        finished("a", val_accuracy=0.7, val_f1=-0.2, val_loss=0.1),
        finished("b", val_accuracy=0.6, val_f1=0.2),
        finished("c", val_accuracy=0.8, val_loss=0.2),
    ]
    children = rank(runs, monitor)
    assert "".join(child.run_id for child in children) == order
    text, picture = ranking.markdown(children, monitor), ranking._draw(children, ["seed"], monitor)
    [axes] = picture.axes
    drawn = [line.get_ydata()[0] for line in axes.lines]
    if monitor == "val_accuracy":
        assert "Last epoch, ranked by validation accuracy. The" in text and axes.get_ylabel().endswith(" accuracy in %")
        assert drawn == [80.0, 70.0, 60.0]
        return
    first = {"val_f1": "highest", "val_loss": "lowest"}[monitor]
    assert f"Last epoch, ranked by {monitor}, the {first} first, a run without it last; " in text
    header, _, *rows = ([cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[:5])
    assert header[2:4] == [monitor, "validation"] and axes.get_ylabel() == monitor
    assert [row[2] for row in rows] == {"val_f1": ["0.2", "-0.2", "nan"], "val_loss": ["0.1", "0.2", "nan"]}[monitor]
    assert drawn[:2] == [float(row[2]) for row in rows[:2]] and math.isnan(drawn[2])


def test_a_configuration_of_before_is_read_and_written_as_before(repository):
    values = compose(repository).model_dump(exclude_defaults=True)
    assert not {"trackers"} & set(values) and not {"metrics", "monitor", "source_sha256"} & set(values["train"])
    assert "plots" not in values["evaluate"]
    assert validate(Config, values) == compose(repository)
