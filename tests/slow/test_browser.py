"""What a person sees of a sweep in `mlflow ui`, in a real browser."""

from __future__ import annotations

import re

import browse
import pytest
from conftest import run, store

pytestmark = [
    pytest.mark.skipif(not browse.installed(), reason="Chromium and its driver are not installed (.ci/run does)"),
]


@pytest.mark.sample
def test_a_sweep_is_seen_in_the_browser(clone):
    done = run(
        "python", "-m", "pipeline.train", "-m", "recipe=baseline", "train.epochs=2,4", "seed=5,6", cwd=clone
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    [parent] = re.findall(r"^sweep .*MLflow run (\w{32})", done.stdout, re.MULTILINE)
    client = store(clone)
    children = client.search_runs(
        [client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=4
    )
    with browse.mlflow_ui(clone) as address, browse.browser() as driver:
        seen = browse.walk(driver, address, client.get_run(parent), children)
    assert seen["children"] == {child.info.run_name for child in children}
    first, second = (f"{child.data.metrics['val_accuracy']:.3g}" for child in children[:2])
    assert first in seen["compared"] and second in seen["compared"]
