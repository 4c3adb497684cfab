"""Sweeps as typed: what they train, what they find again, how they fail."""

from __future__ import annotations

import csv
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import children, copy, dvc, git, parent_of, pipeline, runs, start, store, study

from pipeline.base.project import open_project
from pipeline.base.verb_schemas import TrainConfig
from pipeline.experiments import sweep

GRID = ("-m", "recipe=baseline", "train.epochs=1,3", "model.filters=2,4")


@pytest.fixture(scope="module")
def grid(clone) -> subprocess.CompletedProcess[str]:
    done = pipeline(clone, "train", *GRID)
    assert done.returncode == 0, done.stderr
    return done


def test_a_sweep_is_one_parent_with_a_child_a_combination(clone, grid):
    parent = store(clone).get_run(parent_of(grid))
    assert parent.info.status == "FINISHED" and parent.info.run_name == " ".join(["sweep", *GRID[1:]])
    assert parent.data.tags["command"] == " ".join(["python -m pipeline.train", *GRID])
    found = children(clone, parent.info.run_id)
    assert sorted(child.info.run_name for child in found) == [
        f"train.epochs={epochs} model.filters={filters}" for epochs in (1, 3) for filters in (2, 4)
    ]
    for child in found:
        assert f"train.epochs={child.data.params['train.epochs']} " in child.info.run_name
        assert child.info.run_name.endswith(f"model.filters={child.data.params['model.filters']}")
        assert len(store(clone).get_metric_history(child.info.run_id, "val_accuracy")) == int(
            child.data.params["train.epochs"]
        )


