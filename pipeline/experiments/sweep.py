"""A sweep: one parent run in MLflow, a child for every combination of values, a ranking renewed after each child.

Hydra makes the combinations and launches them, here or on other machines. What is called when:

  main           train.py runs Hydra inside `reported`
  SweepStart     Hydra calls it before the first job: `_open` checks every job, opens the parent run, and describes the
                 sweep to the jobs in the variables SWEEP_*
  train_job      train.py calls it in each job: it trains, unless just this was trained already, and renews the ranking
  _close         `reported` calls it when all jobs have ended: the last ranking, and which jobs failed

What was trained is known by its fingerprint: the same command again trains what is missing.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback

from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError, one_line, shorten
from pipeline.base.hydra import compose
from pipeline.base.isolation import READER_GONE, reader_gone
from pipeline.base.project import Project, open_project
from pipeline.base.schema import better
from pipeline.base.validation import without_own_keys
from pipeline.base.verb_schemas import TrainConfig
from pipeline.data.examples import check_split
from pipeline.experiments import pruning
from pipeline.experiments.completed import find_completed, unless_unreachable
from pipeline.experiments.on_ray import prepare_ray
from pipeline.tracking.environment import COMPUTE_VARIABLES
from pipeline.tracking.fingerprint import NON_TRAINING_KEYS, Fingerprint, depends_on_length, fingerprint
from pipeline.tracking.record import PRUNED_AT, waiting

if TYPE_CHECKING:
    from pipeline.experiments.run import Split

# The variables of the environment: id of the parent run, keys that vary, numbers of epochs that occur, folder, monitor.
PARENT, KEYS, EPOCHS, FOLDER, MONITOR = (f"SWEEP_{name}" for name in ("PARENT", "KEYS", "EPOCHS", "FOLDER", "MONITOR"))
# What jobs get, wherever they run; passwords and tokens stay out of what is sent and written on the way.
FORWARDED_ENV = re.compile(
    rf"SWEEP_|MLFLOW_(?!.*(PASSWORD|TOKEN|SECRET|KEY|PASSPHRASE))|({COMPUTE_VARIABLES.pattern})$"
)
MAX_JOBS = 1_000  # each is composed before the first one runs, which takes a minute or two


class SweepStart(Callback):
    """What Hydra calls before the first job, and in each: it travels there with what the jobs are to know."""

    def __init__(self, root: str, ray: Mapping[str, Any]) -> None:
        self.root, self.ray = root, ray
        self.variables: dict[str, str] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state
        os.chdir(self.root)  # a cluster's processes begin in the folder of its daemons, and Hydra's paths are relative

    def on_job_start(self, config: Any, **_: Any) -> None:
        os.environ.update(self.variables)  # a cluster's processes inherit the environment of its daemons

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        try:
            if "ray" in config.hydra.launcher:
                prepare_ray(config.hydra.launcher, self.ray)
            _open(open_project(self.root), config.hydra)
            self.variables = {key: value for key, value in os.environ.items() if FORWARDED_ENV.match(key)}
        except Exception as error:  # Hydra would warn of it, and go on
            message = one_line(error)
            sys.exit(f"error: {message}" if message else traceback.format_exc())


def _open(project: Project, hydra: Any) -> None:
    """Check every job, open the parent run or that of an earlier try, and set the variables for the jobs.

    `hydra` is Hydra's own section of the configuration. The digest of all that is trained names the sweep.
    """
    overrides, params = list(hydra.overrides.task), dict(hydra.sweeper.get("params") or {})
    is_search = "optuna" in hydra.sweeper._target_
    if is_search:  # the overrides that all trials share are the only job known before
        fixed = {override.partition("=")[0] for override in overrides}
        keys, jobs = [key for key in params if key not in fixed], [overrides]
    else:
        keys, jobs = grid([*(f"{key}={value}" for key, value in params.items()), *overrides])
    if idle := [key for key in keys if key.partition(".")[0] in (*NON_TRAINING_KEYS, "sweep")]:
        raise UserError(f"{idle[0]} changes nothing in training, each value trains the same: leave it out")
    configs = []
    for job in jobs:
        try:
            configs.append(compose(project, *job, schema=TrainConfig, name="train"))
            check_split(project, configs[-1].data)
        except Exception as error:
            if (message := one_line(error)) is None:
                raise
            swept = " ".join(_swept(job, keys))
            raise UserError(f"{swept}: {message}" if swept else message) from error
    identities = [fingerprint(project, without_own_keys(config), project.training_files) for config in configs]
    contents = [identity.content_sha256 for identity in identities]
    content = "".join(sorted(contents)) + (str(hydra.sweeper) if is_search else "")

    with quiet_import():
        from pipeline.tracking import queries, sweep_log

    name, experiment = " ".join(["sweep", *overrides]), configs[0].data.name
    hydra_overrides = [part for part in hydra.overrides.hydra if not part.startswith("hydra.mode=")]
    command = shlex.join(["python", "-m", "pipeline.train", "-m", *hydra_overrides, *overrides])
    digest = hashlib.sha256(content.encode()).hexdigest()
    parent, again = sweep_log.open_sweep(project, experiment, name, command, digest, keys)
    known = 0 if is_search else sum(bool(queries.find_trained(project, experiment, content_sha256=c)) for c in contents)
    count = f"{hydra.sweeper.n_trials} trials" if is_search else f"{len(jobs)} jobs"
    finished = f", {known} found finished" if known else ""
    print(f"{name}: {count}{finished}; MLflow run {parent}{', begun before' if again else ''}", flush=True)
    epochs = {config.train.epochs for config in configs}
    if len(epochs) > 1 and any(map(depends_on_length, configs)):
        print("schedule, augmentation or patience depend on train.epochs: each number is trained by itself", flush=True)
    os.environ |= {PARENT: parent, KEYS: " ".join(keys), EPOCHS: " ".join(map(str, sorted(epochs)))}
    os.environ |= {FOLDER: str(Path(hydra.sweep.dir).absolute()), MONITOR: configs[0].train.monitor}


def grid(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the keys that vary and the overrides of every job, as Hydra's sweeper will make them."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
    [jobs] = BasicSweeper.split_arguments(parsed, None)  # not public, as seen in Hydra 1.3.8
    if not 0 < len(jobs) <= MAX_JOBS:
        raise UserError(f"{shorten(' '.join(overrides))}: {len(jobs):,} jobs, expected 1 to {MAX_JOBS:,}")
    varies = {override.get_key_element(): override.is_sweep_override() for override in parsed}
    return [key for key, swept in varies.items() if swept], jobs


def _swept(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return those overrides of a job, key=value, whose keys vary."""
    return [override for override in overrides if override.partition("=")[0] in keys]


