"""Run the studies and store what they measured in benchmarks/results/<study>.json.

    python -m benchmarks.run short     3 rounds of times, beside the peers, interleaved; how fast everything starts
    python -m benchmarks.run full      7 rounds, ten seeds of every recipe, cost against size; goes on where it stopped
    python -m benchmarks.run compare   times anew, against the stored ones
    python -m benchmarks.run parallel  a sweep of four seeds, one after the other and two at once
    python -m benchmarks.run safety    what checkpoints cost, what sharing first epochs saves a sweep, what a smaller
                                       processor changes

A study is a list of trials, each with its figures, hardware, versions and commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.trial import PEERS
from pipeline import surroundings
from pipeline.config import ROOT, PipelineError, compose, explicit
from pipeline.console import quiet_import
from pipeline.files import load_json, save_json
from pipeline.isolation import isolate

RESULTS = ROOT / "benchmarks" / "results"
RECIPES = ("baseline", "accurate", "fast")
FOUR_SEEDS = ["recipe=fast", "seed=range(0,4)"]
FOUR_LENGTHS = ["recipe=baseline", "model.filters=4", "train.epochs=1,3,5,15"]
PARALLEL = {
    "one after the other": FOUR_SEEDS,
    "two at once": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *FOUR_SEEDS],
}
SHARED = {  # one_cycle depends on the number of epochs: nothing can be shared
    "each by itself": [*FOUR_LENGTHS, "optimizer.schedule=one_cycle"],
    "first epochs shared": FOUR_LENGTHS,
}
SEEDS, PEER_SEEDS, PROCESSOR_SEEDS, ROUNDS, FULL_ROUNDS = 10, 3, 5, 3, 7
ALL_DIGITS = "data.val_size=0"  # trained on all 60,000, as the published run was


def time_plan(rounds: int) -> Iterator[tuple[str, list[str]]]:
    """Two epochs of everything, one after the other, in rounds: a busy minute hits all alike."""
    for number in range(rounds):
        for what in (*PEERS, *RECIPES):
            yield what, [f"seed={number}", *([] if what == "fast" else ["train.epochs=2"])]


def accuracy_plan() -> Iterator[tuple[str, list[str]]]:
    """Every seed of every recipe, on both splits; the test digits are read once, after the last epoch."""
    for seed in range(SEEDS):
        yield "accurate", [f"seed={seed}", "--test"]
        yield "fast", [f"seed={seed}", "--test"]
    for seed in range(SEEDS):
        yield "accurate", [f"seed={seed}", ALL_DIGITS, "--test"]
        yield "fast", [f"seed={seed}", ALL_DIGITS, "--test"]
    for seed in range(PEER_SEEDS):
        for what in (*PEERS, "baseline"):
            yield what, [f"seed={seed}", "--test"]
    for seed in range(PEER_SEEDS, SEEDS):
        yield "baseline", [f"seed={seed}", "--test"]


def scaling_plan() -> Iterator[tuple[str, list[str]]]:
    """Parts of the digits, and wider networks on an eighth of them; all digits are in the study of time.

    Two epochs each, as the first compiles.
    """
    for number in range(ROUNDS):
        for what in (*PEERS, "baseline", "accurate"):
            for share in (0.125, 0.25, 0.5):
                yield what, [f"seed={number}", "train.epochs=2", f"data.fraction={share}"]
            for times in (2, 4, 8):
                yield what, [f"seed={number}", "train.epochs=2", "data.fraction=0.125", f"--filters-times={times}"]


def checkpoint_plan() -> Iterator[tuple[str, list[str]]]:
    """Two epochs of the two recipes of `dvc repro`, with a checkpoint after each."""
    for number in range(ROUNDS):
        for what in ("baseline", "accurate"):
            yield what, [f"seed={number}", "train.epochs=2", "--checkpoints"]


def processor_plan() -> Iterator[tuple[str, list[str]]]:
    """Seeds of `fast` as a processor without AVX-512 would train them; those with it are in the study of accuracy."""
    for seed in range(PROCESSOR_SEEDS):
        yield "fast", [f"seed={seed}", "--instructions=AVX2"]


def run_study(path: Path, plan: Iterator[tuple[str, list[str]]], resume: bool) -> list[dict[str, Any]]:
    """Run the trials of a plan, or those that `path` does not hold yet, storing each as it ends."""
    surroundings = measured_on()
    planned = [(what, words, _source(what)) for what, words in plan]
    stored = load_json(path)["trials"] if resume and path.is_file() else []
    here = [trial for trial in stored if all(trial[key] == surroundings[key] for key in ("hardware", "versions"))]
    trials = [trial for trial in here if (trial["what"], trial["words"], trial["source"]) in planned]
    done = [(trial["what"], trial["words"], trial["source"]) for trial in trials]
    for number, (what, words, source) in enumerate(planned):
        if (what, words, source) in done:
            continue
        print(f"{path.stem} {number + 1}/{len(planned)}: {what} {' '.join(words)}", flush=True)
        figures = run_trial(what, words)
        trials.append({"what": what, "words": words, **figures, "source": source, **surroundings})
        save_json(path, {"trials": trials})
    return trials


def run_trial(what: str, words: list[str]) -> dict[str, Any]:
    """One training in a process of its own: its figures, and the seconds of the whole process."""
    begin = time.perf_counter()
    done = _run(sys.executable, "-m", "benchmarks.trial", what, *words)
    return json.loads(done.splitlines()[-1]) | {"process_seconds": round(time.perf_counter() - begin, 2)}


def start_study(path: Path) -> None:
    """How long everything takes to begin: each command in turn, in rounds; the first round warms the disk."""
    commands = {
        "dvc repro, nothing to do": ["dvc", "repro"],
        "python -m pipeline.fetch --help": [sys.executable, "-m", "pipeline.fetch", "--help"],
        "python -m pipeline.train --help": [sys.executable, "-m", "pipeline.train", "--help"],
        "a refusal: python -m pipeline.train train.epochs=0": [
            sys.executable,
            "-m",
            "pipeline.train",
            "train.epochs=0",
        ],
        "one batch trained and tracked: python -m pipeline.train recipe=debug/one_batch": [
            sys.executable,
            "-m",
            "pipeline.train",
            "recipe=debug/one_batch",
        ],
    }
    trials: list[dict[str, Any]] = []
    for number in range(ROUNDS + 1):
        for what, command in commands.items():
            begin = time.perf_counter()
            _run(*command, refused="refusal" in what)
            if number:
                trials.append({"what": what, "process_seconds": round(time.perf_counter() - begin, 2)})
    surroundings = measured_on()
    save_json(path, {"trials": [trial | surroundings for trial in trials]})


def sweep_study(path: Path, sweeps: dict[str, list[str]]) -> None:
    """The same jobs swept in several ways, in rounds, each in a store of its own."""
    trials: list[dict[str, Any]] = []
    for number in range(ROUNDS):
        for what, words in sweeps.items():
            print(f"{path.stem} {number + 1}/{ROUNDS}: {what}", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                begin, before = time.perf_counter(), os.times()
                command = [sys.executable, "-m", "pipeline.train", "-m", *words]
                _run(*command, MLFLOW_TRACKING_URI=f"sqlite:///{folder}/own.db")
                took, after = time.perf_counter() - begin, os.times()
                busy = after.children_user + after.children_system - before.children_user - before.children_system
                figures = {"process_seconds": round(took, 2), "cores_busy": round(busy / took, 3)}
                trials.append({"what": what, "round": number} | figures)
    surroundings = measured_on()
    save_json(path, {"trials": [trial | surroundings for trial in trials]})


def seconds(trial: dict[str, Any], epochs: int) -> float:
    """Of so many epochs, from a trial of fewer: the first, which compiles, and the mean of the others."""
    first, *others = trial["epoch_seconds"]
    return first + (epochs - 1) * statistics.mean(others) if epochs > 1 else first


def compare(stored: list[dict[str, Any]], new: list[dict[str, Any]]) -> str:
    """New seconds an epoch over stored ones, and whether the ranges of the two overlap."""
    lines = [f"{'':14} {'stored':>8} {'now':>8} {'ratio':>6}"]
    for what in dict.fromkeys(trial["what"] for trial in new):
        before, after = ([trial["epoch_seconds"][-1] for trial in of if trial["what"] == what] for of in (stored, new))
        if not before:
            lines.append(f"{what:14} not stored")
            continue
        old, now = statistics.median(before), statistics.median(after)
        overlap = min(after) <= max(before) and min(before) <= max(after)
        judged = "noise: the ranges overlap" if overlap else "slower" if now > old else "faster"
        lines.append(
            f"{what:14} {old:7.1f}s {now:7.1f}s {now / old:6.2f}  {judged} (n = {len(before)} and {len(after)})"
        )
    if {trial["hardware"] for trial in stored} != {trial["hardware"] for trial in new}:
        lines.append("stored on other hardware: read the ratios against each other, not against 1")
    return "\n".join(lines)


def _run(*command: str, refused: bool = False, **variables: str) -> str:
    done = subprocess.run(command, cwd=ROOT, env=os.environ | variables, capture_output=True, text=True)
    if (done.returncode != 0) != refused:
        raise PipelineError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


def _source(what: str) -> str:
    """What decides the figures of a peer or recipe, as a hash: a trial of other code or values is run again."""
    peer = what in PEERS
    values = explicit(compose(f"recipe={'baseline' if peer else what}"))
    values = {key: values[key] for key in (("train", "data") if peer else values)}
    files = [ROOT / "benchmarks/peers.py"] if peer else surroundings.computing_modules()
    content = [json.dumps(values, sort_keys=True).encode(), *(file.read_bytes() for file in files)]
    return hashlib.sha256(b"".join(content)).hexdigest()[:12]


def measured_on() -> dict[str, str]:
    with quiet_import():
        hardware = surroundings.hardware()
    commit = surroundings.git("rev-parse", "--short", "HEAD")
    changed = " and uncommitted changes" if surroundings.uncommitted() else ""
    return {"hardware": hardware, "versions": surroundings.versions(), "commit": f"{commit}{changed}"}


def main() -> None:
    isolate()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument("mode", choices=["short", "full", "compare", "parallel", "safety"])
    mode = parser.parse_args().mode
    try:
        if mode == "compare":
            stored = load_json(RESULTS / "time.json")["trials"]
            print(compare(stored, run_study(RESULTS / "latest.json", time_plan(ROUNDS), resume=False)))
            return
        if mode == "safety":
            run_study(RESULTS / "checkpoint.json", checkpoint_plan(), resume=True)
            run_study(RESULTS / "processor.json", processor_plan(), resume=True)
            sweep_study(RESULTS / "shared.json", SHARED)
            return
        if mode == "parallel":
            sweep_study(RESULTS / "parallel.json", PARALLEL)
            return
        full = mode == "full"
        run_study(RESULTS / "time.json", time_plan(FULL_ROUNDS if full else ROUNDS), resume=full)
        start_study(RESULTS / "start.json")
        if full:
            run_study(RESULTS / "accuracy.json", accuracy_plan(), resume=True)
            run_study(RESULTS / "scaling.json", scaling_plan(), resume=True)
            sweep_study(RESULTS / "parallel.json", PARALLEL)
            run_study(RESULTS / "checkpoint.json", checkpoint_plan(), resume=True)
            run_study(RESULTS / "processor.json", processor_plan(), resume=True)
            sweep_study(RESULTS / "shared.json", SHARED)
    except PipelineError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
