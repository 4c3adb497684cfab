"""Measure how an MLflow store grows, and what the launchers of a sweep cost, into benchmarks/results/scale.json.

    python -m benchmarks.scale [sqlite] [postgresql] [launchers]      all, if none is named; an hour

The runs are synthetic, in the shape of ours, without files. The stored figures are of an earlier version, which copied
most runs inside the database.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.report import provenance, spread, table
from benchmarks.run import RESULTS, ROUNDS, TRAIN, measured_on, time_commands
from benchmarks.servers import Postgres, TrackingServer, postgres_programs
from pipeline.base.errors import UserError
from pipeline.base.files import load_json, save_json
from pipeline.base.project import open_project

SIZES = (100, 1_000)  # runs, the children of one sweep
EXTRAPOLATED = 10_000
PARAMS, METRICS, EPOCHS, TAGS, REPEATS = 60, 10, 15, 20, 5  # a run of ours; how often each request is timed
STORES = {"sqlite": "mlflow.db", "postgresql": "server, PostgreSQL"}
JOBS = 8
STEP = f"{TRAIN} -m recipe=baseline train.epochs=1 train.examples=32 seed=range(0,{JOBS})"  # jobs of one step
LAUNCHERS = {
    "Hydra's own, one after the other": STEP,
    "joblib, 2 at once": f"{STEP} hydra/launcher=joblib hydra.launcher.n_jobs=2",
    "Ray, started for it": f"{STEP} hydra/launcher=ray",
    "submitit, processes of this machine": f"{STEP} hydra/launcher=submitit_local hydra.launcher.cpus_per_task=2",
}
Trial = Mapping[str, Any]


def measure_store(part: str) -> Iterator[dict[str, Any]]:
    """Fill a store; yield at each size the megabytes and the seconds of each request."""
    import mlflow

    from pipeline.tracking import queries

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        file = folder / "mlflow.db"
        if part == "sqlite":  # training writes the file itself, and `mlflow ui` reads it
            server, uri = TrackingServer(folder, {}, store=f"sqlite:///{file}"), f"sqlite:///{file}"
        else:
            if (programs := postgres_programs()) is None:
                raise UserError("PostgreSQL is not installed: on Debian, apt-get install postgresql")
            database = Postgres(programs)
            stack.callback(database.remove)
            server = TrackingServer(folder, database.variables)
            uri = server.uri
        stack.callback(server.kill)
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        experiment = client.create_experiment("scale")
        parent = client.create_run(experiment, run_name="sweep").info.run_id
        for first, size in zip((0, *SIZES), SIZES, strict=False):
            writing = [timed(write_run, client, experiment, parent, number) for number in range(first, size)]
            runs = queries.sweep_runs(parent)
            if len(runs) != size:
                raise UserError(f"the store has {len(runs)} of {size} runs: measure again")
            size_query = "SELECT pg_database_size('mlflow')"
            weight = file.stat().st_size if part == "sqlite" else int(database.ask(size_query))
            figures = {"what": STORES[part], "runs": size, "megabytes": round(weight / 1e6, 2)}
            requests: dict[str, tuple[Any, ...]] = {
                "page": (list_page, server.uri, experiment),
                "sweep": (queries.sweep_runs, parent),
                "curve": (queries.curve, runs[0], "metric_0"),
            }
            times = {f"{name}_seconds": [timed(*ask) for _ in range(REPEATS)] for name, ask in requests.items()}
            yield figures | {"write_seconds": writing[-REPEATS:]} | times


def timed(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the seconds of a call."""
    begin = time.perf_counter()
    function(*arguments)
    return round(time.perf_counter() - begin, 4)


def write_run(client: Any, experiment: str, parent: str, number: int) -> None:
    """Log one run as a training does, epoch by epoch."""
    from mlflow.entities import Metric, Param

    tags = {f"tag_{index}": f"{number:064d}" for index in range(TAGS)} | {"mlflow.parentRunId": parent}
    run_id = client.create_run(experiment, run_name=f"seed={number}", tags=tags).info.run_id
    client.log_batch(run_id, params=[Param(f"section.parameter_{i}", str(number + i)) for i in range(PARAMS)])
    for epoch in range(1, EPOCHS + 1):
        now = int(time.time() * 1000)
        client.log_batch(run_id, [Metric(f"metric_{key}", number + key / epoch, now, epoch) for key in range(METRICS)])
    client.set_terminated(run_id)


