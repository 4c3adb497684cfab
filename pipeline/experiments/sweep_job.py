"""One job of a sweep: trained, or answered from the store."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from filelock import FileLock

from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.tracking.fingerprint import Fingerprint, depends_on_length
from pipeline.tracking.record import is_alive, unfinished

if TYPE_CHECKING:
    from pipeline.experiments.run import SharedCheckpoints, Split

# Environment variables of all processes of a sweep: id of the parent run, keys that vary, numbers of epochs that occur,
# and the sweep's folder.
PARENT, KEYS, EPOCHS, FOLDER = "SWEEP_PARENT", "SWEEP_KEYS", "SWEEP_EPOCHS", "SWEEP_FOLDER"
POLL_SECONDS = 5.0  # between looks at a job that another machine trains


def swept_values(overrides: Sequence[str], keys: Sequence[str]) -> dict[str, str]:
    values = dict(override.split("=", 1) for override in overrides)
    return {key: values[key] for key in keys if key in values}


def job_name(values: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items())


def current_job(project: Project) -> Job | None:
    """Return the job of a sweep that this process runs, or None."""
    if PARENT not in os.environ:
        return None
    return Job(os.environ[PARENT], swept_values(project.overrides, os.environ[KEYS].split()))


class Job(NamedTuple):
    """This process's part in a sweep."""

    parent: str
    values: dict[str, str]  # by swept key, as Hydra gives them

    @property
    def name(self) -> str:
        return job_name(self.values) or "all the same"

    def run(self, project: Project, config: Config, split: Split, identity: Fingerprint) -> float:
        """Train, or answer from the store what was trained already; return the validation accuracy, 0 to 1 or NaN."""
        from pipeline.experiments import ranking
        from pipeline.experiments.run import train_tracked
        from pipeline.tracking import sweep_log

        locks = project.sweeps / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            # Whoever of this repository holds the lock is training just this; a process that was killed holds none.
            with FileLock(locks / f"{identity.content_sha256}.lock"):
                if run := self._find_completed(project, config, identity):
                    sweep_log.join_sweep(self.parent, run, self.values)
                    print(f"{self.name}: found finished, MLflow run {run.info.run_id}", flush=True)
                    return float(run.data.metrics.get("val_accuracy", math.nan))
                tags = sweep_log.child_tags(self.parent, self.values)
                bar = project.jobs_at_once == 1
                shared = None if depends_on_length(config) else self._shared(project, identity)
                trained = train_tracked(project, config, split, identity, self.name, tags, bar, shared)
                return trained.history[-1].val_accuracy
        finally:
            with _unless_unreachable():
                ranking.renew(project, self.parent, project.job_folder.parent, partial=True)

    def _find_completed(self, project: Project, config: Config, identity: Fingerprint) -> Any:  # MLflow's Run
        """A finished run of just this, or None, also where MLflow does not answer.

        A child that another machine trains is waited for; one that died is deleted, unless it continues here.
        """
        from pipeline.tracking import queries, sending, sweep_log

        with _unless_unreachable():
            sending.send_pending(project)  # what is looked for may be among it
            content, waited = identity.content_sha256, False
            while True:
                runs = queries.find_trained(project, config.data.name, content_sha256=content)
                own = {record.info["id"] for record in unfinished(project, self.name, identity.resume_key)}
                children = sweep_log.unfinished_children(self.parent, content)
                children = [child for child in children if child.data.tags.get("record") not in own]
                dead = [c for c in children if c.info.status != "RUNNING" or not is_alive(c.data.tags.get("process"))]
                if runs or children == dead:
                    break
                if not waited:
                    print(f"{self.name}: another machine trains just this: waiting for it", flush=True)
                waited = True
                time.sleep(POLL_SECONDS)
            sweep_log.delete_runs(dead)
            if dead and not runs and not own:
                print(f"{self.name}: left unfinished by an earlier try, trained again", flush=True)
            return runs[0] if runs else None
        return None

    def _shared(self, project: Project, identity: Fingerprint) -> SharedCheckpoints | None:
        """What this job shares with those that differ from it in the number of epochs alone."""
        from pipeline.experiments.run import SharedCheckpoints

        epochs = [int(number) for number in os.environ[EPOCHS].split()]
        folder = project.sweeps / ".shared" / self.parent / identity.resume_key["configuration"][:16]
        return SharedCheckpoints(folder, epochs) if len(epochs) > 1 else None


@contextmanager
def _unless_unreachable() -> Iterator[None]:
    """Leave the block with a word where MLflow fails: training does not wait for it."""
    try:
        yield
    except UserError as error:
        print(f"{error}: the sweep goes on", flush=True)
