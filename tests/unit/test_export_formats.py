"""Exports: which formats there are, and what they need."""

from __future__ import annotations

import importlib.util

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
