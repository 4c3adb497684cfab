"""The figures of README and docs are those of the committed results, and README's commands exist."""

from __future__ import annotations

import re
import sys

import pytest
from conftest import ROOT, run

sys.path.insert(0, str(ROOT / "docs"))

from fill_readme import END, TABLES, filled

README = (ROOT / "README.md").read_text()


def committed(name: str) -> str:
    """The file as committed, since a run on other hardware may have changed it here; as it is outside a clone."""
    done = run("git", "show", f"HEAD:{name}")
    return done.stdout if done.returncode == 0 else (ROOT / name).read_text()


@pytest.mark.parametrize(("name", "page"), TABLES.items())
def test_a_table_is_the_committed_one(name, page):
    assert f"<!-- {name} -->" in committed(page)
    assert filled(committed(page), name, committed(name)) == committed(page)


def test_filling_replaces_what_stood_between_the_marks_alone():
    readme = f"a\n<!-- x -->\n{END}\n<!-- y.md -->\nold\n{END}\nb\n"
    assert filled(readme, "y.md", "new\n") == readme.replace("old", "new")


def test_every_make_target_and_file_it_names_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b", README)) <= targets
    linked = re.findall(r"\]\(([^)#]+)\)", README)
    assert linked and [name for name in linked if "://" not in name and not (ROOT / name).exists()] == []
    verbs = set(re.findall(r"python -m pipeline\.([a-z]+)", README))
    assert verbs and [verb for verb in verbs if not (ROOT / "pipeline" / f"{verb}.py").is_file()] == []
