"""Functions of the user's own: what a configuration says of them, what is refused, and which code is run."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from pipeline.base import hydra, own
from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.tracking.fingerprint import fingerprint

NETS = """
from own.parts import WIDTH  # a comment

def first(image_shape, classes, width=WIDTH, depth=2, *, names=("a", "b")):
    return width

def second(image_shape, classes, width=1, rate=0.5):
    return rate

def open_ended(image_shape, classes, **more):
    return more

class Net:
    pass
"""
RECIPES = {
    "first": {"build": "own.nets:first", "args": {"width": 8, "depth": 3}},
    "heir": {"args": {"depth": 4}},
    "other": {"build": "own.nets:second", "args": {"rate": 0.1}},
    "other_heir": {"args": {"width": 5}},
}
PARENTS = {"first": "accurate", "heir": "first", "other": "heir", "other_heir": "other"}


@pytest.fixture
def project(tmp_path) -> Project:
    """A repository with four recipes of own networks, each the heir of the one before, and nothing of ours but conf."""
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own/nets.py").write_text(NETS)
    (tmp_path / "own/parts.py").write_text("WIDTH = 16\n")
    for name, model in RECIPES.items():
        recipe = {"defaults": [f"/recipe/{PARENTS[name]}", "_self_"], "model": model}
        text = yaml.safe_dump(recipe, sort_keys=False)
        (tmp_path / f"conf/recipe/{name}.yaml").write_text(f"# @package _global_\n{text}")
    return Project(tmp_path, tmp_path)


def model_of(project: Project, *words: str) -> dict:
    values = hydra.compose(project, *words).model.model_dump()
    values.pop("source_sha256")
    return values


@pytest.mark.parametrize(
    ("words", "build", "args"),
    [
        (["recipe=first"], "first", {"width": 8, "depth": 3, "names": ["a", "b"]}),
        (["recipe=first", "model.args.depth=1"], "first", {"width": 8, "depth": 1, "names": ["a", "b"]}),
        (["recipe=heir"], "first", {"width": 8, "depth": 4, "names": ["a", "b"]}),
        (["recipe=other"], "second", {"width": 1, "rate": 0.1}),
        (["recipe=other_heir"], "second", {"width": 5, "rate": 0.1}),
        (["recipe=heir", "model.build=own.nets:second"], "second", {"width": 1, "rate": 0.5}),
        (["recipe=heir", "model.build=own.nets:second", "model.args.width=7"], "second", {"width": 7, "rate": 0.5}),
        (["recipe=heir", "model.args.width=7", "model.build=own.nets:second"], "second", {"width": 7, "rate": 0.5}),
        (["recipe=baseline", "model.build=own.nets:open_ended", "+model.args.x=[1,2]"], "open_ended", {"x": [1, 2]}),
    ],
)
def test_arguments_are_those_said_of_this_function_and_its_defaults(project, words, build, args):
    assert model_of(project, *words) == {"build": f"own.nets:{build}", "args": args}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe=baseline", "+model.args.x=2"], "model.args={'x': 2}: only your own network has arguments"),
        (["recipe=first", "+model.args.dept=2"], "first takes no argument dept: it takes width, depth, names"),
        (["recipe=first", "model.args.dept=2"], "first takes no argument dept: it takes width, depth, names"),
        (["recipe=first", "model.dropout=0.1"], "model.dropout is a key of the built-in network"),
        (["recipe=first", "model.build=own.nets:third"], "own/nets.py defines no function or class third"),
        (["recipe=first", "model.build=own.nets:Net"], "own.nets:Net is a class: name a function"),
        (["recipe=first", "model.build=own.absent:f"], "own.absent is no file of this repository"),
        (["recipe=first", "model.build=os:system"], "os is no file of this repository"),
        (["recipe=first", "model.build=nets"], "model.build=nets: string should match pattern"),
    ],
)
def test_what_does_not_fit_is_one_line(project, words, said):
    with pytest.raises(UserError) as refused:
        hydra.compose(project, *words)
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_arguments_in_a_recipe_without_a_function_are_one_line(project):
    (project.conf / "recipe/first.yaml").write_text(
        "# @package _global_\ndefaults: [/recipe/accurate, _self_]\nmodel: {args: {width: 3}}\n"
    )
    with pytest.raises(UserError, match=r"model\.args=\{'width': 3\}: only your own network has arguments"):
        hydra.compose(project, "recipe=first")


def test_the_fingerprint_follows_the_code_with_its_helpers_and_constants_but_no_comment(project):
    def content() -> str:
        return fingerprint(Project(ROOT, ROOT), hydra.compose(project, "recipe=first"), []).content_sha256

    nets, parts, before = project.root / "own/nets.py", project.root / "own/parts.py", content()
    nets.write_text(NETS.replace("# a comment", "# another"))
    assert content() == before
    parts.write_text("WIDTH = 17\n")  # the recipe gives the width itself, and the code is another all the same
    assert content() != before
    parts.write_text("WIDTH = 16\n")
    (project.root / "own/__init__.py").write_text("import sys\n")  # which Python runs first
    assert content() != before


def test_an_edited_helper_is_imported_again(project):
    """A notebook, or a sweep that goes on while a file is edited, would train with code that nobody hashed."""
    assert own.load(project.root, "own.nets:first")(None, None) == 16
    (project.root / "own/parts.py").write_text("WIDTH = 17\n")
    assert own.load(project.root, "own.nets:first")(None, None) == 17
    assert not (project.root / "own/__pycache__").exists(), "which DVC would hash"


def test_recorded_code_runs_only_where_the_same_stands_in_the_repository(project):
    ran, nets = project.root / "ran", project.root / "own/nets.py"
    nets.write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\ndef f(): return 3\n")
    recorded = own.source_sha256(project.root, ["own.nets:f"])
    nets.write_text(nets.read_text().replace("return 3", "return 4"))
    with pytest.raises(UserError, match=r"^own\.nets:f has other code than the model was made with: bring its files b"):
        own.load_recorded(project.root, "own.nets:f", recorded)
    for name in ("os:system", "own.gone:f", "..etc:f", "own.nets:absent", "pathlib:Path"):
        with pytest.raises(UserError):
            own.load_recorded(project.root, name, own.sha256_of([]))
    assert not ran.exists()
    nets.write_text(nets.read_text().replace("return 4", "return 3"))
    assert own.load_recorded(project.root, "own.nets:f", recorded)() == 3 and ran.exists()
    assert own.load_recorded(project.root, None, None) is None


def test_a_file_that_hides_an_installed_package_is_refused(project):
    (project.root / "yaml.py").write_text("def f(): pass\n")
    with pytest.raises(UserError, match=r"^yaml:f: yaml is also the name of .*: rename your file"):
        own.load(project.root, "yaml:f")


def test_own_code_finds_what_keras_is_imported_without(project):
    """In a process of its own, which has imported nothing yet."""
    (project.root / "own/scores.py").write_text(
        "import matplotlib.pyplot\nimport sklearn.metrics\nimport keras\n\n"
        "def f1(labels, predictions):\n    return sklearn.metrics.f1_score(labels, predictions)\n"
    )
    code = (
        "from pathlib import Path\nfrom pipeline.base import own\n"
        f"print(own.load(Path({str(project.root)!r}), 'own.scores:f1')([0, 1], [0, 1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "1.0\n", done.stderr


def test_an_error_names_the_line_of_the_users_file(project):
    (project.root / "own/nets.py").write_text("def f():\n    g()\ndef g():\n    int('x\\ny')\n")
    function = own.load(project.root, "own.nets:f")
    said = r"^own\.nets:f in line 4 of own/nets\.py: ValueError: invalid literal"
    with pytest.raises(UserError, match=said), own.errors_named(project.root, "own.nets:f"):
        function()
    (project.root / "own/nets.py").write_text("import absent_package\ndef f(): pass\n")
    with pytest.raises(UserError, match=r"^own\.nets:f in line 1 of own/nets\.py: ModuleNotFoundError: No module na"):
        own.load(project.root, "own.nets:f")


def test_the_files_of_a_function_are_those_that_it_imports_of_this_repository(project):
    root, nested = project.root, project.root / "own/deep/er"
    nested.mkdir(parents=True)
    (nested / "net.py").write_text(
        "import os, numpy, pipeline.base\nfrom . import near\nfrom ..far import x\ndef f():\n    import own.parts\n"
    )
    for name in ("er/near.py", "far.py", "unused.py", "__init__.py"):
        (nested.parent / name).write_text("x = 1\n")
    found = own.sources(root, ["own.deep.er.net:f"])
    assert {module: file.relative_to(root).as_posix() for module, file in found.items()} == {
        "own.deep.er.net": "own/deep/er/net.py",
        "own.deep.er.near": "own/deep/er/near.py",
        "own.deep.far": "own/deep/far.py",
        "own.deep": "own/deep/__init__.py",
        "own.parts": "own/parts.py",
    }
