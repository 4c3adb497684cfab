"""The report to send of the recipes that `dvc repro` trained: what stands in it, from the files in results/ alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pipeline.base.files import load_yaml
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.base.validation import flatten, from_recorded
from pipeline.reports import recipe_table
from pipeline.reports.answers import mistakes_and_calibration, telling_examples
from pipeline.reports.comparison_report import differing_table
from pipeline.reports.report import Section
from pipeline.reports.tables import as_text, markdown_table
from pipeline.reports.verdicts import Predictions, Side


def sections(
    project: Project,
    config: Config,
    rows: Sequence[recipe_table.Row],
    answers: Sequence[str],
    others: Sequence[str],
    curves: Figure,
    metrics: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Predictions],
    images: Mapping[int, NDArray[np.uint8]],
    versions: str,
) -> list[Section]:
    """Return the sections, of recipes by their names; `answers` are those of tests, `others` what else is to be said.

    Nothing that varies from run to run is in them: no time, machine, commit or path.
    """
    sides = _sides(project, config, metrics, predictions)
    bold = "\n\n".join(f"**{as_text(answer)}**" for answer in answers)
    table = recipe_table.markdown(rows, others, config)
    of_each = {name: [one] for name, one in predictions.items()}
    parts = [
        Section("", f"{bold}\n\n{table}"),
        Section("Learning curves", "", {"Errors over the epochs and on the test examples": curves}),
        *mistakes_and_calibration(of_each, config.data.classes, config.evaluate.calibration_bins),
    ]
    if len(sides) > 1:
        parts.append(telling_examples(sides, of_each, images, config.data.classes))
        parts.append(Section("Configuration", differing_table(sides)))
    costs = [["recipe", "parameters", "MACs", "epochs", "SHA-256 of model.keras"]]
    epochs = {row.name: str(row.epochs) for row in rows}
    for side in sides:
        sha256 = str(metrics[side.name]["model_sha256"])[:16]
        macs = f"{side.macs:,}" if side.macs else "–"
        costs.append([side.name, f"{side.num_params:,}", macs, epochs[side.name], f"{sha256}…"])
    reproduce = (
        f"MACs are multiply-accumulates of one pass of one image, without test-time augmentation.\n\n"
        f"Compared with {versions}. In a clone of the repository, `make env` installs the same versions, from "
        f"requirements.lock, and `make repro` makes this report again; one recipe alone is\n\n"
        + "".join(f"    dvc repro evaluate@{side.name}\n" for side in sides)
        + "\nOn the same type of CPU the models have the same bytes."
    )
    return [*parts, Section("Cost, and how to reproduce it", f"{markdown_table(costs)}\n\n{reproduce}")]


def _sides(
    project: Project,
    config: Config,
    metrics: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, Predictions],
) -> list[Side]:
    """Return each recipe as a side of one run, with all values of its configuration, defaults too."""
    sides, shared = [], config.model_dump(include={"dataset", "recipes"})  # which no recipe's file holds
    for name, one in predictions.items():
        file = project.recipe_results(name) / "config.yaml"
        values = flatten(from_recorded(shared | load_yaml(file), str(file)).model_dump(exclude={"name"}))
        sides.append(
            Side(
                name,
                {key: {value} for key, value in values.items()},
                (one.predictions == one.labels)[None],
                [],
                metrics[name]["num_params"],
                metrics[name].get("macs") or 0,  # none is known of some networks of the user's own
            )
        )
    return sides
