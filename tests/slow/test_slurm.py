"""Sweeps as Slurm's jobs: through submitit's own executor on this machine, and on a Slurm of one node."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import children, copy, parent_of, pipeline, run, store

pytest.importorskip("submitit")
EPOCHS = 3
WORDS = ("-m", "recipe=baseline", f"train.epochs={EPOCHS}", "seed=0,1")
DAEMONS = ("munged", "slurmctld", "slurmd")


def trained(folder: Path, parent: str) -> dict[str, str]:
    """The model's hash of each child."""
    found = children(folder, parent)
    assert {child.info.status for child in found} == {"FINISHED"}
    for child in found:
        rows = store(folder).get_metric_history(child.info.run_id, "val_accuracy")
        assert sorted(row.step for row in rows) == list(range(1, EPOCHS + 1))
    hashes = {child.info.run_name: child.data.tags["model_sha256"] for child in found}
    assert len(hashes) == len(found), "a run is double"
    return hashes


@pytest.fixture(scope="module")
def alone(repository, tmp_path_factory) -> dict[str, str]:
    """The same sweep by Hydra's own launcher."""
    folder = copy(repository, tmp_path_factory.mktemp("alone"))
    done = pipeline(folder, "train", *WORDS)
    assert done.returncode == 0, done.stderr
    found = trained(folder, parent_of(done))
    assert sorted(found) == [f"seed={seed}" for seed in range(2)] and len(set(found.values())) == 2
    return found


@pytest.mark.sample
def test_jobs_of_their_own_processes_make_the_same_sweep_and_typed_again_train_nothing(repository, alone, tmp_path):
    folder = copy(repository, tmp_path)
    words = (*WORDS, "hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=2")
    done = pipeline(folder, "train", *words)
    assert done.returncode == 0, done.stderr
    assert trained(folder, parent_of(done)) == alone
    assert "| 2 " in done.stdout, "the ranking"
    again = pipeline(folder, "train", *words)
    assert again.returncode == 0 and "2 jobs, 2 found finished" in again.stdout, again.stderr
    assert parent_of(again) == parent_of(done) and trained(folder, parent_of(again)) == alone


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    """A Slurm of this machine alone: the variables that commands find it by."""
    if missing := [name for name in DAEMONS if not shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")]:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: apt-get install slurm-wlm munge)")
    if os.geteuid():
        pytest.skip("slurmd runs jobs as root alone")
    folder = Path(tempfile.mkdtemp(prefix="slurm"))
    ports = []
    for _ in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    (folder / "key").write_bytes(os.urandom(1024))
    (folder / "key").chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    settings = {
        "ClusterName": "test", "SlurmctldHost": f"{host}(127.0.0.1)", "SlurmUser": "root", "SlurmdUser": "root",
        "AuthType": "auth/munge", "AuthInfo": f"socket={folder}/munge", "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool", "SlurmctldPidFile": folder / "1.pid", "SlurmdPidFile": folder / "2.pid",
        "SlurmctldPort": ports[0], "SlurmdPort": ports[1], "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none", "SelectType": "select/cons_tres", "SelectTypeParameters": "CR_Core",
        "MpiDefault": "none",
    }  # fmt: skip
    memory = psutil.virtual_memory().total * 9 // 10 // 2**20
    lines = [f"{key}={value}" for key, value in settings.items()]
    lines.append(f"NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory} State=UNKNOWN")
    lines.append("PartitionName=main Nodes=ALL Default=YES State=UP")
    (folder / "slurm.conf").write_text("\n".join([*lines, ""]))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    path = f"{os.environ['PATH']}:/usr/sbin"
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    munged = ["munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/munge"]
    munged += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"]
    started = []
    try:
        for number, command in enumerate([munged, ["slurmctld", "-D"], ["slurmd", "-D", "-f", f"{folder}/slurm.conf"]]):
            with (folder / f"{number}.log").open("w") as log:
                started.append(subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | variables))
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in run("sinfo", "--noheader", "--format=%T", **variables).stdout:
            logs = "\n".join(file.read_text() for file in folder.glob("*.log"))
            assert time.monotonic() < deadline and all(process.poll() is None for process in started), logs
            time.sleep(0.5)
        yield variables
    finally:
        run("scancel", "--user=root", **variables)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def test_jobs_of_slurm_make_the_same_sweep(slurm, repository, alone, tmp_path):
    folder = copy(repository, tmp_path)
    words = (*WORDS, "hydra/launcher=slurm", "hydra.launcher.partition=main", "hydra.launcher.cpus_per_task=1")
    done = run("python", "-m", "pipeline.train", *words, cwd=folder, **slurm)
    assert done.returncode == 0, done.stderr
    assert trained(folder, parent_of(done)) == alone