def test_children_are_ranked_by_validation_and_the_test_digits_are_not_read(clone, grid):
    parent = parent_of(grid)
    text = Path(store(clone).download_artifacts(parent, "ranking.csv")).read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
    accuracies = [float(row["val_accuracy"]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    found = {child.info.run_id: child for child in children(clone, parent)}
    assert {row["run_id"] for row in rows} == set(found)
    for row in rows:
        child = found[row["run_id"]]
        assert float(row["val_accuracy"]) == child.data.metrics["val_accuracy"]
        assert row["model.filters"] == child.data.params["model.filters"]
        assert "test_accuracy" not in child.data.metrics and "test_scored" not in child.data.tags
        assert {given.dataset.name for given in child.inputs.dataset_inputs} == {"train", "val"}
    assert store(clone).get_run(parent).data.tags["best_run"] == rows[0]["run_id"]
    assert "The best of 4 was chosen on these 50 examples, so its accuracy" in grid.stdout
    assert "BBC-CV, from the predictions of 4)" in grid.stdout
    files = {"ranking.csv", "ranking.md", "sweep.png", "effects.png", "report.html"}
    assert {item.path for item in store(clone).list_artifacts(parent)} == files
    shares = re.findall(
        r"^\| (?:train.epochs|model.filters|interactions) +\| +([\d.]+) % \|", grid.stdout, re.MULTILINE
    )
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.02), "what mattered, in the full grid of 4"


def test_the_same_sweep_again_trains_nothing(clone, grid):
    before = {found.info.run_id for found in runs(clone)}
    again = pipeline(clone, "train", *GRID)
    assert again.returncode == 0 and "4 jobs, 4 found finished" in again.stdout and "epoch 1/" not in again.stdout
    assert parent_of(again) == parent_of(grid) and {found.info.run_id for found in runs(clone)} == before


@pytest.mark.slow
@pytest.mark.sample
def test_paired_values_are_trained_together_and_labels_change_nothing(clone):
    words = (
        "-m",
        "recipe=baseline",
        "train.epochs=1",
        "seed=4,5",
        "model.filters=2,3",
        "sweep.zip=[seed,model.filters]",
    )
    done = pipeline(clone, "train", *words, "note=first try, of (two)", "tags.owner=me")
    assert done.returncode == 0, done.stderr
    parent = store(clone).get_run(parent_of(done))
    trained = children(clone, parent.info.run_id)
    assert sorted(run.info.run_name for run in trained) == ["seed=4 model.filters=2", "seed=5 model.filters=3"]
    assert parent.info.run_name == " ".join(["sweep", *words[1:]]), "without the labels"
    assert parent.data.tags["swept_keys"] == "seed model.filters"
    for run in (parent, *trained):
        assert (run.data.tags["note"], run.data.tags["owner"]) == ("first try, of (two)", "me")
    for run in trained:
        config = Path(store(clone).download_artifacts(run.info.run_id, "config.yaml")).read_text()
        assert not re.search("^(note|tags|sweep)", config, re.MULTILINE)
        assert not [key for key in run.data.params if key.startswith(("note", "tags", "sweep"))]
    labelled = runs(clone, "tags.note LIKE '%of (two)' and tags.owner = 'me'")
    assert {run.info.run_id for run in labelled} == {run.info.run_id for run in (parent, *trained)}
    again = pipeline(clone, "train", *words, "note='second try'")
    assert "2 jobs, 2 found finished" in again.stdout and parent_of(again) == parent.info.run_id
    assert store(clone).get_run(parent.info.run_id).data.tags["note"] == "second try"


@pytest.mark.slow
def test_a_larger_sweep_trains_what_is_missing(clone, grid):
    larger = pipeline(clone, "train", *GRID[:-1], "model.filters=2,4,3")
    assert "6 jobs, 4 found finished" in larger.stdout
    trained = re.findall(r"^(train.epochs=\d model.filters=\d) epoch (?:1/1|3/3) ", larger.stdout, re.MULTILINE)
    assert trained == ["train.epochs=1 model.filters=3", "train.epochs=3 model.filters=3"]
    assert len(children(clone, parent_of(larger))) == 2
    assert len(re.findall(r"^\| \d", larger.stdout, re.MULTILINE)) == 6, "the ranking holds what was found as well"


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(2, 1), (4, 2, 3, 1)])
def test_runs_that_differ_in_their_length_alone_share_their_first_epochs_and_end_as_each_by_itself(clone, lengths):
    words = ("recipe=baseline", f"seed={6 + len(lengths)}")
    done = pipeline(clone, "train", "-m", *words, f"train.epochs={','.join(map(str, lengths))}")
    assert done.returncode == 0, done.stderr
    most = lengths[0]
    trained = re.findall(r"^train.epochs=(\d) epoch (\d)/", done.stdout, re.MULTILINE)
    assert trained == [(str(most), str(epoch)) for epoch in range(1, most + 1)], "4 epochs for 10"
    assert re.findall(r"continues after epoch (\d)", done.stdout) == [str(epochs) for epochs in lengths[1:]]
    folder = max((clone / "multirun").glob("2*"))
    for number, epochs in enumerate(lengths):
        [child] = [run for run in children(clone, parent_of(done)) if run.data.params["train.epochs"] == str(epochs)]
        assert len(store(clone).get_metric_history(child.info.run_id, "speed/epoch_seconds")) == epochs
        alone = pipeline(clone, "train", *words, f"train.epochs={epochs}")
        assert alone.returncode == 0 and "continues" not in alone.stdout
        own = max((clone / "outputs").glob("2*"))
        for name in ("model.keras", "history.csv", "val_predictions.csv"):
            assert (own / name).read_bytes() == (folder / str(number) / name).read_bytes(), (epochs, name)
    assert not list((clone / "multirun").rglob("*.ckpt"))


@pytest.mark.slow
def test_where_the_length_decides_the_schedule_each_is_trained_by_itself_and_it_says_so(clone):
    words = ("recipe=baseline", "seed=7", "optimizer.schedule=one_cycle")
    done = pipeline(clone, "train", "-m", *words, "train.epochs=2,1")
    assert "depend on train.epochs: each number is trained by itself" in done.stdout
    trained = re.findall(r"^train.epochs=(\d) epoch (\d)/", done.stdout, re.MULTILINE)
    assert trained == [("2", "1"), ("2", "2"), ("1", "1")] and "continues" not in done.stdout


