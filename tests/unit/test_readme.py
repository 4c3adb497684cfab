"""README and docs: generated blocks are those of the committed results; commands, keys and links exist."""

from __future__ import annotations

import json
import re

import pytest
from conftest import ROOT, run

from benchmarks import report
from docs import generate
from pipeline.base import verb_schemas
from pipeline.base.schema import Config
from pipeline.base.validation import fields

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
TEXTS = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
SCHEMAS = [value for value in vars(verb_schemas).values() if isinstance(value, type) and issubclass(value, Config)]
KEYS = {key for schema in SCHEMAS for key in fields(schema)} | {"recipe", "data", "sweep"}
README_BYTES = 9 * 1024


def committed(name: str) -> str:
    """The file as committed, since a run on other hardware may have changed it here; as it is outside a clone."""
    done = run("git", "show", f"HEAD:{name}")
    return done.stdout if done.returncode == 0 else (ROOT / name).read_text(encoding="utf-8")


BLOCKS = list(generate.blocks(committed))


@pytest.mark.parametrize(("page", "name", "text"), BLOCKS, ids=[f"{page}:{name}" for page, name, _ in BLOCKS])
def test_a_block_is_the_committed_one(page, name, text):
    assert committed(page).count(f"<!-- {name} -->") == 1
    assert generate.filled(committed(page), name, text) == committed(page)


def test_filling_replaces_what_is_between_the_marks_only():
    page = f"a\n<!-- x -->\n{generate.END}\n<!-- y.md -->\nold\n{generate.END}\nb\n"
    assert generate.filled(page, "y.md", "new\n") == page.replace("old", "new")


def test_the_table_has_means_intervals_and_extrapolated_times():
    trials = [{"test_wrong": range(errors), "test_digits": 100} for errors in (1, 2, 3)]
    # Mean 98 %, standard deviation 1 point, t(2 degrees of freedom) = 4.3027: 98 +- 2.484, at most 100.
    assert generate.mean_accuracy(trials) == "98.00 % (95.52 to 100.00)"
    assert generate.mean_accuracy(trials, report.TTA) == "–"
    slow = [{"epoch_seconds": [10, 4, 6]}, {"epoch_seconds": [20, 5, 5]}]
    assert report.training_time(slow, 3) == "25 (20–30)"
    assert report.training_time(slow, 5) == "≈ 35 (30–40)"  # 10 + 4 * 5 and 20 + 4 * 5
    assert report.training_time([{"epoch_seconds": [14.4]}], 1) == "14"


def test_faults_are_counted_by_file():
    lines = [
        {"promise": f"p{i % 2}", "test": f"tests/slow/test_a.py::test_{i}", "tries": i, "survived": 3, "lost": ""}
        for i in (3, 4, 5)
    ]
    text = generate.fault_table("\n".join(map(json.dumps, [*lines, {"hardware": "a CPU", "versions": "python 3"}])))
    assert "| test_a.py | 2 | 12 | 9 | nothing |\n" in text and text.endswith("\na CPU; python 3.\n")


def test_readme_stays_short():
    assert len(TEXTS["README.md"].encode()) <= README_BYTES


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_to_files_and_headings(name):
    folder = (ROOT / name).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (folder / path).resolve() if path else ROOT / name
        assert file.exists(), f"{name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}, target


@pytest.mark.parametrize("name", TEXTS)
def test_commands_exist_with_their_keys(name):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)\b|^ {4}make ([a-z-]+)", TEXTS[name], re.MULTILINE)) <= {
        pair for target in targets for pair in ((target, ""), ("", target))
    }
    for package, module in re.findall(r"python -m (pipeline|benchmarks)\.(\w+)", TEXTS[name]):
        assert (ROOT / package / f"{module}.py").is_file(), f"{name}: {package}.{module}"
    made = {
        one for pair in re.findall(r"^```yaml conf/recipe/(\w+)\.yaml|path=(\w+)", TEXTS[name], re.M) for one in pair
    }
    for overrides in re.findall(r"python -m pipeline\.\w+ ([^`\n#]*)", TEXTS[name]):
        for key, value in re.findall(r"(?<![\w./+=])([a-z][\w./]*)=([\w/]*)", overrides):
            if key.startswith("hydra"):
                continue
            assert any(f"{key}.".startswith(f"{known}.") for known in KEYS), f"{name}: {key}"
            if key in ("recipe", "data", "sweep") and value not in ("", "glob", *made):
                assert (ROOT / "conf" / key / f"{value}.yaml").is_file(), f"{name}: {key}={value}"
