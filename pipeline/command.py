"""How a verb becomes a command: what it is called with, where it writes, and how it refuses."""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.config import CONF, ROOT, Config, PipelineError, config_name, in_dvc_stage, register, validate


class Folders(NamedTuple):
    model: Path
    results: Path


def output_folders(config: Config) -> Folders:
    """Where this job writes: a DVC stage to its outputs, any other run to Hydra's folder of that job."""
    if in_dvc_stage():
        return Folders(ROOT / "models" / config.name, ROOT / "results" / "recipes" / config.name)
    return Folders(job_folder(), job_folder())


def job_folder() -> Path:
    """Hydra's folder of this job; the repository where DVC runs the stage."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def overrides() -> list[str]:
    """The key=value words this job was called with."""
    from hydra.core.hydra_config import HydraConfig

    return list(HydraConfig.get().overrides.task)


def jobs_at_once() -> int:
    """How many jobs of a sweep run side by side."""
    from hydra.core.hydra_config import HydraConfig

    return int(HydraConfig.get().launcher.get("n_jobs", 1))


def entry_point(verb: Callable[[Any], float | None]) -> Callable[[], None]:
    """Make `verb` a command: compose, check, call; every refusal is one line on stderr and exit code 1.

    What the verb returns is what a search maximises.
    """

    @functools.wraps(verb)
    def command() -> None:
        # Hydra then raises instead of printing several lines; a user who has set it wants the traceback.
        full_error = os.environ.setdefault("HYDRA_FULL_ERROR", "") == "1"
        os.environ["HYDRA_FULL_ERROR"] = "1"
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's word for Ctrl-C
        try:
            _check_yaml()
            _compose_and_call(verb)
        except KeyboardInterrupt:
            sys.exit("interrupted")
        except Exception as error:
            message = one_line(error)
            if full_error or message is None:
                raise
            sys.exit(f"error: {message}")

    return command


def _compose_and_call(verb: Callable[[Any], float | None]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig, OmegaConf

    register()

    def task(composed: DictConfig) -> float | None:
        try:
            if verb.__name__ != "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
                raise PipelineError(f"{verb.__name__} does not sweep: give one value a key, without -m")
            for word in overrides():
                if word.startswith(("+", "~")):  # Hydra would take it, even for a mistyped key
                    raise PipelineError(f"{word}: keys are neither added nor removed: give key=value (keys: --help)")
            config = OmegaConf.to_object(composed)
            assert isinstance(config, Config)
            validate(config)
            return verb(config)
        except Exception as error:
            if not in_dvc_stage():
                _remove_empty(job_folder())
            message = one_line(error)
            if HydraConfig.get().mode == RunMode.MULTIRUN:  # a sweep goes on with its other jobs
                print(f"error: {' '.join(overrides())}: {message or repr(error)}", file=sys.stderr)
                raise
            if message is None:
                raise
            sys.exit(f"error: {message}")

    hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name(verb.__name__))(task)()


def _remove_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a job that wrote nothing, and its parent if it was the first."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _check_yaml() -> None:
    """Refuse broken YAML by file and line, and aliases, which Hydra would expand without bound."""
    for path in [ROOT / "params.yaml", *sorted(CONF.rglob("*.yaml"))]:
        where = path.relative_to(ROOT)
        try:
            for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader):
                if isinstance(event, yaml.AliasEvent):
                    line = event.start_mark.line + 1 if event.start_mark else "?"
                    raise PipelineError(f"{where}:{line}: a YAML alias (*name): write the value out")
        except yaml.MarkedYAMLError as error:
            raise PipelineError(_broken_yaml(error, path)) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise PipelineError(f"{where}: not YAML in UTF-8, {_joined(error)}: mend it") from None


def _broken_yaml(error: yaml.MarkedYAMLError, path: Path) -> str:
    mark = error.problem_mark
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{path.relative_to(ROOT)}{place}: broken YAML, {error.problem}: mend that line"


def one_line(error: Exception) -> str | None:
    """What went wrong in one line, or None for what is a bug of ours and deserves its traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:  # valid YAML, but a key stands there twice
        return _broken_yaml(error, Path(error.problem_mark.name).resolve())
    if isinstance(error, HydraException | OmegaConfBaseException):
        parts = [_joined(error)]
        if isinstance(error.__cause__, OmegaConfBaseException):
            parts.append(_joined(error.__cause__))
        return f"{': '.join(dict.fromkeys(parts))} (for the keys and their values add --help)"
    if type(error).__name__ == "TerminatedWorkerError":  # joblib's, which nothing else here needs to import
        return "a job was killed, or ran out of memory: the same command again goes on where it stopped"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror or _joined(error)}: free the disk, or mend the path or its permissions"
    return None


def _joined(error: BaseException) -> str:
    """The message in one line, without Hydra's search path, and OmegaConf's positions and hints."""
    text = str(error).partition("Config search path:")[0]
    noise = ("To append to your config", "full_key:", "object_type=", "reference_type=", "See https")
    lines = (line.strip().rstrip(".") for line in text.splitlines())
    return " ".join(line for line in lines if line and not line.startswith(noise))
