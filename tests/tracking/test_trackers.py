"""Trackers beside MLflow: TensorBoard's event files, read with TensorFlow's own reader; and trackers that fail."""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

import pytest
import tensorflow as tf
from conftest import ROOT

from pipeline.model import inference
from pipeline.tracking.record import Record
from pipeline.tracking.tensorboard import TensorBoard
from pipeline.tracking.trackers import Trackers

TRACKERS = """
from pathlib import Path

class Recorder:
    def __init__(self, folder, config):
        self.file = Path(folder, "told.txt")
        self.tell("begin", config["name"])

    def tell(self, *words):
        with self.file.open("a") as file:
            print(*words, file=file)

    def epoch(self, step, metrics):
        self.tell("epoch", step, metrics)
        metrics.clear()

    def end(self, status, files):
        self.tell("end", status, *(file.name for file in files))

class Broken(Recorder):
    def epoch(self, step, metrics):
        self.tell("broken", step)
        raise ConnectionError("no answer\\nfrom the server")

class Unmade:
    def __init__(self, folder):
        pass
"""


def events(folder: Path) -> list[tuple[str, int, float, float]]:
    """Tag, step, value and wall time of all scalars."""
    return [
        (value.tag, event.step, float(tf.make_ndarray(value.tensor)), event.wall_time)
        for file in sorted(folder.glob("tensorboard/*"))
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "scalars"
    ]


@pytest.fixture(scope="module", autouse=True)
def started() -> None:
    """TensorFlow takes its threads before its first operation or never."""
    inference.start(0)


@pytest.fixture
def record(tmp_path) -> Record:
    return Record.begin(tmp_path / "run", {"status": "RUNNING"})


@pytest.fixture
def root(tmp_path):
    """A repository with trackers of the user's own."""
    (tmp_path / "own_trackers.py").write_text(TRACKERS)
    yield tmp_path
    sys.path.remove(str(tmp_path))
    sys.modules.pop("own_trackers", None)


def row(step: int, **values: float) -> dict:
    return {"step": step, "time": 0, "values": values}


def test_trackers_are_told_of_all_and_one_that_raises_no_more(root, record, compose, capsys):
    names = [f"own_trackers:{name}" for name in ("Recorder", "Broken", "Unmade")]
    trackers = Trackers(root, compose().model_copy(update={"trackers": names}), record)
    for step in (1, 2):
        trackers.epoch(row(step, val_f1=step / 4, val_loss=math.nan))
    (record.folder / "model.keras").touch()
    (record.folder / "history.csv").touch()
    trackers.end("KILLED")
    assert (record.folder / "told.txt").read_text().splitlines() == [
        "begin baseline",
        "begin baseline",
        "epoch 1 {'val_f1': 0.25}",
        "broken 1",
        "epoch 2 {'val_f1': 0.5}",
        "end KILLED history.csv told.txt model.keras",
    ]
    unmade, broken = capsys.readouterr().out.splitlines()[:2]
    assert unmade.startswith("tracker own_trackers:Unmade: TypeError: ") and unmade.endswith("without it")
    assert broken == (
        "tracker own_trackers:Broken in line 23 of own_trackers.py: ConnectionError: no answer. Training goes on "
        "without it"
    )


def test_tensorboard_has_every_metric_of_every_step_once_with_its_time(record, compose):
    begin = time.time()
    configuration = compose("train.epochs=3").model_dump()
    first = TensorBoard(record.folder, configuration)
    for step in (1, 2):
        first.epoch(step, {"val_accuracy": step / 4, "val_loss": 1 / step})
    [file] = record.folder.glob("tensorboard/*")
    with file.open("ab") as cut:  # what a killed process leaves of its last event
        cut.write(file.read_bytes()[:20])
    again = TensorBoard(record.folder, configuration)  # the run continues
    for step in (1, 2, 3):
        again.epoch(step, {"val_accuracy": step / 4, "val_loss": 1 / step})
    again.end("FINISHED", [])
    file.write_bytes(file.read_bytes()[:-20])
    found = events(record.folder)
    assert sorted(one[:3] for one in found) == sorted(
        (key, step, value)
        for step in (1, 2, 3)
        for key, value in (("val_accuracy", step / 4), ("val_loss", pytest.approx(1 / step)))
    )
    assert all(begin - 1 < wall_time < time.time() + 1 for *_, wall_time in found)
    [text] = [
        tf.make_ndarray(value.tensor).item().decode()
        for file in record.folder.glob("tensorboard/*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "text"
    ]
    assert "| train.epochs | 3 |" in text.splitlines() and text.startswith("| key | value |\n| - | - |\n")
    assert record.artifacts() == [], "the names of event files hold that of the machine"


def test_it_is_the_class_that_the_configuration_names(record, compose):
    name = "pipeline.tracking.tensorboard:TensorBoard"
    trackers = Trackers(ROOT, compose(f"trackers=[{name}]"), record)
    trackers.epoch(row(1, val_f1=0.5))
    trackers.end("FINISHED")
    assert [one[:3] for one in events(record.folder)] == [("val_f1", 1, 0.5)]
    assert len((ROOT / "pipeline/tracking/tensorboard.py").read_text().splitlines()) <= 70
