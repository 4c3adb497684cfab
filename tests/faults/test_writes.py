"""Every change of a file, one after the other, goes wrong: killed before it, killed in it, no space once, none any more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults_report import record
from harness import KINDS, Bench, Fault, positions, state

QUICK, MANY = 3, 60  # tries of a kind
WORDS = {"kill": "killed before", "half": "killed within", "once": "no space at", "always": "no space from"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("bench"), digits) as bench:
        yield bench


class Untouched:
    """A command that nothing happened to: how the repository then looks, and how many changes of files it took."""

    def __init__(self, bench: Bench, *command: str) -> None:
        self.bench, self.command, self.changes = bench, command, {}
        for kind in KINDS[1:3]:
            bench.put_back()
            self.changes[kind] = bench.finish(*command, kind=kind).changes
        self.state = state(bench.folder)
        self.changes |= {"kill": self.changes["half"], "always": self.changes["once"]}

    def survives(self, what: str, kind: str, tries: int) -> None:
        """Try so many changes, each in a repository put back; report, and fail if any was not survived."""
        tried = positions(self.changes[kind], tries, kind)
        wrong = [found for at in tried if (found := self.bench.wrong_after(self.command, self.state, Fault(kind, at)))]
        report(f"{what}, {WORDS[kind]} the Nth change of a file", len(tried), wrong)


def report(promise: str, tries: int, wrong: list[list[str]]) -> None:
    lines = [line for found in wrong for line in found]
    record(promise, tries, tries - len(wrong), "; ".join(lines) or "nothing")
    assert not wrong, "\n".join(lines)


@pytest.fixture(scope="module")
def training(bench: Bench) -> Untouched:
    return Untouched(bench, "train", *bench.WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_survives_a_fault_at_any_write(training: Untouched, kind: str) -> None:
    training.survives("training", kind, QUICK)
