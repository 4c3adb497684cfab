"""Runs of sweeps compared, evaluated and trained again, as typed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import PARENT, children, git, parent_of, pipeline, runs, store


@pytest.fixture(scope="module")
def groups(clone) -> list[str]:
    """Two groups of three seeds, trained by no other test: their ids."""
    done = pipeline(clone, "train", "-m", "recipe=baseline", "seed=range(0,3)", "model.filters=2,3", "train.epochs=1")
    assert done.returncode == 0, done.stderr
    by_filters = {run.data.params["model.filters"]: run.data.tags["group"] for run in children(clone, parent_of(done))}
    assert len(set(by_filters.values())) == 2
    return [by_filters["2"], by_filters["3"]]


def test_two_groups_are_compared_on_validation_until_the_test_digits_are_read(clone, groups):
    done = pipeline(clone, "compare", f"a={groups[0]}", f"b={groups[1]}")
    assert done.returncode == 0, done.stderr
    assert "n = 3 + 3, 50 validation examples" in done.stdout and "baseline model.filters=2" in done.stdout
    assert "so few runs cannot show one: the smallest p of n = 3 + 3 is 0.10" in done.stdout
    [run_id] = re.findall(r"MLflow run (\w{32})", done.stdout)
    client = store(clone)
    assert {item.path for item in client.list_artifacts(run_id)} >= {
        "comparison.md",
        "comparison.json",
        "comparison.png",
        "report.html",
    }
    page = Path(client.download_artifacts(run_id, "report.html")).read_text()
    assert page.count("3 runs together</figcaption>") == 4, "confusion and calibration of either side"
    for run in runs(clone, f"tags.group = '{groups[0]}'"):
        assert run.info.run_id in page and run.data.tags["hardware"] in page and run.data.tags["git_commit"] in page
    [parent] = {run.data.tags[PARENT] for run in runs(clone, f"tags.group = '{groups[0]}'")}
    page = Path(client.download_artifacts(parent, "report.html")).read_text()
    assert "<strong>First of 6 by val_accuracy: " in page and f"pipeline.compare a={parent}" in page
    answer = json.loads(Path(client.download_artifacts(run_id, "comparison.json")).read_text())
    means = [sum(side["accuracies"]) / 3 for side in answer["sides"].values()]
    assert answer["verdicts"][0]["difference"] == pytest.approx(means[1] - means[0])
    assert answer["compared_on"] == "validation" and answer["models_scored_on_test"] == 2
    differing = [line for line in done.stdout.splitlines() if line.startswith("| model.filters")]
    assert len(differing) == 1 and [cell.strip() for cell in differing[0].split("|")[2:4]] == ["2", "3"]


def test_two_runs_are_compared_on_the_test_digits_once_both_were_evaluated(clone, groups):
    one, other = (runs(clone, f"tags.group = '{group}' and params.seed = '1'")[0].info.run_id for group in groups)
    for run_id, models in ((one, 3), (other, 4)):  # after those of the two recipes
        done = pipeline(clone, "evaluate", f"run={run_id}")
        said = f"MLflow run {run_id}; {models} different models of this store were scored on these test examples"
        assert done.returncode == 0 and said in done.stdout, done.stderr
    done = pipeline(clone, "compare", f"a={one}", f"b={other}")
    assert done.returncode == 0 and "100 test examples" in done.stdout
    assert "Compared on the test examples: 4 different models of this store were scored on these" in done.stdout
    a, b = (json.loads(Path(store(clone).download_artifacts(i, "metrics.json")).read_text()) for i in (one, other))
    [alone] = re.findall(r"alone is correct on (\d+), .* alone on (\d+) examples", done.stdout)
    assert int(alone[1]) - int(alone[0]) == a["test_errors"] - b["test_errors"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=9447e1230643", "b=baseline"], "'9447e1230643' names no finished run"),
        (["a=baseline", "b=baseline"], "one configuration alone"),
        (["a=baseline"], "one configuration alone"),
        (["a='params.nonsense ='", "b=baseline"], "no filter of MLflow's"),
    ],
)
def test_what_cannot_be_compared_is_refused(clone, words, message):
    done = pipeline(clone, "compare", *words)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_one_seed_against_several_says_what_it_can(clone, groups):
    [alone] = runs(clone, "tags.recipe = 'accurate' and tags.dvc_stage = 'train@accurate'")[:1]
    done = pipeline(clone, "compare", f"a={groups[0]}", f"b={alone.info.run_id}")
    assert done.returncode == 0, done.stderr
    assert "accurate has one seed, which says nothing about other seeds" in done.stdout


def test_a_model_that_was_exchanged_and_an_unknown_run_are_refused(clone, groups):
    [found], [other] = (runs(clone, f"tags.group = '{groups[0]}' and params.seed = '{seed}'") for seed in (2, 0))
    file, stranger = (
        next((clone / "mlruns").rglob(f"{run.outputs.model_outputs[0].model_id}/**/model.keras"))
        for run in (found, other)
    )
    content = file.read_bytes()
    file.write_bytes(stranger.read_bytes())
    done = pipeline(clone, "evaluate", f"run={found.info.run_id}")
    assert done.returncode == 1 and "holds another model than it trained" in done.stderr
    file.unlink()
    done = pipeline(clone, "evaluate", f"run={found.info.run_id}")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "is gone" in done.stderr
    file.write_bytes(content)
    done = pipeline(clone, "evaluate", "run=" + "0" * 32)
    assert done.returncode == 1 and "is no run of" in done.stderr and done.stderr.count("\n") == 1


def test_a_run_is_reproduced_to_the_bit(clone, groups):
    [found] = runs(clone, f"tags.group = '{groups[1]}' and params.seed = '2'")
    same = pipeline(clone, "reproduce", f"run={found.info.run_id}")
    assert same.returncode == 0 and "code, data, versions, hardware and environment are those of the run" in same.stdout
    assert f"identical bits: model.keras has the SHA-256 of the run, {found.data.tags['model_sha256']}" in same.stdout


@pytest.mark.slow
def test_other_code_and_another_environment_are_named_where_a_run_is_trained_again(clone, groups):
    [found] = runs(clone, f"tags.group = '{groups[1]}' and params.seed = '2'")
    optimizer = clone / "pipeline/training/optimizer.py"
    optimizer.write_text(optimizer.read_text().replace("beta1=0.9,", "beta1=0.8,"))
    other = pipeline(clone, "reproduce", f"run={found.info.run_id}", TF_ENABLE_ONEDNN_OPTS="0")
    git(clone, "restore", "pipeline")
    commit = git(clone, "rev-parse", "HEAD").strip()
    assert other.returncode == 0 and (
        f"code differs: the run's is of commit {commit}; here {commit} with uncommitted changes" in other.stdout
    )
    assert "environment variables differ: the run's none; here TF_ENABLE_ONEDNN_OPTS=0\n" in other.stdout
    [recorded] = runs(clone, "tags.environment = 'TF_ENABLE_ONEDNN_OPTS=0'")
    assert recorded.data.tags["model_sha256"] not in ("", found.data.tags["model_sha256"])
    assert f"git worktree add ../at-{commit[:7]} {commit}" in other.stdout
    assert re.search(r"other bits: validation accuracy .* \(.* points; \d+ of 50 predictions differ\)", other.stdout)
    assert git(clone, "status", "--porcelain") == ""


@pytest.mark.slow
def test_a_run_is_reproduced_by_its_folder(clone, groups):
    found, *_ = runs(clone, f"tags.group = '{groups[1]}' and params.seed = '2'")
    folder = store(clone).download_artifacts(found.info.run_id, "")
    same = pipeline(clone, "reproduce", f"run={folder}")
    assert "identical bits: model.keras has the SHA-256 of the run" in same.stdout, same.stderr


def test_the_published_curve_is_set_beside_ours(clone):
    done = pipeline(clone, "reproduce", "run=published")
    assert (
        done.returncode == 1 and "the published log has 15 epochs: train baseline with train.epochs=15" in done.stderr
    )
