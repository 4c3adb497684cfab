"""What `make ui` answers to whom: the server as users start it, and requests that no page of its own would send."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import psutil
import pytest
from conftest import run, store
from faults_report import record

pytestmark = pytest.mark.faults

PATIENCE = 180  # seconds for it, on a busy machine
SECRET = "what a file outside of the store holds"
LOGGED = "epoch,loss\n1,0.5\n"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


class Server(NamedTuple):
    process: subprocess.Popen[bytes]
    port: int

    def ask(self, method: str, target: str, body: Any = None, **headers: str | None) -> Answer:
        """Send just this; a header of None is left out, an underscore in its name is a hyphen."""
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        sent = {"Host": f"127.0.0.1:{self.port}", "Content_Type": "application/json"} | headers
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in (sent | {"Content_Length": str(len(content))}).items():
                if value is not None:
                    connection.putheader(name.replace("_", "-"), value)
            connection.endheaders(content)
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read().decode(errors="replace"))


class Store(NamedTuple):
    folder: Path
    run_id: str

    def state(self) -> tuple[list[str], dict[str, bytes]]:
        """Every row of the data base, and every file but the data base's own."""
        with closing(sqlite3.connect(f"file:{self.folder / 'mlflow.db'}?mode=ro", uri=True)) as database:
            rows = list(database.iterdump())
        files = (path for path in sorted(self.folder.rglob("*")) if path.is_file() and "mlflow.db" not in path.name)
        return rows, {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


@contextmanager
def server(folder: Path, command: str, port: int) -> Iterator[Server]:
    """Run a shell's command line in `folder` until it answers; end it and its children afterwards."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
    started = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=kept | {"PATH": path},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + PATIENCE
        ready = Server(started, port)
        while True:
            try:
                if ready.ask("GET", "/health").status == 200:
                    break
            except OSError:
                assert started.poll() is None and time.monotonic() < deadline, f"{command} does not answer"
                time.sleep(0.2)
        yield ready
    finally:
        os.killpg(started.pid, signal.SIGTERM)
        started.wait(30)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Store:
    """A store as `pipeline` makes it, with a run, its artifact and a registered model; a secret beside it."""
    folder = tmp_path_factory.mktemp("served") / "repository"
    folder.mkdir()
    (folder.parent / "secret.txt").write_text(SECRET)
    client = store(folder)
    experiment = client.create_experiment("mnist", (folder / "mlruns").as_uri())
    logged = client.create_run(experiment, run_name="a run")
    client.log_text(logged.info.run_id, LOGGED, "history.csv")
    client.create_registered_model("mnist")
    client.create_model_version("mnist", logged.info.artifact_uri, logged.info.run_id)
    client.set_terminated(logged.info.run_id)
    return Store(folder, logged.info.run_id)


@pytest.fixture(scope="module")
def ui(kept) -> Iterator[Server]:
    """`make ui`, by the command line that make would run."""
    port = free_port()
    printed = run("make", "-n", "-s", "ui", f"PORT={port}").stdout
    [command] = re.findall(r"^MLFLOW_.*mlflow ui[\s\S]+", printed, re.MULTILINE)
    with server(kept.folder, command, port) as started:
        yield started


# Of attackers: names that they own and let point to 127.0.0.1, so that a visitor's browser asks in the visitor's stead.
ELSEWHERE = [
    "evil.example",
    "evil.example:{port}",
    "10.evil.example",
    "10.evil.example:{port}",
    "192.168.evil.example",
    "192.168.evil.example:{port}",
    "172.16.evil.example",
    "127.0.0.1.evil.example",
    "127.0.0.1.evil.example:{port}",
    "localhost.evil.example:{port}",
    "127.0.0.1:{port}@evil.example",
    "127.0.0.1:{port}, evil.example",
    "localhost.:{port}",
    "127.0.0.1:1",
    "127.0.0.1",
    "0.0.0.0:{port}",
    "2130706433:{port}",
    "",
    None,
]
ORIGINS = [
    "http://evil.example",
    "https://evil.example",
    "http://evil.example:{port}",
    "HTTP://EVIL.EXAMPLE",
    "http://10.evil.example",
    "http://192.168.evil.example:{port}",
    "http://127.0.0.1.evil.example:{port}",
    "http://localhost.evil.example",
    "null",  # a sandboxed frame, a file, a redirect
    "file://",
    "chrome-extension://abc",
]
STATE_CHANGING: list[tuple[str, str, dict[str, Any]]] = [
    ("POST", "/api/2.0/mlflow/experiments/create", {"name": "hostile"}),
    ("POST", "/ajax-api/2.0/mlflow/experiments/create", {"name": "hostile"}),
    ("POST", "/api/2.0/mlflow/runs/delete", {"run_id": "{run}"}),
    ("POST", "/api/2.0/mlflow/runs/set-tag", {"run_id": "{run}", "key": "a", "value": "b"}),
    ("POST", "/api/2.0/mlflow/runs/log-metric", {"run_id": "{run}", "key": "a", "value": 1, "timestamp": 1}),
    ("DELETE", "/api/2.0/mlflow/registered-models/delete", {"name": "mnist"}),
    ("POST", "/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run}&path=hostile.txt", {}),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/hostile.txt", {}),
    ("POST", "/ajax-api/3.0/mlflow/assistant/message", {"message": "hostile"}),  # would start a program on the machine
    ("POST", "/ajax-api/3.0/jobs/", {"job_name": "hostile", "params": {}}),
]
# What a browser sends for a page of elsewhere without asking the server first.
SIMPLE = [
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "text/plain; x=json",
    None,
]
# Other ways to write the address of one of them.
SPELLINGS = [
    "//api/2.0/mlflow/experiments/create",
    "/api//2.0/mlflow/experiments/create",
    "/%61pi/2.0/mlflow/experiments/create",
    "/./api/2.0/mlflow/experiments/create",
    "/x/../api/2.0/mlflow/experiments/create",
    "/API/2.0/mlflow/experiments/create",
]
UP = "../" * 4
PATHS = [  # from the folder of a run's artifacts, four up is where the secret lies
    UP + "secret.txt",
    UP.replace(".", "%2e") + "secret.txt",
    UP.replace("/", "%2f") + "secret.txt",
    quote(quote(UP, safe=""), safe="").replace(".", "%252e") + "secret.txt",
    quote(UP.replace("/", "\\")) + "secret.txt",
    "....//" * 4 + "secret.txt",
    "history.csv/" + "../" + UP + "secret.txt",
    "{secret}",
    "/{secret}",
    "%2f{secret}",
    "file://{secret}",
    "file:%2f%2f{secret}",
    "history.csv%00/" + UP + "secret.txt",
    UP + "secret.txt%00.csv",
    "/etc/passwd",
    "C:%5Csecret.txt",
]
READ = [
    "/get-artifact?run_uuid={run}&path=",
    "/model-versions/get-artifact?name=mnist&version=1&path=",
    "/api/2.0/mlflow-artifacts/artifacts/",
    "/static-files/",
    "/",
]


def test_its_own_page_gets_what_the_requests_below_do_not(ui, kept):
    own = {"Origin": f"http://127.0.0.1:{ui.port}"}
    for host in (f"127.0.0.1:{ui.port}", f"localhost:{ui.port}"):
        assert ui.ask("GET", f"/get-artifact?run_uuid={kept.run_id}&path=history.csv", Host=host).body == LOGGED
    assert ui.ask("GET", "/model-versions/get-artifact?name=mnist&version=1&path=history.csv", **own).body == LOGGED
    page = ui.ask("GET", "/")
    assert page.status == 200 and "<title>MLflow</title>" in page.body
    assert page.headers["x-frame-options"] == "SAMEORIGIN" and page.headers["x-content-type-options"] == "nosniff"
    before = kept.state()
    tag = {"run_id": kept.run_id, "key": "a", "value": "b"}
    assert ui.ask("POST", "/api/2.0/mlflow/runs/set-tag", tag, **own).status == 200
    assert kept.state() != before, "it is the store of plain `mlflow ui`, mlflow.db in the folder"


@pytest.mark.sample
def test_a_host_of_elsewhere_gets_nothing(ui, kept):
    before, got, tries = kept.state(), [], 0
    for name in ELSEWHERE:
        host = name and name.format(port=ui.port)
        for method, target, body in (
            ("GET", f"/get-artifact?run_uuid={kept.run_id}&path=history.csv", None),
            ("POST", "/api/2.0/mlflow/experiments/create", {"name": "hostile"}),
            ("GET", "/", None),
        ):
            tries += 1
            answer = ui.ask(method, target, body, Host=host)
            if not (400 <= answer.status < 500 and len(answer.body) < 100 and kept.state() == before):
                got.append((host, target, answer))
    assert not got
    record("a request under another name than 127.0.0.1 and localhost gets nothing from `make ui`", tries, tries)


def test_plain_mlflow_ui_answers_to_a_name_of_elsewhere(kept):
    port = free_port()
    plain = (
        f"MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --workers 1 --port {port}"
    )
    with server(kept.folder, plain, port) as started:
        target = f"/get-artifact?run_uuid={kept.run_id}&path=history.csv"
        assert started.ask("GET", target, Host="10.evil.example").body == LOGGED, "`make ui` need not name its hosts"


def test_a_page_of_elsewhere_changes_nothing(ui, kept):
    before, got = kept.state(), []
    requests = [
        (method, target, content, {"Origin": origin.format(port=ui.port)})
        for origin in ORIGINS
        for method, target, content in STATE_CHANGING
    ]
    create = {"name": "hostile"}
    requests += [("POST", target, create, {"Origin": ORIGINS[0]}) for target in SPELLINGS]
    requests += [
        ("POST", target, create, {"Origin": ORIGINS[0], "Content_Type": kind})
        for kind in SIMPLE
        for target in (STATE_CHANGING[0][1], "/graphql", "/v1/traces", "/gateway/mlflow/v1/chat/completions")
    ]
    requests += [("GET", "/api/2.0/mlflow/experiments/create?name=hostile", None, {"Origin": ORIGINS[0]})]
    for method, target, body, headers in requests:
        filled = json.loads(json.dumps(body).replace("{run}", kept.run_id))
        answer = ui.ask(method, target.format(run=kept.run_id), filled, **headers)
        if not (400 <= answer.status < 500 and kept.state() == before):
            got.append((method, target, headers, answer))
    assert not got
    tries = len(requests)
    record("a state-changing request of a page of elsewhere changes nothing through `make ui`", tries, tries)


def test_a_page_of_elsewhere_may_read_no_answer(ui, kept):
    asks = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "content-type"}
    allowed = []
    for origin in (pattern.format(port=ui.port) for pattern in ORIGINS):
        for target in ("/api/2.0/mlflow/experiments/create", "/graphql", "/v1/traces", "/gateway/x"):
            if ui.ask("OPTIONS", target, Origin=origin, **asks).status < 400:
                allowed.append((origin, target))
        # The browser hands an answer to a page of another origin only where the server says so.
        answer = ui.ask("GET", f"/get-artifact?run_uuid={kept.run_id}&path=history.csv", Origin=origin)
        if "access-control-allow-origin" in answer.headers:
            allowed.append((origin, answer))
    assert not allowed
    record("a page of elsewhere may not read from `make ui`", 5 * len(ORIGINS), 5 * len(ORIGINS))


def test_a_path_out_of_the_artifacts_gets_nothing(ui, kept):
    before, got, tries = kept.state(), [], 0
    secret = str(kept.folder.parent / "secret.txt")
    for path in (path.format(secret=secret) for path in PATHS):
        for start in READ:
            tries += 1
            answer = ui.ask("GET", start.format(run=kept.run_id) + path)
            if answer.status == 308:  # the same without a doubled slash
                answer = ui.ask("GET", answer.headers["location"].removeprefix(f"http://127.0.0.1:{ui.port}"))
            if answer.status < 400 or SECRET in answer.body or "root:" in answer.body:
                got.append((start, path, answer))
        listed = ui.ask("GET", f"/api/2.0/mlflow/artifacts/list?run_id={kept.run_id}&path={path}")
        tries += 1
        if "secret.txt" in json.loads(listed.body).get("files", ""):
            got.append(("list", path, listed))
    for source in (
        "file:///etc",
        f"{kept.folder.parent}",
        f"file://{kept.folder}/..",
        "mlflow-artifacts:../..",
        "runs:/../..",
    ):
        for source_run in ({}, {"run_id": kept.run_id}):
            tries += 1
            body = {"name": "mnist", "source": source} | source_run
            answer = ui.ask("POST", "/api/2.0/mlflow/model-versions/create", body)
            if answer.status != 400:
                got.append(("source", source, answer))
    assert not got and kept.state() == before
    record("a path out of a run's artifacts reads nothing through `make ui`", tries, tries)


def test_an_upload_stays_among_the_artifacts(ui, kept):
    outside = {path: path.stat().st_mtime_ns for path in kept.folder.parent.iterdir() if path != kept.folder}
    rows, files = kept.state()
    secret = str(kept.folder.parent / "secret.txt")
    got = []
    targets = [
        (method, start + path.format(secret=secret))
        for path in PATHS
        for method, start in (
            ("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={kept.run_id}&path="),
            ("PUT", "/api/2.0/mlflow-artifacts/artifacts/"),
        )
    ]
    for method, target in targets:
        ui.ask(method, target, b"hostile")
        now = kept.state()
        written = {name for name in now[1] if now[1][name] != files.get(name)}
        # A backslash, or %00 written out, is part of a name here; it lies where it may.
        if now[0] != rows or any(not name.startswith(("mlartifacts/", "mlruns/")) for name in written):
            got.append((target, written))
    assert not got and files.items() <= kept.state()[1].items()
    assert {path: path.stat().st_mtime_ns for path in kept.folder.parent.iterdir() if path != kept.folder} == outside
    record("an upload through `make ui` lands nowhere but among the artifacts", len(targets), len(targets))


def test_a_page_among_the_artifacts_is_a_file_to_save(ui, kept):
    for name in ("page.html", "picture.svg", "note.md"):
        store(kept.folder).log_text(kept.run_id, "<script>alert(1)</script>", name)
        answer = ui.ask("GET", f"/get-artifact?run_uuid={kept.run_id}&path={name}")
        assert answer.headers["content-disposition"].startswith("attachment"), (
            "the browser would run it as the page's own"
        )
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_it_listens_on_loopback_alone(ui):
    tree = [psutil.Process(ui.process.pid), *psutil.Process(ui.process.pid).children(recursive=True)]
    listening = [one.laddr for process in tree for one in process.net_connections("all") if one.status == "LISTEN"]
    assert ("127.0.0.1", ui.port) in {tuple(address) for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_whoever_reaches_the_port_may_write_as_docs_security_says(ui, kept):
    """A program of this machine, which sends no Origin; still, a link among the artifacts leads nowhere else."""
    place = kept.folder.parent / "of another user"
    created = ui.ask("POST", "/api/2.0/mlflow/experiments/create", {"name": "own", "artifact_location": str(place)})
    own = {"experiment_id": json.loads(created.body)["experiment_id"]}
    run_id = json.loads(ui.ask("POST", "/api/2.0/mlflow/runs/create", own).body)["run"]["info"]["run_id"]
    ui.ask("POST", f"/ajax-api/2.0/mlflow/upload-artifact?run_uuid={run_id}&path=new.txt", b"written")
    artifacts = place / run_id / "artifacts"
    assert (artifacts / "new.txt").read_bytes() == b"written"
    (artifacts / "link").symlink_to(kept.folder.parent / "secret.txt")
    answer = ui.ask("GET", f"/get-artifact?run_uuid={run_id}&path=link")
    assert answer.status == 400 and SECRET not in answer.body
