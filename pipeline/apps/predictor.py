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

LOOKED_AT_AGAIN = 0.06  # share of the validation examples, four times each
UNSURE, SIGN, JOINED = "unsure", "unsure, perhaps a letter or another sign", "several digits that touch"


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

    def answers(
        self, images: NDArray[np.uint8], joined: NDArray[np.bool_] | bool = False
    ) -> tuple[NDArray[np.float64], list[str]]:
        """Return the probabilities [N, K] of images, of which some are `joined`, and why it abstains from each, or
        "" where it does not."""
        probabilities = self.probabilities(images)
        reasons = {JOINED: joined, SIGN: self.are_signs(images), UNSURE: self.abstains(probabilities)}
        return probabilities, np.select([*reasons.values()], [*reasons], "").tolist()


def read_page(pixels: NDArray[np.uint8], data: Data) -> Page:
    """Return the digits on a page, or of other data than MNIST's digits the one picture that it is, as `adopt` fits the
    pictures to train on: without boxes."""
    if finds_classes_of(data):
        return find_digits(pixels)
    return Page(pixels, [], fitted(pixels, data.shape)[None], np.zeros(1, bool))


def read_file(source: Path | bytes, name: str, data: Data) -> Iterator[tuple[int, str, Page | str]]:
    """Yield the number, the name and the digits of each page of a file or its bytes, or why a page has none.

    A page that is damaged, or nothing on any page, is a UserError.
    """
    read = 0
    for number, (label, pixels) in enumerate(read_pages(source, name, data.channels), 1):
        try:
            page: Page | str = read_page(pixels, data)
            read += 1
        except UserError as error:
            if label == name:  # its only page
                raise UserError(f"{name}: {error}") from None
            page = str(error)
        yield number, label, page
    if not read:
        raise UserError(f"{name} has digits on none of its pages")


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
    """Return the highest `probability` [N] such that at most LOOKED_AT_AGAIN of them are below; 0 if there are none."""
    return float(np.sort(probability)[int(LOOKED_AT_AGAIN * len(probability))]) if len(probability) else 0.0


def confidence_threshold(probability: NDArray[np.float64], correct: NDArray[np.bool_], share: float) -> float:
    """Return the lowest `probability` [N] such that of all examples with at least it, a `share` is `correct` [N].

    Infinite where there is none: a wrong prediction may have the highest probability of all.
    """
    ascending = np.unique(probability)
    return next((float(value) for value in ascending if correct[probability >= value].mean() >= share), math.inf)
