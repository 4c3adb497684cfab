"""Odd digits through the verbs: all labels alike, a class missing, one example, a huge batch, none at all.

Each ends in a correct result, or in one line that says what to change.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, generated_digits, start
from faults_report import record

from pipeline import data
from pipeline.config import Data, PipelineError, compose

pytestmark = pytest.mark.faults

SMALL = ("recipe=accurate", "model.filters=1", "train.epochs=1", "optimizer.batch_shards=1")
# One process for all verbs, as TensorFlow takes seconds to import: each line read is a verb's words and the digits to
# put in place before; each line written is how it ended.
VERBS = """
import contextlib, io, json, os, shutil, sys
from pipeline import compare, evaluate, train
verbs = {"train": train.train, "evaluate": evaluate.evaluate, "compare": compare.compare}
for line in sys.stdin:
    digits, verb, words = json.loads(line)
    shutil.copytree(digits, "data/processed", dirs_exist_ok=True)
    os.environ.pop("HYDRA_FULL_ERROR", None)
    said, sys.argv = io.StringIO(), [verb, *words]
    try:
        with contextlib.redirect_stdout(said):
            verbs[verb]()
        end = ""
    except SystemExit as ended:
        end = ended.code
    except BaseException as error:
        end = f"lost: {error!r}"
    print(json.dumps([said.getvalue(), end]), flush=True)
"""


def write(folder: Path, **labels: list[int]) -> None:
    """A split of generated digits with these labels."""
    for name in ("train", "val", "test"):
        count = len(labels[name])
        digits = (generated_digits(count, 0)[0].reshape(count, 28, 28), np.array(labels[name], np.uint8))
        data.save_arrays(folder / f"{name}.npz", **data.Examples(*digits, np.arange(count, dtype=np.int32))._asdict())
    record = data.split_record(compose("recipe=baseline").data)
    (folder / "split.json").write_text(json.dumps(record))


TENS = [n % 10 for n in range(40)]
DIGITS = {  # what each set holds for training, validation and test
    "usual": (TENS, TENS, TENS),
    "all labels alike": ([3] * 40, [3] * 10, [3] * 10),
    "a class missing in training": ([n % 9 for n in range(40)], TENS, TENS),
    "a class missing in the test": (TENS, TENS, [n % 9 for n in range(40)]),
    "one example": ([5], [5], [5]),
    "no validation": (TENS, [], TENS),
    "no training": ([], TENS, TENS),
    "no test": (TENS, TENS, []),
}
RIGHT = ["one example", "no validation"]
ALSO_RIGHT = ["usual", "all labels alike", "a class missing in training", "a class missing in the test"]


class Verbs:
    """A repository's copy, and the process that runs verbs in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("pipeline", "conf", "reference"):
            shutil.copytree(ROOT / name, folder / name)
        shutil.copy(ROOT / "params.yaml", folder)
        for name, (train, val, test) in DIGITS.items():
            write(folder / "sets" / name, train=train, val=val, test=test)
        self.process = start("python", "-c", VERBS, cwd=folder, stdin=subprocess.PIPE, stderr=None)

    def __call__(self, digits: str, verb: str, *words: str) -> tuple[str, str]:
        """What the verb said, and its refusal."""
        assert self.process.stdin and self.process.stdout
        print(json.dumps([f"sets/{digits}", verb, words]), file=self.process.stdin, flush=True)
        said, refusal = json.loads(self.process.stdout.readline())
        return said, refusal

    def trained(self, digits: str, *words: str) -> str:
        """The id of the run that this trains."""
        said, refusal = self(digits, "train", *SMALL, *words)
        assert not refusal, refusal
        return said.split()[-1]

    def figures(self) -> dict[str, Any]:
        """Of the newest evaluation."""
        newest = max(self.folder.glob("outputs/*/metrics.json"))
        return json.loads(newest.read_text())


@pytest.fixture(scope="module")
def verbs(tmp_path_factory, monkeypatch_module) -> Any:
    verbs = Verbs(tmp_path_factory.mktemp("odd"))
    with verbs.process:  # closes its pipes, which ends it
        yield verbs


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE"):
            patch.delenv(name, raising=False)
        yield patch


