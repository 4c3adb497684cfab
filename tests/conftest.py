"""Shared by all tests: the composed configuration, small generated digits, and a clone that was run through."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import pytest
from filelock import FileLock

from pipeline.base import hydra
from pipeline.base.isolation import set_variables
from pipeline.base.project import open_project
from pipeline.base.schema import ARRAYS, Config, Data
from pipeline.data.examples import Examples, save_arrays
from pipeline.data.readers import Arrays, array_sha256

ROOT = Path(__file__).resolve().parents[1]
# The environment of a user's shell: what tests change in their own process later is not in it.
UNSET = ("DVC_", "MLFLOW_", "MNIST_", "MAKE", "MFLAGS")
SECONDS = 900  # that a command may take
USER = {key: value for key, value in os.environ.items() if not key.startswith(UNSET)}
set_variables()  # what trains in a test computes as the commands do


@pytest.fixture(scope="session")
def compose() -> Callable[..., Config]:
    """compose("recipe=accurate", "train.epochs=1", ...) gives what a verb would get."""
    return functools.partial(hydra.compose, open_project(ROOT))


def generated_digits(size: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels uint8 [N] that a small network learns: a bright block a class, in noise."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(size) % classes).astype(np.uint8)
    images = generator.integers(0, 60, (size, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 5)
        image[4 + 12 * row : 11 + 12 * row, 1 + 5 * column : 6 + 5 * column] = 250
    return images, labels


def few_digits(size: int, seed: int) -> Examples:
    """The same in 10 x 10 pixels."""
    images, labels = generated_digits(size, seed)
    return Examples(images[:, ::3, ::3], labels, np.arange(size, dtype=np.int32))


FEW_DIGITS = few_digits(70, 0), few_digits(20, 1)  # to train on, to validate on


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write unsigned bytes in the IDX format, by its definition."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


IDX_FILES = {"train_images": "a-idx3", "train_labels": "a-idx1", "test_images": "b-idx3", "test_labels": "b-idx1"}


@pytest.fixture(scope="session")
def arrays() -> Arrays:
    """60 generated digits for training and 20 for the test."""
    parts = [array for size, seed in ((60, 0), (20, 1)) for array in generated_digits(size, seed)]
    return dict(zip(ARRAYS, parts, strict=True))


@pytest.fixture(scope="session")
def data(arrays) -> Data:
    """The configuration of `arrays`, published as four IDX files."""
    return Data(
        name="mnist",
        image_shape=[28, 28],
        classes=list("0123456789"),
        published=True,
        val_size=5,
        split_seed=0,
        fraction=1.0,
        files=IDX_FILES,
        sha256={key: array_sha256(array) for key, array in arrays.items()},
    )


SHARED = "PYTEST_SHARED"  # the variable that names the folder of what one worker makes for all


def pytest_configure(config: pytest.Config) -> None:
    os.environ.setdefault(SHARED, tempfile.mkdtemp(prefix="tests-"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(ROOT / "tests/slow"):
            item.add_marker("slow")
    # One file makes `run_through` while the other worker is busy with what needs none.
    items.sort(key=lambda item: item.path.name != "test_sweep.py")


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ.pop(SHARED))


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """A file or folder that the first worker to need it makes for all. It is to be copied, and left as it is."""
    made = Path(os.environ[SHARED], name)
    with FileLock(f"{made}.lock"):
        if not made.exists():
            making = Path(tempfile.mkdtemp(dir=made.parent), name)
            make(making)
            making.rename(made)
    return made


def fresh_store(path: Path) -> Path:
    """Put a database there as MLflow makes it, which takes MLflow three seconds each time."""

    def make(making: Path) -> None:
        from mlflow.tracking import MlflowClient

        MlflowClient(f"sqlite:///{making}").search_experiments(max_results=1)

    return Path(shutil.copy(made_once("mlflow.db", make), path))


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """A folder with a store, and FEW_DIGITS to train on."""
    folder = tmp_path_factory.mktemp("store")
    fresh_store(folder / "mlflow.db")
    save_arrays(folder / "train.npz", **FEW_DIGITS[0]._asdict())
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@functools.cache
def user_path() -> str:
    """PATH with a `python` first that runs our verbs as forks of fork_server.py, which the first to come starts."""
    environment = str(Path(sys.executable).parent)
    path = os.pathsep.join([environment, USER["PATH"]])
    if not sys.platform.startswith("linux"):
        return path
    folder = Path(os.environ[SHARED])
    with FileLock(folder / "lock"):
        if not (folder / "python").exists():
            server, address = str(Path(__file__).with_name("fork_server.py")), str(folder / "socket")
            owner = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
            with socket.socket(socket.AF_UNIX) as listening, (folder / "log").open("w") as log:
                listening.bind(address)
                listening.listen()
                server_process = subprocess.Popen(
                    [sys.executable, server, "serve", str(listening.fileno()), str(owner)],
                    pass_fds=[listening.fileno()],
                    env=USER,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                server_process.returncode = 0  # nobody waits for it: it ends when we have
            for name, words in (("dvc", ["-m", "dvc"]), ("python", [])):
                line = shlex.join([sys.executable, "-IS", server, address, *words])
                (folder / name).write_text(f'#!/bin/sh\nexec {line} "$@"\n')
                (folder / name).chmod(0o755)
    return os.pathsep.join([str(folder), path])


def program(path: Path, lines: str) -> Path:
    """Make a command of lines of Python: a first line with the interpreter would end at a space in its path."""
    path.parent.mkdir()
    path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c {shlex.quote(lines)} "$@"\n')
    path.chmod(0o755)
    return path


class Command(subprocess.Popen[str]):
    """A command that does not outlive a test which failed meanwhile."""

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind:
            self.kill()
        super().__exit__(kind, *rest)


def start(*words: str, cwd: Path = ROOT, **more: Any) -> Command:
    """Start a command as a user would: `python` is a fork if it can be, sys.executable never.

    `more` are variables of its environment, in capitals, and what Popen is given otherwise than pipes for its output.
    """
    variables = {key: more.pop(key) for key in list(more) if key.isupper()}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | more
    return Command(words, cwd=cwd, env=USER | {"PATH": user_path()} | variables, **options)


def run(*words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Start a command, and wait for it."""
    with start(*words, cwd=cwd, **variables) as process:
        stdout, stderr = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)


