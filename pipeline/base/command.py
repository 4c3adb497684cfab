"""Command-line entry points: compose and check the configuration, call the verb, report errors in one line."""

from __future__ import annotations

import dataclasses
import os
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
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline.base.errors import UserError, one_line
from pipeline.base.help import help_text
from pipeline.base.hydra import check_composed, check_outputs, checked, explain, register
from pipeline.base.isolation import isolate, reader_gone
from pipeline.base.project import Project, open_project
from pipeline.base.schema import Config

Verb = Callable[[Project, Any], float | None]  # what `python -m pipeline.<verb>` calls, once for each job of a sweep
TEXT_KEYS = ("a", "b", "input", "note", "path", "run", "to")  # whose values are text, as the id 9447e1230643, no number


def main(verb: Verb) -> None:
    """Run `verb(project, config)` for the repository that its file stands in, as a command of Hydra's.

    An error that the user can fix is one line on stderr and exit code 1. What the verb returns is what a search of
    Optuna's maximises.
    """
    isolate()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing several lines
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how a cluster interrupts
    project = open_project(Path(verb.__code__.co_filename).resolve().parents[1])
    schema = get_type_hints(verb)["config"]
    config_name = verb.__name__ if (project.conf / f"{verb.__name__}.yaml").is_file() else "config"
    words = sorted(map(_quoted, sys.argv[1:]), key=lambda word: word not in ("-m", "--multirun"))
    sys.argv[1:] = words  # sorted: Hydra takes no override after -m
    try:
        if verb.__name__ != "train" and {"-m", "--multirun"} & set(words):
            raise UserError(f"{verb.__name__} does not sweep: give one value per key, without -m")
        if {"-h", "--help"} & set(words):
            print(help_text(project, verb, schema, config_name, [word for word in words if "=" in word]))
            return
        register(project, schema)
        if project.stage:
            sys.argv.append("hydra.run.dir=.")  # which makes no folder: DVC knows where a stage writes
        task = _task(verb, project, schema)
        hydra.main(config_path=str(project.conf), config_name=config_name, version_base="1.3")(task)()
    except KeyboardInterrupt:
        sys.exit("interrupted")
    except BrokenPipeError:
        reader_gone()
    except Exception as error:
        message = explain(error, schema) or one_line(error)
        if message is None:
            raise
        sys.exit(f"error: {message}")


def _task(verb: Verb, project: Project, schema: type[Config]) -> Callable[[DictConfig], float | None]:
    def task(composed: DictConfig) -> float | None:
        """Run one job; worker processes of joblib and Ray begin here."""
        isolate()
        settings = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(settings.overrides.task)
        job = dataclasses.replace(
            project,
            job_folder=project.job_folder if project.stage else Path(settings.runtime.output_dir),
            overrides=tuple(overrides),
            folder_per_call=False,
            jobs_at_once=int(settings.launcher.get("n_jobs", 1)),
        )
        try:
            config = checked(project, composed, settings, schema)
            if job.stage and verb.__name__ not in ("compose", "compare"):  # the one writes, the other has no recipe
                check_composed(job, config)
            begin = time.time_ns()
            value = verb(job, config)
            check_outputs(job, config, begin)
            return value
        except BrokenPipeError:
            reader_gone()  # the other jobs of a sweep would find no reader either
        except Exception as error:
            message = one_line(error)
            if settings.mode == RunMode.MULTIRUN:  # the sweep goes on with its other jobs
                print(f"error: {' '.join(job.overrides)}: {message or repr(error)}", file=sys.stderr)
                raise
            if message is None:
                raise
            sys.exit(f"error: {message}")
        finally:
            with suppress(OSError):  # Hydra makes a folder also for a job that writes nothing
                job.job_folder.rmdir()
                job.job_folder.parent.rmdir()

    return task


def _quoted(word: str) -> str:
    """Write key=value so that Hydra's grammar takes a path or id for text: `a,b.png`, `IMG (1).png`, 7."""
    key, _, value = word.partition("=")
    if key not in TEXT_KEYS or value[:1] in ("", "[", "'", '"'):  # a list of paths, or quoted already
        return word
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
