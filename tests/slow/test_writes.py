"""Each change of a file goes wrong, one a try: killed before it, killed within it, no space once, no space for good."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import KINDS, WORDS, Bench, Fault, Untouched, copy_steps, positions, report

pytestmark = pytest.mark.faults

QUICK, MANY = 3, 25  # tries of a kind
FIRST = 12  # changes of files of a training that continues, before it trains


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("bench"), digits) as bench:
        yield bench


@pytest.fixture(scope="module")
def training(bench: Bench) -> Untouched:
    return Untouched(bench, "train", *bench.WORDS)


def survives(untouched: Untouched, kind: str, tries: int) -> None:
    """Try so many changes of files, each in a repository put back."""
    tried = positions(untouched.changes[kind], tries, kind)
    wrong = [found for at in tried if (found := untouched.wrong_after(Fault(kind, at)))]
    report(f"{untouched.command[0]}, {WORDS[kind]} the Nth change of a file", len(tried), wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_survives_a_fault_at_any_write(training: Untouched, kind: str) -> None:
    survives(training, kind, QUICK)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_survives_a_fault_at_every_write(training: Untouched, kind: str) -> None:
    survives(training, kind, MANY)


def test_a_training_survives_faults_in_its_resume_too(training: Untouched) -> None:
    numbers, wrong = random.Random(0), []
    for _ in range(MANY):
        faults = [Fault(numbers.choice(KINDS[:2]), numbers.randint(1, training.changes["kill"])) for _ in range(2)]
        if found := training.wrong_after(*faults):
            wrong.append(found)
    report("train, killed at a random change of a file, and its resume too", MANY, wrong)


def test_a_resume_survives_a_kill_at_each_of_its_first_writes(bench: Bench, training: Untouched) -> None:
    """Among them it moves the folder of the training that was killed to its own."""
    training.put_back()
    bench.run(*training.command, fault=Fault("kill", training.changes["kill"] // 2))
    assert list(bench.folder.glob("outputs/stages/*/*.ckpt"))
    begun, wrong = bench.scratch / "begun", []
    copy_steps(bench.folder, begun)
    for at in range(1, FIRST + 1):
        copy_steps(begun, bench.folder)
        ended = bench.run(*training.command, fault=Fault("kill", at))
        if found := training.wrong_after_another(f"kill at {at}: {ended.faulty}"):
            wrong.append(found)
    report("train, killed before the Nth change of a file of its resume", FIRST, wrong)


@pytest.mark.parametrize("verb", ["fetch", "preprocess"])
def test_data_survive_a_fault_at_any_write(bench: Bench, verb: str) -> None:
    untouched = Untouched(bench, verb)
    for kind in KINDS:
        survives(untouched, kind, QUICK)


@pytest.fixture(scope="module")
def evaluation(bench: Bench) -> Untouched:
    return Untouched(bench, "evaluate", "recipe=baseline", after=[("train", *bench.WORDS)])


@pytest.mark.parametrize("kind", [pytest.param(KINDS[0], marks=pytest.mark.sample), *KINDS[1:]])
def test_an_evaluation_survives_a_fault_at_any_write(evaluation: Untouched, kind: str) -> None:
    survives(evaluation, kind, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_survives_a_fault_at_every_write(evaluation: Untouched, kind: str) -> None:
    survives(evaluation, kind, MANY // 4)
