"""The same bits wherever it is done, by whom, and in whatever surroundings: one thing of them a try, or several."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import runs, small_repository, write_composed
from disks import read_only
from faults_report import record

pytestmark = pytest.mark.faults

SOMEBODY = 54321  # a user id that has no name, as in many a container
WORDS = ["recipe=baseline", "train.epochs=2", "optimizer.batch_size=100"]
COMMANDS = {f"{verb}@baseline": [f"pipeline.{verb}", *WORDS] for verb in ("train", "evaluate")}
PROMISE = "the same bits in other surroundings"


NOTEBOOK = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
ELSEWHERE = {"GIT_DIR": "/nowhere/.git", "GIT_WORK_TREE": "/nowhere", "GIT_INDEX_FILE": "/nowhere/index"}
KERAS = {"KERAS_BACKEND": "torch", "TF_USE_LEGACY_KERAS": "1"}
LATIN = {"PYTHONIOENCODING": "iso-8859-1:strict"}
MATPLOTLIBRC = (
    "text.usetex: True\nimage.origin: lower\naxes.grid: True\nsavefig.bbox: tight\nsavefig.transparent: True\n"
)
CHANNELS_FIRST = {"image_data_format": "channels_first", "floatx": "float64", "backend": "torch", "epsilon": 1e-3}


class Surroundings(NamedTuple):
    """What is unlike the reference."""

    name: str = "repository"  # of the folder
    variables: Mapping[str, str] = {}
    umask: int = 0o022
    elsewhere: bool = False  # the working directory is another folder
    backwards: bool = False  # the files of the repository were made in another order
    other_user: bool = False
    home: bool = True  # that may be written to
    keras_json: Mapping[str, object] = {}  # in the home
    matplotlibrc: str = ""  # in the working directory
    shell: str = ""  # a line of bash around the command, which is "$@"


ALL = {
    "a path with spaces and letters beyond ASCII": Surroundings(name="Übung 1 – мои цифры"),
    "a home that may only be read": Surroundings(home=False),
    "another time zone": Surroundings(variables={"TZ": "Pacific/Kiritimati"}),
    "the locale C": Surroundings(variables={"LC_ALL": "C", "LANG": "C"}),
    "another umask": Surroundings(umask=0o077),
    "another working directory": Surroundings(elsewhere=True),
    "another hash seed": Surroundings(variables={"PYTHONHASHSEED": "4321"}),
    "another user": Surroundings(other_user=True),
    "a folder made in another order": Surroundings(backwards=True),
    "a notebook's kernel": Surroundings(variables=NOTEBOOK),
    "a matplotlibrc": Surroundings(matplotlibrc=MATPLOTLIBRC),
    "another Keras by variables": Surroundings(variables=KERAS),
    "a keras.json with channels first": Surroundings(keras_json={"image_data_format": "channels_first"}),
    "a keras.json with float64": Surroundings(keras_json={"floatx": "float64"}),
    "a keras.json with float16": Surroundings(keras_json={"floatx": "float16"}),
    "a terminal of ISO-8859-1": Surroundings(variables=LATIN),
    "warnings as errors": Surroundings(variables={"PYTHONWARNINGS": "error"}),
    "git's variables of elsewhere": Surroundings(variables=ELSEWHERE),
    "a closed stdout": Surroundings(shell='"$@" >&-'),
    "a closed stderr": Surroundings(shell='"$@" 2>&-'),
    "all streams closed": Surroundings(shell='"$@" <&- >&- 2>&-'),
    "nobody who reads, and the same command again": Surroundings(shell='"$@" | true; "$@"'),
    "a user without a name or a home": Surroundings(other_user=True, shell='unset HOME; "$@"'),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    """A repository with its data, which nothing was trained in."""
    folder = tmp_path_factory.mktemp("prepared")
    small_repository(folder, digits)
    write_composed(folder, *WORDS)
    for stage in ("fetch", "preprocess"):
        done = python(folder, f"pipeline.{stage}", DVC_STAGE=stage, MNIST_SOURCE=str(digits))
        assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def expected(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return made(prepared, tmp_path_factory.mktemp("reference"), Surroundings())


def python(folder: Path, *words: str, **options: object) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in options.items() if key.isupper()}
    rest = {key: value for key, value in options.items() if not key.isupper()}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "MNIST_"))}
    around = ["bash", "-c", line, "bash"] if (line := rest.pop("shell", "")) else []
    words = [*around, sys.executable, "-m", *words]
    return subprocess.run(words, **{"cwd": folder, **rest}, env=kept | variables, capture_output=True, text=True)


def made(prepared: Path, place: Path, around: Surroundings) -> dict[str, str]:
    """Train and evaluate in a copy of the repository: what was written, by its hash."""
    folder, home = place / around.name, place / "home"
    copy(prepared, folder, around.backwards)
    home.mkdir()
    if around.keras_json:
        (home / ".keras").mkdir()
        (home / ".keras" / "keras.json").write_text(json.dumps(around.keras_json))
    if around.matplotlibrc:
        (place if around.elsewhere else folder).joinpath("matplotlibrc").write_text(around.matplotlibrc)
    options: dict[str, object] = {
        "umask": around.umask,
        "encoding": "utf-8",
        "errors": "replace",
        "HOME": str(home),
        "PYTHONPATH": str(folder),
        "PYTHONHASHSEED": "0",
        "shell": around.shell,
        **around.variables,
    }
    if around.elsewhere:
        options["cwd"] = place
    if around.other_user:
        options |= {"LOGNAME": "somebody", "USER": "somebody"}
        if may_be_another():
            options |= {"LOGNAME": "", "USER": "", "user": SOMEBODY, "group": SOMEBODY, "extra_groups": []}
            for path in [place, *place.rglob("*")]:
                os.chown(path, SOMEBODY, SOMEBODY)
    with nullcontext() if around.home else read_only(home):
        for stage, words in COMMANDS.items():
            done = python(folder, *words, DVC_STAGE=stage, **options)
            said = done.stderr if "PYTHONWARNINGS" not in around.variables else ""  # then all of others' is shown
            assert (done.returncode, said) == (0, ""), (around, done)
    assert around.home or {path.name for path in home.iterdir()} <= {".keras"}
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for top in ("models", "results")
        for path in sorted((folder / top).rglob("*"))
        if path.is_file()
    }


def copy(source: Path, target: Path, backwards: bool) -> None:
    paths = sorted(source.rglob("*"), reverse=backwards)
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            (target / path.relative_to(source)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / path.relative_to(source))


def may_be_another() -> bool:
    """Whether we may start this Python as a user who has no name; else another name has to do."""
    try:
        subprocess.run([sys.executable, "-c", ""], user=SOMEBODY, group=SOMEBODY, check=True)
    except OSError:
        return False
    return True


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that can be given to another user: those above it may be entered by all."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def differences(found: Mapping[str, str], expected: Mapping[str, str]) -> list[str]:
    return [key for key in {**expected, **found} if found.get(key) != expected.get(key)]


TOGETHER = Surroundings(  # several that cannot hide one another: each but adds to what could differ
    name="Übung 1 – мои цифры",
    variables={"TZ": "Pacific/Kiritimati", "PYTHONHASHSEED": "4321", "LC_ALL": "C", "LANG": "C"}
    | NOTEBOOK
    | ELSEWHERE
    | KERAS
    | LATIN,
    umask=0o077,
    elsewhere=True,
    backwards=True,
    other_user=True,
    home=False,
    keras_json=CHANNELS_FIRST,
    matplotlibrc=MATPLOTLIBRC,
)


@pytest.mark.sample
def test_a_strange_place_changes_no_bit(prepared: Path, expected: dict[str, str], place: Path) -> None:
    assert "models/baseline/model.keras" in expected and "results/recipes/baseline/metrics.json" in expected
    changed = differences(made(prepared, place, TOGETHER), expected)
    record(f"{PROMISE}: {', '.join(ALL)}, all at once", 1, 1 - bool(changed), ", ".join(changed) or "nothing")
    assert not changed


@pytest.mark.parametrize("what", ALL)
def test_no_surroundings_change_a_bit(prepared: Path, expected: dict[str, str], place: Path, what: str) -> None:
    changed = differences(made(prepared, place, ALL[what]), expected)
    record(f"{PROMISE}: {what}", 1, 1 - bool(changed), ", ".join(changed) or "nothing")
    assert not changed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TF_ENABLE_ONEDNN_OPTS", "0"),
        ("TF_XLA_FLAGS", "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"),
        ("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ],
)
def test_a_variable_that_chooses_how_to_compute_is_recorded(prepared: Path, place: Path, name: str, value: str) -> None:
    folder = place / "repository"
    copy(prepared, folder, backwards=False)
    done = python(folder, "pipeline.train", "recipe=debug/one_batch", **{name: value})
    assert (done.returncode, done.stderr) == (0, "")
    [run] = runs(folder)
    assert run.data.tags["environment"] == f"{name}={value}"
    record("a variable that chooses how to compute is recorded with the run", 1, 1)


def test_another_seed_changes_bits(prepared: Path, expected: dict[str, str], place: Path) -> None:
    """Else nothing here would show anything."""
    params = "params.yaml"
    other = place / "other"
    copy(prepared, other, backwards=False)
    (other / params).write_text((other / params).read_text().replace("seed: ", "seed: 1"))
    write_composed(other, *WORDS)
    changed = differences(made(other, place, Surroundings()), expected)
    assert {"models/baseline/model.keras", "results/recipes/baseline/predictions.csv"} <= set(changed)
