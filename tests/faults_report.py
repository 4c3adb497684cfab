"""What the tests of faults tell docs/reliability.md: promise, tries, faults survived, what was lost."""

from __future__ import annotations

import json
import os
from pathlib import Path


def record(promise: str, tries: int, survived: int, lost: str = "nothing") -> None:
    """Add a line to the file that FAULTS_REPORT names, where it names one."""
    if report := os.environ.get("FAULTS_REPORT"):
        test = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)")
        line = {"promise": promise, "test": test, "tries": tries, "survived": survived, "lost": lost}
        with Path(report).open("a", encoding="utf-8") as file:  # one write a line: several processes may add theirs
            file.write(json.dumps(line) + "\n")
