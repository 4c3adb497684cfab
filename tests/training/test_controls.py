"""A checkpoint holds what is needed: without any part the bits differ. A damaged one, or of another training, is not
read."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, generated_digits
from faults_report import record

from pipeline.base.project import open_project
from pipeline.base.schema import Config
from pipeline.data.examples import Examples
from pipeline.model import build, inference
from pipeline.tracking import fingerprint
from pipeline.training import checkpoint, loop, optimizer
from pipeline.training.checkpoint import Checkpoint, State

pytestmark = pytest.mark.faults

DONE, EPOCHS = 2, 4
SIZE = 70
BLOCK = 4096
FLIPS = 200
SMALL = (f"train.epochs={EPOCHS}", "model.filters=2", "optimizer.batch_size=20")


def digits(size: int, seed: int) -> Examples:
    return Examples(*generated_digits(size, seed), np.arange(size, dtype=np.int32))


TRAIN, VAL = digits(SIZE, 0), digits(20, 1)
STEPS = 4  # an epoch: 70 examples in batches of 20


class Fitted:
    """A training from a state, or from the beginning: its bits, its history, and the state after DONE epochs."""

    def __init__(self, config: Config, done: int = 0, state: State | None = None, epochs: int = EPOCHS) -> None:
        inference.start(config.seed)
        cnn = build.build_cnn(config.model, config.data.image_shape, len(config.data.classes))
        self.history = []
        for epoch, _, state_of in loop.fit(cnn, config, TRAIN, VAL, lambda *_: None, done, state):
            self.history.append(epoch)
            if epoch.epoch == DONE and done == 0:
                self.state = state_of()
            if len(self.history) == epochs:
                break
        self.bits = hashlib.sha256(b"".join(weight.tobytes() for weight in cnn.get_weights())).hexdigest()


@pytest.fixture(scope="module")
def config(compose: Callable[..., Config]) -> Config:
    """With all that can change from step to step: batch norm, augmentation that fades, a schedule."""
    return compose("recipe=accurate", *SMALL)


@pytest.fixture(scope="module")
def straight(config: Config) -> Fitted:
    return Fitted(config)


@pytest.mark.parametrize("recipe", ["accurate", pytest.param("baseline", marks=pytest.mark.slow)])
def test_a_resumed_training_gives_the_same_bits(recipe: str, compose: Callable[..., Config]) -> None:
    config = compose(f"recipe={recipe}", *SMALL)
    whole = Fitted(config)
    rest = Fitted(config, DONE, whole.state)
    assert rest.bits == whole.bits and rest.history == whole.history[DONE:]


class Forgetful(optimizer.Adam):
    """Counts its steps from where training continued."""

    def apply(self, gradients, rate, step) -> None:  # type: ignore[no-untyped-def]
        super().apply(gradients, rate, step - DONE * STEPS)


def begun_again(values: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Return values of every step that begin again where training continues."""
    return lambda settings, steps: np.roll(values(settings, steps), DONE * STEPS)


def without(part: str, config: Config, state: State, patch: pytest.MonkeyPatch) -> Fitted:
    """Continue with one part of what a checkpoint holds left out."""
    moments, count = state.optimizer, len(state.optimizer) // 2
    zeros = [np.zeros_like(moment) for moment in moments]
    if part == "seed":
        config = config.model_copy(update={"seed": config.seed + 1})
    elif part == "random state":
        shuffle = np.random.default_rng
        patch.setattr(loop.np.random, "default_rng", lambda key: shuffle([key[0], key[1] - DONE]))
    elif part == "position":
        return Fitted(config, 0, state, EPOCHS - DONE)
    elif part == "first moments":
        state = state._replace(optimizer=[*zeros[:count], *moments[count:]])
    elif part == "second moments":
        state = state._replace(optimizer=[*moments[:count], *zeros[count:]])
    elif part == "step count":
        patch.setattr(optimizer, "Adam", Forgetful)
    elif part == "schedule":
        patch.setattr(loop, "learning_rates", begun_again(optimizer.learning_rates))
    elif part == "variables":
        state = state._replace(variables=[*state.variables[:-1], zeros[-1]])
    return Fitted(config, DONE, state)


PARTS = ["random state", "second moments"]
OTHER_PARTS = ["seed", "schedule", "position", "first moments", "step count", "variables"]


