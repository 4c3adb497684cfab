"""Run studies, and store what they measure in benchmarks/results/<study>.json.

    python -m benchmarks.run time start      how long everything trains, beside the peers; how fast commands start
    python -m benchmarks.run all             every study, for hours
    python -m benchmarks.run compare         time again, compared with the stored times

A study of trainings goes on where it stopped, but for times; a trial of other code, values, hardware or versions is run
again.
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.trial import PEERS
from pipeline.base.command import isolate
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.files import load_json, save_json
from pipeline.base.hydra import compose
from pipeline.base.project import Project, open_project
from pipeline.base.validation import non_defaults

RESULTS = Path("benchmarks/results")
RECIPES = ("baseline", "accurate", "one_look", "fast")
# What accuracy is measured of: recipes, and the words that they are called with. A study each, to be measured again by
# itself.
ACCURACY = {
    "accuracy": (("accurate", "fast"), ["--test"]),
    "accuracy_baseline": (("baseline",), ["--test"]),
    "accuracy_one_look": (("one_look",), ["--test"]),
    "accuracy_60000": (("accurate", "one_look", "fast"), ["data.val_size=0", "--test"]),
}
SEEDS, PEER_SEEDS, PROCESSOR_SEEDS, ROUNDS, PATIENCE = 10, 3, 5, 3, 5
TRAIN, ONE_BATCH = "python -m pipeline.train", "recipe=debug/one_batch"
FOUR_SEEDS, FOUR_LENGTHS = "recipe=fast seed=range(0,4)", "recipe=baseline model.filters=4 train.epochs=1,3,5,15"
Commands = Mapping[str, str]  # by the name that they have in the results
COMMANDS: dict[str, Commands] = {
    "start": {"dvc repro, nothing to do": "dvc repro"}
    | {command: command for command in ("python -m pipeline.fetch --help", f"{TRAIN} --help")}
    | {f"a refusal: {TRAIN} train.epochs=0": f"{TRAIN} train.epochs=0"}
    | {f"one batch trained and tracked: {TRAIN} {ONE_BATCH}": f"{TRAIN} {ONE_BATCH}"},
    "parallel": {
        "one after the other": f"{TRAIN} -m {FOUR_SEEDS}",
        "two at once": f"{TRAIN} -m hydra/launcher=joblib hydra.launcher.n_jobs=2 {FOUR_SEEDS}",
    },
    "shared": {  # one_cycle depends on the number of epochs: nothing can be shared
        "each by itself": f"{TRAIN} -m {FOUR_LENGTHS} optimizer.schedule=one_cycle",
        "first epochs shared": f"{TRAIN} -m {FOUR_LENGTHS}",
    },
}
Trial = dict[str, Any]


def plan(study: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the trials of a study, in rounds: a busy minute affects all alike."""
    if study == "peers":
        yield from ((name, [f"seed={n}", "--test"]) for n in range(PEER_SEEDS) for name in PEERS)
    if study == "stopped":  # the example of Keras as one would train it, and accurate beside it
        stopped = ["train.epochs=100", f"--patience={PATIENCE}", "--test"]
        for n in range(PEER_SEEDS):
            yield from (("keras_convnet", [f"seed={n}", *stopped]), ("accurate", [f"seed={n}", "--test"]))
    if study in ACCURACY:
        names, words = ACCURACY[study]
        yield from ((name, [f"seed={n}", *words]) for n in range(SEEDS) for name in names)
    if study == "processor":  # as a processor without AVX-512 would train; the others are in the study of accuracy
        yield from (("fast", [f"seed={n}", "--instructions=AVX2"]) for n in range(PROCESSOR_SEEDS))
    for number in range(ROUNDS * (study in ("time", "time_avx2", "scaling", "checkpoint"))):
        two_epochs = [f"seed={number}", "train.epochs=2"]  # the first compiles
        if study.startswith("time"):  # one table for each kind of processor: see pipeline/base/isolation.py
            three_epochs = [f"seed={number}", "train.epochs=3"]
            yield from ((name, three_epochs[: 1 if name == "fast" else 2]) for name in (*PEERS, *RECIPES))
        elif study == "checkpoint":
            yield from ((name, [*two_epochs, "--checkpoints"]) for name in ("baseline", "accurate"))
        else:
            sizes = [[f"data.fraction={share}"] for share in (0.125, 0.25, 0.5)]
            sizes += [["data.fraction=0.125", f"--filters-times={times}"] for times in (2, 4, 8)]
            yield from ((name, [*two_epochs, *size]) for name in (*PEERS, "baseline", "accurate") for size in sizes)


def run_study(
    project: Project, path: Path, trials: Iterable[tuple[str, list[str]]], resume: bool = True
) -> list[Trial]:
    """Run the trials that `path` does not hold yet, storing each as it ends."""
    environment = measured_on(project)
    done: list[Trial] = []
    planned: list[Trial] = [{"what": name, "words": words, "source": source(project, name)} for name, words in trials]
    for trial in load_json(path)["trials"] if resume and path.is_file() else []:
        same = all(trial[key] == environment[key] for key in ("hardware", "versions"))
        if same and {key: trial[key] for key in planned[0]} in planned:
            done.append(trial)
    finished = [{key: trial[key] for key in planned[0]} for trial in done]
    for trial in (trial for trial in planned if trial not in finished):
        print(f"{path.stem} {len(done) + 1}/{len(planned)}: {trial['what']} {' '.join(trial['words'])}", flush=True)
        done.append(trial | run_trial(trial["what"], trial["words"]) | environment)
        save_json(path, {"trials": done})
    return done


