"""How a verb becomes a command: what it is called with, where it writes, and how it refuses."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.config import (
    CONF,
    ROOT,
    Config,
    PipelineError,
    checked,
    config_name,
    explicit,
    flatten,
    in_dvc_stage,
    joined,
    refusing,
    register,
    shortened,
)
from pipeline.files import broken_yaml, check_yaml, load_yaml
from pipeline.isolation import isolate, reader_gone


class Folders(NamedTuple):
    model: Path
    results: Path


def output_folders(config: Config) -> Folders:
    """Where this job writes: a DVC stage to its outputs, any other run to Hydra's folder of that job."""
    if in_dvc_stage():
        return Folders(ROOT / "models" / config.name, ROOT / "results" / "recipes" / config.name)
    return Folders(job_folder(), job_folder())


def composed_file(config: Config) -> tuple[Path, dict[str, Any]]:
    """Where `compose` writes the values that this stage of DVC reads, and these values: those of a recipe, or of the
    data for the stages that all recipes share."""
    values = {key: value for key, value in explicit(config).items() if key not in ("recipes", "dataset")}
    if "@" in os.environ.get("DVC_STAGE", "@"):
        return ROOT / "results" / "recipes" / config.name / "config.yaml", values
    return ROOT / "results" / "data.yaml", {"data": values["data"]}


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
        isolate()
        # Hydra then raises instead of printing several lines; a user who has set it wants the traceback.
        full_error = os.environ.setdefault("HYDRA_FULL_ERROR", "") == "1"
        os.environ["HYDRA_FULL_ERROR"] = "1"
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's word for Ctrl-C
        try:
            _check_words([word for word in sys.argv[1:] if not _is_text(word)])
            words = [_quoted(word) if _is_text(word) else word for word in sys.argv[1:]]
            sys.argv[1:] = sorted(words, key=lambda word: word not in FLAGS)  # Hydra takes no word after one
            for path in [ROOT / "params.yaml", *sorted(CONF.rglob("*.yaml"))]:
                check_yaml(path)
            _compose_and_call(verb)
        except KeyboardInterrupt:
            sys.exit("interrupted")
        except BrokenPipeError:
            sys.exit(reader_gone())
        except Exception as error:
            message = one_line(error)
            if full_error or message is None:
                raise
            sys.exit(f"error: {message}")

    return command


FLAGS = ("-m", "--multirun", "-h", "--help")
PATHS = ("input", "path", "run")  # keys whose value may name a file or folder
SHOWN_LINE = 500  # characters, at the beginning and the end of a refusal
LONGEST, DEEPEST = 4_000, 10  # characters of all words, brackets within one another
OF_HYDRA = re.compile(
    r"hydra(/launcher|/sweeper|\.launcher\.\w+|\.sweeper(\.\w+)+|\.run\.dir|\.sweep\.dir)(?<!_target_)"
)
# Of joblib, Ray and submitit, which nothing else here needs to import.
KILLED = ("TerminatedWorkerError", "WorkerCrashedError", "NodeDiedError", "OutOfMemoryError", "UncompletedJobError")
ID = re.compile(r"(a|b|run)=[0-9a-f]{12,32}")  # of these Hydra would take 9447e1230643 for a number
TO_RAY = re.compile(r"(?!.*_target_)\+hydra\.launcher\.ray\.(init|remote)\.\w+=")


def _compose_and_call(verb: Callable[[Any], float | None]) -> None:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    register()
    composed_once = False

    def task(composed: DictConfig) -> float | None:
        nonlocal composed_once
        composed_once = True
        isolate()  # a worker process of joblib or Ray
        try:
            if verb.__name__ != "train" and HydraConfig.get().mode == RunMode.MULTIRUN:
                raise PipelineError(f"{verb.__name__} does not sweep: give one value a key, without -m")
            config = checked(composed, HydraConfig.get().runtime.choices)
            if in_dvc_stage():
                return _run_stage(verb, config)
            return verb(config)
        except BrokenPipeError:
            sys.exit(reader_gone())  # the other jobs of a sweep too would find no reader
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

    main = hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name(verb.__name__))(task)
    try:
        main()
    except Exception as error:
        if composed_once or one_line(error) is not None:
            raise
        with refusing(" ".join(sys.argv[1:])):  # words and files are all that it can come from
            raise


def _run_stage(verb: Callable[[Any], float | None], config: Config) -> float | None:
    """Run a stage of DVC, which trusts it twice: to read the values that DVC has seen, and to write all its outputs."""
    begin = time.time_ns()
    if verb.__name__ not in ("compose", "compare"):  # the one writes them, the other is of no recipe
        path, values = composed_file(config)
        seen, now = flatten(load_yaml(path)), flatten(values)
        for key in [key for key in seen | now if seen.get(key) != now.get(key)]:
            raise PipelineError(
                f"{path.relative_to(ROOT)} has {key}={seen.get(key)}, and conf/ with params.yaml now make it "
                f"{now.get(key)}: run `dvc repro`, or before a single stage `dvc repro compose compose_data`"
            )
    value = verb(config)
    # The time of the last change of the file itself: a file that is linked here keeps the time of its content.
    stale = [path for path in _stage_outputs(config) if not path.exists() or path.stat().st_ctime_ns < begin]
    if stale:
        raise PipelineError(f"the stage ended without writing {stale[0].relative_to(ROOT)}, which dvc.yaml promises")
    return value