def list_page(address: str, experiment: str) -> None:
    """Ask for the list of runs as the web page does."""
    query = {"experiment_ids": [experiment], "max_results": 100, "order_by": ["attributes.start_time DESC"]}
    url, header = f"{address}/ajax-api/2.0/mlflow/runs/search", {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(query).encode(), header), timeout=60) as answer:
        json.load(answer)


def store_table(trials: Sequence[Trial]) -> str:
    """Return what each store weighs and takes, in medians; linearly extrapolated in what grows with its runs."""
    rows, measured = [], [trial for trial in trials if "runs" in trial]
    for name in dict.fromkeys(trial["what"] for trial in measured):
        few, many = ({key: statistics.median(values) if isinstance(values, list) else values
                      for key, values in trial.items()} for trial in measured if trial["what"] == name)  # fmt: skip
        growth = (EXTRAPOLATED - few["runs"]) / (many["runs"] - few["runs"])
        grown = {key: few[key] + growth * (many[key] - few[key]) for key in ("runs", "megabytes", "sweep_seconds")}
        for label, one in ((name, few), (name, many), (f"{name}, extrapolated", many | grown)):
            ranking = one["sweep_seconds"] + 2 * one["runs"] * one["curve_seconds"]  # as experiments/ranking.py asks
            cells = [one["megabytes"], one["write_seconds"], one["page_seconds"], one["sweep_seconds"], ranking]
            shown = [f"{value:,.0f}" if value >= 100 else f"{value:.3g}" for value in cells]
            if one["runs"] == EXTRAPOLATED:  # these do not grow linearly
                shown[1:3] = ["–", "–"]
            rows.append([label, f"{one['runs']:,.0f}", *shown])
    head = ("store", "runs", "MB", "write one run (s)", "list 100 runs (s)", "load all runs (s)", "rebuild ranking (s)")
    return table(head, rows)


def launcher_table(trials: Sequence[Trial]) -> str:
    rows = []
    for name in LAUNCHERS:
        some = [trial for trial in trials if trial["what"] == name]  # the stored ones have another key
        seconds = [trial.get("process_seconds", trial.get("sweep_of_steps_seconds")) for trial in some]
        rows.append([name, spread(seconds, 1), f"{statistics.median(seconds) / JOBS:.1f}"])
    return table(("launcher", f"{JOBS} jobs (s)", "per job (s)"), rows)


def blocks(read: Callable[[str], str]) -> dict[str, str]:
    """Return the generated blocks of docs/scale.md by name; `read` returns the text of a file."""
    trials = json.loads(read("benchmarks/results/scale.json"))["trials"]
    stores = f"{store_table(trials)}\nMedians of {REPEATS} requests.\n{provenance(*trials)}"
    return {"stores": stores, "launchers": f"{launcher_table(trials)}\nMedians of {ROUNDS} rounds (minimum–maximum).\n"}


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers end with it
    parts, project, path = sys.argv[1:] or [*STORES, "launchers"], open_project(), RESULTS / "scale.json"
    if unknown := set(parts) - {*STORES, "launchers"}:
        sys.exit(f"error: {', '.join(sorted(unknown))} is no part: give {', '.join([*STORES, 'launchers'])}")
    for part in parts:
        try:
            trials = time_commands(project, LAUNCHERS) if part == "launchers" else list(measure_store(part))
        except UserError as error:
            sys.exit(f"error: {error}")
        measured = {trial["what"] for trial in trials}
        kept = [trial for trial in load_json(path)["trials"] if trial["what"] not in measured]
        save_json(path, {"trials": [*kept, *(trial | measured_on(project) for trial in trials)]})


if __name__ == "__main__":
    main()
