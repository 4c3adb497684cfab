"""What a job of a sweep need not train: what has finished, whichever command trained it, or what the sweep pruned."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.project import Project
from pipeline.tracking.fingerprint import Fingerprint
from pipeline.tracking.record import PRUNED_AT, is_alive, unfinished

POLL_SECONDS = 5.0  # between looks at a job that another machine trains


def find_completed(
    project: Project, experiment: str, parent: str, identity: Fingerprint, name: str, or_pruned: bool = False
) -> Any:  # MLflow's Run
    """Return a finished run of just this, or one that the sweep `parent` has pruned; None for none, and where MLflow
    does not answer.

    A child that another machine trains is waited for; one that died is deleted, unless it continues here.
    """
    from pipeline.tracking import queries, sending, sweep_log

    with unless_unreachable():
        sending.send_pending(project)  # what is looked for may be among it
        continuing = {record.info["id"] for record in unfinished(project, name, identity.resume_key)}
        for look in itertools.count():
            runs = queries.find_trained(project, experiment, content_sha256=identity.content_sha256)
            children = sweep_log.unfinished_children(parent, identity.content_sha256)
            if or_pruned and not runs and (pruned := [c for c in children if PRUNED_AT in c.data.tags]):
                return pruned[0]
            children = [child for child in children if child.data.tags.get("record") not in continuing]
            dead = [c for c in children if c.info.status != "RUNNING" or not is_alive(c.data.tags.get("process"))]
            if runs or children == dead:
                break
            if look == 0:
                print(f"{name}: another machine trains just this: waiting for it", flush=True)
            time.sleep(POLL_SECONDS)
        sweep_log.delete_runs(dead)
        return runs[0] if runs else None
    return None


@contextmanager
def unless_unreachable() -> Iterator[None]:
    """Leave the block with a word where MLflow fails: training does not wait for it."""
    try:
        yield
    except UserError as error:
        print(f"{error}: the sweep goes on", flush=True)
