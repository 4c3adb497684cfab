"""Figures as text."""

from __future__ import annotations

import math

from pipeline.reports import tables


def test_a_table_is_markdown_whose_columns_stand_below_each_other():
    assert tables.markdown_table([["", "n", "of"], ["one", "1,000", "–"], ["a", "2", "3 %"]]).splitlines() == [
        "|     |     n |  of |",
        "| --- | ----: | --: |",
        "| one | 1,000 |   – |",
        "| a   |     2 | 3 % |",
    ]
    assert tables.markdown_table([["", "n"], ["a", "1"]]).splitlines()[1] == "| --- | --: |", "wide enough for MLflow"


def test_figures_by_hand():
    assert [tables.percent(share) for share in (0.99685, None, math.nan)] == ["99.69 %", "–", "–"]
    assert [tables.points(share) for share in (0.019, -0.0005, math.nan)] == ["+1.90", "-0.05", "–"]
    assert [tables.p_value(p) for p in (0.0009, 0.017, 1.0)] == ["p < 0.001", "p = 0.017", "p = 1.000"]