def run_trial(name: str, arguments: Sequence[str]) -> Trial:
    """Train once in a process of its own; return its figures, and the seconds of the whole process."""
    begin = time.perf_counter()
    figures = json.loads(run(["python", "-m", "benchmarks.trial", name, *arguments]).splitlines()[-1])
    return figures | {"process_seconds": round(time.perf_counter() - begin, 2)}


def time_commands(project: Project, commands: Commands) -> list[Trial]:
    """Time whole commands, interleaved in rounds, sweeps in a store of their own; a first round warms the disk."""
    trials: list[Trial] = []
    for number, (name, command) in ((n, item) for n in range(-1, ROUNDS) for item in commands.items()):
        with tempfile.TemporaryDirectory() as folder:
            own = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/own.db"} if command.count(" -m ") == 2 else {}
            begin, before = time.perf_counter(), os.times()
            run(command.split(), fails="refusal" in name, **own)
            spent, after = time.perf_counter() - begin, os.times()
        busy = after.children_user + after.children_system - before.children_user - before.children_system
        figures = {"process_seconds": round(spent, 2), "cores_busy": round(busy / spent, 3)}
        trials.append({"what": name, "round": number} | figures | measured_on(project))
        print(trials[-1], flush=True)
    return [trial for trial in trials if trial["round"] >= 0]


def run(command: Sequence[str], fails: bool = False, **variables: str) -> str:
    """Run a command and return what it prints; a UserError if it fails, or does not where it should."""
    words = [sys.executable if word == "python" else word for word in command]
    done = subprocess.run(words, env=os.environ | variables, capture_output=True, text=True)
    if (done.returncode != 0) != fails:
        raise UserError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-200:]}")
    return done.stdout


def compare(stored: Sequence[Trial], new: Sequence[Trial]) -> str:
    """Return a table of new seconds per epoch over stored ones, and whether the ranges of the two overlap."""
    lines = [f"{'':14} {'stored':>8} {'now':>8} {'ratio':>6}"]
    known = {trial["what"] for trial in stored}
    for name in dict.fromkeys(trial["what"] for trial in new if trial["what"] in known):
        old, now = ([one["epoch_seconds"][-1] for one in trials if one["what"] == name] for trials in (stored, new))
        before, after = statistics.median(old), statistics.median(now)
        overlap = min(now) <= max(old) and min(old) <= max(now)
        verdict = "noise: the ranges overlap" if overlap else "slower" if after > before else "faster"
        ratio = f"{name:14} {before:7.1f}s {after:7.1f}s {after / before:6.2f}"
        lines.append(f"{ratio}  {verdict} (n = {len(old)} and {len(now)})")
    if {trial["hardware"] for trial in stored} != {trial["hardware"] for trial in new}:
        lines.append("stored on other hardware: compare the ratios with each other, not with 1")
    return "\n".join(lines)


def source(project: Project, name: str) -> str:
    """Return a hash of the code and values that decide the figures of a peer or recipe."""
    from pipeline.tracking.fingerprint import code_sha256

    values = non_defaults(compose(project, f"recipe={'baseline' if name in PEERS else name}"))
    code = code_sha256(project.root)
    if name in PEERS:
        values, code = {key: values[key] for key in ("train", "data")}, Path("benchmarks/peers.py").read_text("utf-8")
    return hashlib.sha256(f"{json.dumps(values, sort_keys=True)}{code}".encode()).hexdigest()[:12]


def measured_on(project: Project) -> dict[str, str]:
    """Return hardware, versions and commit."""
    from pipeline.tracking import environment

    with quiet_import():
        hardware = environment.hardware()
    changed = " and uncommitted changes" if environment.uncommitted(project.root) else ""
    commit = environment.commit(project.root)[:7] + changed
    return {"hardware": hardware, "versions": environment.versions(), "commit": commit}


def main() -> None:
    isolate()
    studies = ("time", *ACCURACY, "peers", "stopped", "scaling", "checkpoint", "processor", *COMMANDS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run")
    parser.add_argument("studies", nargs="+", choices=[*studies, "time_avx2", "all", "compare"])
    asked, project = parser.parse_args().studies, open_project()
    try:
        for study in studies if "all" in asked else asked:
            if study == "compare":
                new = run_study(project, RESULTS / "latest.json", list(plan("time")), resume=False)
                print(compare(load_json(RESULTS / "time.json")["trials"], new))
            elif study in COMMANDS:
                save_json(RESULTS / f"{study}.json", {"trials": time_commands(project, COMMANDS[study])})
            else:
                # Times of another day are no rounds with today's.
                run_study(project, RESULTS / f"{study}.json", plan(study), resume=not study.startswith("time"))
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
