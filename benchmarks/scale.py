"""What a store costs as a sweep grows: SQLite's file, and PostgreSQL behind the tracking server of compose.yaml.

    python -m benchmarks.scale           measures, some five minutes: benchmarks/results/scale.json and its table
    python -m benchmarks.scale sqlite    one of the two stores alone; or postgresql
    python -m benchmarks.scale --table   the table of what was measured

Runs are made up, in the shape of ours, without files: a training would take the time, and says nothing about a store.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.run import RESULTS, measured_on
from benchmarks.servers import Postgres, TrackingServer, postgres_programs
from pipeline.config import PipelineError
from pipeline.console import quiet_import
from pipeline.files import load_json, save_json
from pipeline.tables import markdown_table

SIZES = (100, 1_000)  # runs, the children of one sweep
RECKONED = 10_000
PARAMS, METRICS, EPOCHS, TAGS = 60, 10, 15, 20  # a run of ours
ROUNDS = 5
RESULT = RESULTS / "scale.json"


class Store(NamedTuple):
    name: str
    uri: str  # what MLFLOW_TRACKING_URI would be
    page: str  # the address of the server that the web page asks
    database: str  # without a server between, to fill it with runs that are not timed
    megabytes: Callable[[], float]


@contextmanager
def sqlite() -> Iterator[Store]:
    """As without any setting: training writes the file itself, and `mlflow ui` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mlflow.db"
        server = TrackingServer(Path(folder), {}, store=f"sqlite:///{file}")
        try:
            address = f"sqlite:///{file}"
            yield Store("mlflow.db", address, server.uri, address, lambda: file.stat().st_size / 1e6)
        finally:
            server.kill()


@contextmanager
def postgresql() -> Iterator[Store]:
    programs = postgres_programs()
    if programs is None:
        raise PipelineError("no PostgreSQL here: on Debian, apt-get install postgresql")
    database = Postgres(programs)
    try:
        with tempfile.TemporaryDirectory() as folder:
            server = TrackingServer(Path(folder), database.variables)
            try:
                size = "SELECT pg_database_size('mlflow')"
                known = database.variables
                address = (
                    f"postgresql+psycopg2://mlflow:{known['PGPASSWORD']}@{known['PGHOST']}:{known['PGPORT']}/mlflow"
                )
                yield Store(
                    "server, PostgreSQL", server.uri, server.uri, address, lambda: int(database.ask(size)) / 1e6
                )
            finally:
                server.kill()
    finally:
        database.remove()


STORES = {"sqlite": sqlite, "postgresql": postgresql}


def write_run(client: Any, experiment: str, parent: str, number: int, batches: int) -> float:
    """Log one run, its epochs in so many batches: the seconds it took."""
    from mlflow.entities import Metric, Param

    begin = time.perf_counter()
    tags = {f"tag_{index}": f"{number:064d}" for index in range(TAGS)} | {"mlflow.parentRunId": parent}
    run_id = client.create_run(experiment, run_name=f"seed={number}", tags=tags).info.run_id
    params = [Param(f"section.parameter_{index}", str(number + index)) for index in range(PARAMS)]
    now, length = int(time.time() * 1000), EPOCHS // batches
    for first in range(0, EPOCHS, length):
        epochs = range(first + 1, first + 1 + length)
        metrics = [
            Metric(f"metric_{key}", number + key / epoch, now + epoch, epoch)
            for epoch in epochs
            for key in range(METRICS)
        ]
        client.log_batch(run_id, metrics=metrics, params=[] if first else params)
    client.set_terminated(run_id)
    return time.perf_counter() - begin


