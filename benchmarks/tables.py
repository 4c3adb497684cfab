"""The other tables of docs/benchmark.md, and those of docs/serving.md and docs/scale.md.

What is no longer here: benchmarks/serving.py and export.py of commit 4823091, which timed servers and exports, and
benchmarks/scale.py of commit 2a035cd, which measured stores and launchers.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import report
from benchmarks.report import CONFIDENCE, LABELS, Studies, Trial, accuracies, interval, percent, spread, table
from pipeline.metrics.metrics import wilson_interval
from pipeline.metrics.significance import Mean, mean_interval, prediction_interval

TARGET_SEEDS = 10
EXTRAPOLATED = 10_000  # runs in a store
FASTER = (  # a recipe, what it is compared with, and the largest ratio of their training times
    *(("baseline", "published", 0.6), ("baseline", "published", 0.4), ("accurate", "keras_convnet", 1.2)),
    *(("accurate", "keras_convnet", 0.8), ("accurate", "published", 0.4), ("fast", "keras_convnet", 0.15)),
    ("one_look", "keras_convnet", 0.99),  # what accurate took until 30 November 2026, on 28x28 pixels
)


def blocks(read: Callable[[str], str]) -> dict[str, str]:
    """Return the generated blocks of docs/benchmark.md by name; `read` returns the text of a file."""
    studies = report.load(read)
    head, *_, last = (line.split(",") for line in read("reference/published_run.csv").splitlines())
    return {
        "machines": report.machine_list(studies),
        "time": report.time_table(studies),
        "accuracy": report.accuracy_table(studies),
        "targets": target_table(studies, dict(zip(head, map(float, last), strict=True))),
        "scaling": scaling_table(studies),
        "start": start_table(studies),
        "parallel": sweep_table(studies, "parallel"),
        "shared": sweep_table(studies, "shared"),
        "checkpoint": checkpoint_table(studies),
        "processor": processor_table(studies),
        "stopped": stopped_table(studies),
        "statistics": simulation_table(studies["statistics"]),
        "records": report.record_table(studies, json.loads(read("benchmarks/results/records.json"))["records"]),
    }


def time_target(studies: Studies, name: str, peer: str, limit: float) -> list[str]:
    """Return the row of a target of time. The median decides, on 9 decimals: float rounding does not."""
    measured = [round(ratio, 9) for ratio in report.ratios(studies, name, peer)]
    within = sum(ratio <= limit for ratio in measured)
    met = "yes" if statistics.median(measured) <= limit else "no"
    if 0 < within < len(measured):
        met = f"{'barely' if met == 'yes' else 'no'}: in {within} of {len(measured)} rounds"
    return [f"{name}: time relative to {LABELS[peer]}", f"at most {limit}", spread(measured, 2), met]


def accuracy_target(studies: Studies, name: str, value: Callable[[Mean], float], limit: float) -> list[str]:
    """Return the cells of a target of accuracy, for every way to train and predict that has enough seeds."""
    values = {
        f"{digits:,}{label.removeprefix(name)}": value(mean_interval(accuracies(trials, suffix), CONFIDENCE))
        for name_, label, digits, trials, suffix in report.groups(studies)
        if name_ == name and len(trials) >= TARGET_SEEDS
    }
    meeting = [way for way, accuracy in values.items() if round(accuracy, 9) >= limit]
    met = "no" if not meeting else "yes" if len(meeting) == len(values) else f"only {' and '.join(meeting)}"
    met += ", at the limit" * any(percent(values[way]) == percent(limit) for way in meeting)
    measured = "; ".join(f"{way}: {percent(accuracy)}" for way, accuracy in values.items())
    return [f"at least {percent(limit)}", measured or "–", met if values else "not measured"]


def stopped_table(studies: Studies) -> str:
    """Return epochs, seconds and test accuracy of the example of Keras that stopped early, and of accurate."""
    rows = []
    for name, trials in report.by_name(studies["stopped"]).items():
        mean, epochs = mean_interval(accuracies(trials), CONFIDENCE), [one["epoch_seconds"] for one in trials]
        row = [LABELS[name] + ", stopped early" * (name == "keras_convnet"), spread(list(map(len, epochs)), 0)]
        row += [spread(list(map(sum, epochs)), 0), str(mean.n), percent(mean.mean), interval(mean.low, mean.high)]
        rows.append(row)
    head = ("", "epochs", "training (s)", "seeds", "test accuracy", "95 % CI of the mean (t)")
    return table(head, rows) + report.note(studies, "stopped")


def target_table(studies: Studies, original: Mapping[str, float]) -> str:
    """Return each target, what was measured, and whether it is met. `original` is the last row of the author's log."""
    rows = [time_target(studies, *target) for target in FASTER]
    rows += [["accurate: mean test accuracy", *accuracy_target(studies, "accurate", lambda mean: mean.mean, 0.997)]]
    rows += [["accurate: its lower 95 % limit", *accuracy_target(studies, "accurate", lambda mean: mean.low, 0.997)]]
    rows += [["one_look: mean test accuracy", *accuracy_target(studies, "one_look", lambda mean: mean.mean, 0.997)]]
    rows += [["one_look: its lower 95 % limit", *accuracy_target(studies, "one_look", lambda mean: mean.low, 0.997)]]
    rows += [["fast: mean test accuracy", *accuracy_target(studies, "fast", lambda mean: mean.mean, 0.992)]]
    seeds = report.seeds_of(studies, "baseline")
    training = [trial["train_accuracy"] for trial in seeds]
    for split, label, values in (
        ("train", "training", training),
        ("val", "test", accuracies(seeds)),
    ):  # val is its test
        (low, high), value = prediction_interval(values, CONFIDENCE), original[f"{split}_accuracy"]
        row = [f"baseline: 95 % prediction interval, {label} accuracy", f"contains the original's {percent(value)}"]
        rows.append([*row, f"{interval(low, high)} %", "yes" if low <= value <= high else "no"])
    return table(("target", "limit", "measured", "met"), rows)