@pytest.mark.slow
def test_other_code_is_trained_again_and_another_comment_is_not(clone, grid):
    loop = clone / "pipeline/training/loop.py"
    sweep = ("-m", "recipe=baseline", "train.epochs=1", "model.filters=2,4")
    loop.write_text(loop.read_text() + "# another\n")
    assert "2 jobs, 2 found finished" in pipeline(clone, "train", *sweep).stdout
    loop.write_text(loop.read_text() + "ANOTHER = 1\n")
    done = pipeline(clone, "train", *sweep)
    git(clone, "restore", "pipeline")
    assert done.returncode == 0 and "2 jobs; " in done.stdout
    assert len(children(clone, parent_of(done))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")], ids=["basic", "joblib"]
)
def test_a_killed_sweep_goes_on_where_it_stopped(clone, launcher):
    epochs = 30 + len(launcher)
    words = ("-m", *launcher, "recipe=baseline", f"train.epochs={epochs}", "seed=range(0,4)")
    log = clone / "killed.log"
    with log.open("w") as file:
        killed = subprocess.Popen(
            [sys.executable, "-m", "pipeline.train", *words],
            cwd=clone, stdout=file, stderr=file, start_new_session=True,
            env={key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_"))},
        )  # fmt: skip
    deadline = time.monotonic() + 300
    while not re.search(r"^seed=[23] epoch 1/", log.read_text(), re.MULTILINE):
        assert killed.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    log.unlink()
    done = pipeline(clone, "train", *words)
    assert done.returncode == 0, done.stderr
    assert "4 jobs, " in done.stdout and "begun before" in done.stdout and ": continues after epoch " in done.stdout
    found = children(clone, parent_of(done))
    assert sorted(child.info.run_name for child in found) == [f"seed={seed}" for seed in range(4)]
    assert {child.info.status for child in found} == {"FINISHED"}
    assert all(len(store(clone).get_metric_history(c.info.run_id, "val_loss")) == epochs for c in found)


ELSEWHERE = """
import runpy, socket, sys, time
from pathlib import Path
socket.gethostname = lambda: "elsewhere"
from pipeline.base import console
told = console.TrainingProgress.epoch_done
def epoch_done(*words):
    told(*words)
    while not Path("go").exists():
        time.sleep(0.05)
console.TrainingProgress.epoch_done = epoch_done
runpy.run_module("pipeline.train", run_name="__main__")
"""


@pytest.mark.slow
def test_a_second_machine_waits_for_what_the_first_one_trains(clone, tmp_path):
    """Two repositories and one store: the second one deleted the first one's running child."""
    first, uri = copy(clone, tmp_path), f"sqlite:///{tmp_path / 'shared.db'}"
    words = ("-m", "recipe=baseline", "train.epochs=2", "seed=77")

    def begin(folder: Path, *command: str) -> subprocess.Popen:
        with (tmp_path / f"{folder.parent.name}.log").open("w") as file:
            return start("python", *command, *words, cwd=folder, stdout=file, stderr=file, MLFLOW_TRACKING_URI=uri)

    def wait_for(folder: Path, text: str) -> str:
        deadline = time.monotonic() + 300
        while text not in (said := (tmp_path / f"{folder.parent.name}.log").read_text()):
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        return said

    one = begin(first, "-c", ELSEWHERE)
    wait_for(first, "epoch 1/2")
    two = begin(clone, "-m", "pipeline.train")
    wait_for(clone, "all the same: another machine trains just this: waiting for it")
    client = store(uri)
    [child] = client.search_runs([client.get_experiment_by_name("mnist").experiment_id], "tags.recipe = 'baseline'")
    assert (child.info.status, child.info.lifecycle_stage) == ("RUNNING", "active")
    assert "elsewhere" not in str(child.data.tags)
    (first / "go").touch()
    assert (one.wait(300), two.wait(300)) == (0, 0), wait_for(clone, "")
    assert f"found finished, MLflow run {child.info.run_id}" in wait_for(clone, "")
    [child] = client.search_runs([child.info.experiment_id], "tags.recipe = 'baseline'")
    assert child.info.status == "FINISHED"
    assert len(client.get_metric_history(child.info.run_id, "val_loss")) == 2


@pytest.mark.slow
def test_a_job_that_is_stopped_counts_as_that_and_the_others_go_on(clone):
    words = ("-m", "recipe=baseline", "train.epochs=40", "seed=10,11")
    with start("python", "-m", "pipeline.train", *words, cwd=clone) as process:
        while "seed=10 epoch 1/40" not in (line := process.stdout.readline()):
            if touch := re.match("seed=10: to stop it after an epoch: touch (.+)", line):
                stop = clone / touch[1]
        stop.touch()
        out, err = process.communicate(timeout=300)
    assert process.returncode == 1
    assert re.search(
        r"^error: .*seed=10: stopped after epoch \d+/40 by the file multirun/.*/0/stop: the same", err, re.MULTILINE
    )
    assert "error: 1 of 2 jobs did not finish (seed=10, stopped): the same command again trains what is" in err
    assert "seed=11 epoch 40/40" in out and re.search(r"^\| stopped +\| +seed=10 ", out, re.MULTILINE)
    assert "seed=10" not in (stop.parents[1] / "1/console.log").read_text(), "each has its own"
    again = pipeline(clone, "train", *words)
    assert again.returncode == 0 and "1 found finished" in again.stdout, again.stderr
    assert "seed=10: continues after epoch " in again.stdout and "seed=11 epoch" not in again.stdout


@pytest.mark.slow
def test_a_failed_child_does_not_stop_the_others_and_the_command_fails(clone):
    wild = ("optimizer.weight_decay=0.99", "optimizer.batch_size=4")
    words = ("-m", "recipe=baseline", "train.epochs=1", *wild, "optimizer.learning_rate=10,0.001")
    done = pipeline(clone, "train", *words)
    assert done.returncode == 1
    assert "optimizer.learning_rate=10: the loss is not finite in epoch 1" in done.stderr
    assert "error: 1 of 2 jobs did not finish (optimizer.learning_rate=10): the same command again" in done.stderr
    found = children(clone, parent_of(done))
    assert sorted(child.info.status for child in found) == ["FAILED", "FINISHED"]
    assert store(clone).get_run(parent_of(done)).info.status == "FAILED"
    again = pipeline(clone, "train", *words)
    assert again.returncode == 1 and "1 found finished" in again.stdout
    assert len(children(clone, parent_of(done))) == 2, "the failed child is replaced"


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")], ids=["basic", "joblib"])
def test_a_sweep_that_fails_fast_begins_nothing_after_the_first_failure(clone, words):
    wild = ("optimizer.weight_decay=0.99", "optimizer.batch_size=4", "optimizer.learning_rate=10,0.001")
    first = 30 + 10 * len(words)  # seeds that no other test trains
    seeds = f"seed=range({first},{first + 3})"
    words = ("-m", *words, "recipe=baseline", "train.epochs=1", *wild, seeds)
    done = pipeline(clone, "train", *words, "sweep.fail_fast=true")
    assert done.returncode == 1
    begun = children(clone, parent_of(done))
    assert 1 <= len(begun) <= 2, "one of each process"
    assert re.search(rf"error: (\d) of {len(begun)} jobs did not finish \(optimizer.learning_rate=10 ", done.stderr)
    again = pipeline(clone, "train", *words)
    assert again.returncode == 1 and parent_of(again) == parent_of(done)
    found = children(clone, parent_of(done))
    assert sorted(run.info.status for run in found) == ["FAILED"] * 3 + ["FINISHED"] * 3


def test_a_job_is_not_begun_once_another_has_failed(monkeypatch, tmp_path, compose):
    monkeypatch.setattr(
        os, "environ", os.environ | {sweep.PARENT: "none", sweep.KEYS: "seed", sweep.FOLDER: str(tmp_path)}
    )
    (tmp_path / sweep.FAILED).touch()
    config = compose("sweep.fail_fast=true", schema=TrainConfig, name="train")
    assert math.isnan(sweep.train_job(open_project(tmp_path), config, None, None))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "seed=0,1,2", "train.epochs=1,2", "sweep.zip=[seed,train.epochs]"], "seed has 3, train.epochs has 2"),
        (["sweep=search", "recipe=baseline", "sweep.zip=[seed]"], "sweep.zip is for a grid, and a search chooses"),
        (["-m", "tags.owner=a,b"], "tags.owner changes nothing in training"),
        (["-m", "train.epochs=1,0"], "train.epochs=0: train.epochs=0: input should be greater"),
        (["-m", "seed=range(0,0)"], ": 0 jobs, expected 1 to 1,000"),
        (["-m", "recipe=baseline,basline"], "Could not find 'recipe/basline'"),
        (["sweep.prune=median"], "sweep.prune is for the jobs of a sweep: add -m, or leave it out"),
        (["-m", "seed=1,2", "sweep.prune=best"], "sweep.prune=best: input should be 'median' or 'halving'"),
        (["sweep=folds", "sweep.prune=median"], "with train.folds: a mean needs every fold: leave one out"),
        (["-m", "sweep.prune=median,halving"], "sweep.prune changes nothing in training"),
        (["sweep=nonsense"], "Available options in 'sweep': epochs_filters folds search seeds"),
    ],
)
def test_a_sweep_with_one_wrong_value_is_refused_before_its_first_job(clone, words, message):
    before = len(runs(clone))
    done = pipeline(clone, "train", *words)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr and len(runs(clone)) == before


