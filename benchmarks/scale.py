"""What a store costs as a sweep grows: SQLite's file, and PostgreSQL behind the tracking server of compose.yaml.

    python -m benchmarks.scale             measures, some twelve minutes: benchmarks/results/scale.json, docs/scale.md
    python -m benchmarks.scale sqlite      one part alone: sqlite, postgresql or launchers
    python -m benchmarks.scale --page      docs/scale.md anew, of what was measured

Runs are made up, in the shape of ours, without files: a training would take the time, and says nothing about a store.
The first twenty, and those that are timed, go through MLflow; what fills the store between is copied inside it.
Launchers are timed as whole sweeps of jobs that train one step.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.run import RESULTS, measured_on
from benchmarks.servers import Postgres, TrackingServer, postgres_programs
from pipeline.config import ROOT, PipelineError
from pipeline.console import quiet_import
from pipeline.files import load_json, replacing, save_json
from pipeline.tables import markdown_table

SIZES = (100, 1_000)  # runs, the children of one sweep
RECKONED = 10_000
PARAMS, METRICS, EPOCHS, TAGS = 60, 10, 15, 20  # a run of ours
OF_A_RUN = ["runs", "params", "tags", "metrics", "latest_metrics"]  # MLflow's tables; the others refer to the first
LOGGED, ROUNDS = 20, 5
RESULT = RESULTS / "scale.json"
LAUNCHERS = {
    "Hydra's own, one after the other": [],
    "joblib, 2 at once": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "Ray, started for it": ["hydra/launcher=ray"],
    "submitit, processes of this machine": ["hydra/launcher=submitit_local", "hydra.launcher.cpus_per_task=2"],
}
JOBS, LAUNCHER_ROUNDS = 8, 3
STEP = ("recipe=baseline", "train.epochs=1", "train.examples=32", f"seed=range(0,{JOBS})")  # a job of one step


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


def launchers() -> Iterator[dict[str, Any]]:
    """Whole sweeps by each launcher in turn, into stores of their own: what was trained once would be found."""
    for number in range(LAUNCHER_ROUNDS):
        for what, words in LAUNCHERS.items():
            with tempfile.TemporaryDirectory() as folder:
                uri = f"sqlite:///{folder}/mlflow.db"
                command = [
                    sys.executable,
                    "-m",
                    "pipeline.train",
                    "-m",
                    *STEP,
                    *words,
                    f"hydra.sweep.dir={folder}/sweep",
                ]
                begin = time.perf_counter()
                done = subprocess.run(
                    command, cwd=ROOT, env=os.environ | {"MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True
                )
                seconds = round(time.perf_counter() - begin, 2)
            if done.returncode:
                raise PipelineError(f"{what}: {done.stderr.strip()[-300:]}")
            yield {"what": what, "round": number, "sweep_of_steps_seconds": seconds}


def launcher_table(trials: list[dict[str, Any]]) -> str:
    rows = [["launcher", f"s for {JOBS} jobs", "s a job"]]
    for what in LAUNCHERS:
        seconds = [trial["sweep_of_steps_seconds"] for trial in trials if trial["what"] == what]
        middle = statistics.median(seconds)
        rows.append([what, f"{middle:.1f} ({min(seconds):.1f}–{max(seconds):.1f})", f"{middle / JOBS:.1f}"])
    return markdown_table(rows)


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
            if of_size["runs"] == RECKONED:  # these do not grow in a line
                shown[1:3] = ["–", "–"]
            rows.append([label, f"{of_size['runs']:,.0f}", *shown])
    return markdown_table(rows)


def medians(trial: Mapping[str, Any]) -> dict[str, float]:
    found = {key.removesuffix("_seconds"): statistics.median(trial[key]) for key in trial if key.endswith("_seconds")}
    return {"runs": trial["runs"], "megabytes": trial["megabytes"], **found}


def of_store(store: Callable[[], AbstractContextManager[Store]]) -> Iterator[dict[str, Any]]:
    with store() as made:
        yield from measure(made)


PARTS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "sqlite": lambda: of_store(sqlite),
    "postgresql": lambda: of_store(postgresql),
    "launchers": launchers,
}


def page_of_docs(trials: list[dict[str, Any]]) -> str:
    if absent := {*LAUNCHERS, "mlflow.db", "server, PostgreSQL"} - {trial["what"] for trial in trials}:
        raise PipelineError(f"not measured: {', '.join(sorted(absent))}: python -m benchmarks.scale")
    stores, launched = ([t for t in trials if (t["what"] in LAUNCHERS) == of] for of in (False, True))

    def where(of: list[dict[str, Any]]) -> str:
        return "; ".join(dict.fromkeys(f"{trial['hardware']}; {trial['versions']}" for trial in of))

    text = (ROOT / "docs" / "scale.in.md").read_text(encoding="utf-8")
    for mark, content in {
        "{stores}": table(stores),
        "{rounds}": str(ROUNDS),
        "{where}": where(stores),
        "{launchers}": launcher_table(launched),
        "{launcher_rounds}": str(LAUNCHER_ROUNDS),
        "{jobs}": str(JOBS),
        "{launchers_where}": where(launched),
    }.items():
        assert mark in text, mark
        text = text.replace(mark, content)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all, if none is named")
    parser.add_argument("--page", action="store_true", help="only write docs/scale.md")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end with it
    try:
        if unknown := set(given.parts) - set(PARTS):
            raise PipelineError(f"{', '.join(sorted(unknown))} is no part: give {', '.join(PARTS)}")
        for name in [] if given.page else given.parts or PARTS:
            trials = [trial | measured_on() for trial in PARTS[name]()]
            measured = {trial["what"] for trial in trials}
            kept = load_json(RESULT)["trials"] if RESULT.is_file() else []
            save_json(RESULT, {"trials": [*(trial for trial in kept if trial["what"] not in measured), *trials]})
        with replacing(ROOT / "docs" / "scale.md") as temporary:
            temporary.write_text(page_of_docs(load_json(RESULT)["trials"]), encoding="utf-8")
    except PipelineError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


if __name__ == "__main__":
    main()
