"""What a store costs as a sweep grows: SQLite's file, and PostgreSQL behind the tracking server of compose.yaml.

    python -m benchmarks.scale           measures, some minutes: benchmarks/results/scale.json and its table
    python -m benchmarks.scale sqlite    one of the two stores alone; or postgresql
    python -m benchmarks.scale --table   the table of what was measured

Runs are made up, in the shape of ours, without files: a training would take the time, and says nothing about a store.
The first twenty, and those that are timed, go through MLflow; what fills the store between is copied inside it.
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
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
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
OF_A_RUN = ["runs", "params", "tags", "metrics", "latest_metrics"]  # MLflow's tables; the others refer to the first
LOGGED, ROUNDS = 20, 5
RESULT = RESULTS / "scale.json"


class Store(NamedTuple):
    name: str
    uri: str  # what MLFLOW_TRACKING_URI would be
    page: str  # the address of the server that the web page asks
    database: str  # without a server between, to fill it
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


def write_run(client: Any, experiment: str, parent: str, number: int) -> float:
    """Log one run as a training does, epoch by epoch: the seconds it took."""
    from mlflow.entities import Metric, Param

    begin = time.perf_counter()
    tags = {f"tag_{index}": f"{number:064d}" for index in range(TAGS)} | {"mlflow.parentRunId": parent}
    run_id = client.create_run(experiment, run_name=f"seed={number}", tags=tags).info.run_id
    client.log_batch(run_id, params=[Param(f"section.parameter_{i}", str(number + i)) for i in range(PARAMS)])
    now = int(time.time() * 1000)
    for epoch in range(1, EPOCHS + 1):
        values = {f"metric_{key}": number + key / epoch for key in range(METRICS)}
        client.log_batch(run_id, metrics=[Metric(key, value, now + epoch, epoch) for key, value in values.items()])
    client.set_terminated(run_id)
    return time.perf_counter() - begin


def copy_runs(database: str, run_ids: Sequence[str], count: int) -> None:
    """Copy runs inside their database under ids of their own, one after the other, until there are `count` more."""
    import sqlalchemy as sql

    engine = sql.create_engine(database)
    tables = sql.MetaData()
    tables.reflect(engine, only=OF_A_RUN)
    with engine.begin() as connection:
        for number in range(count):
            run_id = uuid.uuid4().hex
            for table in (tables.tables[name] for name in OF_A_RUN):
                others = [column for column in table.columns if column.name != "run_uuid"]
                rows = sql.select(sql.literal(run_id), *others)
                rows = rows.where(table.c.run_uuid == run_ids[number % len(run_ids)])
                connection.execute(table.insert().from_select(["run_uuid", *others], rows))
    engine.dispose()


def measure(store: Store) -> Iterator[dict[str, Any]]:
    """Fill a store; at each size, what it weighs, and the seconds of each request."""
    with quiet_import():
        import mlflow

        from pipeline import tracking

    mlflow.set_tracking_uri(store.uri)
    client = mlflow.MlflowClient()
    experiment = client.create_experiment("scale")
    parent = client.create_run(experiment, run_name="sweep").info.run_id
    for number in range(LOGGED):
        write_run(client, experiment, parent, number)
    written = LOGGED
    for size in SIZES:
        copy_runs(store.database, [run.info.run_id for run in tracking.of_sweep(parent)], size - ROUNDS - written)
        seconds = [write_run(client, experiment, parent, size + number) for number in range(ROUNDS)]
        written = size
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
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