@pytest.mark.slow
def test_experiments_queued_in_dvc_land_in_the_same_store(clone, digits):
    queued = dvc(clone, digits, "exp", "run", "--queue", "-S", "train.epochs=1,3", "-S", "recipes=[baseline]")
    assert queued.returncode == 0, queued.stderr
    names = re.findall(r"^Queued experiment '(.+)' for", queued.stdout, re.MULTILINE)
    assert len(names) == 2, queued.stdout
    assert dvc(clone, digits, "queue", "start", "-j", "2").returncode == 0
    deadline = time.monotonic() + 300
    while (status := dvc(clone, digits, "queue", "status").stdout).count("Success") < 2:
        assert "Failed" not in status and time.monotonic() < deadline, status
        time.sleep(1)
    trained = {name: runs(clone, f"tags.dvc_experiment = '{name}' and params.`model.filters` = '2'") for name in names}
    assert all(len(of) == 1 for of in trained.values()), "one run an experiment: its evaluation is part of it"
    assert sorted(run.data.params["train.epochs"] for [run] in trained.values()) == ["1", "3"]
    for [found] in trained.values():
        rows = store(clone).get_metric_history(found.info.run_id, "val_accuracy")
        assert len(rows) == int(found.data.params["train.epochs"]) and "test_accuracy" in found.data.metrics
    assert git(clone, "status", "--porcelain") == "", "the queue works in checkouts of its own"


