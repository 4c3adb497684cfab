"""Make docs/benchmark.md, its pictures and README.md's table from benchmarks/results/*.json: no figure is typed."""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks import figures
from benchmarks.run import (
    ALL_DIGITS,
    FULL_ROUNDS,
    RECIPES,
    RESULTS,
    SEEDS,
    accuracy_plan,
    scaling_plan,
    seconds,
    time_plan,
)
from benchmarks.trial import PEERS
from pipeline.config import ROOT, PipelineError
from pipeline.files import load_csv, load_json, replacing
from pipeline.metrics import wilson_interval
from pipeline.plots import save_figure
from pipeline.statistics import FEWEST, Mean, mean_interval, prediction_interval
from pipeline.tables import markdown_table, percent

DOCS = ROOT / "docs"
NAMES = (*PEERS, *RECIPES)
EPOCHS = dict.fromkeys(NAMES, 15) | {"fast": 1}
SPLIT, ALL = 55_000, 60_000  # digits trained on: by the split of `dvc repro`, and without validation
GROUPS = tuple(itertools.product(NAMES, (SPLIT, ALL)))
# Test digits, counted from 0, whose label most of five annotators disputed (Northcutt et al. 2021, arXiv 2103.14749).
DISPUTED = {947, 1621, 1901, 2130, 2462, 2597, 2654, 3520, 3558, 5937, 6651, 6783, 8527, 9679, 9729}
CONFIDENCE = 0.95
PUBLISHED_LOG = ROOT / "reference" / "published_run.csv"

Trial = dict[str, Any]
STUDIES = ("time", "start", "accuracy", "scaling", "parallel", "shared", "checkpoint", "processor", "statistics")
Studies = dict[str, list[Trial]]  # by the name of the study
Row = dict[str, str]  # of a table: a cell by its column


def mean_over_seeds(values: Sequence[float], least: float = 0, most: float = 1) -> Mean:
    return mean_interval(values, CONFIDENCE, least, most)


def load(folder: Path) -> Studies:
    """What is stored; a study that was not run has no trials."""
    paths = {study: folder / f"{study}.json" for study in STUDIES}
    return {study: load_json(path)["trials"] if path.is_file() else [] for study, path in paths.items()}


def training_seconds(studies: Studies, what: str) -> dict[float, float]:
    """Of all the epochs that `what` takes, by round."""
    return {word(t, "seed", 0): seconds(t, EPOCHS[what]) for t in studies["time"] if t["what"] == what}


def ratios(studies: Studies, what: str, peer: str) -> list[float]:
    """Seconds of `what` over those of `peer` in the same round."""
    mine, theirs = training_seconds(studies, what), training_seconds(studies, peer)
    return [mine[number] / theirs[number] for number in mine if number in theirs]


def tested(studies: Studies, what: str, digits: int) -> dict[str, list[Trial]]:
    """The seeds of `what` on so many digits, under its name: by several views and by one, if there are both."""
    seeds = [trial for trial in studies["accuracy"] if (trial["what"], trial["train_digits"]) == (what, digits)]
    if not seeds:
        return {}
    if "test_wrong_5_views" not in seeds[0]:
        return {what: seeds}
    several = [t | {f"{of}_wrong": t[f"{of}_wrong_5_views"] for of in ("test", "val")} for t in seeds]
    return {f"{what}, by 5 views": several, f"{what}, by 1 view": seeds}


def accuracies(trials: Sequence[Trial], of: str) -> list[float]:
    """On the digits `of` test or val, a share a seed; none where there are no such digits."""
    return [1 - len(trial[f"{of}_wrong"]) / trial[f"{of}_digits"] for trial in trials if trial[f"{of}_digits"]]


def faster(studies: Studies, what: str, peer: str, most: float, stretch: str = "") -> Row:
    """A promise of time, judged by the median, on 9 decimals: float rounding does not decide."""
    found = [round(ratio, 9) for ratio in ratios(studies, what, peer)]
    within = sum(ratio <= most for ratio in found)
    kept = "not measured" if not found else "yes" if statistics.median(found) <= most else "no"
    kept += f"; within it in {within} of {len(found)} rounds" if 0 < within < len(found) else ""
    promise = f"{stretch}{what}: at most {most} × the seconds of {peer} ({EPOCHS[what]} and {EPOCHS[peer]} epochs)"
    return {"promise": promise, "found": f"{spread(found, 2)}, n = {len(found)} rounds", "kept": kept}


