"""The table of the recipes and its sentence, by hand from given figures."""

from __future__ import annotations

import math
import re

import pytest
from conftest import ROOT

from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, load_json, save_json
from pipeline.base.project import open_project
from pipeline.reports import recipe_table

FIGURES = {
    "num_params": 103_514,
    "epochs": 1,
    "train_accuracy": 0.98765,
    "val_accuracy": math.nan,
    "test_accuracy": 0.99,
    "test_accuracy_low": 0.98786,
    "test_accuracy_high": 0.99177,
    "test_errors": 1_100,
    "test_examples": 110_000,
    "test_tta_shifts": 1,
    "test_errors_no_tta": 1_100,
    "test_loss": 0.03,  # not in the table
}


@pytest.fixture
def published() -> recipe_table.Row:
    return recipe_table.published_row(load_csv(open_project(ROOT).published_log, ["epoch"]), 0.95)


def test_the_published_row_is_the_last_epoch_of_its_log(published):
    assert published.name == "published" and published.num_params == 2_774_410
    assert published.epochs == 15 and published.train_accuracy == 0.9968
    assert published.val_accuracy is None, "what it calls validation was the test set"
    assert published.test_accuracy == 0.9753
    assert published.test_errors == 247 and published.test_examples == 10_000
    z, total, share = 1.959963984540054, 10_000, 0.9753
    centre, scale = share + z**2 / (2 * total), 1 + z**2 / total
    reach = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    assert published.test_accuracy_low == pytest.approx((centre - reach) / scale, abs=1e-9)
    assert published.test_accuracy_high == pytest.approx((centre + reach) / scale, abs=1e-9)


def test_a_recipes_row_takes_its_fields_and_no_other():
    row = recipe_table.recipe_row("accurate", FIGURES)
    assert row._asdict() | {"test_loss": 0.03} == FIGURES | {"name": "accurate"}


@pytest.mark.parametrize("field", recipe_table.Row._fields[1:])
def test_metrics_that_lack_a_field_are_refused(field):
    figures = {key: value for key, value in FIGURES.items() if key != field}
    with pytest.raises(UserError, match=rf"^results/recipes/accurate/metrics\.json lacks {field}: run `dvc repro`"):
        recipe_table.recipe_row("accurate", figures)


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.9753, "97.53 %"), (1.0, "100.00 %"), (0.0, "0.00 %"), (0.99996, "100.00 %"), (math.nan, "–"), (None, "–")],
)
def test_percent(share, text):
    assert recipe_table.percent(share) == text


def test_the_sentence_tells_training_from_test(published):
    fine = recipe_table.recipe_row("accurate", FIGURES)
    assert recipe_table.verdict([published, fine, fine._replace(name="baseline", epochs=15)]) == (
        "The published 99.7 % is accuracy on the training digits (99.68 % in its last epoch); on the test digits that "
        "run had 97.53 %. "
        "accurate after 1 epoch: 98.77 % in training, 99.00 % on the test examples. "
        "baseline after 15 epochs: 98.77 % in training, 99.00 % on the test examples."
    )


def test_cells_of_the_published_row_and_of_a_recipe(published, tmp_path):
    assert recipe_table.cells(published) == [
        "published",
        "2,774,410",
        "15",
        "99.68 %",
        "–",
        "97.53 % (97.21 to 97.82)",
        "247 of 10,000",
    ]
    row = recipe_table.recipe_row("accurate", FIGURES)
    assert recipe_table.cells(row) == [
        "accurate",
        "103,514",
        "1",
        "98.77 %",
        "–",
        "99.00 % (98.79 to 99.18)",
        "1,100 of 110,000",
    ]
    assert recipe_table.cells(row._replace(val_accuracy=0.9912))[4] == "99.12 %"
    save_json(tmp_path / "metrics.json", FIGURES)
    without_validation = load_json(tmp_path / "metrics.json")
    assert without_validation["val_accuracy"] is None
    assert recipe_table.cells(recipe_table.recipe_row("accurate", without_validation)) == recipe_table.cells(row)
    with_tta = row._replace(test_tta_shifts=5, test_errors_no_tta=1_234)
    assert recipe_table.cells(with_tta)[-1] == "1,100 of 110,000 with TTA, 1,234 without"


def test_the_table_names_seed_and_confidence_and_ends_with_the_sentence(published, compose):
    rows = [published, recipe_table.recipe_row("accurate", FIGURES)]
    text = recipe_table.markdown(rows, ["The sentence.", "Another."], compose("seed=7", "evaluate.confidence=0.9"))
    lines = text.splitlines()
    assert [re.sub(" +", " ", line) for line in (lines[0], *lines[2:4])] == [
        "| recipe | parameters | epochs | train accuracy | validation accuracy | test accuracy (90 %) | test errors |",
        "| published | 2,774,410 | 15 | 99.68 % | – | 97.53 % (97.21 to 97.82) | 247 of 10,000 |",
        "| accurate | 103,514 | 1 | 98.77 % | – | 99.00 % (98.79 to 99.18) | 1,100 of 110,000 |",
    ]
    assert lines[4] == "" and lines[5].startswith("One run each (n = 1, seed 7), last epoch.")
    assert text.endswith("\n\nThe sentence.\n\nAnother.\n") and "TTA" not in text
    with_tta = recipe_table.markdown(
        [published, rows[1]._replace(test_tta_shifts=5)], ["The sentence.", "Another."], compose()
    )
    assert "Test accuracy of accurate is with test-time augmentation" in with_tta