SMALL = {"conf/recipe/baseline.yaml": ("filters: 64 ", "filters: 2 "), "params.yaml": ("epochs: 15", "epochs: 2")}
COPIED = [
    "conf",
    "pipeline",
    "reference",
    "own",
    "hydra_plugins",
    "mlruns/.gitignore",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
    "dvc.yaml",
    "params.yaml",
]


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    for split, size, seed in (("train", 400, 0), ("t10k", 100, 1)):
        images, labels = generated_digits(size, seed)
        write_idx(folder / f"{split}-images-idx3-ubyte", images)
        write_idx(folder / f"{split}-labels-idx1-ubyte", labels)
    return folder


def copy_repository(folder: Path) -> None:
    """Copy the working tree; nothing is run."""
    for name in COPIED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name,
                folder / name,
                ignore=lambda _, names: {n for n in names if n == "__pycache__" or len(n) > 30},
            )
        else:
            shutil.copy(ROOT / name, folder / name)


def small_repository(folder: Path, digits: Path) -> None:
    """Copy the working tree, with settings for the generated digits."""
    copy_repository(folder)
    for name, (old, new) in SMALL.items():
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    settings = (folder / "conf/data/mnist.yaml").read_text().replace("val_size: 5000", "val_size: 50")
    for name, header in (("images-idx3", 16), ("labels-idx1", 8)):
        for split, key in (("train", "train"), ("t10k", "test")):
            content = (digits / f"{split}-{name}-ubyte").read_bytes()[header:]
            key = f"{key}_{name.split('-')[0]}"
            settings = re.sub(rf"{key}: \w{{64}}", f"{key}: {hashlib.sha256(content).hexdigest()}", settings)
    (folder / "conf/data/mnist.yaml").write_text(settings)