def better(studies: Studies, what: str, least: float, of: Callable[[Mean], float], words: str, *splits: int) -> Row:
    """A promise of accuracy, kept if it holds on one of the splits."""
    found, judged = [], {}
    for digits in splits:
        for name, trials in tested(studies, what, digits).items():
            mean = mean_over_seeds(accuracies(trials, "test"))
            found.append(f"{name} on {digits:,}: {percent(of(mean), 4)}, n = {mean.n} seeds")
            if mean.n >= SEEDS:
                judged[f"{digits:,}{name.removeprefix(what)}"] = round(of(mean), 9) >= least
    keeping = " and ".join(digits for digits, holds in judged.items() if holds)
    kept = "not measured" if not judged else f"yes, on {keeping}" if keeping else "no"
    promise = f"{words} of {SEEDS} seeds at least {percent(least)}, on {' or '.join(f'{n:,}' for n in splits)}"
    return {"promise": promise, "found": "; ".join(found) or "–", "kept": kept}


def alike(studies: Studies) -> Row:
    """Whether the published figures lie where one more seed of baseline would."""
    log = load_csv(PUBLISHED_LOG, ["train_accuracy", "val_accuracy"])[-1]
    trials = [trial for seeds in tested(studies, "baseline", SPLIT).values() for trial in seeds]
    found, inside = [], []
    for name, published, values in (
        ("training", log["train_accuracy"], [trial["train_accuracy"] for trial in trials]),
        ("test", log["val_accuracy"], accuracies(trials, "test")),
    ):
        if len(values) >= FEWEST:
            low, high = prediction_interval(values, CONFIDENCE)
            inside.append(low <= published <= high)
            found.append(f"{name}: published {percent(published)}, one more seed {reach(low, high)}, n = {len(values)}")
    kept = "not measured" if len(trials) < SEEDS else "yes" if all(inside) else "no"
    return {
        "promise": "baseline: training and test accuracy as published, on 55,000 digits for 60,000",
        "found": "; ".join(found) or "–",
        "kept": kept,
    }


def promises(studies: Studies) -> list[Row]:
    """Each promise, what was found, and whether it is kept."""
    mean, limit = "mean test accuracy", "lower 95 % limit of the mean test accuracy"
    return [
        faster(studies, "baseline", "published", 0.6),
        faster(studies, "baseline", "published", 0.48, "stretch: "),
        better(studies, "accurate", 0.997, lambda found: found.mean, f"accurate: {mean}", SPLIT, ALL),
        better(studies, "accurate", 0.997, lambda found: found.low, f"stretch: accurate: {limit}", SPLIT, ALL),
        faster(studies, "accurate", "keras_convnet", 1.2),
        faster(studies, "accurate", "keras_convnet", 0.8, "stretch: "),
        faster(studies, "accurate", "published", 0.4),
        better(studies, "fast", 0.992, lambda found: found.mean, f"fast: {mean}", SPLIT),
        faster(studies, "fast", "keras_convnet", 0.15),
        alike(studies),
    ]


def time_rows(studies: Studies) -> list[Row]:
    rows = []
    for what in dict.fromkeys(trial["what"] for trial in studies["time"]):
        trials = [trial for trial in studies["time"] if trial["what"] == what]
        later = [statistics.mean(trial["epoch_seconds"][1:] or trial["epoch_seconds"]) for trial in trials]
        row = {"": what, "parameters": f"{trials[0]['num_params']:,}", "epochs": str(EPOCHS[what])}
        row["s an epoch"] = spread(later, 1)
        row["s in training"] = spread(training_seconds(studies, what).values(), 0)
        row |= {f"× {peer}": spread(ratios(studies, what, peer), 2) for peer in PEERS}
        row["s of the process"] = spread([trial["process_seconds"] for trial in trials], 0)
        row["its epochs"] = str(len(trials[0]["epoch_seconds"]))
        row["peak MB"] = spread([trial["peak_memory_mb"] for trial in trials], 0)
        rows.append(row | {"n rounds": str(len(trials))})
    return rows


def accuracy_rows(studies: Studies, what: str, digits: int) -> list[Row]:
    rows = []
    for name, trials in tested(studies, what, digits).items():
        values, val, wrong = accuracies(trials, "test"), accuracies(trials, "val"), [t["test_wrong"] for t in trials]
        mean, size, errors = mean_over_seeds(values), trials[0]["test_digits"], statistics.mean(map(len, wrong))
        row = {"": name, "trained on": f"{digits:,}", "n seeds": str(mean.n)}
        row["mean test accuracy"] = percent(mean.mean, 3)
        row["95 % of the mean (t)"] = reach(mean.low, mean.high, 3)
        row["worst to best seed"] = reach(min(values), max(values))
        row["errors"] = f"{errors:.1f} of {size:,}"
        row["95 % of the test set (Wilson)"] = reach(*wilson_interval(size - round(errors), size, CONFIDENCE))
        row["of them disputed"] = f"{statistics.mean(len(DISPUTED.intersection(seed)) for seed in wrong):.1f}"
        row["validation"] = percent(statistics.mean(val)) if val else "–"
        rows.append(row | {"training": percent(statistics.mean(trial["train_accuracy"] for trial in trials))})
    return rows


