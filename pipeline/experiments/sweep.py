"""A sweep: one parent run in MLflow, a child for every combination of values, a ranking renewed after each child.

Hydra makes the combinations and launches them. What was trained is known by its fingerprint: the same command again
trains what is missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from pipeline.base.command import READER_GONE, reader_gone
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError, one_line
from pipeline.base.hydra import compose
from pipeline.base.project import Project, open_project
from pipeline.base.schema import Config
from pipeline.data.examples import check_split
from pipeline.experiments.hydra_grid import grid
from pipeline.experiments.sweep_job import EPOCHS, FOLDER, KEYS, PARENT, job_name, swept_values
from pipeline.tracking.environment import COMPUTE_VARIABLES
from pipeline.tracking.fingerprint import NON_TRAINING_KEYS, depends_on_length, fingerprint

# What jobs get, wherever they run; passwords and tokens stay out of what is sent and written on the way.
FORWARDED_ENV = re.compile(
    rf"SWEEP_|MLFLOW_(?!.*(PASSWORD|TOKEN|SECRET|KEY|PASSPHRASE))|({COMPUTE_VARIABLES.pattern})$"
)
MAX_JOBS = 1_000  # each is composed before the first one runs, which takes a minute or two


class SweepStart(Callback):
    """What Hydra calls before the first job, and in each: it travels there with what the jobs are to know."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.variables: dict[str, str] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        os.chdir(self.root)  # a cluster's processes begin in the folder of its daemons, and Hydra's paths are relative

    def on_job_start(self, config: Any, **_: Any) -> None:
        os.environ.update(self.variables)  # a cluster's processes inherit the environment of its daemons

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        try:
            _open(open_project(self.root), config)
            self.variables = {key: value for key, value in os.environ.items() if FORWARDED_ENV.match(key)}
        except Exception as error:  # Hydra would warn of it, and go on
            if message := one_line(error):
                sys.exit(f"error: {message}")
            traceback.print_exc()
            sys.exit(1)


def _open(project: Project, config: Any) -> None:
    """Check every job before the first begins; open the parent run, or that of an earlier try; set the variables of
    `sweep_job` for the jobs.

    `config` is Hydra's, a DictConfig with Hydra's own section. The digest of all that is trained names the sweep.
    """
    overrides = list(config.hydra.overrides.task)
    preset = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    is_search = "optuna" in config.hydra.sweeper._target_
    if is_search:  # the overrides that all trials share are the only job known before
        keys, fixed = ([part.partition("=")[0] for part in group] for group in (preset, overrides))
        keys, jobs = [key for key in keys if key not in fixed], [overrides]
    else:
        keys, jobs = grid(preset + overrides, MAX_JOBS)
    if idle := [key for key in keys if key.partition(".")[0] in NON_TRAINING_KEYS]:
        raise UserError(f"{idle[0]} changes nothing in training, each value trains the same: leave it out")
    contents, epochs, configs = [], set(), []
    for job in jobs:
        with _named_in_errors(job, keys):
            job_config = compose(project, *job, schema=Config, name="train")
            check_split(project, job_config.data)
        contents.append(fingerprint(project, job_config, project.training_files).content_sha256)
        epochs.add(job_config.train.epochs)
        configs.append(job_config)
    digest = hashlib.sha256(
        "".join([*sorted(contents), str(config.hydra.sweeper) if is_search else ""]).encode()
    ).hexdigest()

    with quiet_import():
        from pipeline.tracking import queries, sweep_log

    name, experiment = " ".join(["sweep", *overrides]), configs[0].data.name
    hydra_overrides = [part for part in config.hydra.overrides.hydra if not part.startswith("hydra.mode=")]
    command = shlex.join(["python", "-m", "pipeline.train", "-m", *hydra_overrides, *overrides])
    parent, again = sweep_log.open_sweep(project, experiment, name, command, digest, keys)
    known = 0 if is_search else sum(bool(queries.find_trained(project, experiment, content_sha256=c)) for c in contents)
    count = f"{config.hydra.sweeper.n_trials} trials" if is_search else f"{len(jobs)} jobs"
    finished = f", {known} found finished" if known else ""
    print(f"{name}: {count}{finished}; MLflow run {parent}{', begun before' if again else ''}", flush=True)
    os.environ |= {
        PARENT: parent,
        KEYS: " ".join(keys),
        EPOCHS: " ".join(map(str, sorted(epochs))),
        FOLDER: str(Path(config.hydra.sweep.dir).absolute()),
    }
    if len(epochs) > 1 and any(map(depends_on_length, configs)):
        print("schedule or augmentation depend on the number of epochs: each number is trained by itself", flush=True)


@contextmanager
def _named_in_errors(job: Sequence[str], keys: Sequence[str]) -> Iterator[None]:
    """Name the job of a sweep over `keys` in front of what is wrong with it."""
    try:
        yield
    except Exception as error:
        message = one_line(error)
        if message is None or not keys:
            raise
        raise UserError(f"{job_name(swept_values(job, keys))}: {message}") from error


@contextmanager
def reported(project: Project) -> Iterator[None]:
    """Run the block, a call of `main(train)`; if that was a sweep, print its ranking, and fail where a job failed."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except SystemExit as end:
        status = "FINISHED" if not end.code else "KILLED" if end.code in ("interrupted", READER_GONE) else "FAILED"
        raise
    finally:
        if PARENT in os.environ:
            try:
                _close(project, os.environ[PARENT], status)
            except BrokenPipeError:
                reader_gone()
            except UserError as error:  # MLflow became unreachable
                sys.exit(f"error: {error}: the same command again completes the ranking")


def _close(project: Project, parent: str, status: str) -> None:
    with quiet_import():  # where the jobs ran elsewhere, this is the first
        from pipeline.experiments import ranking
        from pipeline.tracking import sending, sweep_log

    if status != "KILLED":
        shutil.rmtree(project.sweeps / ".shared" / parent, ignore_errors=True)
    if left := sending.send_pending(project)[1]:
        sys.exit(f"error: {left[0]}: the same command again completes the ranking")
    children, text = ranking.renew(project, parent, Path(os.environ[FOLDER]))
    print(text)
    failed = [child.name for child in children if child.status != "FINISHED"]
    sweep_log.log_sweep(parent, [], {}, "FAILED" if failed and status == "FINISHED" else status)
    if failed and status != "KILLED":
        sys.exit(
            f"error: {len(failed)} of {len(children)} jobs did not finish ({'; '.join(failed)}): the same command "
            "again trains them and no other"
        )