def scaling_table(studies: Studies) -> str:
    """Return the median seconds of an epoch for each size."""
    sizes = defaultdict(list)
    for trial in studies["scaling"]:
        key = trial["what"], trial["train_digits"], report.argument(trial, "--filters-times", 1)
        sizes[key].append(trial["epoch_seconds"][-1])
    columns = sorted({(times, digits) for _, digits, times in sizes})
    head = [f"{digits:,}" + f", filters × {times:g}" * (times != 1) for times, digits in columns]
    rows = [
        [LABELS[name], *(f"{statistics.median(sizes[name, digits, times]):.1f}" for times, digits in columns)]
        for name in dict.fromkeys(name for name, _, _ in sizes)
    ]
    [rounds] = set(map(len, sizes.values()))
    return table(["", *head], rows) + report.note(studies, "scaling", sample=f"n = {rounds} rounds")


def start_table(studies: Studies) -> str:
    rows = [
        [name.replace("a refusal", "an invalid value"), spread([trial["process_seconds"] for trial in trials], 2)]
        for name, trials in report.by_name(studies["start"]).items()
    ]
    return table(("command", "time (s)"), rows) + report.note(studies, "start")


def sweep_table(studies: Studies, study: str) -> str:
    """Return the table of a study of sweeps, each way relative to the first in the same round."""
    first: dict[int, float] = {}
    rows = []
    for name, trials in report.by_name(studies[study]).items():
        first = first or {trial["round"]: trial["process_seconds"] for trial in trials}
        relative = [trial["process_seconds"] / first[trial["round"]] for trial in trials]
        times, cores = ([trial[key] for trial in trials] for key in ("process_seconds", "cores_busy"))
        rows.append([name, spread(times, 0), spread(relative, 2), spread(cores, 2)])
    return table(("", "whole command (s)", "relative time", "busy cores"), rows) + report.note(studies, study)


def checkpoint_table(studies: Studies) -> str:
    rows, epochs = [], {}
    for name, trials in report.by_name(studies["checkpoint"]).items():
        saving, epochs[name] = ([trial[key][-1] for trial in trials] for key in ("checkpoint_seconds", "epoch_seconds"))
        shares = [100 * one / epoch for one, epoch in zip(saving, epochs[name], strict=True)]
        rows.append([name, spread(saving, 2), spread(epochs[name], 1), spread(shares, 2)])
    return table(("", "checkpoint (s)", "second epoch (s)", "share (%)"), rows) + report.note(studies, "checkpoint")


