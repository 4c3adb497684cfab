"""Trials as text: what every table is made of, and the tables of time and accuracy in docs/benchmark.md.

The files hold what was recorded with earlier code. Their keys (`what`, `words`, `num_params`, `…_5_views`) are of that
time and stay, so that new trials can be added. `5_views` is test-time augmentation (TTA) with 5 shifts.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.metrics.metrics import wilson_interval
from pipeline.metrics.significance import mean_interval

Trial = Mapping[str, Any]
Studies = Mapping[str, Sequence[Trial]]  # by the name of the file in benchmarks/results
STUDIES = {  # and what its table is about
    "time": "training time",
    "accuracy": "accuracy of accurate and fast",
    "accuracy_baseline": "accuracy of baseline",
    "accuracy_one_look": "accuracy of one_look",
    "accuracy_60000": "accuracy, trained on 60,000 digits",
    "peers": "accuracy of plain Keras",
    "scaling": "cost against size",
    "start": "command startup time",
    "parallel": "two jobs at a time",
    "shared": "sweeps over the number of epochs",
    "checkpoint": "checkpoints",
    "processor": "another processor (AVX2)",
    "stopped": "Keras's example, stopped early",
}
ACCURACY = tuple(name for name in STUDIES if name.startswith("accuracy"))
LABELS = {"published": "original, in plain Keras", "keras_convnet": "Keras's own example"}
LABELS |= {name: name for name in ("baseline", "accurate", "one_look", "fast")}
EPOCHS = dict.fromkeys(LABELS, 15) | {"fast": 1}
SPLIT, ALL = 55_000, 60_000  # digits trained on: with the split of `dvc repro`, and without a validation set
TTA = "_5_views"
# Test digits, counted from 0, whose label most of five annotators rejected (Northcutt et al. 2021, arXiv 2103.14749).
DISPUTED = {947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729}
CONFIDENCE, WIDTH = 0.95, 116
TIME_HEAD = (
    *("", "parameters", "epochs", "per epoch (s)", "training (s)", "relative to the original"),
    *("relative to Keras's example", "whole process (s); its epochs", "peak RSS (MB)"),
)
ACCURACY_HEAD = (
    *("", "trained on", "seeds", "test accuracy", "95 % CI of the mean (t)", "worst to best seed", "errors"),
    *("95 % CI, test set (Wilson)", "errors on disputed labels", "validation", "training"),
)


def load(read: Callable[[str], str]) -> Studies:
    """Return the trials of every study; `read` returns the text of a file of this repository."""
    names = (*STUDIES, "statistics")
    return {name: json.loads(read(f"benchmarks/results/{name}.json"))["trials"] for name in names}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, its first column aligned left and the others right."""
    lines = [head, ("-", *["-:"] * (len(head) - 1)), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def spread(values: Collection[float], places: int) -> str:
    """Return median (minimum–maximum), without a range of nothing."""
    middle, low, high = (f"{value:,.{places}f}" for value in (statistics.median(values), min(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"


def percent(share: float, places: int = 2) -> str:
    return f"{100 * share:.{places}f} %"


def interval(low: float, high: float, places: int = 2) -> str:
    return "–" if math.isnan(low) else f"{100 * low:.{places}f} to {100 * high:.{places}f}"


def argument(trial: Trial, key: str, default: float = 0) -> float:
    """Return the number that a trial was called with for `key`."""
    return next((float(word.partition("=")[2]) for word in trial["words"] if word.startswith(f"{key}=")), default)


def by_name(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """Return the trials of each peer, recipe or command, in their order."""
    groups: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        groups[trial["what"]].append(trial)
    return groups


def machine_letters(studies: Studies) -> dict[str, str]:
    order = (
        "peers",
        "time",
        "checkpoint",
        *STUDIES,
    )  # so that a machine keeps its letter when a study is run on another
    hardware = dict.fromkeys(trial["hardware"] for study in order for trial in studies[study])
    return dict(zip(hardware, "ABCDEFGH", strict=False))


def machine_list(studies: Studies) -> str:
    letters, subjects = machine_letters(studies), defaultdict(list)
    for study, subject in STUDIES.items():
        for key in dict.fromkeys((trial["hardware"], trial["versions"]) for trial in studies[study]):
            subjects[key].append(subject)
    items = [f"* **{letters[key[0]]}**: {key[0]}; {key[1]} ({', '.join(names)})" for key, names in subjects.items()]
    return "".join(textwrap.fill(item, WIDTH, subsequent_indent="  ", break_on_hyphens=False) + "\n" for item in items)


def note(studies: Studies, *names: str, sample: str = "") -> str:
    """Return the line under a table of the studies `names`: their machines, and the sample: the trials of each row, if
    it is not given."""
    trials = [trial for name in names for trial in studies[name]]
    machines = sorted({machine_letters(studies)[trial["hardware"]] for trial in trials})
    rounds = max(map(len, by_name(trials).values()))
    return f"\nMachine{'s' * (len(machines) > 1)} {' and '.join(machines)}, {sample or f'n = {rounds} rounds'}.\n"


def provenance(*results: Mapping[str, Any]) -> str:
    """Return hardware and versions, wrapped; of several results that were measured alike, once."""
    places = dict.fromkeys(f"{one['hardware']}; {one['versions']}." for one in results)
    return textwrap.fill(" ".join(places), WIDTH, break_on_hyphens=False) + "\n"


def seconds(trial: Trial, epochs: int) -> float:
    """Return the training time of so many epochs; those that were not measured take the mean of the later ones."""
    first, *later = trial["epoch_seconds"]
    return float(first + (epochs - 1) * statistics.mean(later or [0]))


def training_time(trials: Sequence[Trial], epochs: int) -> str:
    """Return the spread of the training times, marked where they are extrapolated."""
    mark = "≈ " * (len(trials[0]["epoch_seconds"]) < epochs)
    return mark + spread([seconds(trial, epochs) for trial in trials], 0)


def ratios(studies: Studies, name: str, peer: str) -> list[float]:
    """Return the training time of `name` relative to `peer`, of every round that has both."""
    times = by_name(studies["time"])
    mine, theirs = ({argument(one, "seed"): seconds(one, EPOCHS[key]) for one in times[key]} for key in (name, peer))
    return [mine[number] / theirs[number] for number in mine if number in theirs]


def time_table(studies: Studies) -> str:
    rows = []
    for name, trials in by_name(studies["time"]).items():
        later = [statistics.mean(trial["epoch_seconds"][1:] or trial["epoch_seconds"]) for trial in trials]
        row = [LABELS[name], f"{trials[0]['num_params']:,}", str(EPOCHS[name]), spread(later, 1)]
        row += [training_time(trials, EPOCHS[name])]
        row += [spread(ratios(studies, name, peer), 2) for peer in ("published", "keras_convnet")]
        row += [spread([one["process_seconds"] for one in trials], 0) + f"; {len(trials[0]['epoch_seconds'])}"]
        rows.append([*row, spread([one["peak_memory_mb"] for one in trials], 0)])
    return table(TIME_HEAD, rows) + note(studies, "time")


def groups(studies: Studies) -> Iterator[tuple[str, str, int, Sequence[Trial], str]]:
    """Yield name, label, digits trained on, trials and suffix of their keys: with TTA in a group of its own."""
    every = [trial for study in ("peers", *ACCURACY) for trial in studies[study]]
    for name, digits in itertools.product(LABELS, (SPLIT, ALL)):
        trials = [trial for trial in every if (trial["what"], trial["train_digits"]) == (name, digits)]
        if trials:
            yield name, LABELS[name], digits, trials, ""
        if trials and f"test_wrong{TTA}" in trials[0]:
            yield name, f"{LABELS[name]}, with TTA", digits, trials, TTA


def accuracies(trials: Sequence[Trial], suffix: str = "", split: str = "test") -> list[float]:
    """Return the accuracy of each seed, 0 to 1; none where there are no such digits."""
    size = f"{split}_digits"
    return [1 - len(trial[f"{split}_wrong{suffix}"]) / trial[size] for trial in trials if trial[size]]


def accuracy_table(studies: Studies) -> str:
    rows = []
    for _, label, digits, trials, suffix in groups(studies):
        wrong, size = [trial[f"test_wrong{suffix}"] for trial in trials], trials[0]["test_digits"]
        values, val = accuracies(trials, suffix), accuracies(trials, suffix, "val")
        mean, errors = mean_interval(values, CONFIDENCE), statistics.mean(map(len, wrong))
        row = [label, f"{digits:,}", str(mean.n), percent(mean.mean, 3), interval(mean.low, mean.high, 3)]
        row += [interval(min(values), max(values)), f"{errors:.1f}"]
        row += [interval(*wilson_interval(size - round(errors), size, CONFIDENCE))]
        row += [f"{statistics.mean(len(DISPUTED.intersection(seed)) for seed in wrong):.1f}"]
        row += [percent(statistics.mean(val)) if val else "–"]
        rows.append([*row, percent(statistics.mean(trial["train_accuracy"] for trial in trials))])
    peers = ", ".join({machine_letters(studies)[trial["hardware"]] for trial in studies["peers"]})
    return table(ACCURACY_HEAD, rows) + note(studies, *ACCURACY, sample=f"plain Keras on {peers}; means over seeds")


def seeds_of(studies: Studies, recipe: str) -> Sequence[Trial]:
    """Return the seeds of a recipe on the split of `dvc repro`."""
    return next(trials for name, _, digits, trials, _ in groups(studies) if (name, digits) == (recipe, SPLIT))


def record_table(studies: Studies, earlier: Sequence[Mapping[str, Any]]) -> str:
    """Return what each state of a recipe took and how many errors it made: earlier ones, and that of the studies."""
    letters, rows = machine_letters(studies), []
    for record in earlier:
        errors = [f"{statistics.mean(record[key]):.1f}" if key in record else "–" for key in ("errors", "errors_tta")]
        cells = [
            record["date"],
            record["recipe"],
            record["change"],
            f"`{record['commit']}`",
            letters[record["hardware"]],
        ]
        cells += [spread(record["seconds"], 0), spread(record["relative_to_original"], 2)]
        rows.append([*cells, *errors, str(len(record["errors"]))])
    for name in dict.fromkeys(record["recipe"] for record in earlier):
        seeds, timed = seeds_of(studies, name), by_name(studies["time"])[name]
        wrong = [[len(one[key]) for one in seeds if key in one] for key in ("test_wrong", f"test_wrong{TTA}")]
        cells = ["now", name, "as in conf/recipe", f"`{seeds[-1]['commit'][:7]}`", letters[timed[0]["hardware"]]]
        cells += [
            training_time(timed, EPOCHS[name]),
            spread(ratios(studies, name, "published"), 2),
        ]
        rows.append([*cells, *(f"{statistics.mean(one):.1f}" if one else "–" for one in wrong), str(len(seeds))])
    head = ("date", "recipe", "network or change", "commit", "machine", "training (s)", "relative to the original")
    return table((*head, "errors", "errors with TTA", "seeds"), rows)
