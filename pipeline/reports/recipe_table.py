"""The table of the published run and the recipes: its rows, its words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from pipeline.base.errors import UserError
from pipeline.base.schema import Config
from pipeline.metrics import metrics
from pipeline.reports.tables import as_text, markdown_table, percent

PUBLISHED = "published"
PUBLISHED_PARAMS = 2_774_410  # its README gives 640 + 2,768,960 + 4,160 + 650
TEST_DIGITS = 10_000  # of MNIST; the published run was evaluated on all


class Row(NamedTuple):
    """A row of the table. Accuracies are shares of the last epoch, NaN or None where there is none."""

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
    test_tta_shifts: int  # images averaged per example; 1 is no test-time augmentation
    test_errors_no_tta: int


def published_row(log: Sequence[dict[str, float]], confidence: float) -> Row:
    """Return the last epoch of the published log: what it calls validation was the test set."""
    train, test = log[-1]["train_accuracy"], log[-1]["val_accuracy"]
    errors = round((1 - test) * TEST_DIGITS)
    low, high = metrics.wilson_interval(TEST_DIGITS - errors, TEST_DIGITS, confidence)
    return Row(PUBLISHED, PUBLISHED_PARAMS, len(log), train, None, test, low, high, errors, TEST_DIGITS, 1, errors)


def recipe_row(name: str, figures: dict[str, Any]) -> Row:
    """Return the row of a recipe, from its metrics.json; `epochs` are those up to the one that was kept."""
    missing = [field for field in Row._fields[1:] if field not in figures]
    if missing:
        raise UserError(f"results/recipes/{name}/metrics.json lacks {missing[0]}: run `dvc repro` to make it again")
    figures = figures | {"epochs": figures.get("best_epoch", figures["epochs"])}
    return Row(name, **{field: figures[field] for field in Row._fields[1:]})


def verdict(rows: Sequence[Row]) -> str:
    """Say what "99.7 %" was, and what the recipes have by the same two measures."""
    sentences = []
    for row in rows:
        train, test, unit = percent(row.train_accuracy), percent(row.test_accuracy), "epoch" + "s" * (row.epochs > 1)
        sentences.append(
            f"The published 99.7 % is accuracy on the training digits ({train} in its last epoch); on the test digits "
            f"that run had {test}."
            if row.name == PUBLISHED
            else f"{row.name} after {row.epochs} {unit}: {train} in training, {test} on the test examples."
        )
    return " ".join(sentences)


def cells(row: Row) -> list[str]:
    errors = f"{row.test_errors:,} of {row.test_examples:,}"
    if row.test_tta_shifts > 1:
        errors += f" with TTA, {row.test_errors_no_tta:,} without"
    interval = f"{percent(row.test_accuracy)} ({100 * row.test_accuracy_low:.2f} to {100 * row.test_accuracy_high:.2f})"
    shares = percent(row.train_accuracy), percent(row.val_accuracy)
    return [row.name, f"{row.num_params:,}", str(row.epochs), *shares, interval, errors]


def header(confidence: float) -> list[str]:
    interval = f"test accuracy ({100 * confidence:g} %)"
    return ["recipe", "parameters", "epochs", "train accuracy", "validation accuracy", interval, "test errors"]


def markdown(rows: Sequence[Row], sentences: Sequence[str], config: Config) -> str:
    said, notes = "\n\n".join(map(as_text, sentences)), ""
    if any(row.name == PUBLISHED for row in rows):
        notes += "\nThe published run trained on all 60,000 digits and used the test set for validation."
    if names := ", ".join(row.name for row in rows if row.test_tta_shifts > 1):
        notes += (
            f"\nTest accuracy of {names} is with test-time augmentation (TTA): the mean of the logits of each example "
            "unmodified and moved by a pixel each way."
        )
    return f"""{markdown_table([header(config.evaluate.confidence), *map(cells, rows)])}

One run each (n = 1, seed {config.seed}), last epoch. Wilson intervals cover the choice of test examples, not of the
seed. Train accuracy is averaged over the epoch while the weights change, on augmented examples where the
recipe augments.{notes}

{said}
"""
