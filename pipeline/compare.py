"""Stage 5: the published run and every recipe of params.yaml, in one table, one picture and one sentence.

With a=<what> b=<what> it compares any tracked runs: recipes, run ids, groups of seeds, all of a sweep, or a filter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import comparison, data, metrics
from pipeline.command import entry_point, job_folder
from pipeline.config import ROOT, CompareConfig, Config, PipelineError, in_dvc_stage
from pipeline.console import quiet_import
from pipeline.files import load_csv, load_json, replacing, save_json
from pipeline.tables import markdown_table, percent

PUBLISHED = "published"
PUBLISHED_LOG = ROOT / "reference" / "published_run.csv"
PUBLISHED_PARAMS = 2_774_410  # its README gives 640 + 2,768,960 + 4,160 + 650
TEST_DIGITS = 10_000  # of MNIST; the published run was evaluated on all


class Row(NamedTuple):
    """A line of the table. Accuracies are shares of the last epoch, NaN or None where there is none."""

    name: str
    num_params: int
    epochs: int
    train_accuracy: float
    val_accuracy: float | None
    test_accuracy: float
    test_accuracy_low: float
    test_accuracy_high: float
    test_errors: int
    test_examples: int
    test_views: int  # of each digit, averaged
    test_errors_one_view: int  # had the digits been seen once, as they are


@entry_point
def compare(config: CompareConfig) -> None:
    if config.a or config.b:
        _compare_runs(config)
    else:
        _compare_recipes(config)


def _compare_runs(config: CompareConfig) -> None:
    with quiet_import():
        from pipeline import tracking

    found: dict[str, list[Any]] = {}
    for word in filter(None, (config.a, config.b)):
        of_word = tracking.find_runs(word, config.data.name)
        for group, runs in of_word.items():
            name = word if len(of_word) == 1 else f"{runs[0].info.run_name} ({group})"
            if any(sorted(r.info.run_id for r in runs) == sorted(r.info.run_id for r in of) for of in found.values()):
                raise PipelineError(f"{word} is the same as {next(iter(found))}: give two that differ")
            found[name] = runs
    if len(found) < 2:
        raise PipelineError(f"only {next(iter(found))} to compare: give a=<what> and b=<what>, or a sweep of several")
    runs = [run for of in found.values() for run in of]
    of = "test" if all(map(tracking.test_set_reads, runs)) else "validation"
    folder = job_folder()
    with tempfile.TemporaryDirectory() as temporary:
        sides, digits, labels = _sides(found, of, Path(temporary))
    verdicts = comparison.verdicts(sides, config.evaluate.confidence, of)
    reads = sum(map(tracking.test_set_reads, runs))
    text = comparison.markdown(sides, verdicts, config.evaluate.confidence, of, reads)
    save_json(folder / "comparison.json", comparison.as_json(sides, verdicts, of, reads))
    with replacing(folder / "comparison.md") as partial:
        partial.write_text(text, encoding="utf-8")
    files = [
        folder / "comparison.md",
        folder / "comparison.json",
        *_draw_sides(folder, sides, digits, labels, of, config),
    ]
    name = " against ".join(side.name for side in sides)
    run_id = tracking.log_comparison(
        config.data.name, f"compare {name}"[:200], files, text, [run.info.run_id for run in runs]
    )
    print(text)
    print(f"wrote {folder}; MLflow run {run_id}")


def _sides(
    found: dict[str, list[Any]], of: str, folder: Path
) -> tuple[list[comparison.Side], NDArray[np.int64], NDArray[np.int64]]:
    """The sides by their runs' predictions, with the digits that those are of and their labels."""
    from pipeline import tracking

    predictions = {}
    for run in (run for runs in found.values() for run in runs):
        own = folder / run.info.run_id
        own.mkdir()
        file = tracking.artifact(run, "predictions.csv" if of == "test" else "val_predictions.csv", own)
        rows = load_csv(file, ["index", "label", "prediction"])
        columns = ([int(row[key]) for row in rows] for key in ("index", "label", "prediction"))
        predictions[run.info.run_id] = comparison.Predictions(*map(np.array, columns))
    digits, labels = comparison.same_digits(predictions, of)
    sides = []
    for name, runs in found.items():
        traits = [tracking.traits(run) for run in runs]
        configured = tracking.recorded_config(runs[0], folder / runs[0].info.run_id)
        sides.append(
            comparison.Side(
                name,
                {
                    key: {of_run.get(key, "–") for of_run in traits}
                    for key in dict.fromkeys(k for t in traits for k in t)
                },
                np.array([predictions[run.info.run_id].predictions == labels for run in runs]),
                [sum(seconds) for run in runs if (seconds := tracking.curve(run, "epoch_seconds"))],
                int(runs[0].data.params.get("model.num_params", 0)),
                comparison.multiply_adds(configured),
            )
        )
    return sides, digits, labels