def test_a_search_is_seeded_and_goes_on_with_more_trials(clone):
    fixed = ("recipe=baseline", "train.epochs=1", "model.filters=2", "augment.rotation=choice(0,5)")
    words = ("sweep=search", "hydra.sweeper.n_trials=2", *fixed)
    first = pipeline(clone, "train", *words)
    assert first.returncode == 0, first.stderr
    trials = study(clone, first).trials
    assert len({trial.params["optimizer.learning_rate"] for trial in trials}) == 2
    assert {trial.params["augment.rotation"] for trial in trials} <= {"0", "5"}
    assert all(
        "augment.rotation=" in c.info.run_name and "filters" not in c.info.run_name
        for c in children(clone, parent_of(first))
    )
    logged = {f"{child.data.metrics['val_accuracy']:.6f}" for child in children(clone, parent_of(first))}
    assert {f"{trial.value:.6f}" for trial in trials} == logged
    more = pipeline(clone, "train", *words, "hydra.sweeper.n_trials=3", "hydra/launcher=joblib")
    assert more.returncode == 0 and more.stdout.count("found finished, MLflow") == 2, more.stderr
    assert parent_of(more) == parent_of(first) and len(children(clone, parent_of(more))) == 3
    assert [trial.params for trial in study(clone, more).trials[:2]] == [trial.params for trial in trials]


@pytest.mark.slow
def test_a_search_goes_on_after_a_failed_trial(clone):
    words = ("recipe=accurate", "train.epochs=1", "optimizer.batch_size=choice(50,349)", "augment.rotation=0")
    words += ("model.filters=2", "optimizer.learning_rate=0.001", "hydra.sweeper.n_trials=4")
    done = pipeline(clone, "train", "sweep=search", *words)
    states = {trial.params["optimizer.batch_size"]: trial.state.name for trial in study(clone, done).trials}
    assert done.returncode == 1 and states == {"50": "COMPLETE", "349": "FAIL"}, done.stdout + done.stderr


@pytest.mark.slow
def test_a_search_whose_trials_cannot_begin_fails_and_at_once_with_fail_fast(clone):
    words = ("sweep=search", "recipe=baseline", "train.epochs=1", "seed=2", "optimizer.learning_rate=0.001")
    words += ("augment.rotation=0", "model.filters=choice(0,-1)", "hydra.sweeper.n_trials=3")
    done = pipeline(clone, "train", *words)
    assert done.returncode == 1 and done.stderr.count("model.filters=") >= 3, done.stdout + done.stderr
    assert store(clone).get_run(parent_of(done)).info.status == "FAILED"
    fast = pipeline(clone, "train", *words, "sweep.fail_fast=true")
    assert fast.returncode == 1 and len(study(clone, fast).trials) == 1
