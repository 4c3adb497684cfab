"""Sweeps with sweep.prune as typed."""

from __future__ import annotations

import csv
import re

import pytest
from conftest import children, parent_of, pipeline, store

RATES = ("0.003", "0.004", "0.005", "0.006")  # they learn; the last one does not
SWEEP = ("recipe=baseline", "train.epochs=3", f"optimizer.learning_rate={','.join(RATES)},1e-07")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "launcher"),
    [("median", ()), ("halving", ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"))],
    ids=["median, basic", "halving, joblib"],
)
def test_a_hopeless_job_is_pruned_and_found_again_as_such(clone, rule, launcher):
    words = ("-m", *launcher, *SWEEP, f"seed={len(launcher)}", f"sweep.prune={rule}")
    done = pipeline(clone, "train", *words)
    assert done.returncode == 0, done.stderr
    hopeless = "optimizer.learning_rate=1e-07"
    assert re.search(rf"^{hopeless}: pruned after epoch 1 of 3: val_accuracy 0\.\d+ is ", done.stdout, re.MULTILINE)
    parent = parent_of(done)
    runs = {child.info.run_name: child for child in children(clone, parent)}
    pruned = runs[hopeless]
    assert (pruned.info.status, pruned.data.tags["pruned_at"]) == ("KILLED", "1") and len(runs) == 5
    assert not [key for run in runs.values() for key in run.data.params if key.startswith("sweep")]
    assert store(clone).get_run(parent).info.status == "FINISHED"
    folder = max((clone / "multirun").glob("2*"))
    assert len(configs := list(folder.glob("*/config.yaml"))) == 5
    assert not [file for file in configs if "sweep" in file.read_text() or "prune" in file.read_text()]
    rows = list(csv.DictReader((folder / "ranking.csv").read_text().splitlines()))
    assert (rows[-1]["name"], rows[-1]["status"]) == (hopeless, "PRUNED")
    assert re.search(rf"^\| pruned at 1 +\| +{hopeless} \|", done.stdout, re.MULTILINE)

    again = pipeline(clone, "train", *words)
    assert again.returncode == 0 and " epoch 1/" not in again.stdout, again.stdout + again.stderr
    assert f"{hopeless}: found pruned, MLflow run {pruned.info.run_id}" in again.stdout
    whole = pipeline(clone, "train", *words[:-1])
    assert whole.returncode == 0 and whole.stdout.count(" epoch 3/3 ") == whole.stdout.count(" epoch 1/3 ") >= 1
    statuses = {child.info.status for child in children(clone, parent)}
    assert parent_of(whole) == parent and statuses == {"FINISHED"} and len(children(clone, parent)) == 5
