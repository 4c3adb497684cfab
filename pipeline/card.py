"""The card of a trained model: what it is of, its figures and their limits, from the run's own facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.config import Config
from pipeline.tables import as_text, markdown_table, percent


def card(config: Config, num_params: int, epochs: int, figures: Mapping[str, Any], recall: Mapping[str, float]) -> str:
    """In Markdown. `figures` are those of metrics.json, `recall` is by the name of the class, NaN where it has none."""
    data, augment, views = config.data, config.augment, figures["test_views"]
    height, width = data.image_shape
    interval = f"{percent(figures['test_accuracy_low'])} to {percent(figures['test_accuracy_high'])}"
    rows = [
        ["", "", "of"],
        ["test accuracy", percent(figures["test_accuracy"]), f"{figures['test_examples']:,} test images"],
        [f"its {100 * figures['confidence']:g} % interval", interval, "Wilson's, for the choice of images"],
        ["test errors", f"{figures['test_errors']:,}", _seen(views)],
        ["test errors, each seen once", f"{figures['test_errors_one_view']:,}", "what load_model gives"],
        ["validation accuracy", percent(figures["val_accuracy"]), "training images set aside"],
        ["training accuracy", percent(figures["train_accuracy"]), "the last epoch, running"],
        ["calibration error", percent(figures["test_calibration_error"]), "test images"],
    ]
    known = {name: share for name, share in recall.items() if share == share}
    worst = min(known, key=known.__getitem__) if known else None
    weakest = f" Weakest class: {as_text(worst)}, {percent(known[worst])} of its test images right." if worst else ""
    augmented = any((augment.rotation, augment.scale, augment.stretch, augment.shear, augment.shift))
    moved, names = ", on randomly moved images" if augmented else "", ", ".join(map(as_text, data.classes))
    return f"""# {as_text(config.name)}, a network for {as_text(data.name)}

{num_params:,} weights, trained {epochs} epochs with seed {config.seed}{moved}. It takes uint8 [N, {height}, {width}],
grey as its training images, and gives a logit for each of {len(data.classes)} classes: {names}.

{markdown_table(rows)}

One run (n = 1): another seed moves every figure.{weakest}

## Limits

It knows images like its training images and no others: whatever it is given, it answers with one of its classes, and a
high probability is no proof. What noise, other pens and other colours do to it is measured by `pipeline.robustness`.

## Use and reproduce

    keras.saving.load_model("model.keras")(images)
    python -m pipeline.evaluate data={data.name} run=<the MLflow run that holds this card>     # these figures
    python -m pipeline.reproduce data={data.name} run=<the same>                               # this model

Its configuration, commit, versions, hardware and the hashes of its data stand in that run.
"""


def _seen(views: int) -> str:
    return "each seen once" if views == 1 else f"the mean of {views} views: as it is, and moved by a pixel each way"
