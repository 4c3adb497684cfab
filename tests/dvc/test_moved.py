"""A repository that was moved, copied, cloned without its store, pulled from a remote, or unpacked from a zip file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, dvc, git, pipeline, ran, run, runs, store
from faults_report import record

pytestmark = pytest.mark.faults

LOAD = """
import sys, mlflow.pyfunc, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
print(*mlflow.pyfunc.load_model(sys.argv[2]).predict(np.load(sys.argv[3])["images"]).argmax(1))
"""


def trained(folder: Path, recipe: str = "baseline"):
    """The newest finished run of a recipe's stage that trained what stands in results, as plain MLflow finds it."""
    digest = json.loads((folder / "results/recipes" / recipe / "metrics.json").read_text())["model_sha256"]
    query = f"tags.dvc_stage = 'train@{recipe}' and tags.model_sha256 = '{digest}' and attributes.status = 'FINISHED'"
    return runs(folder, query)[0]


def opens(folder: Path) -> None:
    """The run of a stage, its model and its artifacts open, by our verb and by plain MLflow."""
    found = trained(folder)
    done = pipeline(folder, "evaluate", f"run={found.info.run_id}")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert "scored on these test examples" in done.stdout

    client = store(folder)
    found = client.get_run(found.info.run_id)
    assert found.info.artifact_uri.startswith((folder / "mlruns").as_uri()), "else it would read the other one's files"
    names = {item.path for item in client.list_artifacts(found.info.run_id)}
    assert {"history.csv", "config.yaml"} <= names
    downloaded = Path(client.download_artifacts(found.info.run_id, "history.csv", str(folder / "data")))
    assert downloaded.read_bytes() == (folder / "results/recipes/baseline/history.csv").read_bytes()
    query = f"source_run_id = '{found.info.run_id}'"
    [logged] = client.search_logged_models([found.info.experiment_id], query)
    assert logged.artifact_location.startswith((folder / "mlruns").as_uri())
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    done = run("python", "-c", LOAD, uri, logged.model_uri, str(folder / "data/processed/test.npz"), cwd=folder)
    rows = np.genfromtxt(folder / "results/recipes/baseline/predictions.csv", delimiter=",", names=True)
    last = done.stdout.splitlines()[-1:]  # below a progress bar
    assert [int(word) for word in " ".join(last).split()] == list(rows["prediction"]), done.stderr


def nothing_runs(folder: Path, digits: Path, *without: str) -> None:
    done = dvc(folder, digits, "repro")
    assert (done.returncode, ran(done)) == (0, []), done.stdout + done.stderr
    assert git(folder, "status", "--porcelain", *without) == ""


@pytest.fixture
def copied(clone: Path, tmp_path: Path) -> Path:
    """A copy (`cp -r`) at another address, whose name needs quoting."""
    return Path(shutil.copytree(clone, tmp_path / "a copy, é", symlinks=True))


@pytest.mark.slow
def test_a_copy_opens_its_own_runs_and_artifacts(copied: Path, digits: Path) -> None:
    nothing_runs(copied, digits)
    opens(copied)
    record("cp -r: runs, artifacts and models open, dvc repro runs nothing", 1, 1)


@pytest.mark.slow
def test_a_moved_repository_opens_its_runs_and_artifacts(copied: Path, digits: Path) -> None:
    opens(copied)  # from now on its own address stands in its store
    moved = copied.rename(copied.with_name("moved"))
    nothing_runs(moved, digits)
    opens(moved)
    record("mv: runs, artifacts and models open, dvc repro runs nothing", 1, 1)


@pytest.mark.slow
def test_a_moved_repository_goes_on_with_its_experiment(copied: Path, digits: Path) -> None:
    trainings = "tags.dvc_stage = 'train@baseline' and tags.model_sha256 != ''"
    before = len(runs(copied, trainings))
    done = dvc(copied, digits, "repro", "--force", "--single-item", "evaluate@baseline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(runs(copied, trainings)) == before > 0, "no run was adopted"


def cloned(source: Path, target: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(source), str(target)], check=True)
    return target


@pytest.mark.slow
def test_a_pulled_clone_runs_nothing_and_opens_new_runs_from_the_files(
    clone: Path, digits: Path, tmp_path: Path
) -> None:
    remote = ["--default", "--local", "pushed", str(tmp_path / "remote")]
    for words in (["remote", "add", *remote], ["push", "--quiet"]):
        done = dvc(clone, digits, *words)
        assert done.returncode == 0, done.stderr
    there = cloned(clone, tmp_path / "clone")
    shutil.copy(clone / ".dvc/config.local", there / ".dvc/config.local")
    try:
        done = dvc(there, tmp_path / "no source", "pull", "--quiet")
        assert done.returncode == 0, done.stderr
        nothing_runs(there, tmp_path / "no source")
        assert not (there / "mlflow.db").exists()
        from_the_files(there)
    finally:
        dvc(clone, digits, "remote", "remove", "--local", "pushed")
    record("dvc push, clone, dvc pull: dvc repro runs nothing; evaluate and compare work without the store", 1, 1)


def from_the_files(folder: Path) -> None:
    """Evaluate and compare in a repository without its store: as before, and in new runs made of the files."""
    before = (folder / "results/recipes/baseline/predictions.csv").read_bytes()
    for recipe in ("baseline", "accurate"):
        done = pipeline(folder, "evaluate", f"recipe={recipe}")
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    [written] = {path.parent for path in (folder / "outputs").glob("*/predictions.csv") if path.read_bytes() == before}
    assert (written / "metrics.json").is_file()
    adopted = runs(folder, "tags.adopted != ''")
    assert {found.data.tags["recipe"] for found in adopted} == {"baseline", "accurate"}
    assert all(found.info.status == "FINISHED" and "test_accuracy" in found.data.metrics for found in adopted)
    table = (folder / "results/comparison.md").read_text()
    for words in ([], ["a=accurate", "b=baseline"]):
        done = pipeline(folder, "compare", *words)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert (folder / "results/comparison.md").read_text() == table
    opens(folder)


@pytest.mark.parametrize("inside", ["", "of another repository"])
def test_a_zip_download_says_in_one_line_what_is_missing(clone: Path, tmp_path: Path, inside: str) -> None:
    if inside:
        git(tmp_path, "init", "--quiet")
    folder = tmp_path / "download"
    shutil.copytree(clone, folder, ignore=lambda _, names: {".git", "mlflow.db", "mlruns", "outputs"} & set(names))
    shutil.copy(ROOT / "Makefile", folder)
    before = files(folder)
    done = run("make", "repro", cwd=folder)
    first, *rest = done.stderr.splitlines()
    assert done.returncode != 0 and done.stdout == ""
    assert re.fullmatch(r"error: this folder is no git clone .*git init && git add -A && git commit.*", first)
    assert all(line.startswith("make: ") for line in rest), done.stderr
    assert files(folder) == before, "nothing was installed or written"
    record("a zip download, unpacked alone or inside another repository, is refused in one line", 1, 1)


def files(folder: Path) -> Sequence[Path]:
    return sorted(folder.rglob("*"))
