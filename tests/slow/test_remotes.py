"""DVC remotes, a folder and an S3 server: what one clone pushes, another pulls, and has nothing left to run."""

from __future__ import annotations

import csv
import hashlib
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import dvc, git, pipeline, ran, runs, store
from servers import HOST, free_port

pytest.importorskip("moto")
pytest.importorskip("dvc_s3")
BUCKET = "mnist"
OF_NOBODY = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
RECIPES = ("baseline", "accurate")


class Remote(NamedTuple):
    url: str
    settings: dict[str, str]  # of `dvc remote modify`
    variables: dict[str, str]  # credentials, in the environment alone


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an S3 server that keeps everything in memory, with an empty bucket."""
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)], stdout=file, stderr=file
        )
    address = f"http://{HOST}:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _answers(address):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=10).close()
        yield address
    finally:
        process.kill()
        process.wait()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
        return True
    except OSError:
        return False


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.sample)])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Remote:
    if request.param == "folder":
        return Remote(str(tmp_path / "remote"), {}, {})
    address = request.getfixturevalue("s3")
    return Remote(f"s3://{BUCKET}/store", {"endpointurl": address}, OF_NOBODY)


def stored(remote: Remote) -> set[str]:
    """The hashes that a remote holds, as DVC names its files."""
    if not remote.settings:
        names = [path.relative_to(remote.url).as_posix() for path in Path(remote.url).rglob("*") if path.is_file()]
    else:
        import boto3

        keys = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nothing", "region_name": "us-east-1"}
        client = boto3.client("s3", endpoint_url=remote.settings["endpointurl"], **keys)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        names = [found["Key"] for page in pages for found in page.get("Contents", [])]
    return {"".join(name.split("/")[-2:]) for name in names}


def fine(folder: Path, source: Path, *words: str, variables: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    done = dvc(folder, source, *words, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes()).hexdigest()


def test_a_clone_pulls_what_was_pushed_runs_nothing_and_tracks_from_it(
    clone: Path, digits: Path, remote: Remote, tmp_path: Path
) -> None:
    ours = Path(shutil.copytree(clone, tmp_path / "ours", symlinks=True))
    for words in (
        ["remote", "add", "--default", "storage", remote.url],
        *(["remote", "modify", "storage", key, value] for key, value in remote.settings.items()),
    ):
        fine(ours, digits, *words, variables={})
    git(ours, "commit", "--quiet", "--message", "remote", ".dvc/config")
    assert "nobody" not in (ours / ".dvc/config").read_text()
    begin = time.perf_counter()
    fine(ours, digits, "push", variables=remote.variables)
    pushed = time.perf_counter() - begin
    models = {recipe: ours / f"models/{recipe}/model.keras" for recipe in RECIPES}
    assert {md5(file) for file in models.values()} <= stored(remote)
    assert "Everything is up to date" in fine(ours, digits, "push", variables=remote.variables).stdout

    theirs = tmp_path / "theirs"
    subprocess.run(["git", "clone", "--quiet", str(ours), str(theirs)], check=True)
    nowhere = tmp_path / "no source"  # the digits come from the remote alone
    assert not (theirs / "models/baseline/model.keras").exists() and not (theirs / ".dvc/cache").exists()
    begin = time.perf_counter()
    fine(theirs, nowhere, "pull", variables=remote.variables)
    print(f"{len(stored(remote))} files: push {pushed:.1f} s, pull {time.perf_counter() - begin:.1f} s")
    done = fine(theirs, nowhere, "repro", variables={})
    assert ran(done) == [] and git(theirs, "status", "--porcelain") == ""
    for recipe, file in models.items():
        assert (theirs / file.relative_to(ours)).read_bytes() == file.read_bytes(), recipe

    assert not (theirs / "mlflow.db").exists()
    outside = pipeline(theirs, "evaluate", "recipe=baseline")
    assert (outside.returncode, outside.stderr) == (0, ""), outside.stdout + outside.stderr
    forced = fine(theirs, nowhere, "repro", "--force", "--single-item", "evaluate@accurate", variables={})
    assert ran(forced) == ["evaluate@accurate"] and git(theirs, "status", "--porcelain") == ""
    for recipe in RECIPES:
        tracked(theirs, recipe)


def tracked(folder: Path, recipe: str) -> None:
    """The store that evaluating made holds one run of the model, with the whole of its history and its test figures."""
    [found] = runs(folder, f"tags.recipe = '{recipe}' and tags.adopted != ''")
    assert found.info.status == "FINISHED" and found.data.tags["test_scored"] == found.data.tags["model_sha256"]
    assert (
        found.data.tags["model_sha256"]
        == hashlib.sha256((folder / f"models/{recipe}/model.keras").read_bytes()).hexdigest()
    )
    with (folder / f"results/recipes/{recipe}/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    for key in set(rows[0]) - {"epoch"}:
        history = store(folder).get_metric_history(found.info.run_id, key)
        logged = sorted((metric.step, metric.value) for metric in history)
        assert logged == [(int(row["epoch"]), float(row[key])) for row in rows], key
    assert "test_accuracy" in found.data.metrics
    assert {item.path for item in store(folder).list_artifacts(found.info.run_id)} >= {"history.csv", "config.yaml"}


def test_a_remote_that_is_away_is_dvcs_own_error_and_changes_nothing(clone: Path, digits: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    subprocess.run(["git", "clone", "--quiet", str(clone), str(theirs)], check=True)
    for words in (
        ["remote", "add", "--default", "storage", f"s3://{BUCKET}/store"],
        ["remote", "modify", "storage", "endpointurl", f"http://{HOST}:{free_port()}"],
    ):
        fine(theirs, digits, *words, variables={})
    before = sorted(path for path in theirs.rglob("*") if ".dvc" not in path.parts)
    done = dvc(theirs, digits, "pull", **OF_NOBODY, AWS_MAX_ATTEMPTS="1")
    assert done.returncode != 0 and "ERROR" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path for path in theirs.rglob("*") if ".dvc" not in path.parts) == before