COMPOSED: dict[tuple[Path, tuple[str, ...]], dict[str, bytes]] = {}


def write_composed(folder: Path, *words: str) -> None:
    """Write what `dvc repro` has composed before a stage that is called with these words, which a test runs by hand."""
    [recipe] = [word.removeprefix("recipe=") for word in words if word.startswith("recipe=")] or ["baseline"]
    names = {f"compose@{recipe}": f"results/recipes/{recipe}/config.yaml", "compose_data": "results/data.yaml"}
    if (folder, words) not in COMPOSED:
        for stage in names:
            done = run("python", "-m", "pipeline.compose", *words, cwd=folder, DVC_STAGE=stage)
            assert done.returncode == 0, done.stderr
        COMPOSED[folder, words] = {name: (folder / name).read_bytes() for name in names.values()}
    for name, content in COMPOSED[folder, words].items():
        if not (folder / name).is_file() or (folder / name).read_bytes() != content:  # a folder may only be read
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)


@pytest.fixture(scope="module")
def repository(tmp_path_factory, digits) -> Path:
    """A copy of the working tree with the generated digits split, and nothing trained."""
    folder = tmp_path_factory.mktemp("repository")
    small_repository(folder, digits)
    write_composed(folder)
    for verb in ("fetch", "preprocess"):
        variables = {"MNIST_SOURCE": str(digits), "DVC_STAGE": verb}
        done = run("python", "-m", f"pipeline.{verb}", cwd=folder, **variables)
        assert done.returncode == 0, done.stderr
    return folder


def copy(repository: Path, folder: Path) -> Path:
    return Path(shutil.copytree(repository, folder / "repository"))


@pytest.fixture(scope="session")
def run_through(digits) -> Path:
    """A git clone of the working tree for the generated digits, committed and run through once."""

    def make(folder: Path) -> None:
        small_repository(folder, digits)
        for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
            git(folder, *words)
        done = dvc(folder, digits, "repro")
        assert done.returncode == 0, done.stdout + done.stderr
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", "results")

    return made_once("run_through", make)


@pytest.fixture(scope="module")
def clone(run_through, tmp_path_factory) -> Path:
    """A copy of it for each file of tests: what others trained before would be found again by this one's sweeps."""
    folder = copy(run_through, tmp_path_factory.mktemp("clone"))
    follow = (
        "from pipeline.base.project import open_project\nfrom pipeline.tracking.store import open_store\n"
        "open_store(open_project(), 'mnist')"
    )
    done = run("python", "-c", follow, cwd=folder)
    assert done.returncode == 0 and str(folder) in done.stdout, done.stderr
    return folder


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    return subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def dvc(folder: Path, source: Path | str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run("dvc", *words, cwd=folder, MNIST_SOURCE=str(source), **variables)


def ran(done: subprocess.CompletedProcess[str]) -> list[str]:
    return re.findall(r"^Running stage '(.+)':", done.stdout, re.MULTILINE)


def store(place: Path | str):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{place / 'mlflow.db'}" if isinstance(place, Path) else place)


PARENT = "mlflow.parentRunId"


def pipeline(clone: Path, verb: str, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run("python", "-m", f"pipeline.{verb}", *words, cwd=clone, **variables)


def runs(clone: Path, query: str = ""):
    client = store(clone)
    return client.search_runs([client.get_experiment_by_name("mnist").experiment_id], query)


def children(clone: Path, parent: str):
    return runs(clone, f"tags.`{PARENT}` = '{parent}'")


def study(clone: Path, done: subprocess.CompletedProcess[str]):
    """The study of a search."""
    import optuna

    return optuna.load_study(study_name=parent_of(done), storage=f"sqlite:///{clone / 'multirun/optuna.db'}")


def parent_of(done: subprocess.CompletedProcess[str]) -> str:
    [found] = re.findall(r"^sweep .*MLflow run (\w{32})", done.stdout, re.MULTILINE)
    return found