def _draw_sides(
    folder: Path,
    sides: Sequence[comparison.Side],
    digits: NDArray[np.int64],
    labels: NDArray[np.int64],
    of: str,
    config: Config,
) -> list[Path]:
    """Draw accuracies by side and, of the first two, the digits that tell them apart: the files drawn."""
    from pipeline import plots

    # Only to draw the digits: what is compared are predictions, made and counted by evaluate.
    name = {"test": "test.npz", "validation": "val.npz"}[of]
    stored = data.load_digits(ROOT / "data" / "processed" / name, config.data)
    place = {int(index): row for row, index in enumerate(stored.source_index)}
    shown = comparison.telling_digits(*sides[:2])
    rows = [(kind, i) for kind, chosen in shown.items() for i in chosen]
    figures = {"comparison": plots.plot_sides({side.name: side.accuracies for side in sides}, of)}
    if rows and all(int(digits[i]) in place for _, i in rows):
        figures["digits"] = plots.plot_digit_rows(
            {
                kind: [(stored.images[place[int(digits[i])]], f"#{digits[i]}: {labels[i]}") for i in chosen]
                for kind, chosen in shown.items()
            }
        )
    for file, figure in figures.items():
        with replacing(folder / f"{file}.png") as temporary:
            figure.savefig(temporary, **plots.PNG)
    return [folder / f"{file}.png" for file in figures]


def _compare_recipes(config: Config) -> None:
    recipes = ROOT / "results" / "recipes"
    published_log = load_csv(PUBLISHED_LOG, ["epoch", "train_accuracy", "val_accuracy"])
    found = {name: load_json(recipes / name / "metrics.json") for name in config.recipes}
    histories = {PUBLISHED: published_log}
    histories |= {name: load_csv(recipes / name / "history.csv", ["epoch"]) for name in config.recipes}
    rows = [published_row(published_log, config.evaluate.confidence)]
    rows += [recipe_row(name, of_recipe) for name, of_recipe in found.items()]
    sentence = verdict(rows)

    folder = ROOT / "results" if in_dvc_stage() else job_folder()
    save_json(folder / "comparison.json", {"rows": {row.name: row._asdict() for row in rows}, "verdict": sentence})
    with replacing(folder / "comparison.md") as temporary:
        temporary.write_text(markdown(rows, sentence, config), encoding="utf-8")
    _draw(folder / "comparison.png", histories, rows)
    if not in_dvc_stage():
        print(_terminal_table(rows, found, config))
    print(sentence)


def published_row(log: Sequence[dict[str, float]], confidence: float) -> Row:
    """The last epoch of the published log: what it calls validation was the test set."""
    last = log[-1]
    right = round(last["val_accuracy"] * TEST_DIGITS)
    low, high = metrics.wilson_interval(right, TEST_DIGITS, confidence)
    errors = TEST_DIGITS - right
    return Row(
        PUBLISHED,
        PUBLISHED_PARAMS,
        len(log),
        last["train_accuracy"],
        None,
        last["val_accuracy"],
        low,
        high,
        errors,
        TEST_DIGITS,
        1,
        errors,
    )


