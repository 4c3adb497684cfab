"""A temporary PostgreSQL of Debian's package, and the tracking server as compose.yaml starts it, on this machine."""

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
from contextlib import suppress
from pathlib import Path

import yaml

HOST = "127.0.0.1"
START_SECONDS = 120.0  # that a server may take until it answers
COMPOSE = Path(__file__).resolve().parents[2] / "compose.yaml"


def free_port() -> int:
    with socket.socket() as free:
        free.bind((HOST, 0))
        return int(free.getsockname()[1])


def postgres_programs() -> Path | None:
    """Return the folder of the newest PostgreSQL's programs, or None where there is none."""
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if (path / "initdb").is_file()]
    other = shutil.which("initdb")
    return max(versions, key=lambda path: int(path.parent.name), default=Path(other).parent if other else None)


class Server:
    """A process that answers at a port, with its log in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def answers(self) -> bool:
        raise NotImplementedError

    def _start(self, command: list[str], variables: dict[str, str], user: str | None = None) -> None:
        if self.process:
            return
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "PG", "DVC_"))}
        with (self.folder / "log").open("a") as log:
            settings = {"cwd": self.folder, "env": kept | variables, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(command, user=user, start_new_session=True, **settings)  # type: ignore[call-overload]
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.1)

    def kill(self) -> None:
        """End it and all its processes, as a power cut would."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _end(self, number: signal.Signals) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait(60)
            self.process = None


class Postgres(Server):
    """A cluster with a database and a user `mlflow`, in a folder of its own, for those who know the password."""

    def __init__(self, programs: Path) -> None:
        super().__init__(Path(tempfile.mkdtemp(prefix="postgres-")))
        self.programs = programs
        self.user = "postgres" if os.geteuid() == 0 else None  # it does not run as root
        self.variables = {"PGHOST": HOST, "PGPORT": str(self.port), "PGUSER": "mlflow", "PGDATABASE": "mlflow"}
        self.variables["PGPASSWORD"] = secrets.token_hex(16)
        password = self.folder / "password"
        password.write_text(self.variables["PGPASSWORD"])
        if self.user:
            owner = pwd.getpwnam(self.user)
            for path in (self.folder, password):
                os.chown(path, owner.pw_uid, owner.pw_gid)
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--no-sync", "--pgdata=data"]
        try:
            self._run("initdb", "--username=mlflow", f"--pwfile={password}", *options)
            self.start()
            self._run("createdb", "mlflow")
        except BaseException:
            self.remove()
            raise

    def _run(self, program: str, *arguments: str) -> str:
        command, env = [str(self.programs / program), *arguments], os.environ | self.variables
        done = subprocess.run(
            command, cwd=self.folder, env=env, user=self.user, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def start(self) -> None:
        command = [str(self.programs / "postgres"), "-D", "data", "-h", HOST, "-p", str(self.port), "-k", ""]
        self._start(command, {}, self.user)

    def answers(self) -> bool:
        command = [str(self.programs / "pg_isready"), "--quiet", f"--host={HOST}", f"--port={self.port}"]
        return subprocess.run(command).returncode == 0

    def ask(self, query: str) -> str:
        return self._run("psql", "--no-align", "--tuples-only", "--command", query)

    def stop(self) -> None:
        """Stop it as Debian's service does: open connections are closed."""
        self._end(signal.SIGINT)

    def remove(self) -> None:
        self._end(signal.SIGQUIT)  # its processes have sessions of their own, and follow it
        shutil.rmtree(self.folder, ignore_errors=True)


class TrackingServer(Server):
    """What compose.yaml starts, on a port and in a folder of its own."""

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        super().__init__(folder)
        self.uri = f"http://{HOST}:{self.port}"
        service = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["mlflow"]
        command = service["command"]
        changes = {"0.0.0.0": HOST, "/artifacts": str(folder / "artifacts"), r"\b5000\b": str(self.port)}
        for pattern, value in changes.items():
            command = [re.sub(pattern, value, word) for word in command]
        self.command, self.variables = [sys.executable, "-m", *command], service["environment"] | variables
        self.start()

    def start(self) -> None:
        self._start(self.command, self.variables)

    def answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
        return False
