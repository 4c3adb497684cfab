"""Real signals at random moments; the same command again continues, and ends as if nothing had been."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench, Untouched, judge, report

pytestmark = pytest.mark.faults

KILLS = int(os.environ.get("KILLS", 30))
QUICK = 2
SIGNALS = ["SIGKILL", "SIGINT", "SIGTERM"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("bench"), digits) as bench:
        yield bench


@pytest.fixture(scope="module")
def training(bench: Bench) -> Untouched:
    return Untouched(bench, "train", *bench.WORDS)


def signalled(training: Untouched, tries: int, name: str, times: int = 1) -> list[list[str]]:
    """What is wrong after trainings that get the signal so many times each before one that does not."""
    moments, number = random.Random(f"{name} {times}"), signal.Signals[name]
    drawn = [[(moments.uniform(0, training.seconds), number) for _ in range(times)] for _ in range(tries)]
    return [wrong for signals in drawn if (wrong := training.wrong_after_signals(*signals))]


@pytest.mark.parametrize("name", [pytest.param(SIGNALS[0], marks=pytest.mark.sample), *SIGNALS[1:]])
def test_a_training_continues_after_a_signal(training: Untouched, name: str) -> None:
    report(f"training, {name} at a random moment", QUICK, signalled(training, QUICK, name))


def test_a_training_continues_after_a_kill_at_any_moment(training: Untouched) -> None:
    report("training, SIGKILL at a random moment", KILLS, signalled(training, KILLS, "SIGKILL"))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_training_continues_after_a_signal_to_its_resume(training: Untouched, name: str) -> None:
    tries = KILLS // 5
    report(f"training, {name} to it and to its resume", tries, signalled(training, tries, name, times=2))


def test_a_training_that_is_killed_again_and_again_ends(bench: Bench, training: Untouched) -> None:
    long = Untouched(bench, "train", *bench.WORDS, "train.epochs=100", "optimizer.batch_size=4")
    some = (long.seconds - training.seconds) / 4  # of its epochs, on a machine of any speed
    moments, tries = random.Random(0), 0
    long.put_back()
    while bench.run(*long.command, signals=[(training.seconds + some * moments.uniform(0.5, 1), signal.SIGKILL)]).code:
        tries += 1
        assert tries < 40, "it makes no way"
    assert tries > 1, "it was not killed"
    wrong = judge(bench.folder, long.state)
    report("training, killed every few seconds until it ends", 1, [wrong] if wrong else [])
