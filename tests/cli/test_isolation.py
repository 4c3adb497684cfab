"""A command in a strange shell: streams, variables, and paths that are typed as they are."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from conftest import ROOT, git

from pipeline.base.command import main
from pipeline.base.errors import UserError
from pipeline.base.isolation import isolate
from pipeline.base.project import open_project
from pipeline.base.schema import Config
from pipeline.base.verb_schemas import AdoptConfig, PredictConfig, RunConfig
from pipeline.reproduce import differences
from pipeline.tracking import environment
from pipeline.tracking.fingerprint import fingerprint

ISOLATED = "import os, sys, warnings; from pipeline.base.isolation import isolate; isolate()\n"


def shell(line: str, code: str, *words: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash, in which $P stands for this Python with `code`."""
    python = {"P": sys.executable, "CODE": ISOLATED + code, "PYTHONPATH": str(ROOT)}
    line = line.replace("$P", '"$P" -c "$CODE"')
    return subprocess.run(
        ["bash", "-c", line, "bash", *words], env=os.environ | python | variables, capture_output=True
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_the_first_file_that_is_opened_does_not_take_the_place_of_a_closed_stream(closed, tmp_path):
    code = (
        "file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)\n"
        "os.write(file, str(file).encode())\n"
        "print('said'); print('said', file=sys.stderr)\n"
        "sys.exit(os.system('echo said; echo said >&2'))"
    )
    done = shell(f'$P "$1" {closed}', code, str(tmp_path / "file"))
    assert (tmp_path / "file").read_text() == "3"
    assert done.returncode == 0  # the other program could write too
    assert done.stdout == (b"" if ">&-" in closed.split() else b"said\nsaid\n")
    assert done.stderr == (b"" if "2>&-" in closed.split() else b"said\nsaid\n")


def test_a_terminal_without_a_character_gets_an_escape_and_a_warning_of_others_is_no_error():
    code = "print('val – é'); warnings.warn('old', DeprecationWarning); print(os.environ['PYTHONWARNINGS'])"
    done = shell("$P", code, PYTHONIOENCODING="iso-8859-1:strict", PYTHONWARNINGS="error")
    assert done.stdout == b"val \\u2013 \xe9\ndefault\n"  # and the programs that it starts only warn, too
    assert done.stderr.endswith(b"DeprecationWarning: old\n") and b"Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--help"], ["seed=3"]])
def test_a_command_that_nobody_reads_ends_without_a_word(words, tmp_path):
    ours, theirs = os.pipe()
    os.close(ours)  # as `head` does once it has enough
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.compose", *words],
        stdout=theirs,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, b"")  # as a shell has it for a program that SIGPIPE ended


@pytest.fixture
def environ():
    with mock.patch.dict(os.environ):
        yield os.environ


def test_a_user_without_a_name_and_a_home_has_no_home_to_write_to(environ, monkeypatch):
    monkeypatch.setattr("pwd.getpwuid", mock.Mock(side_effect=KeyError))
    del environ["HOME"]
    with pytest.raises(RuntimeError):
        Path.home()
    isolate()
    assert Path.home() == Path(os.devnull)


def test_variables_of_git_name_no_other_repository(environ, tmp_path):
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "elsewhere")
    elsewhere, ours = git(tmp_path, "rev-parse", "HEAD").strip(), git(ROOT, "rev-parse", "HEAD").strip()
    environ |= {"GIT_DIR": str(tmp_path / ".git"), "GIT_WORK_TREE": str(tmp_path), "GIT_INDEX_FILE": "none"}
    assert environment.git(ROOT, "rev-parse", "HEAD") == elsewhere
    isolate()
    assert environment.git(ROOT, "rev-parse", "HEAD") == ours
    assert environment.git(ROOT, "ls-files", "pyproject.toml") == "pyproject.toml"


PATHS = [
    "IMG (1).png",
    "café.png",
    "cafe\u0301.png",  # as macOS writes it
    "it's.png",
    "a,b.png",
    'say "9".png',
    "back\\slash\\'.png",
    "Screenshot 2026-01-01 at 9.41.00\u202fAM.png",
    "{a: 1}.png",
    "x=y.png",
    "7",
    "1e3",
    "null",
    "true",
    " ",
    "~",
]


def called(monkeypatch: pytest.MonkeyPatch, schema: type[Config], word: str) -> Any:
    """Return the configuration that a verb of ours gets where it is called with `word`."""
    configs: list[Config] = []
    namespace: dict[str, Any] = {"configs": configs}
    file = ROOT / "pipeline" / "verb.py"
    exec(compile("def verb(project, config): configs.append(config)", file, "exec"), namespace)
    namespace["verb"].__annotations__["config"] = schema
    monkeypatch.setattr(sys, "argv", ["verb", word])
    main(namespace["verb"])
    return configs[0]


