"""make and git on somebody's machine: a path with spaces, no home, another owner, other line ends."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, git, program, run

# Stands for uv: it writes what it is asked for, and makes a folder of the environment.
UV = """#!/bin/sh
echo "$1 $2 VIRTUAL_ENV=$VIRTUAL_ENV HOME=$HOME" >> "$SAID"
test "$1" != venv || mkdir -p "$(for last; do :; done; echo "$last")"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my projects" / "mnist pipeline"
    folder.mkdir(parents=True)
    for name in ("Makefile", ".gitattributes", "params.yaml", "dvc.lock"):
        shutil.copy(ROOT / name, folder)
    for name in ("requirements.lock", "requirements-scale.lock", "requirements-export.lock"):
        (folder / name).touch()
    return folder


def make(folder: Path, *words: str, home: bool = True) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Run make with the uv above: how it ended, and what uv was asked for."""
    tools = folder.parent / "some tools"
    tools.mkdir()
    (tools / "uv").write_text(UV)
    (tools / "uv").chmod(0o755)
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    unset = [] if home else ["-u", "HOME"]
    said = folder.parent / "said"
    done = run("env", *unset, "make", *words, cwd=folder, PATH=path, SAID=str(said), PYTHON=sys.executable)
    return done, said.read_text().splitlines() if said.exists() else []


def test_the_environments_are_made_in_a_path_with_spaces(folder: Path) -> None:
    done, said = make(folder, "env", "scale", "runtimes")
    assert (done.returncode, done.stderr) == (0, "")
    home = os.environ["HOME"]
    pip = [f"pip {verb} VIRTUAL_ENV={folder}/.venv HOME={home}" for verb in ("sync", "install", "install")]
    assert [line.partition(" VIRTUAL_ENV")[0] for line in said[:1]] == ["venv --quiet"] and said[1:] == pip


def test_where_there_is_no_home_make_gives_its_tools_one(folder: Path) -> None:
    done, said = make(folder, "env", home=False)
    assert done.returncode == 0 and {line.partition("HOME=")[2] for line in said} == {f"{folder}/.venv/home"}


def test_a_clone_of_another_user_is_refused_in_gits_own_words(folder: Path) -> None:
    git(folder, "init", "--quiet")
    assert run("make", "clone", cwd=folder).returncode == 0
    variables = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
    done = run("make", "--silent", "repro", cwd=folder, **variables)
    first, *rest = done.stderr.splitlines()
    assert done.returncode != 0 and done.stdout == "" and all(line.startswith("make: ") for line in rest)
    assert first.startswith("error: git: fatal: detected dubious ownership in repository at")
    assert "git config --global --add safe.directory" in first


def test_a_clone_has_the_same_bytes_where_git_changes_line_ends(folder: Path) -> None:
    shutil.copy(ROOT / "results" / "samples.png", folder)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "start")
    clone = folder.parent / "clone"
    git(folder, "-c", "core.autocrlf=true", "clone", "--quiet", ".", str(clone))
    git(clone, "config", "core.autocrlf", "true")
    assert git(clone, "status", "--porcelain") == ""
    names = ["Makefile", "params.yaml", "dvc.lock", "samples.png"]
    assert [name for name in names if (clone / name).read_bytes() != (folder / name).read_bytes()] == []


def test_make_ui_says_where_the_recipes_are(folder: Path) -> None:
    (folder / ".venv").mkdir()
    (folder / ".venv" / "installed").touch()
    (folder / "pipeline").symlink_to(ROOT / "pipeline")
    program(folder / ".venv" / "bin" / "mlflow", "import sys; print(*sys.argv[1:3])")
    with sqlite3.connect(folder / "mlflow.db") as store:
        store.execute("CREATE TABLE experiments (experiment_id INTEGER, name TEXT)")
        store.execute("INSERT INTO experiments VALUES (7, 'mnist')")
    store.close()
    done = run("make", "--silent", "ui", "PORT=5001", cwd=folder)
    address = "http://127.0.0.1:5001/#/experiments/7/runs?viewStateShareKey=recipes"
    assert done.stdout.splitlines() == [f"The recipes: {address}", "ui --workers"], done.stderr