def readme_table(studies: Studies) -> str:
    """The table for README.md. Seconds were measured on the split of `dvc repro`: the other has none."""
    rows = []
    for what, digits in GROUPS:
        for name, on, n, mean, limits, _, errors, *_ in (row.values() for row in accuracy_rows(studies, what, digits)):
            row = {"": name, "trained on": on, "n seeds": n, "mean test accuracy (95 %)": f"{mean} ({limits})"}
            took, times = training_seconds(studies, what).values(), ratios(studies, what, "published")
            row |= {"errors": errors, "s in training": middle(took, 0), "× published": middle(times, 2)}
            rows.append(row if digits == SPLIT else row | {"s in training": "–", "× published": "–"})
    rounds = len({word(trial, "seed", 0) for trial in studies["time"]})
    return f"""{table(rows)}

Last epoch; 95 %: Student's interval over seeds. Seconds are medians of {rounds} interleaved rounds, 15 epochs reckoned
from 2, and × published is over those of the published script in plain Keras. By 5 views: the mean of the logits of a
test digit as it is and moved by a pixel each way; by 1 view: as it is. {seen(studies, "hardware", "time", "accuracy")}.
"""


def seen(studies: Studies, key: str, *among: str) -> str:
    """Every hardware, set of versions or commit of these studies' trials."""
    return "; ".join(sorted({trial[key] for study in among for trial in studies[study] if key in trial}))


def hardware(studies: Studies) -> str:
    """On what each study was measured: a figure of one machine says nothing of another's."""
    measured = defaultdict(list)
    for study in studies:
        if machines := seen(studies, "hardware", study):
            measured[machines].append(study)
    return "; ".join(f"{machines} ({', '.join(names)})" for machines, names in measured.items())


def scaling(studies: Studies) -> figures.Sizes:
    """Seconds of the last epoch, a figure a round, by name, digits and times the filters."""
    found: figures.Sizes = defaultdict(list)
    scaled = {trial["what"] for trial in studies["scaling"]}
    for trial in studies["scaling"] + [trial for trial in studies["time"] if trial["what"] in scaled]:
        key = trial["what"], trial["train_digits"], word(trial, "--filters-times", 1)
        found[key].append(trial["epoch_seconds"][-1])
    return found


def scaling_rows(studies: Studies) -> list[Row]:
    found = scaling(studies)
    sizes = sorted({(times, digits) for _, digits, times in found})
    names = {f"{digits:,} digits" + f", filters × {times:g}" * (times != 1): (digits, times) for times, digits in sizes}
    rows = []
    for what in dict.fromkeys(what for what, _, _ in found):
        cells = {name: found.get((what, *size), []) for name, size in names.items()}
        rows.append({"": what} | {name: f"{middle(took, 1)} (n = {len(took)})" for name, took in cells.items()})
    return rows


def start_rows(studies: Studies) -> list[Row]:
    found = defaultdict(list)
    for trial in studies["start"]:
        found[trial["what"]].append(trial["process_seconds"])
    return [{"command": what, "s": spread(took, 2), "n": str(len(took))} for what, took in found.items()]


def checkpoint_rows(studies: Studies) -> list[Row]:
    found = defaultdict(list)
    for trial in studies["checkpoint"]:
        found[trial["what"]].append(trial)
    rows = []
    for what, trials in found.items():
        saving = [trial["checkpoint_seconds"][-1] for trial in trials]
        shares = [trial["checkpoint_seconds"][-1] / trial["epoch_seconds"][-1] for trial in trials]
        rows.append(
            {
                "": what,
                "s a checkpoint": spread(saving, 2),
                "% of the epoch": spread([100 * share for share in shares], 2),
                "n rounds": str(len(trials)),
            }
        )
    return rows


