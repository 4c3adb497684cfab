"""Command-line entry points: compose and check the configuration, call the verb, report errors in one line."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, get_type_hints

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig

from pipeline.base.errors import UserError, one_line
from pipeline.base.help import help_text
from pipeline.base.hydra import checked, explain, is_sweep, register
from pipeline.base.isolation import isolate, reader_gone
from pipeline.base.project import Project, open_project
from pipeline.base.schema import Config
from pipeline.base.stage import check_composed, check_outputs

Verb = Callable[[Project, Any], float | None]  # what `python -m pipeline.<verb>` calls, once for each job of a sweep
PATH_KEYS = ("input", "path", "run")  # keys whose value may name a file or folder
ID = re.compile(r"(a|b|run)=[0-9a-f]{12,32}")  # Hydra would read 9447e1230643 as a number


def main(verb: Verb) -> None:
    """Run `verb(project, config)` for the repository that its file stands in, as a command of Hydra's.

    An error that the user can fix is one line on stderr and exit code 1. What the verb returns is what a search of
    Optuna's maximises.
    """
    isolate()
    # Hydra then raises instead of printing several lines; a user who has set it wants the traceback.
    full_error = os.environ.setdefault("HYDRA_FULL_ERROR", "") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a cluster interrupts
    project = open_project(Path(verb.__code__.co_filename).resolve().parents[1])
    schema = get_type_hints(verb)["config"]
    config_name = verb.__name__ if (project.conf / f"{verb.__name__}.yaml").is_file() else "config"
    try:
        words = [_quoted(word) if _is_text(word, project) else word for word in sys.argv[1:]]
        words.sort(key=lambda word: word not in ("-m", "--multirun"))  # Hydra takes no override after one
        sys.argv[1:] = words
        if verb.__name__ != "train" and {"-m", "--multirun"} & set(words):
            raise UserError(f"{verb.__name__} does not sweep: give one value per key, without -m")
        if {"-h", "--help"} & set(words):
            print(help_text(project, verb, schema, config_name, [word for word in words if "=" in word]))
            return
        register(project, schema)
        task = _task(verb, project, schema)
        hydra.main(config_path=str(project.conf), config_name=config_name, version_base="1.3")(task)()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:
        sys.exit(reader_gone())
    except Exception as error:
        message = explain(error, schema) or one_line(error)
        if full_error or message is None:
            raise
        sys.exit(f"error: {message}")


def _task(verb: Verb, project: Project, schema: type[Config]) -> Callable[[DictConfig], float | None]:
    def task(composed: DictConfig) -> float | None:
        """Run one job; worker processes of joblib and Ray begin here."""
        isolate()
        settings = HydraConfig.get()
        job = dataclasses.replace(
            project,
            job_folder=project.job_folder if project.stage else Path(settings.runtime.output_dir),
            folder_per_call=False,
            jobs_at_once=int(settings.launcher.get("n_jobs", 1)),
        )
        try:
            job = dataclasses.replace(job, overrides=tuple(settings.overrides.task))  # ${...} in them may not resolve
            config = checked(composed, dict(settings.runtime.choices), schema)
            return _run_stage(verb, job, config) if job.stage else verb(job, config)
        except BrokenPipeError:
            sys.exit(reader_gone())  # the other jobs of a sweep would find no reader either
        except Exception as error:
            message = one_line(error)
            if is_sweep():  # the sweep goes on with its other jobs
                print(f"error: {' '.join(job.overrides)}: {message or repr(error)}", file=sys.stderr)
                raise
            if message is None:
                raise
            sys.exit(f"error: {message}")
        finally:
            _remove_empty(job.job_folder)

    return task


def _run_stage(verb: Verb, project: Project, config: Config) -> float | None:
    begin = time.time_ns()
    if verb.__name__ not in ("compose", "compare"):  # the one writes the values, the other belongs to no recipe
        check_composed(project, config)
    value = verb(project, config)
    check_outputs(project, config, begin)
    return value


def _remove_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a job that wrote nothing, and its parent if it was the first."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _is_text(word: str, project: Project) -> bool:
    """Return True for run=<id>, and for input=<path> and its like where the path exists: they are taken as typed."""
    key, _, value = word.partition("=")
    with suppress(OSError, ValueError):  # too long for a path, for one
        exists = key in PATH_KEYS and value != "" and ((project.root / value).exists() or Path(value).exists())
        return exists or ID.fullmatch(word) is not None
    return False


def _quoted(word: str) -> str:
    """Write key=value so that Hydra's grammar takes the value for text: `a,b.png`, `IMG (1).png`, 7."""
    key, _, value = word.partition("=")
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
