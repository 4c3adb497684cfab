"""How fast the champion answers: `pipeline.serve` beside `mlflow models serve`, by turns on this machine.

    python -m benchmarks.serving <recipe> <run id of it>

Writes benchmarks/results/serving.json and, with the figures of benchmarks.export, docs/serving.md.
Clients run on the same cores as the server.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks import export
from benchmarks.run import measured_on
from pipeline import data
from pipeline.config import ROOT, compose
from pipeline.files import load_json, replacing, save_json
from pipeline.store import SQLITE
from pipeline.tables import markdown_table

RESULTS = ROOT / "benchmarks" / "results" / "serving.json"
ROUNDS = 3
SINGLE, CLIENTS, BATCHES, BATCH = 500, 8, 20, 500  # requests of a digit, clients at once, requests of many digits
PATHS = {"pipeline.serve": "/predict", "mlflow models serve": "/invocations"}


@contextmanager
def served(what: str, recipe: str, run: str) -> Iterator[int]:
    """A server of the same model on a free port, once it answers."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = {
        "pipeline.serve": [sys.executable, "-m", "pipeline.serve", f"recipe={recipe}", f"run={run}", f"port={port}"],
        "mlflow models serve": [
            *(sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"runs:/{run}/model"),
            *("--env-manager", "local", "--port", str(port)),
        ],
    }[what]
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"{SQLITE}{ROOT / 'mlflow.db'}"}
    server = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, f"{what} does not answer"
                time.sleep(0.2)
        yield port
    finally:
        server.terminate()
        server.wait()


def ask(connection: http.client.HTTPConnection, path: str, body: bytes) -> list[int]:
    """The digits that the server answers."""
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    return answer["digits"] if "digits" in answer else np.argmax(answer["predictions"], 1).tolist()


def measure(what: str, port: int, images: np.ndarray) -> dict[str, Any]:
    """Latency of one digit after another; digits a second of several clients, and of requests of many digits."""
    path = PATHS[what]
    single = [json.dumps({"inputs": images[i : i + 1].tolist()}).encode() for i in range(SINGLE)]
    many = json.dumps({"inputs": images[:BATCH].tolist()}).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    for body in (*single[:20], many):  # the first ones compile
        ask(connection, path, body)
    latencies, answers = [], []
    for body in single:
        begin = time.perf_counter()
        answers += ask(connection, path, body)
        latencies.append(time.perf_counter() - begin)

    def client(number: int) -> None:
        own = http.client.HTTPConnection("127.0.0.1", port)
        for body in single[number::CLIENTS]:
            ask(own, path, body)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    at_once = SINGLE / (time.perf_counter() - begin)
    connection.close()  # idle meanwhile, the server may have closed it; it opens again
    begin = time.perf_counter()
    for _ in range(BATCHES):
        batched = ask(connection, path, many)
    a_second = BATCHES * BATCH / (time.perf_counter() - begin)
    milliseconds = 1000 * np.percentile(latencies, [50, 99])
    return {
        "what": what,
        "p50_ms": round(float(milliseconds[0]), 2),
        "p99_ms": round(float(milliseconds[1]), 2),
        "requests_a_second": round(at_once),
        "digits_a_second": round(a_second),
        "digits": [*answers, *batched],
    }


def markdown(found: dict[str, Any]) -> str:
    keys = {
        "p50_ms": "one digit, p50, ms",
        "p99_ms": "p99, ms",
        "requests_a_second": f"requests a second, {CLIENTS} clients, one digit each",
        "digits_a_second": f"digits a second, {BATCH} a request",
    }
    rows = [["server", *keys.values()]]
    for what in PATHS:
        of = [trial for trial in found["trials"] if trial["what"] == what]
        cells = []
        for key in keys:
            values = [trial[key] for trial in of]
            cells.append(f"{statistics.median(values):,g} ({min(values):,g}–{max(values):,g})")
        rows.append([what, *cells])
    text = (ROOT / "docs" / "serving.in.md").read_text(encoding="utf-8")
    about = {"{table}": markdown_table(rows), "{rounds}": str(ROUNDS), "{recipe}": found["recipe"]}
    about |= {"{where}": f"{found['hardware']}; {found['versions']}", "{single}": str(SINGLE)}
    said = (ROOT / "docs" / "runs" / "champion.txt").read_text(encoding="utf-8")
    about["{champion}"] = textwrap.indent(said, "    ").rstrip()
    exported = load_json(export.RESULTS)
    about |= {
        "{exports}": export.table(exported),
        "{export_where}": f"{exported['hardware']}; {exported['versions']}",
        "{runtimes}": exported["runtimes"],
        "{export_rounds}": str(export.ROUNDS),
        "{export_singles}": str(export.SINGLE),
        "{export_batches}": str(export.BATCHES),
        "{export_batch}": str(export.BATCH),
    }
    for mark, content in about.items():
        assert mark in text, mark
        text = text.replace(mark, content)
    return text


def main(recipe: str, run: str) -> None:
    images = data.load_examples(ROOT / "data" / "processed" / "test.npz", compose().data).images
    trials = []
    for number in range(ROUNDS):
        for what in PATHS:
            with served(what, recipe, run) as port:
                trials.append({"round": number, **measure(what, port, images)})
            print({key: value for key, value in trials[-1].items() if key != "digits"}, flush=True)
    answers = [trial.pop("digits") for trial in trials]
    assert all(answer == answers[0] for answer in answers), "the servers disagree"
    save_json(RESULTS, {"recipe": recipe, "trials": trials, **measured_on()})
    with replacing(ROOT / "docs" / "serving.md") as temporary:
        temporary.write_text(markdown(load_json(RESULTS)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