@pytest.mark.parametrize(
    ("schema", "key", "name"),
    [
        *((PredictConfig, "input", name) for name in PATHS),
        (AdoptConfig, "path", "2024"),
        (RunConfig, "run", "a, b (1)"),
    ],
)
def test_a_path_that_exists_is_taken_as_it_was_typed(schema, key, name, environ, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    assert getattr(called(monkeypatch, schema, f"{key}={name}"), key) == name


def test_a_list_of_paths_and_what_is_quoted_are_read_by_hydra(environ, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for value, expected in (("[a.png,b.png]", ["a.png", "b.png"]), ("'a b.png'", "a b.png"), ("", "")):
        assert called(monkeypatch, PredictConfig, f"input={value}").input == expected


def test_the_id_of_a_run_is_text_though_hydra_could_read_a_number(environ, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert called(monkeypatch, RunConfig, "run=9447e1230643").run == "9447e1230643"


@pytest.fixture
def compute_unset(environ):
    for name in [name for name in environ if environment.COMPUTE_VARIABLES.fullmatch(name)]:
        del environ[name]
    return environ


def test_variables_that_choose_how_to_compute_are_recorded_without_paths_and_others_are_not(compute_unset):
    assert environment.compute_variables() == "none"
    compute_unset |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_FORCE_GPU_ALLOW_GROWTH": "true", "TF_NUM_INTRAOP_THREADS": "7"}
    compute_unset |= {"TF_VAR_password": "secret", "TF_CLI_CONFIG_FILE": "x", "TF_TOKEN_a": "secret"}  # Terraform's
    compute_unset |= {"TF2_BEHAVIOR": "1", "TF_CONFIG": "{}", "ONEDNN_VERBOSE": "1", "MY_TF_FLAGS": "1"}
    assert environment.compute_variables() == "none"
    compute_unset |= {
        "XLA_FLAGS": "--xla_dump_to=/srv/somebody/x --xla_cpu_enable_fast_math",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
    }
    assert (
        environment.compute_variables()
        == "ONEDNN_MAX_CPU_ISA=AVX2, XLA_FLAGS=--xla_dump_to=… --xla_cpu_enable_fast_math"
    )


def test_what_every_run_has_is_not_recorded_and_what_the_user_chose_is_kept(compute_unset):
    isolate()
    assert environment.compute_variables() == "none"
    compute_unset["TF_ENABLE_ONEDNN_OPTS"] = "0"
    isolate()
    assert environment.compute_variables() == "TF_ENABLE_ONEDNN_OPTS=0"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN is used on x86-64")
def test_convolutions_are_onednns_on_every_processor():
    """TensorFlow's own choice is oneDNN only where there is AVX-512; oneDNN says itself what it computes."""
    code = (
        "import numpy, tensorflow as tf; tf.nn.conv2d(numpy.ones((9, 9, 9, 9), 'float32'), "
        "numpy.ones((3, 3, 9, 9), 'float32'), 1, 'SAME')"
    )
    done = shell("$P", code, ONEDNN_VERBOSE="profile_exec", ONEDNN_MAX_CPU_ISA="AVX2")
    assert b"exec,cpu,convolution" in done.stdout


def test_they_are_part_of_the_fingerprint(compute_unset, compose, tmp_path):
    (tmp_path / "data").write_bytes(b"digits")
    plain = fingerprint(open_project(ROOT), compose(), [tmp_path / "data"])
    compute_unset["TF_ENABLE_ONEDNN_OPTS"] = "0"
    chosen = fingerprint(open_project(ROOT), compose(), [tmp_path / "data"])
    assert chosen[:3] == plain[:3], "configuration, data and code are the same"
    assert chosen.group != plain.group and chosen.content_sha256 != plain.content_sha256
    assert chosen.resume_key == plain.resume_key | {"environment": "TF_ENABLE_ONEDNN_OPTS=0"}


def test_reproduce_names_them_and_a_run_from_before_they_were_recorded_had_none():
    same = {"data_sha256": "a", "versions": "b", "hardware": "c", "code_sha256": "d"}
    chosen = "TF_ENABLE_ONEDNN_OPTS=0"
    assert differences(same, same | {"environment": "none"}) == []
    assert differences(same | {"environment": chosen}, same | {"environment": chosen}) == []
    assert differences(same | {"environment": chosen}, same | {"environment": "none"}) == [
        "environment variables differ: the run's TF_ENABLE_ONEDNN_OPTS=0; here none"
    ]
    assert differences(same, same | {"environment": chosen}) == [
        "environment variables differ: the run's none; here TF_ENABLE_ONEDNN_OPTS=0"
    ]


def test_an_error_of_gits_is_said_in_its_own_words(environ, tmp_path):
    environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    assert environment.commit(tmp_path) == "none"  # a zip download
    git(tmp_path, "init", "--quiet")
    assert environment.commit(tmp_path) == "none" and environment.uncommitted(tmp_path) == ""
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "start")
    assert environment.commit(tmp_path) == git(tmp_path, "rev-parse", "HEAD").strip()
    environ["GIT_TEST_ASSUME_DIFFERENT_OWNER"] = "1"  # git's own way to try it
    with pytest.raises(UserError, match="git: fatal: detected dubious ownership in repository at") as error:
        environment.commit(tmp_path)
    assert f"git config --global --add safe.directory {tmp_path}" in str(error.value)
    assert "\n" not in str(error.value)


def test_the_difference_that_is_kept_applies_whatever_git_is_told_by_its_user(environ, tmp_path):
    settings = "[color]\nui = always\n[diff]\nnoprefix = true\nexternal = false\n[status]\nshowUntrackedFiles = no\n"
    (tmp_path / "gitconfig").write_text(settings)
    environ["GIT_CONFIG_GLOBAL"] = str(tmp_path / "gitconfig")
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "a.py").write_text("é = 1\n\n\n\n", encoding="utf-8")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "start")
    edited = "é = 2\n\n\n\n"  # the last lines of the patch are blank
    (folder / "a.py").write_text(edited, encoding="utf-8")
    (folder / "new.py").touch()
    changes = environment.git_diff(folder)
    assert changes.startswith(" M a.py\n?? new.py\n\ndiff --git a/a.py b/a.py\n") and "+é = 2\n" in changes
    (tmp_path / "git.diff").write_text(changes, encoding="utf-8")
    git(folder, "checkout", "--quiet", "--", "a.py")
    git(folder, "apply", str(tmp_path / "git.diff"))
    assert (folder / "a.py").read_text(encoding="utf-8") == edited
