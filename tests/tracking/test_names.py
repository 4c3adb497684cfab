"""Names from elsewhere are text: in Markdown, in MLflow's notes, in pictures and on a terminal."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, fresh_store
from faults_report import record

from pipeline.base.project import Project
from pipeline.experiments import compare_runs
from pipeline.reports import comparison_report, plots, recipe_table, sheets, tables, verdicts
from pipeline.reports.verdicts import Side
from pipeline.tracking.store import open_store

pytestmark = pytest.mark.faults

# A name, and how Markdown has to write it so that a page shows it.
NAMES = {
    "<script>alert(1)</script>": r"\<script>alert(1)\</script>",
    "<img src=x onerror=alert(1)>": r"\<img src=x onerror=alert(1)>",
    "<!-- hidden": r"\<!-- hidden",
    "<http://evil.example>": r"\<http://evil.example>",
    "a | b": r"a \| b",
    "`code`": r"\`code\`",
    "**bold** _it_ __it__ ~~no~~": r"\*\*bold\*\* \_it\_ \_\_it\_\_ \~\~no\~\~",
    "![seen](http://evil.example/x.png)": r"![seen\](http://evil.example/x.png)",
    "[here](javascript:alert(1))": r"[here\](javascript:alert(1))",
    "[here][a]": r"[here\][a]",
    "[a]: http://evil.example": r"[a\]: http://evil.example",
    "&lt;b&gt;": r"\&lt;b\&gt;",
    "a\\": "a\\\\",
    "# a": r"\# a",
    "> a": r"\> a",
    "- a": r"\- a",
    "one\n\n# two": "one��# two",
    "one\r\ntwo\ttwo": "one��two�two",
    "\x1b[31mred\x1b[0m": "�[31mred�[0m",
    "\x1b]0;title\x07": "�]0;title�",
    "\x9b31m\x00\x08\x7f": "�31m���",
    "abc\u202edef\u2066\u200b\u2028": "abc�def���",
}
ORDINARY = [
    "fast model.filters=32",
    "debug/one_batch",
    "optimizer.learning_rate=0.001",
    "model.units=[64, 64]",
    "{'padding': 'valid', 'pool': 2}",
    "p < 0.001",
    "+0.02 points (95 % -0.06 to +0.09), p = 0.648, n = 10 + 10",
    "-0.05",
    "größer – Ä",
    "28 of 10,000 (37 by one view)",
]


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(tag)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_escaped_as_by_hand(name):
    assert tables.as_text(name) == NAMES[name]
    record("a name from elsewhere stays text", 1, 1)


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_name_or_sentence_stays_as_it_is(text):
    assert tables.as_text(text) == tables.plain(text) == text


def test_what_is_committed_needs_no_escape():
    for path in ("results/comparison.md", "docs/runs/comparison.md", "docs/runs/ranking.md"):
        for line in (ROOT / path).read_text().splitlines():
            cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
            assert [tables.as_text(cell) for cell in cells if not set(cell) <= set("-:")] == [
                cell for cell in cells if not set(cell) <= set("-:")
            ]


def side(name: str, right: list[int]) -> Side:
    return Side(name, {"optimizer.schedule": {name}}, np.array([right], bool), [1.0], 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_comparison_of_such_a_name_has_its_own_lines_cells_and_no_tag(name):
    ordinary = [side("a", [1, 1, 0, 0]), side("b", [1, 0, 1, 0])]
    hostile = [side(name, [1, 1, 0, 0]), ordinary[1]]
    expected, got = (
        comparison_report.markdown(sides, verdicts.verdicts(sides, 0.95, "test"), 0.95, "test", 1)
        for sides in (ordinary, hostile)
    )
    assert len(got.splitlines()) == len(expected.splitlines())
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in got.splitlines()] == [
        line.count("|") for line in expected.splitlines()
    ]
    assert "\x1b" not in got and not Tags(got.replace("\\<", "")).found
    assert NAMES[name] in got


def test_a_table_of_recipes_escapes_names_and_sentences():
    row = recipe_table.published_row([{"train_accuracy": 1.0, "val_accuracy": 1.0}], 0.95)._replace(name="<b>x</b>|y")
    config = SimpleNamespace(evaluate=SimpleNamespace(confidence=0.95), seed=0)
    text = recipe_table.markdown([row], [f"{row.name} is better"], config)
    assert text.count(r"\<b>x\</b>\|y") == 2 and not Tags(text.replace("\\<", "")).found


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
@pytest.mark.parametrize("name", ["$\\foo$", "a$b$c", "$$", "\\$x$", "$\\frac{1}{", "<b>"])
def test_a_name_in_a_picture_is_no_formula(name, tmp_path):
    image = np.zeros((3, 3), np.uint8)
    for figure in (
        plots.plot_curves({name: [50.0, 60.0]}, "accuracy in %"),
        plots.plot_sides({name: [0.5, 0.6]}, "test"),
        sheets.plot_example_rows({name: [(image, "1")]}),
    ):
        figure.savefig(tmp_path / "drawn.png")


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_run_is_text_in_the_note_of_its_comparison(store, name):
    client, experiment = open_store(store, "mnist")
    named = client.create_run(experiment, run_name=name)
    compared = compare_runs._log(store, "mnist", "compare", [], "an answer", [named])
    note = client.get_run(compared).data.tags["mlflow.note.content"]
    link = f"[{NAMES[name]}](#/experiments/{experiment}/runs/{named.info.run_id})"
    assert note == f"an answer\nRuns compared: {link}\n"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("store")
        fresh_store(folder / "mlflow.db")
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield Project(ROOT, folder)