def recipe_row(name: str, figures: dict[str, Any]) -> Row:
    missing = [field for field in Row._fields[1:] if field not in figures]
    if missing:
        raise PipelineError(f"results/recipes/{name}/metrics.json lacks {missing[0]}: run `dvc repro` to make it anew")
    return Row(name, **{field: figures[field] for field in Row._fields[1:]})


def verdict(rows: Sequence[Row]) -> str:
    """What "99.7 %" was, and what the recipes have by the same two measures."""
    published, *recipes = rows
    sentences = [
        f"The published 99.7 % is accuracy on the training digits ({percent(published.train_accuracy)} in its last "
        f"epoch); on the test digits that run had {percent(published.test_accuracy)}."
    ]
    sentences += [
        f"{row.name} after {row.epochs} {'epoch' if row.epochs == 1 else 'epochs'}: {percent(row.train_accuracy)} in "
        f"training, {percent(row.test_accuracy)} on the test digits."
        for row in recipes
    ]
    return " ".join(sentences)


def cells(row: Row) -> list[str]:
    errors = f"{row.test_errors:,} of {row.test_examples:,}"
    if row.test_views > 1:
        errors += f" ({row.test_errors_one_view:,} by one view)"
    interval = f"{percent(row.test_accuracy)} ({100 * row.test_accuracy_low:.2f} to {100 * row.test_accuracy_high:.2f})"
    return [
        row.name,
        f"{row.num_params:,}",
        str(row.epochs),
        percent(row.train_accuracy),
        percent(row.val_accuracy),
        interval,
        errors,
    ]


def header(confidence: float) -> list[str]:
    interval = f"test accuracy ({100 * confidence:g} %)"
    return ["recipe", "parameters", "epochs", "train accuracy", "validation accuracy", interval, "test errors"]


def markdown(rows: Sequence[Row], sentence: str, config: Config) -> str:
    head = header(config.evaluate.confidence)
    return f"""{markdown_table([head, *map(cells, rows)])}

One run each (n = 1, seed {config.seed}), last epoch. Intervals are Wilson's, for the choice of test digits, not for the
seed. Train accuracy is the running figure of the epoch, as in the published log, on augmented digits where the recipe
augments. The published run trained on all 60,000 digits and had no validation set.{_about_views(rows)}

{sentence}
"""


def _about_views(rows: Sequence[Row]) -> str:
    several = [f"{row.name} by the mean of {row.test_views} views" for row in rows if row.test_views > 1]
    if not several:
        return ""
    return f"\nTest figures are of each digit as it is; {', '.join(several)}: as it is, and moved by a pixel each way."


def _terminal_table(rows: Sequence[Row], found: dict[str, Any], config: Config) -> str:
    with quiet_import():
        from pipeline import tracking

    seconds, hardware = ["–"], "no hardware known"
    for name, figures in found.items():
        known = tracking.seconds_in_training(name, figures["model_sha256"], config.data.name)
        seconds.append(f"{known[0]:,.0f}" if known else "–")
        hardware = known[1] if known else hardware
    lines = [[*header(config.evaluate.confidence), "seconds in training"]]
    lines += [[*cells(row), spent] for row, spent in zip(rows, seconds, strict=True)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = "\n".join(
        "  ".join(
            text.ljust(width) if not i else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
    return f"{table}\n(n = 1 run each; seconds on: {hardware})\n"


def _draw(path: Path, histories: dict[str, Any], rows: Sequence[Row]) -> None:
    from pipeline import plots

    tests = {
        row.name: (row.test_accuracy, metrics.Interval(row.test_accuracy_low, row.test_accuracy_high)) for row in rows
    }
    with replacing(path) as temporary:
        plots.plot_comparison(histories, tests, PUBLISHED).savefig(temporary, **plots.PNG)


if __name__ == "__main__":
    compare()
