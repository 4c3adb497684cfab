"""Files that appear whole or not at all, with the same bytes for the same content."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.config import CONF, ROOT, PipelineError

REMAKE = "remove it and run `dvc repro`"
HEADER = re.compile(r"#\s*@")  # begins a line of a file that speaks to Hydra
HOST = re.sub(r"\W", "", socket.gethostname())
LONGEST_YAML, DEEPEST_YAML = 100_000, 10  # bytes, and collections within one another


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, moved over `path` when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(path.parent)
    temporary = path.with_name(f".{path.stem}.{owner()}.partial{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a failed write does not say where
        raise
    finally:
        temporary.unlink(missing_ok=True)


def owner() -> str:
    """This process, among all that may share a folder."""
    return f"{HOST}-{os.getpid()}"


def remove_left_over(folder: Path) -> None:
    """Remove the temporary files and folders of this machine's processes that were killed."""
    for temporary in folder.glob(".*.partial*"):
        found = re.search(rf"\.{HOST}-(\d+)\.partial", temporary.name)
        if found and not psutil.pid_exists(int(found[1])):
            if temporary.is_dir():
                shutil.rmtree(temporary, ignore_errors=True)
            else:
                temporary.unlink(missing_ok=True)


def save_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write an object. NaN and infinity, which are no JSON, become null."""
    text = json.dumps(_without_nan(value), indent=2, allow_nan=False)
    with replacing(path) as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_yaml(path: Path, value: Mapping[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def load_json(path: Path) -> dict[str, Any]:
    """Read an object; a missing or damaged file is a PipelineError."""
    try:
        value = json.loads(existing(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PipelineError(f"{path} is damaged ({error}): {REMAKE}") from None
    if not isinstance(value, dict):
        raise PipelineError(f"{path} is damaged, no JSON object: {REMAKE}")
    return value


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping; a missing or damaged file is a PipelineError."""
    check_yaml(existing(path))
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise PipelineError(f"{path} is damaged ({' '.join(str(error).split())})") from None
    if not isinstance(value, dict):
        raise PipelineError(f"{path} is damaged, no mapping of keys to values")
    return value


def check_yaml(path: Path) -> None:
    """Refuse, by file and line, what is no mapping in YAML, and what could grow without bound or make objects."""
    name = _shown(path)
    if path.stat().st_size > LONGEST_YAML:
        raise PipelineError(f"{name}: {path.stat().st_size:,} bytes: give at most {LONGEST_YAML:,}")
    depth = 0
    try:
        text = path.read_text(encoding="utf-8")
        for header in itertools.takewhile(
            lambda line: not line or HEADER.match(line), map(str.strip, text.split("\n"))
        ):
            if header and not re.fullmatch(r"#+\s*@package +\S+", header):
                raise PipelineError(f"{name}: the header {header}: give # @package _global_, as Hydra has it")
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            refusal = None
            if isinstance(event, yaml.AliasEvent):
                refusal = "a YAML alias (*name): write the value out"
            elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent) and event.tag:
                refusal = f"the YAML tag {event.tag}: give the value alone"
            elif isinstance(event, yaml.ScalarEvent) and event.value == "_target_" and path.parent != CONF:
                refusal = "_target_ would call a function: give values alone"
            elif isinstance(event, yaml.NodeEvent) and depth == 0 and not isinstance(event, yaml.MappingStartEvent):
                refusal = "no mapping: give lines of key: value"
            elif depth > DEEPEST_YAML:
                refusal = f"more than {DEEPEST_YAML} lists or mappings within one another: write it flatter"
            if refusal:
                line = event.start_mark.line + 1 if event.start_mark else "?"
                raise PipelineError(f"{name}:{line}: {refusal}")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if odd := [key for key in _keys(yaml.load(text, Loader=yaml.CSafeLoader)) if not isinstance(key, str)]:
            raise PipelineError(f"{name}: the key {odd[0]} is no name: give lines of key: value")
    except yaml.MarkedYAMLError as error:
        raise PipelineError(broken_yaml(error, path)) from None
    except (yaml.YAMLError, ValueError) as error:
        raise PipelineError(f"{name}: not YAML in UTF-8, {' '.join(str(error).split())}: mend it") from None


def _keys(value: Any) -> Iterator[Any]:
    """The keys of all mappings in a value."""
    if isinstance(value, dict):
        yield from value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from _keys(part)


def broken_yaml(error: yaml.MarkedYAMLError, path: Path) -> str:
    mark = error.problem_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{_shown(path)}{place}: broken YAML, {error.problem}: mend that line"


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def save_csv(path: Path, columns: Mapping[str, Iterable[Any]]) -> None:
    """Write columns of the same length under their names; floats in their shortest exact form."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def load_csv(path: Path, columns: Iterable[str]) -> list[dict[str, float]]:
    """Read rows of numbers; a file that lacks one of `columns`, a row or a number is a PipelineError."""
    try:
        with existing(path).open(newline="", encoding="utf-8") as file:
            rows = [{key: float(text) for key, text in row.items()} for row in csv.DictReader(file)]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise PipelineError(f"{path} is damaged ({error}): {REMAKE}") from None
    if not rows or not set(columns) <= set(rows[0]):
        raise PipelineError(f"{path} is damaged, not a table of {', '.join(columns)}: {REMAKE}")
    return rows


def sha256(path: Path) -> str:
    with existing(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing(path: Path) -> Path:
    """Give `path` back, or refuse it where no file is there."""
    if not path.is_file():
        raise PipelineError(f"{path} is missing: run `dvc repro` first, which makes it")
    return path
