"""Exports: what is refused before anything is loaded, when a file appears, and how logits are compared."""

from __future__ import annotations

import importlib.util
import re
import subprocess

import numpy as np
import pytest

from benchmarks import export
from pipeline.beyond import formats
from pipeline.config import PipelineError, compose
from pipeline.files import HOST


def test_the_configuration_takes_the_formats_and_no_other():
    for name in formats.FORMATS:
        assert compose(f"format={name}", verb="export").format == name
    with pytest.raises(PipelineError, match="format=h5 is out of range: give saved_model or litert or onnx"):
        compose("format=h5", verb="export")


def test_a_format_without_its_packages_is_refused_by_their_names(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    formats.check_packages("saved_model")
    formats.check_packages("litert")
    with pytest.raises(PipelineError, match="needs onnx, onnxruntime, tf2onnx: `make runtimes`"):
        formats.check_packages("onnx")


def test_a_file_or_folder_appears_whole_or_not_at_all(tmp_path):
    file, folder = tmp_path / "model.onnx", tmp_path / "saved_model"
    for content in ("first", "second"):
        with formats.appearing(file) as temporary:
            temporary.write_text(content)
        with formats.appearing(folder) as temporary:
            (temporary / "variables").mkdir(parents=True)
            (temporary / "variables" / content).write_text("1234")
    for path in (file, folder):
        with pytest.raises(ZeroDivisionError), formats.appearing(path) as temporary:
            temporary.mkdir()
            (temporary / "half").write_text("half")
            raise ZeroDivisionError
    assert file.read_text() == "second"
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["second"]
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "saved_model"}
    assert (formats.size(file), formats.size(folder)) == (6, 4)


def test_what_a_killed_export_left_goes_with_the_next(tmp_path):
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    left = tmp_path / f".saved_model.{HOST}-{ended.pid}.partial"
    left.mkdir()
    (left / "half").write_text("half")
    with formats.appearing(tmp_path / "model.onnx") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_predictions_that_differ_are_counted_and_what_is_no_number_is_no_prediction():
    expected = np.array([[0, 1], [1, 0], [0, 1], [3, 0]], np.float32)
    assert formats.compared(expected + 0.5, expected) == (0, 0.5)
    assert formats.compared(np.array([[0, 1], [0, 1], [0, 1], [3, 0]], np.float32), expected) == (1, 1.0)
    broken = expected.copy()
    broken[2, 1] = np.nan
    assert formats.compared(broken, expected).differ == 1


def test_the_table_has_medians_and_ranges_of_the_rounds():
    def trial(what: str, number: int, single: float, differ: int, largest: float) -> dict[str, object]:
        figures = {"single_ms": single, "batch_ms": 100 * single, "bytes": 2_500_000, "digits": 10_000}
        return {"recipe": "fast", "what": what, "round": number, "differ": differ, "largest": largest, **figures}

    trials = [trial("Keras", n, ms, 0, 0.0) for n, ms in enumerate((0.5, 0.25, 1.0))]
    trials += [trial("onnx", n, ms, n, 2e-5) for n, ms in enumerate((0.1, 0.3, 0.2))]
    head, _, *lines = (re.sub(" +", " ", line) for line in export.table({"trials": trials}).splitlines())
    assert head.startswith("| recipe | format | MB | one digit, ms | 500 digits, ms | predictions that differ |")
    assert lines == [
        "| fast | Keras | 2.50 | 0.5 (0.25–1) | 50 (25–100) | – | – |",
        "| fast | onnx | 2.50 | 0.2 (0.1–0.3) | 20 (10–30) | 2 of 10,000 | 2.0e-05 |",
    ]
