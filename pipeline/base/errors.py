"""Errors that the user can fix, each said in one line. Everything else is a bug of ours, and keeps its traceback."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import yaml

SHOWN_VALUE = 200  # characters of a value in a message
SHOWN_LINE = 500  # characters at the beginning and at the end of a message
# Raised by joblib, Ray and submitit, which nothing else here needs to import.
JOB_LOST_ERRORS = (
    "TerminatedWorkerError",
    "WorkerCrashedError",
    "NodeDiedError",
    "OutOfMemoryError",
    "UncompletedJobError",
)


class UserError(Exception):
    """An error that the user can fix. Its message is one line: what was given, what was expected, how to fix it."""


def shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN_VALUE else f"{text[:SHOWN_VALUE]}… ({len(text):,} characters)"


def one_line(error: BaseException) -> str | None:
    """Return what went wrong in one line, or None for a bug of ours."""
    message = _message(error)
    if message is None:
        return None
    line = "".join(char if char.isprintable() else " " for char in message)
    return line if len(line) <= 2 * SHOWN_LINE else f"{line[:SHOWN_LINE]} … {line[-SHOWN_LINE:]}"


def compact_message(error: BaseException) -> str:
    """Join the lines of an error of Hydra or OmegaConf, without Hydra's search path and advice for its developers."""
    text = str(error).partition("Config search path:")[0]
    noise = ("^", "To append to your", "full_key:", "object_type=", "reference_type=", "See https")
    lines = (line.strip().rstrip(".") for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(noise))


def broken_yaml(error: yaml.MarkedYAMLError, path: Path | str) -> str:
    mark = error.problem_mark
    position = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{path}{position}: broken YAML, {error.problem}: fix that line"


def _message(error: BaseException) -> str | None:
    kind = type(error)
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return broken_yaml(error, error.problem_mark.name)
    if kind.__module__.startswith(("hydra.", "omegaconf.")):
        parts = [compact_message(error)]
        if error.__cause__ is not None and type(error.__cause__).__module__.startswith("omegaconf."):
            parts.append(compact_message(error.__cause__))
        said = ": ".join(dict.fromkeys(parts))
        override = getattr(error, "override", None)
        if override is not None:  # Hydra's grammar could not read it
            return f"{shorten(override)}: {said}: give key=value, or key=\"'value'\" for other characters"
        return f"{said} (--help lists the keys and their values)"
    if kind.__name__ in JOB_LOST_ERRORS:
        return "a job was killed, or ran out of memory: the same command again continues where it stopped"
    if kind.__module__ == "ray.exceptions":
        last = str(error).strip().rpartition("\n")[2]
        return f"Ray could not start a job ({last}): every node needs this repository, its data and .venv at one path"
    unmapped = isinstance(error, ImportError) and "failed to map segment from shared object" in str(error)
    if unmapped or isinstance(error, MemoryError) or kind.__name__ == "ResourceExhaustedError":  # TensorFlow's
        return "not enough memory: end other programs, or lift the limit (ulimit -v), and run the same command again"
    if isinstance(error, OSError):
        subject = f"{error.filename}: " if error.filename else ""
        fix = (
            "raise the limit (ulimit -n)"
            if error.errno == errno.EMFILE
            else "free the disk, or fix the path or its permissions"
        )
        return f"{subject}{error.strerror or re.sub(chr(10), ' ', str(error))}: {fix}"
    return None
