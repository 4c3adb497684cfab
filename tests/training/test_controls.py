"""A checkpoint holds what is needed: without any part the bits are others. A damaged or foreign one is not read."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import generated_digits
from faults_report import record

from pipeline import checkpoint, engine, model, optimizer, surroundings
from pipeline.checkpoint import Checkpoint, State
from pipeline.config import Config
from pipeline.data import Examples

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
        engine.start(config.seed)
        cnn = model.build_cnn(config.model, config.data.image_shape, len(config.data.classes))
        self.history = []
        for epoch, _, state_of in engine.fit(cnn, config, TRAIN, VAL, lambda *_: None, done, state):
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
def test_a_training_that_goes_on_gives_the_same_bits(recipe: str, compose: Callable[..., Config]) -> None:
    config = compose(f"recipe={recipe}", *SMALL)
    whole = Fitted(config)
    rest = Fitted(config, DONE, whole.state)
    assert rest.bits == whole.bits and rest.history == whole.history[DONE:]


class Forgetful(optimizer.Adam):
    """Counts its steps from where training went on."""

    def apply(self, gradients, rate, step) -> None:  # type: ignore[no-untyped-def]
        super().apply(gradients, rate, step - DONE * STEPS)


def begun_anew(of: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """Values of every step that begin again where training goes on."""
    return lambda settings, steps: np.roll(of(settings, steps), DONE * STEPS)


def without(part: str, config: Config, state: State, patch: pytest.MonkeyPatch) -> Fitted:
    """Go on with one part of what a checkpoint holds left out."""
    zeros = [np.zeros_like(moment) for moment in state.first]
    if part == "seed":
        config = replace(config, seed=config.seed + 1)
    elif part == "random state":
        shuffle = np.random.default_rng
        patch.setattr(engine.np.random, "default_rng", lambda key: shuffle([key[0], key[1] - DONE]))
    elif part == "position":
        return Fitted(config, 0, state, EPOCHS - DONE)
    elif part == "first moments":
        state = state._replace(first=zeros)
    elif part == "second moments":
        state = state._replace(second=zeros)
    elif part == "step count":
        patch.setattr(engine, "Adam", Forgetful)
    elif part == "schedule":
        patch.setattr(engine, "learning_rates", begun_anew(optimizer.learning_rates))
    elif part == "weights":
        state = state._replace(weights=[weight + np.float32(0) for weight in state.weights[:-1]] + [zeros[-1]])
    return Fitted(config, DONE, state)


PARTS = ["random state", "second moments"]
OTHER_PARTS = ["seed", "schedule", "position", "first moments", "step count", "weights"]


@pytest.mark.parametrize("part", [*PARTS, *(pytest.param(part, marks=pytest.mark.slow) for part in OTHER_PARTS)])
def test_a_part_left_out_gives_other_bits(
    part: str, config: Config, straight: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    rest = without(part, config, straight.state, monkeypatch)
    caught = rest.bits != straight.bits
    record(f"going on without the {part} is seen in the bits", 1, int(caught), "" if caught else part)
    assert caught


PARTS = ("configuration", "data", "code", "versions", "threads", "processor", "environment")
ORIGIN = dict(zip(PARTS, "abcdefg", strict=True))


def of_epoch(epoch: int) -> Checkpoint:
    drawn = np.random.default_rng(epoch)
    arrays = [drawn.normal(size=(64, 128)).astype(np.float32), drawn.normal(size=9).astype(np.float32)]
    return Checkpoint([{"epoch": i + 1, "val_loss": drawn.random()} for i in range(epoch)], State(*[arrays] * 3))


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """The files of epochs 1 and 2."""
    one, two = (checkpoint.save(tmp_path, ORIGIN, of_epoch(epoch)) for epoch in (1, 2))
    return one, two


def taken(folder: Path, origin: dict[str, str] = ORIGIN) -> tuple[int, list[str]]:
    """The epoch of the newest checkpoint that is read, 0 for none, all as saved; and what is said of the others."""
    said: list[str] = []
    found = checkpoint.newest([folder], origin, 99, said.append)
    if found is None:
        return 0, said
    epoch = len(found.history)
    expected = of_epoch(epoch)
    assert found.history == expected.history
    for got, wanted in zip(found.state, expected.state, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(got, wanted, strict=True))
    return epoch, said


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
        "of the epoch before, under this name": [one],
    }


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_taken(two: tuple[Path, Path]) -> None:
    earlier, newest = two
    assert newest.stat().st_size > 20 * BLOCK
    assert taken(newest.parent) == (2, [])
    for what, contents in damages(earlier.read_bytes(), newest.read_bytes()).items():
        survived = 0
        for content in contents:
            newest.write_bytes(content)
            epoch, said = taken(newest.parent)
            survived += epoch == 1 and len(said) == 1 and newest.name in said[0]
        record(f"a checkpoint {what} is refused", len(contents), survived)
        assert survived == len(contents), what


def test_a_foreign_checkpoint_is_named_and_not_taken(two: tuple[Path, Path], tmp_path: Path) -> None:
    for key in ORIGIN:
        epoch, said = taken(tmp_path, {**ORIGIN, key: "other"})
        assert epoch == 0 and len(said) == 2 and all(key in line for line in said)
        foreign = tmp_path / key
        shutil.copy(two[0], checkpoint.save(foreign, {**ORIGIN, key: "other"}, of_epoch(2)).with_name(two[0].name))
        epoch, said = taken(foreign)
        assert epoch == 1 and len(said) == 1 and key in said[0]
    record(f"a checkpoint of other {', '.join(ORIGIN)} is refused", len(ORIGIN), len(ORIGIN))


def test_what_decides_the_bits_decides_whose_a_checkpoint_is(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    own = surroundings.Identity("configuration", "data", "code", "content", "group")
    before = surroundings.origin(config, own)
    assert set(before) == set(ORIGIN)

    def differing(config: Config = config, identity: surroundings.Identity = own) -> list[str]:
        after = surroundings.origin(config, identity)
        return [key for key in before if before[key] != after[key]]

    assert differing() == []
    assert differing(replace(config, seed=1)) == ["configuration"]
    assert differing(replace(config, train=replace(config.train, epochs=9))) == ["configuration"]  # by its schedule
    assert differing(identity=own._replace(data_sha256="other")) == ["data"]
    assert differing(identity=own._replace(code_sha256="other")) == ["code"]
    monkeypatch.setattr(surroundings, "THREADS", "another number")
    assert differing() == ["threads"]
    monkeypatch.undo()
    monkeypatch.setattr(surroundings.importlib.metadata, "version", lambda name: "0")
    assert differing() == ["versions"]
    monkeypatch.undo()
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert differing() == ["environment"]