def processor_rows(studies: Studies) -> list[Row]:
    """The same seeds with all instructions of the processor and with AVX2 at most, on the validation digits."""
    here = {word(t, "seed", 0): t for t in studies["accuracy"] if (t["what"], t["train_digits"]) == ("fast", SPLIT)}
    rows, differences = [], []
    for trial in studies["processor"]:
        seed, digits = word(trial, "seed", 0), trial["val_digits"]
        full, less = set(here[seed]["val_wrong"]), set(trial["val_wrong"])
        differences.append(100 * (len(full) - len(less)) / digits)
        rows.append(
            {
                "fast": f"seed {seed:g}",
                f"wrong of {digits:,}": str(len(full)),
                "wrong with AVX2 at most": str(len(less)),
                "wrong in one alone": str(len(full ^ less)),
            }
        )
    if rows:
        mean = mean_over_seeds(differences, -100, 100)
        said = (
            f"{mean.mean:+.2f} points of accuracy with AVX2 ({mean.low:+.2f} to {mean.high:+.2f}), n = {mean.n} seeds"
        )
        rows.append(dict.fromkeys(rows[0], "") | {"fast": said})
    return rows


def sweep_rows(trials: Sequence[Trial]) -> list[Row]:
    """Of a study of sweeps; the first way to sweep is the one that the others are set beside."""
    found: dict[str, dict[int, Trial]] = defaultdict(dict)
    for trial in trials:
        found[trial["what"]][trial["round"]] = trial
    serial = next(iter(found.values()), {})
    rows = []
    for what, rounds in found.items():
        took = {number: trial["process_seconds"] for number, trial in rounds.items()}
        ratios = [took[number] / serial[number]["process_seconds"] for number in took if number in serial]
        rows.append(
            {
                "": what,
                "s of the command": spread(took.values(), 0),
                "× the first": spread(ratios, 2),
                "cores busy": spread([trial["cores_busy"] for trial in rounds.values()], 2),
                "n rounds": str(len(took)),
            }
        )
    return rows


def simulation_rows(studies: Studies) -> list[Row]:
    return [
        {
            "": trial["what"],
            "of the tries it": trial["event"],
            "share": percent(trial["count"] / trial["tries"]),
            "95 % (Wilson)": reach(*wilson_interval(trial["count"], trial["tries"], CONFIDENCE)),
            "n tries": f"{trial['tries']:,}",
        }
        for trial in studies["statistics"]
    ]


def missing(studies: Studies) -> str:
    """What the plans have and the files do not: a line a study."""

    def part(study: str, what: str, words: Collection[str]) -> str:
        return f"{what} on {ALL if ALL_DIGITS in words else SPLIT:,}" if study == "accuracy" else what

    lines = []
    units = {
        "time": ("rounds", time_plan(FULL_ROUNDS)),
        "accuracy": ("seeds", accuracy_plan()),
        "scaling": ("trials", scaling_plan()),
    }
    for study, (unit, plan) in units.items():
        planned = Counter(part(study, what, words) for what, words in plan)
        stored = Counter(part(study, trial["what"], trial["words"]) for trial in studies[study])
        short = [f"{name}: {stored[name]} of {n} {unit}" for name, n in planned.items() if stored[name] < n]
        lines += [f"- Not measured yet, {study}: {'; '.join(short)}."] if short else []
    return "\n".join(lines)


def pictures(studies: Studies) -> dict[str, Figure]:
    """Those that there are figures for."""
    points, seeds = [], []
    for what, digits in GROUPS:
        for name, trials in tested(studies, what, digits).items():
            errors, took = [100 * (1 - a) for a in accuracies(trials, "test")], training_seconds(studies, what)
            mean = mean_over_seeds(errors, 0, 100)
            seeds.append((what, f"{name}\n{digits:,} digits, n = {mean.n}", errors, mean[1:]))
            if took and digits == SPLIT:
                points.append((what, f"{name}, n = {mean.n} seeds", list(took.values()), errors))
    drawn = {"error_against_seconds": figures.plot_error_against_seconds(points)} if points else {}
    drawn |= {"seeds": figures.plot_seeds(seeds)} if seeds else {}
    return drawn | ({"scaling": figures.plot_scaling(sizes)} if (sizes := scaling(studies)) else {})


