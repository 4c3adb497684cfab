"""Stage 5: the published run and every recipe of params.yaml, in one table, one picture and one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import metrics
from pipeline.command import entry_point, job_folder
from pipeline.config import ROOT, Config, PipelineError, in_dvc_stage
from pipeline.console import quiet_import
from pipeline.files import load_csv, load_json, replacing, save_json

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
def compare(config: Config) -> None:
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
    lines = [head, ["-"] + ["-:"] * (len(head) - 1), *map(cells, rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"""{table}

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


def percent(share: float | None) -> str:
    return "–" if share is None or share != share else f"{100 * share:.2f} %"


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