def measure(store: Store) -> Iterator[dict[str, Any]]:
    """Fill a store; at each size, what it weighs, and the seconds of each request."""
    with quiet_import():
        import mlflow

    mlflow.set_tracking_uri(store.uri)
    client, filling = mlflow.MlflowClient(), mlflow.MlflowClient(store.database)
    experiment = client.create_experiment("scale")
    parent = client.create_run(experiment, run_name="sweep").info.run_id
    written = 0
    for size in SIZES:
        while written < size - ROUNDS:
            write_run(filling, experiment, parent, written, batches=1)
            written += 1
        seconds = []
        while written < size:
            seconds.append(write_run(client, experiment, parent, written, batches=EPOCHS))
            written += 1
        yield {"what": store.name, "runs": size, "megabytes": round(store.megabytes(), 2)} | {
            "write_seconds": [round(value, 4) for value in seconds],
            "page_seconds": timed(lambda: page(store, experiment)),
            **asked(parent, size),
        }


def asked(parent: str, size: int) -> dict[str, list[float]]:
    """The seconds of what a sweep asks, once it has answered with everything that was written."""
    with quiet_import():
        from pipeline import tracking

    runs = tracking.of_sweep(parent)
    if len(runs) != size or any(len(tracking.curve(run, "metric_0")) != EPOCHS for run in (runs[0], runs[-1])):
        raise PipelineError(f"the store has {len(runs)} of {size} runs, or not all of their metrics: measure again")
    return {
        "sweep_seconds": timed(lambda: tracking.of_sweep(parent)),
        "curve_seconds": timed(lambda: tracking.curve(runs[0], "metric_0")),
    }


def timed(request: Callable[[], Any]) -> list[float]:
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        request()
        seconds.append(round(time.perf_counter() - begin, 4))
    return seconds


def page(store: Store, experiment: str) -> None:
    """What the web page asks for its list of runs."""
    asked = {"experiment_ids": [experiment], "max_results": 100, "order_by": ["attributes.start_time DESC"]}
    request = urllib.request.Request(
        f"{store.page}/ajax-api/2.0/mlflow/runs/search",
        json.dumps(asked).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        json.load(answer)


def table(trials: list[dict[str, Any]]) -> str:
    """What was measured, in medians, and what a sweep of 10,000 would come to by the last hundreds of runs."""
    rows = [["store", "runs", "MB", "s to write one", "s a page of 100", "s all of a sweep", "s to renew a ranking"]]
    for name in dict.fromkeys(trial["what"] for trial in trials):
        of_store = [medians(trial) for trial in trials if trial["what"] == name]
        few, many = of_store[0], of_store[-1]
        grown = (RECKONED - few["runs"]) / (many["runs"] - few["runs"])
        reckoned = {key: few[key] + grown * (many[key] - few[key]) for key in ("runs", "megabytes", "sweep")}
        for label, of_size in (*((name, one) for one in of_store), (f"{name}, reckoned", many | reckoned)):
            ranking = of_size["sweep"] + 2 * of_size["runs"] * of_size["curve"]  # as sweep.renew asks
            cells = [of_size["write"], of_size["page"], of_size["sweep"], ranking]
            shown = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in (of_size["megabytes"], *cells)]
            rows.append([label, f"{of_size['runs']:,.0f}", *shown])
    return markdown_table(rows)


def medians(trial: Mapping[str, Any]) -> dict[str, float]:
    found = {key.removesuffix("_seconds"): statistics.median(trial[key]) for key in trial if key.endswith("_seconds")}
    return {"runs": trial["runs"], "megabytes": trial["megabytes"], **found}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("stores", nargs="*", help=f"{' or '.join(STORES)}; both, if none is named")
    parser.add_argument("--table", action="store_true", help="print the table of what was measured")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end with it
    try:
        if unknown := set(given.stores) - set(STORES):
            raise PipelineError(f"{', '.join(sorted(unknown))} is no store: give {' or '.join(STORES)}")
        for name in [] if given.table else given.stores or STORES:
            with STORES[name]() as store:
                trials = [trial | measured_on() for trial in measure(store)]
            kept = load_json(RESULT)["trials"] if RESULT.is_file() else []
            save_json(RESULT, {"trials": [*(trial for trial in kept if trial["what"] != store.name), *trials]})
        trials = load_json(RESULT)["trials"]
        print(f"{table(trials)}\n\nMedians of {ROUNDS}. {trials[0]['hardware']}; {trials[0]['versions']}.")
    except PipelineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