def markdown(studies: Studies, drawn: Collection[str]) -> str:
    shown = defaultdict(str) | {name: f"![{name.replace('_', ' ')}](benchmark/{name}.png)\n\n" for name in drawn}
    accuracy = [row for what, digits in GROUPS for row in accuracy_rows(studies, what, digits)]
    return f"""# Benchmark: the recipes beside plain Keras

Made by `make benchmark` (times) and `make benchmark-full` (everything) from benchmarks/results; no figure is typed.

- Hardware: {hardware(studies)}.
- Versions: {seen(studies, "versions", *studies)}. Commit: {seen(studies, "commit", *studies)}.
{missing(studies)}

{shown["error_against_seconds"]}Test error, mean over seeds and lowest to highest seed, of training on {SPLIT:,} digits,
against seconds of training, median and lowest to highest round. The published log's own run is not drawn.

## Promises

{table(promises(studies))}

Ratios are medians (lowest–highest) of ratios within a round. Accuracy is that of the last epoch. "One more seed" is
the range that holds it with 95 % (Student's t). `accurate` is the second design that was frozen: the test digits had
been read for two seeds of the first, and for one of a design before (docs/performance.md).

## Seconds

{table(time_rows(studies))}

Median (lowest–highest) of rounds; in a round all take turns, so a busy minute hits all alike. The first epoch of a
process compiles: "s an epoch" is the mean of its later ones, "s in training" the first and that mean for each epoch
left; what takes one epoch is measured whole. The clock runs over training on {SPLIT:,} digits, without validation and
tracking; "s of the process" is a whole trial as run, of "its epochs", with imports, reading and validation. Recipes
use one thread an operation and two operations at once, published and keras_convnet TensorFlow's own choice of threads.

## Accuracy

{shown["seeds"]}{table(accuracy)}

Means over seeds, last epoch. The t-interval says where the mean of many other seeds would lie on these same test
digits; Wilson's, at the mean error count, what other test digits of the same kind would give. Disputed are the
{len(DISPUTED)} test digits whose label annotators disputed (Northcutt et al. 2021, arXiv 2103.14749); they are never
left out. Training is the running figure of the epoch, on augmented digits where the recipe augments.

## Cost against size

{shown["scaling"]}{table(scaling_rows(studies))}

Median seconds of the second epoch of a trial of two, n rounds; those of all digits are the ones above. The shares are
1/8, 1/4 and 1/2 of the 60,000 digits, less the 5,000 for validation.

## The start of everything

{table(start_rows(studies))}

## Two jobs of a sweep at once

{table(sweep_rows(studies["parallel"]))}

Four seeds of `fast`, everything included (imports, tracking, ranking). One job alone keeps both cores busy while it
trains, so what two at once can share out is the rest.

## Sweeps over the number of epochs

{table(sweep_rows(studies["shared"]))}

`train.epochs=1,3,5,15` of `baseline` with 4 filters: 24 epochs, 15 where the runs share their first ones, which they
can where nothing depends on the number of epochs (constant schedule, no fading augmentation). Whole commands.

## What checkpoints cost

{table(checkpoint_rows(studies))}

A checkpoint of weights and Adam's moments is written, flushed and hashed after every epoch; the second epoch of two.

## What another processor changes

{table(processor_rows(studies))}

The same bits are promised on one kind of processor: how many numbers an instruction adds at once decides how sums are
rounded. Beside this processor with all its instructions (the seeds above), the same with oneDNN held to AVX2, by
validation digits; 95 %, Student's interval over seeds.

## What the statistics promise

{table(simulation_rows(studies))}

Made by `python -m benchmarks.simulate`. A test at .05 may reject in up to 5 % where there is no difference: exact tests
of few runs have few values of p, and reject in less.

## Again

    make benchmark            # times, and this page
    make benchmark-full       # and every seed and size; goes on where it stopped
    make benchmark-compare    # times anew, beside the stored ones
    python -m benchmarks.report
"""


def word(trial: Trial, key: str, default: float) -> float:
    """The number after `key=` among the words of a trial."""
    return next((float(text.partition("=")[2]) for text in trial["words"] if text.startswith(f"{key}=")), default)


def reach(low: float, high: float, places: int = 2) -> str:
    return "–" if math.isnan(low) else f"{100 * low:.{places}f} to {percent(high, places)}"


def middle(values: Collection[float], places: int) -> str:
    return f"{statistics.median(values):.{places}f}" if values else "–"


def spread(values: Collection[float], places: int) -> str:
    """Median (lowest–highest), without the range of a single one."""
    return middle(values, places) + (f" ({min(values):.{places}f}–{max(values):.{places}f})" if len(values) > 1 else "")


def table(rows: Sequence[Row]) -> str:
    if not rows:
        return "Not measured yet."
    return markdown_table([list(rows[0]), *(list(row.values()) for row in rows)])


def main() -> None:
    studies = load(RESULTS)
    drawn = pictures(studies)
    for name, figure in drawn.items():
        save_figure(DOCS / "benchmark" / f"{name}.png", figure)
    for path, text in (
        ("benchmark.md", markdown(studies, drawn)),
        ("benchmark/summary.md", readme_table(studies)),
    ):
        with replacing(DOCS / path) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except PipelineError as error:
        sys.exit(f"error: {error}")
