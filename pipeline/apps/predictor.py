"""A trained model to predict with: a recipe's, an MLflow run's, or that of an alias in the model registry."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.apps.digit_finder import Page, find_digits, finds_classes_of
from pipeline.apps.images import fitted, read_pages
from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, load_yaml, require_file
from pipeline.base.hydra import load_network_of_recipe
from pipeline.base.keras_import import load_keras
from pipeline.base.project import Project
from pipeline.base.schema import Data
from pipeline.base.verb_schemas import ExportConfig, PredictorConfig
from pipeline.data.examples import SMALL_LABELS, check_split
from pipeline.metrics import metrics

UNSURE = 0.06  # share of the validation examples that are looked at again, four times each


class Predictor(NamedTuple):
    probabilities: Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # uint8 [N, H, W] or [N, H, W, 3] to [N, K]
    threshold: float  # the model abstains where its highest probability is lower; infinite: it always abstains
    description: str
    data: Data  # the data set that it was trained on
    # Which of uint8 [N, 28, 28] are rather letters or other signs than digits, [N]; none, where that was not learnt.
    are_signs: Callable[[NDArray[np.uint8]], NDArray[np.bool_]] = lambda images: np.zeros(len(images), bool)

    def abstains(self, probabilities: NDArray[np.float64]) -> NDArray[np.bool_]:
        highest = [float(f"{value:.6g}") for value in probabilities.max(1)]  # as those that the threshold is one of
        return np.array(highest) < self.threshold


def read_page(pixels: NDArray[np.uint8], data: Data) -> Page:
    """Return the digits on a page, or of other data than MNIST's digits the one picture that it is, as `adopt` fits the
    pictures to train on: without boxes."""
    if finds_classes_of(data):
        return find_digits(pixels)
    return Page(pixels, [], fitted(pixels, data.shape)[None], np.zeros(1, bool))


def read_file(source: Path | bytes, name: str, data: Data) -> tuple[list[tuple[int, str, Page]], list[str]]:
    """Return the pages of a file or its bytes, each with its number and name, and what is said of empty ones.

    A file that cannot be read, or has nothing on any page, is a UserError.
    """
    found: list[tuple[int, str, Page]] = []
    empty: list[str] = []
    pages = list(read_pages(source, name, data.channels))
    for number, pixels in enumerate(pages, 1):
        label = f"{name}, page {number} of {len(pages)}" if len(pages) > 1 else name
        try:
            found.append((number, label, read_page(pixels, data)))
        except UserError as error:
            empty.append(f"{label}: {error}")
    if not found:
        raise UserError("; ".join(empty))
    return found, empty


@contextmanager
def model_files(project: Project, config: PredictorConfig | ExportConfig) -> Iterator[tuple[Path, Path, str, int]]:
    """Yield the .keras file, val_predictions.csv, a description and evaluate.tta_shifts of run `run`, of `alias`, or
    else of the recipe.

    The files may be temporary. A model that does not exist, or was trained on other data, is a UserError.
    """
    if config.run and config.alias:
        raise UserError(f"run={config.run} and alias={config.alias}: give one of them")
    if not config.run and not config.alias:
        model = require_file(project.model(config.name))
        check_split(project, config.data)
        predictions = require_file(project.recipe_results(config.name) / "val_predictions.csv")
        load_network_of_recipe(project, config)
        yield model, predictions, f"recipe {config.name}", config.evaluate.tta_shifts
        return
    from pipeline.tracking import queries, registry  # takes seconds

    run_id = config.run or registry.run_of(project, config.alias or "", config.data.name)
    recorded = queries.find_run(project, run_id, config.data)
    with tempfile.TemporaryDirectory() as folder:
        model = queries.recorded_model(recorded, Path(folder))
        queries.load_network(project, recorded)
        predictions = queries.artifact(recorded, "val_predictions.csv", Path(folder))
        evaluated = load_yaml(queries.artifact(recorded, "config.yaml", Path(folder))).get("evaluate", {})
        tta_shifts = min(evaluated.get("tta_shifts", 1), config.evaluate.tta_shifts)  # where the command asks for one
        description = f"MLflow run {run_id}" + (f", {config.alias}" if config.alias else "")
        yield model, predictions, description, tta_shifts


def load_predictor(project: Project, config: PredictorConfig, again: bool = True) -> Predictor:
    """Load the model of `model_files`, and choose its thresholds from its validation predictions.

    `again`: it looks a second time, with test-time augmentation, at what it is unsure of, if it was evaluated with it;
    and it asks the network of `python -m pipeline.signs`, if there is one.
    """
    with model_files(project, config) as (model_file, predictions, description, tta_shifts):
        load_keras()
        from pipeline.model.files import load_model
        from pipeline.model.inference import inference, looks_again, start

        start(seed=0)
        model = load_model(model_file)
        highest_of = "probability_0" if len(config.data.classes) <= SMALL_LABELS else "probability_top_0"
        rows = load_csv(predictions, ["label", "prediction", highest_of], least=0)
    if (shape := list(model.input_shape[1:])) != config.data.shape:
        raise UserError(f"{description} takes images of {shape}, expected {config.data.shape}: name another")
    highest = np.array([max(value for key, value in row.items() if key.startswith("probability_")) for row in rows])
    correct = np.array([row["label"] == row["prediction"] for row in rows], bool)
    threshold = confidence_threshold(highest, correct, config.confidence)
    infer = looks_again(model, unsure_below(highest)) if again and tta_shifts > 1 else inference(model)
    predictor = Predictor(lambda images: metrics.softmax(infer(images)), threshold, description, config.data)
    if not (again and knows_signs(project, config.data)):
        return predictor
    try:
        sign_or_digit = inference(load_model(project.signs / "model.keras"))
    except UserError as error:
        raise UserError(f"{error}; or delete {project.signs}, which `python -m pipeline.signs` makes again") from None
    return predictor._replace(are_signs=lambda images: sign_or_digit(images).argmax(1) == 0)


def knows_signs(project: Project, data: Data) -> bool:
    """Return whether there is a network that tells the digits of `data` from other signs."""
    return finds_classes_of(data) and (project.signs / "model.keras").is_file()


def unsure_below(probability: NDArray[np.float64]) -> float:
    """Return the highest `probability` [N] that at most a share UNSURE of them is below; 0 if there are none."""
    return float(np.sort(probability)[int(UNSURE * len(probability))]) if len(probability) else 0.0


def confidence_threshold(probability: NDArray[np.float64], correct: NDArray[np.bool_], share: float) -> float:
    """Return the lowest `probability` [N] such that of all examples with at least it, a `share` is `correct` [N].

    Infinite where there is none: a wrong prediction may have the highest probability of all.
    """
    ascending = np.unique(probability)
    return next((float(value) for value in ascending if correct[probability >= value].mean() >= share), math.inf)
