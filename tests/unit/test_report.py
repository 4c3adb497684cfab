"""The report to send: one file that needs nothing beside it, the same bytes for the same results, and names as text."""

from __future__ import annotations

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
from PIL import Image

from pipeline.experiments import run_report
from pipeline.metrics import metrics
from pipeline.reports import answers, plots
from pipeline.reports.report import Section, save_report
from pipeline.reports.tables import markdown_table
from pipeline.reports.verdicts import Predictions, Side, read_predictions
from pipeline.tracking import queries

PICTURE = re.compile(r'<img [^>]*src="data:image/(\S+);base64,([^"]+)"')
HOSTILE = '<script>alert("&amp;")</script>'
IMAGE = np.arange(12, dtype=np.uint8).reshape(3, 4)


def pictures(page: str) -> list[tuple[str, bytes]]:
    return [(kind, base64.b64decode(content)) for kind, content in PICTURE.findall(page)]


def sections() -> list[Section]:
    wide, narrow = plots.plot_curves({"a": [0.5, 0.9]}, "accuracy"), plots.plot_sides({"b": [0.5]}, "test")
    narrow.set_size_inches(6, 2)
    return [
        Section("", f"**An answer.**\n\n{markdown_table([['', 'run'], ['a.b_c', HOSTILE]])}"),
        Section(HOSTILE, "    a command", {"Curves": wide, HOSTILE: narrow}),
        Section("Examples", "", {}, {"both wrong": [(IMAGE, f"#3: {HOSTILE}")], "none of these": []}),
    ]


def test_the_same_sections_give_the_same_bytes_in_a_page_that_asks_for_nothing(tmp_path):
    for name in ("one.html", "other.html"):
        save_report(tmp_path / name, f"Of {HOSTILE}", sections())
    page = (tmp_path / "one.html").read_text()
    assert (tmp_path / "other.html").read_text() == page
    assert not re.findall(r'(?:src|href)="(?!data:)|url\(|@import|<script|<link', page)
    assert page.count("&lt;script&gt;") >= 5 and "<p><strong>An answer.</strong></p>" in page
    assert page.count('class="large"') == 1, "the wide figure alone may scroll"
    found = pictures(page)
    assert [kind for kind, _ in found] == ["svg+xml", "svg+xml", "png"]
    assert all(content.startswith(b"<?xml") and b"<dc:date>" not in content for _, content in found[:2])
    assert np.array_equal(255 - np.asarray(Image.open(io.BytesIO(found[2][1]))), IMAGE)
    assert "<td>a.<wbr>b_c</td>" in page and "<pre><code>a command" in page and "<p>none</p>" in page


LABELS = np.array([0, 1, 2, 2])
FIRST = Predictions(np.array([7, 3, 5, 9]), LABELS, np.array([0, 1, 2, 1]), np.array([0.9, 0.8, 0.7, 0.6]))
SECOND = FIRST._replace(predictions=np.array([0, 2, 2, 1]))
SIDES = [
    Side("one", {}, (FIRST.predictions == LABELS)[None], [], 1, 1),
    Side("two $x$", {}, np.array([SECOND.predictions == LABELS] * 2), [], 1, 1),
]
OF_SIDES = {"one": [FIRST], "two $x$": [SECOND, SECOND]}


def titles(section: Section) -> dict[str, str]:
    return {caption: figure.axes[0].get_title() for caption, figure in section.figures.items()}


def test_the_mistakes_and_the_calibration_of_a_side_are_those_of_all_its_runs():
    confusion, calibration = answers.mistakes_and_calibration(OF_SIDES, ["a", "b", "c"], 10)
    assert titles(confusion) == {"one": "1 of 4 wrong", "two $x$, 2 runs together": "4 of 8 wrong"}
    shown = {text.get_text() for text in confusion.figures["two $x$, 2 runs together"].axes[0].texts}
    assert shown == {"2"}, "each of the four answers twice"
    # (.1 + .2 + .3) / 4 of the three that are right, and .6 / 4 of the wrong one
    assert titles(calibration)["one"] == "calibration error 30.00 points"
    [alone] = answers.mistakes_and_calibration(
        {"one": [FIRST._replace(confidence=np.full(4, np.nan))]}, list("abc"), 10
    )
    assert alone.heading == confusion.heading, "no calibration without probabilities"


