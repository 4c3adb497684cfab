"""The files of a trained network: a recipe's, an MLflow run's, or the champion's."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pipeline.config import ROOT, Config, PipelineError
from pipeline.data import PROCESSED, check_split
from pipeline.files import existing, load_json


class Chosen(NamedTuple):
    model: Path  # the .keras file
    validation: Callable[[], Path]  # brings its val_predictions.csv
    words: str  # which network it is


@contextmanager
def files_of(config: Config, run: str | None, alias: str | None) -> Iterator[Chosen]:
    """The files of run `run`, of the registry's `alias`, or of the recipe, for the block; without, a PipelineError."""
    if run and alias:
        raise PipelineError(f"run={run} beside alias={alias}: give one of them")
    if not run and not alias:
        predictions = ROOT / "results" / "recipes" / config.name / "val_predictions.csv"
        model = existing(ROOT / "models" / config.name / "model.keras")
        check_split(load_json(PROCESSED / "split.json"), config.data, PROCESSED)  # what it was trained on
        yield Chosen(model, lambda: existing(predictions), f"recipe {config.name}")
        return
    from pipeline import tracking  # takes seconds, and a recipe does without
    from pipeline.beyond import registry

    run = run or registry.run_of(alias or "", config.data.name)
    found = tracking.find_run(run, config.data.name)
    with tempfile.TemporaryDirectory() as folder:
        yield Chosen(
            tracking.recorded_model(found, Path(folder)),
            lambda: tracking.artifact(found, "val_predictions.csv", Path(folder)),
            f"MLflow run {run}" + (f", {alias}" if alias else ""),
        )
