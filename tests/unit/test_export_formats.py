"""Exports: which formats there are, what they need, and how logits are compared."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from pipeline.apps import export_formats
from pipeline.base.errors import UserError
from pipeline.base.verb_schemas import ExportConfig


def test_the_configuration_takes_the_formats_and_no_other(compose):
    for name in export_formats.FORMATS:
        assert compose(f"format={name}", schema=ExportConfig, name="export").format == name
    with pytest.raises(UserError, match="format=h5: input should be 'saved_model', 'litert' or 'onnx'"):
        compose("format=h5", schema=ExportConfig, name="export")


def test_a_format_without_its_packages_is_an_error_that_names_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    export_formats.check_packages("saved_model")
    export_formats.check_packages("litert")
    with pytest.raises(UserError, match="needs onnx, onnxruntime, tf2onnx: `make runtimes`"):
        export_formats.check_packages("onnx")


def test_the_size_of_a_folder_is_that_of_all_its_files(tmp_path):
    (tmp_path / "saved_model/variables").mkdir(parents=True)
    (tmp_path / "saved_model/saved_model.pb").write_text("123456")
    (tmp_path / "saved_model/variables/index").write_text("1234")
    assert export_formats.size(tmp_path / "saved_model") == 10
    assert export_formats.size(tmp_path / "saved_model/saved_model.pb") == 6


def test_predictions_that_differ_are_counted_and_what_is_no_number_is_no_prediction():
    expected = np.array([[0, 1], [1, 0], [0, 1], [3, 0]], np.float32)
    assert export_formats.compared(expected + 0.5, expected) == (0, 0.5)
    assert export_formats.compared(np.array([[0, 1], [0, 1], [0, 1], [3, 0]], np.float32), expected) == (1, 1.0)
    broken = expected.copy()
    broken[2, 1] = np.nan
    assert export_formats.compared(broken, expected).differ == 1