@pytest.mark.slow
@pytest.mark.parametrize("part", [*PARTS, *(pytest.param(part, marks=pytest.mark.slow) for part in OTHER_PARTS)])
def test_a_part_left_out_gives_other_bits(
    part: str, config: Config, straight: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = without(part, config, straight.state, monkeypatch)
    caught = rest.bits != straight.bits
    record(f"resuming without the {part} is seen in the bits", 1, int(caught), "" if caught else part)
    assert caught


KEYS = ("configuration", "data", "code", "versions", "threads", "processor", "environment")
RESUME_KEY = dict(zip(KEYS, "abcdefg", strict=True))


def of_epoch(epoch: int) -> Checkpoint:
    drawn = np.random.default_rng(epoch)
    arrays = [drawn.normal(size=(64, 128)).astype(np.float32), drawn.normal(size=9).astype(np.float32)]
    return Checkpoint(
        [{"epoch": i + 1, "val_loss": drawn.random()} for i in range(epoch)], State(arrays, arrays), arrays
    )


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The files of epochs 1 and 2."""
    one, two = (checkpoint.save(tmp_path, RESUME_KEY, of_epoch(epoch)) for epoch in (1, 2))
    return one, two


def loaded(folder: Path, capsys: pytest.CaptureFixture[str], key: dict[str, str] = RESUME_KEY) -> tuple[int, list[str]]:
    """Return the epoch of the newest usable checkpoint, 0 for none, and what is printed of the others."""
    newest = checkpoint.newest([folder], key, 99)
    lines = capsys.readouterr().out.splitlines()
    if newest is None:
        return 0, lines
    epoch = len(newest.history)
    expected = of_epoch(epoch)
    assert newest.history == expected.history
    for arrays, saved in zip([*newest.state, newest.best], [*expected.state, expected.best], strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(arrays, saved, strict=True))
    return epoch, lines


def damages(one: bytes, two: bytes) -> dict[str, list[bytes]]:
    edges = range(0, len(two), BLOCK)
    drawn = random.Random(0)
    flipped = []
    for _ in range(FLIPS):
        content = bytearray(two)
        content[drawn.randrange(len(two))] ^= drawn.randrange(1, 256)
        flipped.append(bytes(content))
    return {
        "cut at every 4 KiB": [two[:edge] for edge in edges],
        "with a byte flipped": flipped,
        "of parts of two epochs": [one[:edge] + two[edge:] for edge in edges[1:]]
        + [two[:edge] + one[edge:] for edge in edges[1:]],
        "longer than written": [two + b"\0", two + two],
    }


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, newest = two
    assert newest.stat().st_size > 20 * BLOCK
    assert loaded(newest.parent, capsys) == (2, [])
    for what, contents in damages(earlier.read_bytes(), newest.read_bytes()).items():
        survived = 0
        for content in contents:
            newest.write_bytes(content)
            epoch, lines = loaded(newest.parent, capsys)
            survived += epoch == 1 and len(lines) == 1 and newest.name in lines[0]
        record(f"a checkpoint {what} is not used", len(contents), survived)
        assert survived == len(contents), what
    newest.write_bytes(earlier.read_bytes())
    assert loaded(newest.parent, capsys) == (1, []), "its content decides of which epoch it is"


def test_a_checkpoint_of_another_training_is_named_and_not_used(
    two: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key in RESUME_KEY:
        epoch, lines = loaded(tmp_path, capsys, {**RESUME_KEY, key: "other"})
        assert epoch == 0 and len(lines) == 2 and all(key in line for line in lines)
        folder = tmp_path / key
        newer = checkpoint.save(folder, {**RESUME_KEY, key: "other"}, of_epoch(2))
        shutil.copy(two[0], newer.with_name(two[0].name))
        epoch, lines = loaded(folder, capsys)
        assert epoch == 1 and len(lines) == 1 and key in lines[0]
    record(f"a checkpoint of other {', '.join(RESUME_KEY)} is not used", len(RESUME_KEY), len(RESUME_KEY))


def test_a_checkpoint_in_the_form_of_earlier_code_is_passed_over_with_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header = json.dumps({"resume_key": {**RESUME_KEY, "code": "former"}, "history": [{"epoch": 1}]}).encode()
    content = io.BytesIO()
    np.savez(content, header=np.frombuffer(header, np.uint8), variables_0=np.ones(2), first_0=np.ones(2))
    file = checkpoint.checkpoint_path(tmp_path, 1)
    file.write_bytes(hashlib.sha256(content.getvalue()).digest() + content.getvalue())
    assert loaded(tmp_path, capsys) == (0, [f"checkpoint {file.name} is of another training (code differ): not used"])


def test_whatever_decides_the_bits_decides_whose_a_checkpoint_is(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, other = tmp_path / "data", tmp_path / "other"
    data.write_bytes(b"digits")
    other.write_bytes(b"others")
    before = fingerprint.fingerprint(open_project(ROOT), config, [data]).resume_key
    assert set(before) == set(RESUME_KEY)

    def differing(config: Config = config, file: Path = data) -> list[str]:
        after = fingerprint.fingerprint(open_project(ROOT), config, [file]).resume_key
        return [key for key in before if before[key] != after[key]]

    assert differing() == []
    assert differing(config.model_copy(update={"seed": 1})) == ["configuration"]
    longer = config.train.model_copy(update={"epochs": 9})
    assert differing(config.model_copy(update={"train": longer})) == ["configuration"], "its schedule depends on it"
    assert differing(file=other) == ["data"]
    monkeypatch.setattr(fingerprint, "code_sha256", lambda root: "other")
    assert differing() == ["code"]
    monkeypatch.undo()
    monkeypatch.setattr(fingerprint, "THREADS", "another number")
    assert differing() == ["threads"]
    monkeypatch.undo()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert differing() == ["environment"]
