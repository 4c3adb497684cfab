"""Generated values: every word, and every slip in a file of the configuration, is accepted, or is one line."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from typing import NamedTuple

import pytest
from conftest import ROOT
from faults_report import record
from hypothesis import HealthCheck, Phase, configuration, given, settings
from hypothesis import strategies as st

from pipeline.base import hydra
from pipeline.base.errors import one_line
from pipeline.base.project import Project, open_project
from pipeline.base.schema import Config
from pipeline.base.validation import fields, validate

pytestmark = pytest.mark.faults

QUICK, MANY = 15, 2_000
STORAGE = tempfile.TemporaryDirectory()  # what Hypothesis would keep in the working directory
configuration.set_hypothesis_home_dir(STORAGE.name)
HOME = os.environ["HOME"]

# fmt: off
TYPED = [  # what a person types, rightly or wrongly
    "0", "1", "2", "5", "15", "28", "32", "-1", "0.001", "0.5", "1.0", "1e-3", "1e5", "1e309", "9" * 30, "nan", ".inf",
    "-inf", "0x10", "010", "1,5", "0,5", "true", "True", "no", "null", "None", "", "''", "'3'", '"x"', "x", "mine",
    "a b", "'a b'", "ä", "mnist", "nosuch", "../x", "/etc/passwd", "~/x", "C:\\x", "[1]", "[1,2]", "[28,28]", "[1.5]",
    "[a,b]", "[a,a]", "[[1]]", "[]", "[1,2", "1]", "{}", "{a: 1}", "{a:1", "{a: {b: c}}", "a=b", "=", "#x", "%s",
    "${seed}", "${data.split_seed}", "${nosuch}", "${oc.env:HOME}", "${oc.env:NOSUCH,x}", "${", "$HOME", "range(0,3)",
    "choice(1,2)", "same", "valid", "flatten", "constant", "one_cycle", "float32", "- x", "\t", "x" * 100, "😀",
]
# fmt: on
KEYS = [*fields(Config), "recipe", "data", "train", "model", "train.epoch", "lr", "model.convolutions.0.pool", "seed.x"]
WORDS = st.builds(
    "{}{}={}".format, st.sampled_from(["", "", "", "+", "++"]), st.sampled_from(KEYS), st.sampled_from(TYPED)
).filter(lambda word: not word.lstrip("+").startswith(("recipe=[", "data=["))) | st.sampled_from(
    ["~seed", "~recipe", "seed", "train.epochs", "=1", ".", "model.units[0]=1", "-x"]
)
FILES = ["params.yaml", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "conf").glob("[dr]*/*.yaml"))]


class Edit(NamedTuple):
    """A file of the configuration with a slip in it."""

    file: str
    content: str


@st.composite
def edits(draw: st.DrawFn) -> Edit:
    """Give a line another value, misspell its key, indent it, repeat it, remove it, or cut the file there."""
    file = draw(st.sampled_from(FILES))
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines(keepends=True)
    number = draw(st.integers(0, len(lines) - 1))
    key, colon, rest = lines[number].partition(":")
    slips = [f"{key}{colon} {draw(st.sampled_from(TYPED))}\n", f"{key}x{colon}{rest}", f" {lines[number]}"]
    slip = draw(st.sampled_from([*slips, lines[number] * 2, "", re.sub("^ ", "\t", lines[number]), None]))
    return Edit(file, "".join([*lines[:number], *([] if slip is None else [slip, *lines[number + 1 :]])]))


@pytest.fixture
def project(tmp_path) -> Project:
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return open_project(tmp_path)


def what_is_wrong(project: Project, words: list[str], edit: Edit | None) -> tuple[str, str]:
    """Return whether these are accepted, and what is wrong with the answer, if anything."""
    if edit:
        (project.root / edit.file).write_text(edit.content, encoding="utf-8")
    try:
        config = hydra.compose(project, *words)
    except Exception as error:
        line = one_line(error)
        if line is None:
            return "error", f"a traceback: {error!r}"
        return "error", "" if line and "\n" not in line and HOME not in line else f"the line {line!r}"
    finally:
        if edit:
            shutil.copy(ROOT / edit.file, project.root / edit.file)
    validate(Config, config.model_dump())
    return "accepted", "an environment variable" if HOME in config.model_dump_json() else ""


@pytest.mark.parametrize("tries", [QUICK, pytest.param(MANY, marks=pytest.mark.slow)])
def test_generated_configurations_are_accepted_or_one_line(project, tries):
    counts, lost = Counter[str](), []

    @settings(  # the same ones every time; failures are counted
        max_examples=tries,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(WORDS, max_size=2), st.none() | edits())
    def one(words: list[str], edit: Edit | None) -> None:
        outcome, wrong = what_is_wrong(project, words, edit)
        counts[outcome] += 1
        if wrong:
            lost.append(f"{wrong}: {words} {edit.file if edit else ''}")

    one()
    total = counts.total()
    promise = "a value from anywhere is accepted, or is one line"
    record(promise, total, total - len(lost), "; ".join(lost)[:500] or "nothing")
    assert not lost, "\n".join(lost[:30])
    assert total >= 0.8 * tries and min(counts["accepted"], counts["error"]) >= total // 20, counts
