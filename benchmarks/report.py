"""Make docs/benchmark.md, its pictures and the table for README.md from benchmarks/results/*.json; nothing is typed."""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from scipy import stats

from benchmarks import figures
from benchmarks.run import ALL_DIGITS, RECIPES, RESULTS, SEEDS, accuracy_plan, scaling_plan, seconds, time_plan
from benchmarks.trial import PEERS
from pipeline.config import ROOT, PipelineError
from pipeline.files import load_json, replacing
from pipeline.metrics import wilson_interval
from pipeline.plots import PNG

DOCS = ROOT / "docs"
NAMES = (*PEERS, *RECIPES)
EPOCHS = dict.fromkeys(NAMES, 15) | {"fast": 1}
SPLIT, ALL = 55_000, 60_000  # digits trained on: by the split of `dvc repro`, and without validation
EIGHTH = 0.125  # the share of the digits that wider networks are timed on
# Test digits, counted from 0, whose label most of five annotators disputed (Northcutt et al. 2021, arXiv 2103.14749).
DISPUTED = {947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729}
CONFIDENCE = 0.95
PLACES = 9  # a promise is judged on so many decimals: float rounding does not decide
ABSENT = "not measured"

Trial = dict[str, Any]
Panels = dict[str, dict[str, dict[float, list[float]]]]  # label of the axis, name, place on the axis: values


class Mean(NamedTuple):
    """A mean over seeds with Student's interval of it, NaN where there is one seed."""

    n: int
    mean: float
    low: float
    high: float


