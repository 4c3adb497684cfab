"""docs/your-own.md, executed from its text: files are written, commands run as typed, and say what the page shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import ROOT, copy, git, run


class Block(NamedTuple):
    kind: str
    file: str  # "" for what is run
    lines: list[str]


def sections(text: str) -> dict[str, list[Block]]:
    """The fenced blocks below each heading "## <number>. …", by number."""
    found = {}
    for number, body in re.findall(r"^## (\d+)\. .+\n((?:(?!## ).*\n)*)", text, re.MULTILINE):
        blocks = re.findall(r"^```(\w+) ?(\S*)\n((?:(?!```).*\n)*)```$", body, re.MULTILINE)
        found[number] = [Block(kind, file, lines.splitlines()) for kind, file, lines in blocks]
    return found


def commands(lines: list[str]) -> list[tuple[str, list[str]]]:
    """The command lines of a console, without "$ ", each with the lines that it is to print."""
    found: list[tuple[str, list[str]]] = []
    for line in "\n".join(lines).replace("\\\n", "").splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


PAGE = sections((ROOT / "docs" / "your-own.md").read_text(encoding="utf-8"))
TASKS = [str(number) for number in range(1, 11)]
SAMPLE = "4"


def execute(blocks: list[Block], folder: Path) -> None:
    """Write the files of a section, and run its commands: each ends with 0 and prints what is shown, with … for any."""
    run_id = ""
    for block in blocks:
        if block.file:
            (folder / block.file).parent.mkdir(exist_ok=True)
            (folder / block.file).write_text("\n".join([*block.lines, ""]))
            continue
        for line, shown in commands(block.lines):
            done = run("bash", "-c", line.replace("<id>", run_id), cwd=folder)
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{line}\n{said}"
            for words in shown:
                assert re.search(".*".join(map(re.escape, words.split("…"))), said), f"{line}\n{said}"
            run_id = [run_id, *re.findall(r"MLflow run (\w{32})", said)][-1]


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=[pytest.mark.slow, *[pytest.mark.sample] * (task == SAMPLE)]) for task in TASKS]
)
def test_a_task_is_done_with_the_page_alone(task, repository, tmp_path):
    folder = copy(repository, tmp_path)
    (folder / "benchmarks").mkdir()
    shutil.copy(ROOT / "benchmarks" / "shapes.py", folder / "benchmarks")
    for words in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        git(folder, *words)
    execute(PAGE[task], folder)


MOST = {  # lines of each file that the user writes, as the issue of the ten tasks has them
    "own/wide.py": 20,
    "conf/recipe/wide.yaml": 10,
    "own/scores.py": 10,
    "own/pictures.py": 15,
    "own/lines.py": 60,
}


def test_the_ten_tasks_cost_no_more_than_promised():
    assert list(PAGE) == TASKS and all(any(not block.file for block in PAGE[task]) for task in TASKS)
    written = {block.file: [line for line in block.lines if line.strip()] for task in TASKS for block in PAGE[task]}
    for file, most in MOST.items():
        assert len(written[file]) <= most, file
    for file in ("conf/recipe/scored.yaml", "conf/recipe/drawn.yaml"):  # one line in a recipe of one's own
        assert len(written[file]) == 4
    assert written.keys() - MOST.keys() == {"", "conf/recipe/scored.yaml", "conf/recipe/drawn.yaml"}


def test_a_command_that_fails_or_says_something_else_is_found(tmp_path):
    page = "## 1. A\n\n```text a/b.txt\nx y\n```\n\n```console\n$ cat a/b.txt \\\n  /dev/null\nx … y\n```\n\n"
    [(number, blocks)] = sections(f"{page}## B\n```c\n```\n").items()
    assert number == "1" and [(block.kind, block.file) for block in blocks] == [("text", "a/b.txt"), ("console", "")]
    assert commands(blocks[1].lines) == [("cat a/b.txt   /dev/null", ["x … y"])]
    with pytest.raises(AssertionError):
        execute(blocks, tmp_path)
    execute([blocks[0], Block("console", "", ["$ cat a/b.txt", "x…y"])], tmp_path)
    with pytest.raises(AssertionError, match="false"):
        execute([Block("console", "", ["$ false"])], tmp_path)
