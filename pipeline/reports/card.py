"""The card of a trained model: what it was trained on, its metrics and their limits, from the run's own facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import shorten
from pipeline.base.schema import Config
from pipeline.reports.tables import as_text, markdown_table, percent

MOST_NAMED = 256  # classes


def model_card(
    config: Config, num_params: int, epochs: int, kept: str, figures: Mapping[str, Any], recall: Mapping[str, float]
) -> str:
    """Return the card in Markdown. `figures` are those of metrics.json; `recall` is by class, NaN without examples.

    `kept` says which epoch's model it is, where it is not that of the last.
    """
    data, tta = config.data, "with" if figures["test_tta_shifts"] > 1 else "without"
    shape = ", ".join(map(str, ["N", *data.shape]))
    form = "grey" if data.channels == 1 else "in colour"
    interval = f"{percent(figures['test_accuracy_low'])} to {percent(figures['test_accuracy_high'])}"
    chosen = "; the epoch was chosen on them, so it is biased upward" if kept else ""
    rows = [
        ["", "", "measured on"],
        ["test accuracy", percent(figures["test_accuracy"]), f"{figures['test_examples']:,} test images"],
        [f"its {100 * figures['confidence']:g} % interval", interval, "Wilson, for the choice of images"],
        ["test errors", f"{figures['test_errors']:,}", f"{tta} test-time augmentation"],
        ["test errors without it", f"{figures['test_errors_no_tta']:,}", "what load_model alone gives"],
        ["validation accuracy", percent(figures["val_accuracy"]), "training images held out" + chosen],
        [
            "training accuracy",
            percent(figures["train_accuracy"]),
            f"averaged over {'that' if kept else 'the last'} epoch",
        ],
        ["calibration error", percent(figures["test_calibration_error"]), "test images"],
    ]
    known = {name: share for name, share in recall.items() if share == share}
    worst = min(known, key=known.__getitem__) if known else None
    weakest = f" Weakest class: {as_text(worst)}, {percent(known[worst])} of its test images correct." if worst else ""
    moved, names = ", on randomly moved images" if config.augment.is_on else "", ", ".join(map(as_text, data.classes))
    epoch = f"\nIts weights are those of {kept}." if kept else ""
    if len(data.classes) > MOST_NAMED:
        names = shorten(names)
    return f"""# {as_text(config.name)}, a model for {as_text(data.name)}

{num_params:,} parameters, trained {epochs} epochs with seed {config.seed}{moved}.{epoch}
It takes uint8 [{shape}], {form} like its training images, and returns a logit for each of
{len(data.classes)} classes: {names}.

{markdown_table(rows)}

One run (n = 1): with another seed every figure differs.{weakest}

## Limits

It was trained on images like these and no others: it answers with one of its classes whatever the image shows, and a
high probability is no proof. `pipeline.robustness` measures it under noise, other pens and other colours.

## Use and reproduce

    keras.saving.load_model("model.keras")(images)
    python -m pipeline.evaluate data={data.name} run=<the MLflow run that holds this card>     # these figures
    python -m pipeline.reproduce data={data.name} run=<the same>                               # this model

Its configuration, commit, versions, hardware and the hashes of its data stand in that run.
"""