def mean_over_seeds(values: Sequence[float]) -> Mean:
    n, mean = len(values), statistics.mean(values)
    if n == 1:
        return Mean(1, mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * statistics.stdev(values) / math.sqrt(n)
    return Mean(n, mean, mean - half, mean + half)


class Group(NamedTuple):
    """Seeds of one peer or recipe on one split, evaluated in one way."""

    what: str
    digits: int  # trained on
    trials: list[Trial]
    views: str = ""  # "4 views" where the recipe averages so many of a digit, "one view" for its plain figure

    @property
    def name(self) -> str:
        return f"{self.what}, {self.views}" if self.views else self.what

    def wrong(self, of: str) -> list[list[int]]:
        return [trial[f"{of}_wrong{'_one_view' if self.views == 'one view' else ''}"] for trial in self.trials]

    def accuracies(self, of: str) -> list[float]:
        """On the digits `of` test or val, a share a seed; none of a split without digits."""
        sizes = [trial[f"{of}_digits"] for trial in self.trials]
        return [1 - len(wrong) / size for wrong, size in zip(self.wrong(of), sizes, strict=True) if size]


class Studies:
    """What is stored; a study that was not run has no trials."""

    def __init__(self, folder: Path) -> None:
        paths = {name: folder / f"{name}.json" for name in ("time", "start", "accuracy", "scaling")}
        self.stored = {name: load_json(path)["trials"] if path.is_file() else [] for name, path in paths.items()}

    def of(self, study: str, what: str) -> list[Trial]:
        return [trial for trial in self.stored[study] if trial["what"] == what]

    def seconds(self, what: str) -> dict[float, float]:
        """Of all the epochs that `what` takes, by round."""
        return {word(trial, "seed", 0): seconds(trial, EPOCHS[what]) for trial in self.of("time", what)}

    def ratios(self, what: str, peer: str) -> list[float]:
        """Seconds of `what` over those of `peer` in the same round."""
        theirs = self.seconds(peer)
        return [mine / theirs[number] for number, mine in self.seconds(what).items() if number in theirs]

    def groups(self, *splits: int, names: Sequence[str] = NAMES) -> list[Group]:
        """What was tested, by name and split; a recipe as it is evaluated stands before its plain figure."""
        found = []
        for what, digits in ((what, digits) for what in names for digits in splits):
            trials = [trial for trial in self.of("accuracy", what) if trial["train_digits"] == digits]
            if trials and "test_wrong_one_view" in trials[0]:
                found += [Group(what, digits, trials, f"{trials[0]['views']} views")]
                found += [Group(what, digits, trials, "one view")]
            elif trials:
                found += [Group(what, digits, trials)]
        return found


def promises(studies: Studies) -> list[list[str]]:
    """Each promise, what was found, and whether it is kept."""

    def faster(what: str, peer: str, most: float, stretch: str = "") -> list[str]:
        found = studies.ratios(what, peer)
        kept = ABSENT if not found else "yes" if round(statistics.median(found), PLACES) <= most else "no"
        promise = f"{what}: seconds of training at most {most} × {peer}'s ({EPOCHS[what]} and {EPOCHS[peer]} epochs)"
        return [promise + stretch, f"× {spread(found, 2)}, n = {len(found)} rounds" if found else "–", kept]

    def better(
        what: str, least: float, splits: Sequence[int], figure: Callable[[Mean], float], words: str
    ) -> list[str]:
        groups = studies.groups(*splits, names=[what])
        means = [mean_over_seeds(group.accuracies("test")) for group in groups]
        found = [
            f"{figure(mean):.3%} of {mean.n} seeds on {group.digits:,}{', ' * bool(group.views)}{group.views}"
            for group, mean in zip(groups, means, strict=True)
        ]
        whole = {  # the plain figure of a recipe that averages views is shown, not judged
            group.digits: round(figure(mean), PLACES) >= least
            for group, mean in zip(groups, means, strict=True)
            if mean.n >= SEEDS and group.views != "one view"
        }
        holding = " and ".join(f"{digits:,}" for digits, holds in whole.items() if holds)
        kept = ABSENT if not whole else f"yes, on {holding}" if holding else "no"
        on = " or ".join(f"{digits:,}" for digits in splits)
        return [f"{what}: {words} at least {least:.2%}, {SEEDS} seeds, trained on {on}", "; ".join(found) or "–", kept]

    return [
        faster("baseline", "published", 0.6),
        faster("baseline", "published", 0.48, " (stretch)"),
        better("accurate", 0.997, (SPLIT, ALL), lambda mean: mean.mean, "mean test accuracy"),
        better("accurate", 0.997, (SPLIT, ALL), lambda mean: mean.low, "(stretch) lower 95 % limit of that mean"),
        faster("accurate", "keras_convnet", 1.2),
        faster("accurate", "keras_convnet", 0.8, " (stretch)"),
        faster("accurate", "published", 0.4),
        better("fast", 0.992, (SPLIT,), lambda mean: mean.mean, "mean test accuracy"),
        faster("fast", "keras_convnet", 0.15),
    ]


def time_table(studies: Studies) -> str:
    head = ["", "parameters", "epochs", "s an epoch", "s in training", *(f"× {peer}" for peer in PEERS)]
    rows = []
    for what, trials in ((what, studies.of("time", what)) for what in NAMES):
        if trials:
            measured = len(trials[0]["epoch_seconds"])
            later = [statistics.median(t["epoch_seconds"][1:] or t["epoch_seconds"]) for t in trials]
            row = [what, f"{trials[0]['num_params']:,}", str(EPOCHS[what]), spread(later, 1)]
            row += [spread(list(studies.seconds(what).values()), 0)]
            row += [spread(studies.ratios(what, peer), 2) for peer in PEERS]
            row += [f"{spread([trial['process_seconds'] for trial in trials], 0)} with {measured} epochs"]
            rows.append([*row, spread([trial["peak_memory_mb"] for trial in trials], 0), str(len(trials))])
    return table([*head, "s of the process, as run", "peak MB", "n rounds"], rows)


def accuracy_table(studies: Studies) -> str:
    head = ["", "trained on", "n seeds", "mean test accuracy", "95 % of the mean (t)", "worst to best seed", "errors"]
    rows = []
    for group in studies.groups(SPLIT, ALL):
        values, wrong, size = group.accuracies("test"), group.wrong("test"), group.trials[0]["test_digits"]
        mean, errors, val = mean_over_seeds(values), statistics.mean(map(len, wrong)), group.accuracies("val")
        low, high = wilson_interval(size - round(errors), size, CONFIDENCE)
        row = [group.name, f"{group.digits:,}", str(mean.n), f"{mean.mean:.3%}", interval(mean, 3)]
        row += [f"{min(values):.2%} to {max(values):.2%}", f"{errors:.1f} of {size:,}", f"{low:.2%} to {high:.2%}"]
        row += [f"{statistics.mean(len(DISPUTED & set(of_seed)) for of_seed in wrong):.1f}"]
        row += [f"{statistics.mean(val):.2%}" if val else "–"]
        rows.append([*row, f"{statistics.mean(trial['train_accuracy'] for trial in group.trials):.2%}"])
    return table([*head, "95 % of the test set (Wilson)", "disputed errors", "validation", "training"], rows)


def readme_table(studies: Studies) -> str:
    """What stands in README.md. Seconds were measured on the split of `dvc repro` and stand there alone."""
    head = ["", "trained on", "n seeds", "mean test accuracy (95 % of the mean)", "errors", "s in training"]
    rows = []
    for group in studies.groups(SPLIT, ALL):
        mean, timed = mean_over_seeds(group.accuracies("test")), group.digits == SPLIT
        errors = f"{statistics.mean(map(len, group.wrong('test'))):.1f} of {group.trials[0]['test_digits']:,}"
        row = [group.name, f"{group.digits:,}", str(mean.n), f"{mean.mean:.3%} ({interval(mean, 3)})", errors]
        row += [middle(list(studies.seconds(group.what).values()), 0) if timed else "–"]
        rows.append([*row, middle(studies.ratios(group.what, "published"), 2) if timed else "–"])
    return table([*head, "× published's seconds"], rows)


def scaling(studies: Studies) -> Panels:
    """Seconds of the last epoch, a figure a round: by digits, and by times the filters on an eighth of the digits."""
    panels: Panels = {}
    for what, trial in ((what, trial) for what in NAMES for trial in studies.of("scaling", what)):
        times, digits = word(trial, "--filters-times", 1), trial["train_digits"]
        places = {"digits trained on": digits} if times == 1 else {}
        places |= {f"times the filters, on {digits:,} digits": times} if word(trial, "data.fraction", 1) == EIGHTH else {}
        for label, place in places.items():
            line = panels.setdefault(label, {}).setdefault(what, {})
            line.setdefault(place, []).append(trial["epoch_seconds"][-1])
    return panels


def scaling_tables(panels: Panels) -> str:
    tables = []
    for label, lines in panels.items():
        places = sorted({place for line in lines.values() for place in line})
        cells = [[(values := line.get(at, [])) and f"{middle(values, 1)} (n = {len(values)})" for at in places] for line in lines.values()]
        tables.append(table([label, *(f"{place:,g}" for place in places)], cells))
    return "\n\n".join(tables)
