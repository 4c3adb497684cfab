"""A throw-away PostgreSQL of Debian's package, and the tracking server as compose.yaml starts it, on this machine."""

from __future__ import annotations

import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path

import yaml

from pipeline.config import ROOT

HOST = "127.0.0.1"
PATIENCE = 120.0  # seconds for a server to answer


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def postgres_programs() -> Path | None:
    """The folder of PostgreSQL's programs, the newest one, or None where there is none."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").is_file()]
    if found:
        return max(found, key=lambda path: int(path.parent.name))
    elsewhere = shutil.which("initdb")
    return Path(elsewhere).parent if elsewhere else None


class Server(ABC):
    """A process, and what it said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def _start(self, command: list[str], variables: dict[str, str], user: str | None = None) -> None:
        if self.process:
            return
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PG", "DVC_"))}
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=kept | variables,
                user=user,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.1)

    @abstractmethod
    def answers(self) -> bool: ...

    def kill(self) -> None:
        """End it and all its processes, as a power cut would."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Postgres(Server):
    """A cluster with a database and a user `mlflow`, in a folder of its own, for whoever knows the password."""

    def __init__(self, programs: Path) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="postgres-")))
        self.programs = programs
        self.user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        self.variables = {
            "PGHOST": HOST,
            "PGPORT": str(self.port),
            "PGUSER": "mlflow",
            "PGDATABASE": "mlflow",
            "PGPASSWORD": secrets.token_hex(16),
        }
        password = self.folder / "password"
        password.write_text(self.variables["PGPASSWORD"])
        if self.user:
            owner = pwd.getpwnam(self.user)
            for path in (self.folder, password):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        try:
            self._run("initdb", "--username=mlflow", f"--pwfile={password}", "--auth=scram-sha-256", "--encoding=UTF8",
                      "--no-sync", "--pgdata=data")  # fmt: skip
            self.start()
            self._run("createdb", "mlflow")
        except BaseException:
            self.remove()
            raise

    def _run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.programs / program), *words],
            cwd=self.folder,
            env=os.environ | self.variables,
            user=self.user,
            check=True,
            capture_output=True,
            text=True,
        )

    def start(self) -> None:
        command = [str(self.programs / "postgres"), "-D", "data", "-h", HOST, "-p", str(self.port), "-k", ""]
        self._start(command, {}, self.user)

    def answers(self) -> bool:
        ready = [str(self.programs / "pg_isready"), "--quiet", f"--host={HOST}", f"--port={self.port}"]
        return subprocess.run(ready).returncode == 0

    def ask(self, query: str) -> str:
        return self._run("psql", "--no-align", "--tuples-only", "--command", query).stdout.strip()

    def stop(self) -> None:
        """As Debian's service stops it: whoever is connected is thrown out."""
        if self.process:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(60)
            self.process = None

    def remove(self) -> None:
        if self.process:
            self.process.send_signal(signal.SIGQUIT)  # its processes have sessions of their own, and follow it
            self.process.wait(60)
            self.process = None
        shutil.rmtree(self.folder, ignore_errors=True)


def of_compose() -> tuple[list[str], dict[str, str]]:
    """The command and the variables of the tracking server in compose.yaml."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["mlflow"]
    return service["command"], service["environment"]


class TrackingServer(Server):
    """What compose.yaml starts, on a port and in a folder of its own; on another store where one is given."""

    def __init__(self, folder: Path, variables: dict[str, str], store: str | None = None) -> None:
        super().__init__(folder)
        self.uri = f"http://{HOST}:{self.port}"
        command, kept = of_compose()
        here = {"0.0.0.0": HOST, "/artifacts": str(folder / "artifacts"), r"\b5000\b": str(self.port)}
        for there, value in here.items():
            command = [re.sub(there, value, word) for word in command]
        if store:
            command = [re.sub("^--backend-store-uri=.*", f"--backend-store-uri={store}", word) for word in command]
        self.command = [sys.executable, "-m", *command]
        self.variables = kept | variables
        self.start()

    def start(self) -> None:
        self._start(self.command, self.variables)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