@pytest.mark.parametrize("digits", [*RIGHT, *(pytest.param(name, marks=pytest.mark.slow) for name in ALSO_RIGHT)])
def test_odd_digits_are_trained_on_and_evaluated_right(verbs, digits):
    run_id = verbs.trained(digits, "optimizer.batch_size=1000")  # larger than the data
    _, refusal = verbs(digits, "evaluate", f"run={run_id}")
    assert not refusal, refusal
    figures, labels = verbs.figures(), DIGITS[digits][2]
    assert figures["test_examples"] == len(labels)
    predictions = max(verbs.folder.glob("outputs/*/predictions.csv")).read_text().splitlines()[1:]
    columns = [[int(field) for field in row.split(",")[1:3]] for row in predictions]
    assert [label for label, _ in columns] == labels
    wrong = sum(label != prediction for label, prediction in columns)
    assert figures["test_errors"] == wrong and figures["test_accuracy"] == pytest.approx(1 - wrong / len(labels))
    assert figures["test_accuracy_low"] <= figures["test_accuracy"] <= figures["test_accuracy_high"]
    assert (figures["val_accuracy"] is None) == (digits == "no validation")
    record("odd digits end in a right result, or one line", 1, 1)


REFUSED = {
    "no training": ("train", "data/processed/train.npz holds no example: give a larger data.fraction"),
    "no test": ("evaluate", "data/processed/test.npz holds no example: give a larger data.fraction"),
}


@pytest.mark.parametrize("digits", REFUSED)
def test_no_digits_at_all_are_refused_in_one_line(verbs, digits):
    verb, expected = REFUSED[digits]
    _, refusal = verbs(digits, verb)
    assert expected in refusal and refusal.startswith("error: ") and "\n" not in refusal
    record("odd digits end in a right result, or one line", 1, 1)


def test_a_last_batch_of_fewer_digits_than_shards_is_refused_in_one_line(verbs):
    _, refusal = verbs("one example", "train", *SMALL, "optimizer.batch_shards=2")
    assert refusal.startswith(
        "error: 1 examples leave a last batch smaller than optimizer.batch_shards=2: give another"
    )
    record("odd digits end in a right result, or one line", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("digits", ["all labels alike", "one example"])
def test_odd_digits_are_compared(verbs, digits):
    runs = [verbs.trained(digits, f"model.filters={filters}") for filters in (1, 2)]
    said, refusal = verbs(digits, "compare", f"a={runs[0]}", f"b={runs[1]}")
    assert not refusal and f"{len(DIGITS[digits][1])} validation examples" in said, refusal
    record("odd digits end in a right result, or one line", 1, 1)


@pytest.mark.slow
def test_runs_without_validation_digits_are_compared_after_their_evaluation_alone(verbs):
    runs = [verbs.trained("no validation", f"model.filters={filters}") for filters in (1, 2)]
    words = (f"a={runs[0]}", f"b={runs[1]}")
    _, refusal = verbs("no validation", "compare", *words)
    assert refusal.startswith("error: a run has no validation examples: evaluate all on the test examples")
    for run_id in runs:
        verbs("no validation", "evaluate", f"run={run_id}")
    said, refusal = verbs("no validation", "compare", *words)
    assert not refusal and "40 test examples" in said, refusal
    record("odd digits end in a right result, or one line", 1, 1)


@pytest.mark.parametrize(
    ("fraction", "val_size", "left"),
    [(0.001, 0, "leave 0 training and 0 test examples"), (1.0, 200, "leave 0 training and 50 test examples")],
)
def test_a_split_that_leaves_nothing_to_train_on_is_refused(fraction, val_size, left):
    parts = [*generated_digits(200, 0), *generated_digits(50, 1)]
    settings = Data("mnist", [28, 28], [str(digit) for digit in range(10)], True, val_size, 0, fraction, {}, [], {})
    with pytest.raises(
        PipelineError, match=f"^data.fraction={fraction} and data.val_size={val_size} {left}: give a larger"
    ):
        data.split(dict(zip(data.ARRAYS, parts, strict=True)), settings)
    record("odd digits end in a right result, or one line", 1, 1)
