"""Errors that the user can fix, each said in one line. Everything else is a bug of ours, and keeps its traceback."""

from __future__ import annotations

import yaml

SHOWN = 200  # characters of a value in a message
# Lines of Hydra's and OmegaConf's messages that are for their developers.
NOISE = ("^", "To append to your", "full_key:", "object_type=", "reference_type=", "See https")


class UserError(Exception):
    """An error that the user can fix. Its message is one line: what was given, what was expected, how to fix it."""


class StoppedError(Exception):
    """A training was stopped from outside: the same command continues it. Its message is one line."""


def shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({len(text):,} characters)"


def one_line(error: BaseException) -> str | None:
    """Return what went wrong in one line, or None for a bug of ours."""
    message = _message(error)
    return message and message.replace("\n", " ")


def _message(error: BaseException) -> str | None:
    kind = type(error)
    if isinstance(error, (UserError, StoppedError)):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and (mark := error.problem_mark):
        return f"{mark.name}:{mark.line + 1}:{mark.column + 1}: broken YAML, {error.problem}: fix that line"
    if kind.__module__.startswith(("hydra.", "omegaconf.")):
        lines = map(str.strip, str(error).partition("Config search path:")[0].splitlines())
        said = " ".join(line for line in lines if line and not line.startswith(NOISE))
        grammar = hasattr(error, "override")
        fix = "give key=value, or key=\"'value'\" for other characters" if grammar else "--help lists keys and values"
        return f"{said} ({fix})"
    if kind.__module__.startswith(("joblib.", "ray.")) or kind.__name__ == "UncompletedJobError":  # submitit's
        last = str(error).strip().rpartition("\n")[2]
        return (
            f"a job was lost ({last}): the same command again continues; nodes need this folder and .venv at one path"
        )
    if isinstance(error, MemoryError) or kind.__name__ == "ResourceExhaustedError":  # TensorFlow's
        return "not enough memory: end other programs, or lift the limit (ulimit -v), and run the same command again"
    if isinstance(error, OSError):
        subject = f"{error.filename}: " if error.filename else ""
        fix = "free the disk, or fix the path, its permissions, or the limit of open files (ulimit -n)"
        return f"{subject}{error.strerror or error}: {fix}"
    return None
