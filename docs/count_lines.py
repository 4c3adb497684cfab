"""Count the lines of Python by room, and the limits that a test holds:  python -m docs.count_lines"""

from __future__ import annotations

from pathlib import Path

from benchmarks.report import table

ROOMS = ("base", "data", "model", "training", "metrics", "reports", "tracking", "experiments", "apps")
STAGES = ("compose", "fetch", "preprocess", "train", "evaluate", "compare")
CORE = (
    "data",
    "model",
    "training",
    "metrics",
    "reports/plots.py",
    "reports/sheets.py",
    *(f"{stage}.py" for stage in STAGES),
)
# What a test holds today, to be lowered whenever lines go, and where it is to end.
LIMITS = {"pipeline": 11_932, "apps": 1_537, "core": 3_079, "longest file": 250, "tests without tests/slow": 15_107}
GOALS = {"pipeline": 5_800, "apps": 1_000, "core": 1_750, "longest file": 250, "tests without tests/slow": 9_000}


def lines(path: Path) -> dict[Path, int]:
    """Return the lines of a Python file, or of each in a folder."""
    return {file: len(file.read_bytes().splitlines()) for file in [path, *path.rglob("*.py")] if file.is_file()}


def counts(root: Path) -> dict[str, int]:
    """Return the lines of each room, of the commands, and of everything that has a limit."""
    package = root / "pipeline"
    pipeline = lines(package)
    rooms = {room: sum(lines(package / room).values()) for room in ROOMS}
    longest = max((pipeline | lines(root / "benchmarks") | lines(root / "docs")).values())
    core = sum(sum(lines(package / name).values()) for name in CORE)
    totals = {"pipeline": sum(pipeline.values()), "core": core, "longest file": longest}
    tests = sum(lines(root / "tests").values()) - sum(lines(root / "tests" / "slow").values())
    commands = totals["pipeline"] - sum(rooms.values())
    return {"commands": commands, **rooms, **totals, "tests without tests/slow": tests}


def line_table(root: Path) -> str:
    """Return the counts as a Markdown table."""
    rows = []
    for name, count in counts(root).items():
        rows.append(
            [name, f"{count:,}", *(f"{bounds[name]:,}" if name in bounds else "" for bounds in (LIMITS, GOALS))]
        )
    return table(("lines of Python", "", "limit", "goal"), rows)


if __name__ == "__main__":
    print(line_table(Path()))
