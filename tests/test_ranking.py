"""How often a sweep's ranking is renewed, and what a job of a sweep is told."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from matplotlib.figure import Figure

from pipeline import surroundings, sweep, tracking
from pipeline.config import ROOT
from pipeline.files import save_csv


def test_a_ranking_is_renewed_in_its_time_and_always_at_the_end(tmp_path, monkeypatch):
    asked = []

    def of_sweep(parent: str) -> list:
        asked.append(parent)
        time.sleep(0.5)
        return []

    monkeypatch.setattr(sweep, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr(sweep, "_draw", lambda *_: Figure())
    monkeypatch.setattr(tracking, "of_sweep", of_sweep)
    monkeypatch.setattr(tracking, "log_sweep", lambda *_: None)
    monkeypatch.setenv(sweep.KEYS, "seed")
    sweep.renew("parent", tmp_path, in_its_time=True)
    due = (tmp_path / ".next").stat().st_mtime - time.time()
    assert 1.5 < due < 60  # four times the half second, and what drawing took
    sweep.renew("parent", tmp_path, in_its_time=True)
    assert len(asked) == 1
    sweep.renew("parent", tmp_path)
    assert len(asked) == 2
    os.utime(tmp_path / ".next", (0, time.time() - 1))
    sweep.renew("parent", tmp_path, in_its_time=True)
    assert len(asked) == 3 and (tmp_path / "ranking.csv").read_text().startswith("rank,seed,")


@pytest.mark.parametrize("digits", ["9447e1230643", "012345678901", "1e0000000000", "abcdef012345"])
def test_the_id_of_a_group_is_never_a_number(compose, tmp_path, monkeypatch, digits):
    """9447e1230643 was drawn by a real sweep: pandas and Hydra made infinity of it."""
    monkeypatch.setattr(surroundings, "_sha256_of", lambda _: digits.ljust(64, "0"))
    group = surroundings.identity(compose(), []).group
    assert group == f"g{digits}"
    assert OverridesParser.create().parse_override(f"a={group}").value() == group
    save_csv(tmp_path / "ranking.csv", {"rank": [1, 2], "group": [group, group]})
    pandas = pytest.importorskip("pandas")
    assert pandas.read_csv(tmp_path / "ranking.csv")["group"].tolist() == [group, group]


def test_a_job_is_told_of_its_sweep_and_store_and_of_no_secret(tmp_path, monkeypatch):
    told = ("SWEEP_PARENT", "SWEEP_KEYS", "MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT")
    secret = (
        *("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        *("MLFLOW_CRYPTO_KEK_PASSPHRASE", "AWS_SECRET_ACCESS_KEY", "HOME"),
    )
    assert [key for key in (*told, *secret) if sweep.TOLD.match(key)] == list(told)
    opening = sweep.Opening()
    opening.variables = {"SWEEP_PARENT": "of the one who launched"}
    travelled = pickle.dumps(opening)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SWEEP_PARENT", "of a daemon")
    pickle.loads(travelled).on_job_start(None)
    assert os.environ["SWEEP_PARENT"] == "of the one who launched" and Path.cwd() == ROOT