def _stage_outputs(config: Config) -> list[Path]:
    """The outputs that dvc.yaml lists for the stage that runs."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    stage = stages.get(os.environ["DVC_STAGE"].partition("@")[0], {})
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
    names = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
    return [
        ROOT / name.replace("${item.recipe}", config.name).replace("${dataset}", config.data.name) for name in names
    ]


def _remove_empty(folder: Path) -> None:
    """Remove the folder that Hydra made for a job that wrote nothing, and its parent if it was the first."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _check_words(words: Sequence[str]) -> None:
    """Refuse what no key or value is, before Hydra reads it: its parser takes minutes for a long or deep word."""
    if sum(map(len, words)) > LONGEST:
        longest = max(words, key=len)
        raise PipelineError(f"{shortened(longest)}: give at most {LONGEST:,} characters, all words together")
    for word in words:
        if refusal := _refusal(word):
            raise PipelineError(f"{shortened(word)}: {refusal}")


def _is_text(word: str) -> bool:
    """Return True for run=<id>, and for input=<path> and its like where the path exists: they are taken as typed."""
    key, _, value = word.partition("=")
    with suppress(OSError, ValueError):  # too long for a path, for one
        exists = key in PATHS and value != "" and ((ROOT / value).exists() or Path(value).exists())
        return exists or ID.fullmatch(word) is not None
    return False


def _quoted(word: str) -> str:
    """Write key=value so that Hydra's grammar takes the value for text: `a,b.png`, `IMG (1).png`, 7."""
    from hydra.core.override_parser.types import Quote, QuotedString

    key, _, value = word.partition("=")
    return f"{key}={QuotedString(value, Quote.single).with_quotes()}"


def _refusal(word: str) -> str | None:
    """What is wrong with a word, and what to give instead."""
    key = word.partition("=")[0]
    depth = itertools.accumulate((char in "([{") - (char in ")]}") for char in word)
    if not word.isprintable():
        return "holds characters that do not print: give key=value without them"
    if word.startswith("-") and word not in FLAGS:
        return f"no option: give key=value, or {', '.join(FLAGS)}"
    if word.startswith(("+", "~")) and not TO_RAY.match(word):  # Hydra would take it, even for a mistyped key
        return "keys are neither added nor removed: give key=value (keys: --help)"
    if "${" in word:  # it could bring in what must not be logged, such as environment variables
        return "refers to another value: write the value out"
    if max(depth, default=0) > DEEPEST:
        return f"give at most {DEEPEST} brackets within one another"
    if key.startswith("hydra") and not OF_HYDRA.fullmatch(key):
        return "a key of Hydra's that stays as it is: only launcher, sweeper and folders of hydra can be given"
    return None


def one_line(error: Exception) -> str | None:
    """What went wrong in one line, or None for what is a bug of ours and deserves its traceback."""
    message = _message(error)
    if message is None:
        return None
    line = "".join(char if char.isprintable() else " " for char in message)
    return line if len(line) <= 2 * SHOWN_LINE else f"{line[:SHOWN_LINE]} … {line[-SHOWN_LINE:]}"


def _message(error: Exception) -> str | None:
    from hydra.errors import HydraException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, PipelineError):
        return str(error)
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:  # valid YAML, but a key stands there twice
        return broken_yaml(error, Path(error.problem_mark.name).resolve())
    if isinstance(error, HydraException | OmegaConfBaseException):
        parts = [joined(error)]
        if isinstance(error.__cause__, OmegaConfBaseException):
            parts.append(joined(error.__cause__, parts[0]))
        said = ": ".join(dict.fromkeys(parts))
        if isinstance(error, OverrideParseException):
            return f"{shortened(error.override)}: {said}: give key=value, or key=\"'value'\" for other characters"
        return f"{said} (for the keys and their values add --help)"
    if type(error).__name__ in KILLED:
        return "a job was killed, or ran out of memory: the same command again goes on where it stopped"
    if type(error).__module__ == "ray.exceptions":
        last = str(error).strip().rpartition("\n")[2]
        return f"Ray could not begin a job ({last}): bring this repository, its data and .venv to {ROOT} on every node"
    unmapped = isinstance(error, ImportError) and joined(error).endswith("failed to map segment from shared object")
    if unmapped or isinstance(error, MemoryError) or type(error).__name__ == "ResourceExhaustedError":  # TensorFlow's
        return "not enough memory: end other programs, or lift the limit (ulimit -v), and give the same command again"
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename else ""
        mend = "free the disk, or mend the path or its permissions"
        if error.errno == errno.EMFILE:
            mend = "raise the limit (ulimit -n)"
        return f"{place}{error.strerror or joined(error)}: {mend}"
    return None
