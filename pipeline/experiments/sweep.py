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
import math
import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from hydra.experimental.callback import Callback

from pipeline.base.console import quiet_import
from pipeline.base.errors import StoppedError, UserError, one_line
from pipeline.base.isolation import READER_GONE, reader_gone
from pipeline.base.project import Project, open_project
from pipeline.base.validation import without_own_keys
from pipeline.base.verb_schemas import TrainConfig, labels
from pipeline.experiments import pruning
from pipeline.experiments.completed import find_completed, unless_unreachable
from pipeline.experiments.jobs import compose_jobs, grid, keys_of, named, run_just, search_space, swept
from pipeline.experiments.on_ray import prepare_ray
from pipeline.model.kept import better
from pipeline.tracking.environment import COMPUTE_VARIABLES
from pipeline.tracking.fingerprint import Fingerprint, depends_on_length, fingerprint
from pipeline.tracking.record import PRUNED_AT, waiting

if TYPE_CHECKING:
    from pipeline.experiments.run import Split

# The variables of the environment: id of the parent run, keys that vary (those that do so together joined by a comma),
# numbers of epochs that occur, folder, monitor.
PARENT, KEYS, EPOCHS, FOLDER, MONITOR = (f"SWEEP_{name}" for name in ("PARENT", "KEYS", "EPOCHS", "FOLDER", "MONITOR"))
# What jobs get, wherever they run; passwords and tokens stay out of what is sent and written on the way.
FORWARDED_ENV = re.compile(
    rf"SWEEP_|MLFLOW_(?!.*(PASSWORD|TOKEN|SECRET|KEY|PASSPHRASE))|({COMPUTE_VARIABLES.pattern})$"
)
FAILED = ".failed"  # a file of the sweep's folder, once a job has failed


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
            is_list = isinstance(config.sweep.zip, MutableSequence)  # if not, the first job will say so
            _open(open_project(self.root), config.hydra, config.sweep.zip if is_list else [])
            self.variables = {key: value for key, value in os.environ.items() if FORWARDED_ENV.match(key)}
        except Exception as error:  # Hydra would warn of it, and go on
            message = one_line(error)
            sys.exit(f"error: {message}" if message else traceback.format_exc())


def _open(project: Project, hydra: Any, zipped: Sequence[str] = ()) -> None:
    """Check every job, open the parent run or that of an earlier try, and set the variables for the jobs.

    `hydra` is Hydra's own section of the configuration, `zipped` sweep.zip. The digest of all that is trained names the
    sweep.
    """
    overrides, params = list(hydra.overrides.task), dict(hydra.sweeper.get("params") or {})
    given = [*(f"{key}={value}" for key, value in params.items()), *overrides]
    is_search = "n_trials" in hydra.sweeper
    if is_search and zipped:
        raise UserError("sweep.zip is for a grid, and a search chooses its values itself: leave one of them out")
    factors, jobs = search_space(given) if is_search else grid(given, zipped)
    if zipped:
        run_just(jobs)
    keys = keys_of(factors)
    composed = compose_jobs(project, keys, jobs)
    configs = [without_own_keys(config) for config in composed]
    contents = [fingerprint(project, config, project.training_files).content_sha256 for config in configs]
    content = "".join(sorted(contents))
    if is_search:  # with more trials it goes on
        space = [part for part in given if part.partition("=")[0] in keys]
        content += str([hydra.sweeper.seed, hydra.sweeper.n_jobs, *space])

    with quiet_import():
        from pipeline.tracking import queries, sweep_log

    name, experiment = " ".join(["sweep", *named(overrides)]), configs[0].data.name
    hydra_overrides = [part for part in hydra.overrides.hydra if not part.startswith("hydra.mode=")]
    command = shlex.join(["python", "-m", "pipeline.train", "-m", *hydra_overrides, *overrides])
    digest = hashlib.sha256(content.encode()).hexdigest()
    parent, again = sweep_log.open_sweep(project, experiment, name, command, digest, keys, labels(composed[0]))
    known = 0 if is_search else sum(bool(queries.find_trained(project, experiment, content_sha256=c)) for c in contents)
    count = f"{hydra.sweeper.n_trials} trials" if is_search else f"{len(jobs)} jobs"
    finished = f", {known} found finished" if known else ""
    print(f"{name}: {count}{finished}; MLflow run {parent}{', begun before' if again else ''}", flush=True)
    epochs = {config.train.epochs for config in configs}
    if len(epochs) > 1 and any(map(depends_on_length, configs)):
        print("schedule, augmentation or patience depend on train.epochs: each number is trained by itself", flush=True)
    os.environ |= {PARENT: parent, KEYS: " ".join(factors), EPOCHS: " ".join(map(str, sorted(epochs)))}
    folder = Path(hydra.sweep.dir).absolute()
    (folder / FAILED).unlink(missing_ok=True)  # of an earlier try, where the user named the folder
    os.environ |= {FOLDER: str(folder), MONITOR: configs[0].train.monitor}


def train_job(project: Project, config: TrainConfig, split: Split, identity: Fingerprint) -> float:
    """Train a job, or answer from the store what was trained already; return train.monitor, more is better, or NaN.

    With sweep.fail_fast it returns NaN at once where another job has failed.
    """
    from pipeline.experiments import ranking
    from pipeline.experiments.run import SharedCheckpoints, train_tracked
    from pipeline.tracking import queries, sweep_log

    parent, factors, monitor = os.environ[PARENT], os.environ[KEYS].split(), config.train.monitor
    folder = Path(os.environ[FOLDER])
    if config.sweep.fail_fast and (folder / FAILED).exists():
        return math.nan
    given = swept(project.overrides, keys_of(factors))
    name, values = " ".join(given) or "all the same", dict(override.split("=", 1) for override in given)
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
                common = project.sweeps / ".shared" / parent / identity.resume_key["configuration"][:16]
                shared = SharedCheckpoints(common, epochs)
            tags, bar = {**labels(config), **sweep_log.child_tags(parent, values)}, project.jobs_at_once == 1
            hopeless, recorded = pruning.watch(config, identity, name, parent, folder), without_own_keys(config)
            trained = train_tracked(project, recorded, split, identity, name, tags, bar, shared, hopeless)
            return better(monitor, trained.kept.row()[monitor])
    except Exception as error:
        if not isinstance(error, StoppedError):  # which somebody asked for
            with suppress(OSError):  # of a full disk, say: the error itself is to be told
                (folder / FAILED).touch()
        raise
    finally:
        with unless_unreachable():
            ranking.renew(project, parent, factors, folder, os.environ[MONITOR], partial=True)


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
        from pipeline.experiments.children import names_of_failed
        from pipeline.tracking import queries, sending, sweep_log

    if status != "KILLED":
        shutil.rmtree(project.sweeps / ".shared" / parent, ignore_errors=True)
    if (left := sending.send_pending(project)[1]) and any(
        one.info["tags"].get(queries.PARENT) == parent for one in waiting(project)
    ):
        raise UserError(left[-1])
    factors, folder = os.environ[KEYS].split(), Path(os.environ[FOLDER])
    children, text = ranking.renew(project, parent, factors, folder, os.environ[MONITOR])
    print(text)
    failed = names_of_failed(children)
    sweep_log.log_sweep(parent, [], {}, "FAILED" if failed and status == "FINISHED" else status)
    if failed and status != "KILLED":
        sys.exit(
            f"error: {len(failed)} of {len(children)} jobs did not finish ({'; '.join(failed)}): the same command "
            "again trains what is missing and no other"
        )
