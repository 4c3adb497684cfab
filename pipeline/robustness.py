"""What a recipe's network makes of corrupted digits, of digits from elsewhere, and of labels that may be wrong.

Also a stage of DVC's for each recipe that dvc.yaml lists under `robustness`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import data
from pipeline.beyond.sheet import DIGITS
from pipeline.command import entry_point, job_folder
from pipeline.config import ROOT, Config, PipelineError, in_dvc_stage
from pipeline.console import quiet_import
from pipeline.files import existing, save_csv, save_json, sha256
from pipeline.tables import models_scored, percent

SHARE_SURE = 0.999
SHOWN = 10  # digits of a kind in the picture
SUSPECTS = 50  # digits with the least probable labels, of validation and of test


@entry_point
def robustness(config: Config) -> None:
    test, val = (data.load_split(f"{name}.npz", config.data) for name in ("test", "val"))
    folder = ROOT / "results" / "robustness" / config.name if in_dvc_stage() else job_folder()
    with quiet_import():
        from pipeline import surroundings
        from pipeline.beyond import hardship, network

    cnn = network.load_network(config, run=None, alias=None, sure=SHARE_SURE)
    of_digits = config.data.classes == DIGITS
    found: dict[str, Any] = {
        "recipe": config.name,
        "seed": config.seed,
        "model_sha256": sha256(existing(ROOT / "models" / config.name / "model.keras")),
        "hardware": surroundings.hardware(),
        "versions": surroundings.versions(),
        "sure_above": cnn.sure_above if cnn.sure_above <= 1 else None,  # None for never
        "corruptions": hardship.under_corruption(cnn.probabilities, test.images, test.labels, config.seed),
        "guises": hardship.in_other_guise(cnn.probabilities, test.images, test.labels, prepared=of_digits),
    }
    if of_digits:
        found["elsewhere"] = hardship.elsewhere(cnn.probabilities, cnn.sure_above)
    save_json(folder / "robustness.json", found)
    _draw_corrupted(folder / "corrupted.png", test, found)
    for name, digits in (("test", test), ("validation", val)):
        probabilities = cnn.probabilities(digits.images)
        place, given = hardship.suspects(digits.labels, probabilities, SUSPECTS)
        columns = {
            "index": digits.source_index[place],
            "label": digits.labels[place],
            "prediction": probabilities[place].argmax(1),
            "probability_of_label": (f"{value:.6g}" for value in given),
        }
        save_csv(folder / f"suspects_{name}.csv", columns)
        _draw_suspects(
            folder / f"suspects_{name}.png", config.data.classes, digits, place, probabilities[place].argmax(1), name
        )
    shares = [of["right"] / of["digits"] for kind, of in found["corruptions"].items() if kind != "identity"]
    mean = sum(shares) / len(shares)
    logged = _log(config, found["model_sha256"], folder, mean)
    print(f"{config.name}: {percent(mean)} over {len(shares)} kinds of corrupted test images; wrote {folder}; {logged}")


def _log(config: Config, model_sha256: str, folder: Path, mean: float) -> str:
    """Log the files and the mean into the run that trained the model: where, in words. MLflow may be away."""
    with quiet_import():
        from pipeline import tracking
    try:
        run = tracking.find_trained(config.name, model_sha256, config.data.name)
        if run is None:
            return "not logged: no MLflow run of a DVC stage holds this model, `pipeline.evaluate` makes one"
        tracking.log_test_files(run, folder, "robustness", {"corrupted_accuracy": mean})
        return f"MLflow run {run.info.run_id}; {models_scored(tracking.models_scored(config.data.name))}"
    except PipelineError as error:
        return f"not logged, nor the model counted among those scored on the test examples: {error}"


def _draw_corrupted(path: Path, test: data.Examples, found: dict[str, Any]) -> None:
    from pipeline import plots
    from pipeline.beyond.corruptions import corrupted

    some = test.images[:SHOWN]
    rows = {
        f"{name}: {percent(of['right'] / of['digits'])}": [
            (image, "") for image in corrupted(some, name, found["seed"])
        ]
        for name, of in found["corruptions"].items()
    }
    plots.save_figure(path, plots.plot_example_rows(rows))


def _draw_suspects(path: Path, names: list[str], digits: data.Examples, place: Any, predictions: Any, of: str) -> None:
    from pipeline import plots

    titles = [
        f"#{digits.source_index[i]}: {names[digits.labels[i]]}?\n{names[of_it]} it says"
        for i, of_it in zip(place, predictions, strict=True)
    ]
    sheet = plots.plot_examples(digits.images[place], titles, 10, f"the {of} images whose labels it believes least")
    plots.save_figure(path, sheet)


if __name__ == "__main__":
    robustness()
