"""docs/configuration.md is what the schema gives, and the code stays within its limits."""

from __future__ import annotations

import pytest
from conftest import ROOT

from docs import count_lines, generate
from pipeline.base import schema
from pipeline.base.validation import fields


def test_the_page_of_the_configuration_is_the_one_of_the_schema():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == generate.configuration(), "run `make docs`"
    assert (
        "| `optimizer.learning_rate` | number above 0 to 10 | of every step; the peak, for one_cycle and cosine |\n"
        in text
    )
    missing = [key for key in fields(schema.Config) if key not in schema.DERIVED and f"| `{key}` |" not in text]
    assert not missing


@pytest.mark.parametrize("name", count_lines.LIMITS)
def test_the_code_stays_within_its_limits(name):
    assert count_lines.counts(ROOT)[name] <= count_lines.LIMITS[name]


def test_lines_are_counted_by_room(tmp_path):
    for name, count in (
        ("compose.py", 3),
        ("serve.py", 4),
        ("data/a.py", 5),
        ("data/deep/b.py", 6),
        ("reports/plots.py", 7),
    ):
        file = tmp_path / "pipeline" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x\n" * count)
    for name in ("unit/test_a.py", "slow/test_b.py"):
        (tmp_path / "tests" / name).parent.mkdir(parents=True)
        (tmp_path / "tests" / name).write_text("x\n" * 8)
    counts = count_lines.counts(tmp_path)
    assert (counts["commands"], counts["data"], counts["reports"], counts["pipeline"]) == (7, 11, 7, 25)
    assert (counts["core"], counts["longest file"], counts["tests without tests/slow"]) == (3 + 11 + 7, 7, 8)
    table = count_lines.line_table(tmp_path)
    assert (
        "| data | 11 |  |  |\n" in table
        and f"| pipeline | 25 | {count_lines.LIMITS['pipeline']:,} | 5,800 |\n" in table
    )
