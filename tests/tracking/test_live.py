"""A training as somebody beside it sees it: progress and console, pictures, and a stop from outside."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import mlflow
import numpy as np
import pytest
from conftest import FEW_DIGITS, ROOT

from pipeline.base.errors import StoppedError
from pipeline.base.files import sha256
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.experiments import run as experiment_run
from pipeline.experiments.pictures import as_images
from pipeline.experiments.run import Split, Trained, train_tracked
from pipeline.tracking.fingerprint import fingerprint
from pipeline.tracking.record import Record, add_pending
from pipeline.tracking.sending import send_pending
from pipeline.training import loop

SMALL = ("recipe=baseline", "data.image_shape=[10,10]", "model.filters=2", "model.dropout=0.5", "train.epochs=3")
# As MLflow's log_image names them: key, step, time, an id.
PICTURE = re.compile(r"images/(\w+)\+step\+(\d+)\+timestamp\+\d{13}\+[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
AfterEpoch = Callable[[int], None]


SPLIT = Split(*FEW_DIGITS)


def train(
    home: Path, config: Config, folder: str, name: str, after: AfterEpoch = lambda _: None, **tags: str
) -> Trained:
    """Train; `after` is called when an epoch is over and was sent."""

    def fit(*args: Any) -> Iterator[Any]:
        for number, epoch in enumerate(loop.fit(*args), args[5] + 1):
            yield epoch
            after(number)

    project = Project(ROOT, home, job_folder=home / "outputs" / folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment_run, "fit", fit)
        identity = fingerprint(project, config, [home / "train.npz"])
        return train_tracked(project, config, SPLIT, identity, name, tags)


def stored(home: Path, folder: str) -> Any:  # MLflow's Run
    record = Record(home / "outputs" / folder)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("mnist").experiment_id
    [run] = client.search_runs([experiment], f"tags.record = '{record.info['id']}'")
    return run


def artifacts(run: Any, folder: str | None = None) -> set[str]:
    return {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id, folder)}


@pytest.fixture(scope="module")
def whole(home, compose) -> Trained:
    """A training that nobody disturbs, with what MLflow says of it after its second epoch."""
    seen: dict[str, Any] = {}

    def look(epoch: int) -> None:
        run = stored(home, "whole")
        console = Path(mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/console.log")).read_text()
        seen[epoch] = (run.info.status, run.data.tags["progress"], console.splitlines()[-1])

    trained = train(home, compose(*SMALL), "whole", "whole", look)
    assert sorted(seen) == [1, 2, 3]
    status, progress, last = seen[2]
    assert status == "RUNNING" and re.fullmatch(r"epoch 2/3, \d+ s left", progress)
    assert last.startswith("whole epoch 2/3  train ") and last.endswith(f" {progress.partition(', ')[2]}")
    return trained


def test_while_it_runs_mlflow_has_progress_and_console_and_at_the_end_no_time_left(home, whole):
    run = stored(home, "whole")
    assert (run.info.status, run.data.tags["progress"]) == ("FINISHED", "epoch 3/3")
    lines = (home / "outputs/whole/console.log").read_text().splitlines()
    assert lines[0] == "whole: to stop it after an epoch: touch outputs/whole/stop"
    assert [line[:17] for line in lines[1:]] == [f"whole epoch {epoch}/3  " for epoch in (1, 2, 3)]


@pytest.mark.parametrize("by", ["file", pytest.param("status", marks=pytest.mark.slow)])
def test_one_that_is_stopped_from_outside_continues_and_ends_with_the_same_bits(home, compose, whole, capsys, by):
    first, again = f"{by} 1", f"{by} 2"

    def stop(epoch: int) -> None:
        if epoch == 1 and by == "file":
            (home / "outputs" / first / "stop").touch()
        elif epoch == 1:  # it is seen when the next epoch is sent
            mlflow.MlflowClient().set_terminated(stored(home, first).info.run_id, "KILLED")

    epochs = 1 if by == "file" else 2
    with pytest.raises(
        StoppedError, match=f"stopped after epoch {epochs}/3 by the {by} .*same command again"
    ) as raised:
        train(home, compose(*SMALL), first, by, stop)
    run = stored(home, first)
    assert (run.info.status, run.data.tags["progress"]) == ("KILLED", f"stopped after epoch {epochs}/3")
    assert (home / "outputs" / first / "console.log").read_text().splitlines()[-1] == f"error: {raised.value}"
    resumed = train(home, compose(*SMALL), again, by)
    assert f"{by}: continues after epoch {epochs}\n" in capsys.readouterr().out
    assert resumed.model_file.read_bytes() == whole.model_file.read_bytes()
    assert resumed.tracked == f"MLflow run {run.info.run_id}" and not (resumed.model_file.parent / "stop").exists()
    run = stored(home, again)
    assert (run.info.status, run.data.tags["progress"]) == ("FINISHED", "epoch 3/3")
    assert "stop" not in artifacts(run)
    log = Path(mlflow.artifacts.download_artifacts(f"{run.info.artifact_uri}/console.log")).read_text()
    assert log == (resumed.model_file.parent / "console.log").read_text()
    assert [int(epoch) for epoch in re.findall(r" epoch (\d)/3  train", log)] == [1, 2, 3]


@pytest.mark.slow
def test_a_file_stops_one_whose_mlflow_is_unreachable_and_after_the_last_epoch_it_is_too_late(
    home, compose, whole, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")

    def stop_at(last: int, folder: str) -> AfterEpoch:
        return lambda epoch: (home / "outputs" / folder / "stop").touch() if epoch == last else None

    with pytest.raises(StoppedError):
        train(home, compose(*SMALL), "away 1", "away", stop_at(2, "away 1"))
    resumed = train(home, compose(*SMALL), "away 2", "away", stop_at(3, "away 2"))
    assert resumed.model_file.read_bytes() == whole.model_file.read_bytes()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    send_pending(Project(ROOT, home))
    assert stored(home, "away 2").data.tags["progress"] == "epoch 3/3"


def test_what_ends_it_stands_in_its_console_log_and_later_lines_do_not(home, compose, capsys):
    def fail(_: int) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        train(home, compose(*SMALL), "bug", "bug", fail)
    print("later")
    lines = (home / "outputs/bug/console.log").read_text().splitlines()
    assert lines[-1] == "ValueError: a bug" and "Traceback (most recent call last):" in lines


@pytest.fixture(scope="module")
def pictured(home, compose) -> Trained:
    return train(home, compose(*SMALL, "train.pictures_every=2"), "pictured", "pictured")


def test_pictures_are_drawn_before_the_first_epoch_and_now_and_then_and_change_no_bit(home, pictured, whole):
    assert sha256(pictured.model_file) == sha256(whole.model_file)
    run = stored(home, "pictured")
    assert run.data.tags["mlflow.loggedImages"] == "True" and "train.pictures_every" not in run.data.params
    found = artifacts(run, "images")
    assert len(found) == 8
    for end in (".png", "+compressed.webp"):
        names = [PICTURE.fullmatch(path.removesuffix(end)) for path in found if path.endswith(end)]
        assert sorted((name[1], int(name[2])) for name in names if name) == [
            *(("filters", step) for step in (0, 2)),
            *(("misclassified", step) for step in (0, 2)),
        ]
    for path in (home / "outputs/pictured/images").glob("*.png"):
        assert path.stat().st_size < 50_000
        sheet = matplotlib.image.imread(path)
        assert sheet.shape[1] > 500 and sheet.min() < 0.5


def test_a_picture_that_is_sent_twice_is_there_once(home, pictured):
    run = stored(home, "pictured")
    before = artifacts(run, "images")
    add_pending(Project(ROOT, home), home / "outputs/pictured")
    send_pending(Project(ROOT, home))
    assert artifacts(run, "images") == before


@pytest.mark.slow
def test_what_a_process_that_was_killed_has_drawn_is_not_drawn_again(home, compose):
    def kill(epoch: int) -> None:
        (home / "outputs/killed 1/epoch-000001.ckpt").unlink(missing_ok=True)  # as if in the middle of the first epoch
        raise KeyboardInterrupt

    config = compose(*SMALL, "train.pictures_every=1", "seed=1")
    with pytest.raises(KeyboardInterrupt):
        train(home, config, "killed 1", "killed", kill)
    train(home, config, "killed 2", "killed")
    assert len(artifacts(stored(home, "killed 2"), "images")) == 16


def test_a_job_of_a_sweep_draws_none(home, compose):
    train(home, compose(*SMALL, "train.pictures_every=1", "train.epochs=1"), "swept", "swept", swept="{}")
    run = stored(home, "swept")
    assert artifacts(run, "images") == set() and "mlflow.loggedImages" not in run.data.tags


def test_filters_have_one_scale_with_zero_in_the_middle():
    kernel = np.zeros((1, 2, 1, 2), np.float32)
    kernel[0, :, 0, 0], kernel[0, :, 0, 1] = (0.5, -0.25), (0, -0.5)
    assert as_images(kernel).tolist() == [[[255, 64]], [[128, 0]]]
    colours = np.zeros((1, 1, 3, 1), np.float32)
    colours[0, 0, :, 0] = (1, 0, -1)
    assert as_images(colours).tolist() == [[[[255, 128, 0]]]]
    assert as_images(np.zeros((1, 1, 2, 1), np.float32)).tolist() == [[[128]]]
