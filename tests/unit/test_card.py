"""The card of a model says the run's own figures, and of what they are."""

from __future__ import annotations

import math

from pipeline.reports.card import model_card

FIGURES = {
    "test_accuracy": 0.975,
    "test_accuracy_low": 0.9,
    "test_accuracy_high": 0.98765,
    "test_errors": 5,
    "test_examples": 200,
    "test_tta_shifts": 5,
    "test_errors_no_tta": 7,
    "test_calibration_error": 0.0123,
    "confidence": 0.9,
    "val_accuracy": math.nan,
    "train_accuracy": 1.0,
}


def test_a_card_says_every_figure_with_what_it_is_of(compose):
    config = compose("recipe=accurate", "data=fashion_mnist", "seed=7")
    recall = {"Bag": 0.5, "Coat": 0.25, "Shirt": math.nan}
    text = model_card(config, 1234, 3, "", FIGURES, recall)
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "97.50 %" in lines["test accuracy"] and "200 test images" in lines["test accuracy"]
    assert "90.00 % to 98.77 %" in lines["its 90 % interval"]
    assert " 5 |" in lines["test errors"] and "with test-time augmentation" in lines["test errors"]
    assert " 7 |" in lines["test errors without it"]
    assert "–" in lines["validation accuracy"]
    assert "1,234 parameters, trained 3 epochs with seed 7, on randomly moved images" in text
    assert "Weakest class: Coat, 25.00 % of its test images correct" in text
    assert "10 classes: T-shirt/top, Trouser" in text and "data=fashion_mnist run=" in text


def test_a_plain_recipe_is_not_said_to_move_its_images(compose):
    text = model_card(compose("recipe=baseline"), 1, 1, "", FIGURES | {"test_tta_shifts": 1}, {})
    assert "moved" not in text and "Weakest" not in text


def test_a_card_says_that_its_epoch_was_chosen_on_the_validation_examples(compose):
    kept = "epoch 2 of 3, the best by val_accuracy on the validation examples"
    text = model_card(compose("recipe=baseline"), 1, 3, kept, FIGURES, {})
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert f"trained 3 epochs with seed 0.\nIts weights are those of {kept}.\n" in text
    assert "chosen on them, so it is biased upward" in lines["validation accuracy"]
    assert "averaged over that epoch" in lines["training accuracy"]