def processor_table(studies: Studies) -> str:
    """Return the errors on validation digits of the same seeds with all instructions of a processor, and with AVX2."""
    seeds = {report.argument(trial, "seed"): trial for trial in report.seeds_of(studies, "fast")}
    rows, differences = [], []
    for trial in studies["processor"]:
        full = set(seeds[report.argument(trial, "seed")]["val_wrong"])
        less = set(trial["val_wrong"])
        differences.append((len(full) - len(less)) / trial["val_digits"])
        rows.append([f"{report.argument(trial, 'seed'):g}", str(len(full)), str(len(less)), str(len(full ^ less))])
    mean = mean_interval(differences, CONFIDENCE, -1, 1)
    letters, size = report.machine_letters(studies), studies["processor"][0]["val_digits"]
    columns = [letters[one["hardware"]] for one in (next(iter(seeds.values())), studies["processor"][0])]
    errors = f"errors, AVX-512 (machine {columns[0]})", f"errors, AVX2 only (machine {columns[1]})"
    text = table(("seed", *errors, "disagree on"), rows)
    return (
        f"{text}\nOf {size:,} validation digits. Accuracy with AVX2 only: {100 * mean.mean:+.2f} points "
        f"(95 % CI {100 * mean.low:+.2f} to {100 * mean.high:+.2f}), n = {mean.n} seeds.\n"
    )


def simulation_table(trials: Sequence[Trial]) -> str:
    rows = []
    for trial in trials:
        ends = wilson_interval(trial["count"], trial["tries"], CONFIDENCE)
        rows.append([trial["what"], trial["event"], percent(trial["count"] / trial["tries"]), interval(*ends)])
    text = table(("method", "what is counted", "share", "95 % CI (Wilson)"), rows)
    return f"{text}\nn = {trials[0]['tries']:,} simulations each.\n"


def server_table(results: Mapping[str, Any]) -> str:
    keys = ("p50_ms", "p99_ms", "requests_a_second", "digits_a_second")
    rows = []
    for name, trials in report.by_name(results["trials"]).items():
        rows.append([name, *(spread([one[key] for one in trials], 2 * key.endswith("ms")) for key in keys)])
    head = ("one digit, p50 (ms)", "p99 (ms)", "requests/s (8 clients)", "digits/s (500 per request)")
    return table(("server", *head), rows)


def export_table(results: Mapping[str, Any]) -> str:
    rows = []
    for key in dict.fromkeys((trial["recipe"], trial["what"]) for trial in results["trials"]):
        trials = [trial for trial in results["trials"] if (trial["recipe"], trial["what"]) == key]
        times = [spread([one[name] for one in trials], places) for name, places in (("single_ms", 3), ("batch_ms", 1))]
        differ, largest = (max(one[name] for one in trials) for name in ("differ", "largest"))
        check = ["–", "–"] if key[1] == "Keras" else [f"{differ} of {trials[0]['digits']:,}", f"{largest:.1e}"]
        rows.append([*key, f"{trials[0]['bytes'] / 1e6:.2f}", *times, *check])
    head = ("recipe", "format", "MB", "one digit (ms)", "500 digits (ms)", "predictions that differ")
    return table((*head, "largest difference of a logit"), rows)


def serving_blocks(read: Callable[[str], str]) -> dict[str, str]:
    """Return the generated blocks of docs/serving.md by name; `read` returns the text of a file."""
    server, export = (json.loads(read(f"benchmarks/results/{name}.json")) for name in ("serving", "export"))
    rounds = "\nMedians of 3 interleaved rounds (minimum–maximum)"
    served = f"with the model of `{server['recipe']}`.\n{report.provenance(server)}"
    return {
        "servers": f"{server_table(server)}{rounds}, {served}",
        "exports": f"{export_table(export)}{rounds}; {export['runtimes']}.\n{report.provenance(export)}",
    }


def store_table(trials: Sequence[Trial]) -> str:
    """Return what each store weighs and takes, in medians; linearly extrapolated in what grows with its runs."""
    rows = []
    for name, measured in report.by_name(trial for trial in trials if "runs" in trial).items():
        few, many = (
            {key: statistics.median(value) if isinstance(value, list) else value for key, value in trial.items()}
            for trial in measured
        )
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


def scale_blocks(read: Callable[[str], str]) -> dict[str, str]:
    """Return the generated blocks of docs/scale.md by name; `read` returns the text of a file."""
    trials, rows = json.loads(read("benchmarks/results/scale.json"))["trials"], []
    for name, sweeps in report.by_name(trial for trial in trials if "runs" not in trial).items():
        seconds = [trial["sweep_of_steps_seconds"] for trial in sweeps]
        rows.append([name, spread(seconds, 1), f"{statistics.median(seconds) / 8:.1f}"])
    launchers = table(("launcher", "8 jobs (s)", "per job (s)"), rows)
    return {
        "stores": f"{store_table(trials)}\nMedians of 5 requests.\n{report.provenance(*trials)}",
        "launchers": f"{launchers}\nMedians of 3 rounds (minimum–maximum).\n",
    }