def train_job(project: Project, config: TrainConfig, split: Split, identity: Fingerprint) -> float:
    """Train a job, or answer from the store what was trained already; return train.monitor, more is better, or NaN."""
    from pipeline.experiments import ranking
    from pipeline.experiments.run import SharedCheckpoints, train_tracked
    from pipeline.tracking import queries, sweep_log

    parent, keys, monitor = os.environ[PARENT], os.environ[KEYS].split(), config.train.monitor
    swept = _swept(project.overrides, keys)
    name, values = " ".join(swept) or "all the same", dict(override.split("=", 1) for override in swept)
    try:
        # Whoever of this repository holds the lock is training just this; a process that was killed holds none.
        with FileLock(project.sweeps / ".locks" / f"{identity.content_sha256}.lock"):
            if run := find_completed(project, config.data.name, parent, identity, name, bool(config.sweep.prune)):
                with unless_unreachable():
                    sweep_log.join_sweep(parent, run, values)
                how = "pruned" if PRUNED_AT in run.data.tags else "finished"
                print(f"{name}: found {how}, MLflow run {run.info.run_id}", flush=True)
                return better(monitor, queries.final(run, monitor))
            shared, epochs = None, [int(number) for number in os.environ[EPOCHS].split()]
            if len(epochs) > 1 and not depends_on_length(config):  # with those that differ in this number alone
                folder = project.sweeps / ".shared" / parent / identity.resume_key["configuration"][:16]
                shared = SharedCheckpoints(folder, epochs)
            tags, bar = sweep_log.child_tags(parent, values), project.jobs_at_once == 1
            hopeless = pruning.watch(config, identity, name, parent, Path(os.environ[FOLDER]))
            recorded = without_own_keys(config)
            trained = train_tracked(project, recorded, split, identity, name, tags, bar, shared, hopeless)
            return better(monitor, trained.kept.row()[monitor])
    finally:
        with unless_unreachable():
            ranking.renew(project, parent, keys, Path(os.environ[FOLDER]), os.environ[MONITOR], partial=True)


@contextmanager
def reported(project: Project) -> Iterator[None]:
    """Run the block, a call of `main(train)`; if that was a sweep, print its ranking, and fail where a job failed."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except SystemExit as end:
        status = "KILLED" if end.code in ("interrupted", READER_GONE) else "FAILED"
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
        from pipeline.tracking import queries, sending, sweep_log

    if status != "KILLED":
        shutil.rmtree(project.sweeps / ".shared" / parent, ignore_errors=True)
    if (left := sending.send_pending(project)[1]) and any(
        one.info["tags"].get(queries.PARENT) == parent for one in waiting(project)
    ):
        raise UserError(left[-1])
    keys, folder = os.environ[KEYS].split(), Path(os.environ[FOLDER])
    children, text = ranking.renew(project, parent, keys, folder, os.environ[MONITOR])
    print(text)
    failed = [child.name for child in children if child.status not in ("FINISHED", "PRUNED")]
    sweep_log.log_sweep(parent, [], {}, "FAILED" if failed and status == "FINISHED" else status)
    if failed and status != "KILLED":
        sys.exit(
            f"error: {len(failed)} of {len(children)} jobs did not finish ({'; '.join(failed)}): the same command "
            "again trains them and no other"
        )
