"""Files that appear whole or not at all, with the same bytes for the same content."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from pipeline.base.errors import UserError

REMAKE = "remove it and run `dvc repro`"
HOST = re.sub(r"\W", "", socket.gethostname())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`, moved over `path` when the block ends well, removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left_over(path.parent)
    temporary = path.with_name(f".{path.stem}.{process_name()}.partial{path.suffix}")
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


def process_name() -> str:
    """Name this process among all that may share a folder."""
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
    finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
    write_text(path, f"{json.dumps(finite, indent=2)}\n")


def save_yaml(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, yaml.safe_dump(value, sort_keys=False))


def load_json(path: Path) -> dict[str, Any]:
    """Read an object; a missing or damaged file is a UserError."""
    try:
        if isinstance(value := json.loads(require_file(path).read_text(encoding="utf-8")), dict):
            return value
        raise ValueError(f"an object expected, not {type(value).__name__}")
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): {REMAKE}") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping of plain values; a missing or damaged file is a UserError."""
    try:
        return yaml.safe_load(require_file(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())[:200]})") from None


def save_csv(path: Path, columns: Mapping[str, Iterable[Any]]) -> None:
    """Write columns of the same length under their names; floats in their shortest exact form."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def load_csv(path: Path, columns: Iterable[str], least: int = 1) -> list[dict[str, float]]:
    """Read rows of numbers; a file that lacks one of `columns`, of the `least` rows or a number is a UserError."""
    try:
        with require_file(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows, header = [{key: float(text) for key, text in row.items()} for row in reader], reader.fieldnames or []
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} is damaged ({error}): {REMAKE}") from None
    if len(rows) < least or not set(columns) <= set(header):
        raise UserError(f"{path} is damaged, not a table of {', '.join(columns)}: {REMAKE}")
    return rows


def sha256(path: Path) -> str:
    with require_file(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remembered(path: Path, name: str, compute: Callable[[], str]) -> str:
    """Return what `compute` reads from a file, as a hash, taken once for all processes while the file stays the same.

    That is while its size, time and inode do, as Git and DVC tell it too. It is kept in a hidden file beside, which
    belongs to no stage of DVC.
    """
    state, kept = path.stat(), path.with_name(f".{path.name}.known.json")
    stamp = [state.st_size, state.st_mtime_ns, state.st_ino]
    values: dict[str, Any] = {}
    with suppress(OSError, ValueError):  # none yet, or cut short
        values = json.loads(kept.read_text(encoding="utf-8"))
    if values.get("stamp") != stamp:
        values = {"stamp": stamp}
    if name not in values:
        values[name] = compute()
        with suppress(OSError):  # of a folder that is read-only: it is taken again
            save_json(kept, values)
    return str(values[name])


def require_file(path: Path) -> Path:
    """Return `path`; a UserError where no file is there."""
    if not path.is_file():
        raise UserError(f"{path} is missing: run `dvc repro` first, which makes it")
    return path


def link_or_copy(file: Path, target: Path) -> None:
    """Give a file a second name, or a copy where that cannot be; our files are replaced, never changed."""
    with replacing(target) as temporary:
        try:
            temporary.hardlink_to(file)
        except OSError:
            shutil.copyfile(file, temporary)


def write_text(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