def test_calibration_by_the_confidence_is_that_of_the_probabilities():
    generator = np.random.default_rng(0)
    probabilities, labels = generator.dirichlet([0.3] * 5, 200), generator.integers(0, 5, 200)
    whole = metrics.calibration(labels, probabilities, 8)
    parts = metrics.calibration_of(probabilities.max(1), probabilities.argmax(1) == labels, 8)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(whole, parts, strict=True))


def test_telling_examples_say_what_either_side_answers():
    images = {3: IMAGE, 9: IMAGE + 1}  # that of example 5 is gone
    section = answers.telling_examples(SIDES, OF_SIDES, images, ["a", "b", "c"])
    said = {kind: [caption for _, caption in row] for kind, row in section.examples.items()}
    assert said == {
        "one correct more often": ["#3: b\none: b\ntwo $x$: 2 × c"],
        "two $x$ correct more often": [],
        "both wrong in most runs": ["#9: c\none: b\ntwo $x$: 2 × b"],
    }
    assert np.array_equal(section.examples["both wrong in most runs"][0][0], IMAGE + 1)


def test_the_confidence_of_a_prediction_is_read_in_either_form_of_the_table(tmp_path):
    for header, row, confidence in (
        ("probability_0,probability_1", "0.25,0.75", 0.75),
        ("top_0,top_1,probability_top_0,probability_top_1,probability_label", "300,7,0.5,0.25,0.25", 0.5),
        ("note", "1", np.nan),
    ):
        (tmp_path / "p.csv").write_text(f"index,label,prediction,{header}\n4,0,1,{row}\n")
        found = read_predictions(tmp_path / "p.csv")
        np.testing.assert_array_equal([*found.example, *found.predictions, *found.confidence], [4, 1, confidence])


def run(name: str, **tags: str) -> SimpleNamespace:
    return SimpleNamespace(
        info=SimpleNamespace(run_id=name), data=SimpleNamespace(tags=tags, params={"data.name": "letters"})
    )


def test_runs_made_in_one_place_are_named_once_and_those_of_several_by_place():
    here = {"git_commit": "abc", "git_dirty": "true", "versions": "python 3.11", "hardware": "CPU_1"}
    text = run_report.provenance({"a": [run("1", **here), run("2", **here)]}).text
    assert text.startswith("- commit abc with uncommitted changes; python 3.11; CPU_1\n\n")
    assert "reproduce run=1 data=letters  # a\n    python -m pipeline.reproduce run=2 data=letters  # a\n" in text
    text = run_report.provenance({"a": [run("1", **here)], "b": [run("2")]}).text
    assert "CPU_1: a\n- commit unknown; versions unknown; hardware unknown: b\n" in text
    text = run_report.provenance({"a": [run(str(i)) for i in range(run_report.MOST_COMMANDS + 3)]}).text
    assert text.count("pipeline.reproduce") == run_report.MOST_COMMANDS and "# and 3 more" in text


def test_curves_are_means_over_the_runs_of_a_name(monkeypatch):
    curves = {"1": [0.8, 0.9, 1.0], "2": [0.6, 0.7], "3": [], "4": [1.0]}
    monkeypatch.setattr(queries, "curve", lambda run, key: curves[run.info.run_id])
    [section] = run_report.learning_curves({"a": [run("1"), run("2")], "none": [run("3")], "no error": [run("4")]})
    [line] = next(iter(section.figures.values())).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), [30, 20])
    assert run_report.learning_curves({"none": [run("3")]}) == []
