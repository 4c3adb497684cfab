"""Compare tracked runs: recipes, single runs, groups of seeds, all of a sweep, or what a filter matches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.files import save_json, write_text
from pipeline.base.project import Project
from pipeline.base.verb_schemas import CompareConfig
from pipeline.data.examples import load_split
from pipeline.reports import comparison_report as report
from pipeline.reports import plots
from pipeline.reports.tables import as_text, plain
from pipeline.reports.verdicts import Side, read_predictions, same_examples, verdicts
from pipeline.tracking import queries
from pipeline.tracking.environment import run_tags
from pipeline.tracking.store import open_store, translate_errors

MAX_TITLE = 200  # characters of a comparison's name


def compare_runs(project: Project, config: CompareConfig) -> None:
    """Compare what `a` and `b` name by their predictions of the same examples; write, log and print the report."""
    groups: dict[str, list[Run]] = {}
    for what in filter(None, (config.a, config.b)):
        for group, runs in queries.find_runs(project, what, config.data.name).items():
            if group in groups:
                raise UserError(f"{what} is the same configuration as the one before it: give two")
            groups[group] = runs
    if len(groups) < 2:
        raise UserError("one configuration alone: give a=<what> and b=<what>, or the id of a sweep of several")
    runs = [run for members in groups.values() for run in members]
    split = "test" if all("evaluated_by" in run.data.tags for run in runs) else "validation"
    if split == "validation" and any(run.data.params.get("data.val_examples") == "0" for run in runs):
        raise UserError(
            "a run has no validation examples: evaluate all on the test examples (pipeline.evaluate run=<id>)"
        )
    with tempfile.TemporaryDirectory() as temporary:
        sides, examples, labels = _sides(list(groups.values()), split, Path(temporary))
    found = verdicts(sides, config.evaluate.confidence, split)
    scored = queries.models_scored(project, config.data.name)
    text = report.markdown(sides, found, config.evaluate.confidence, split, scored)
    folder = project.job_folder
    write_text(folder / "comparison.md", text)
    save_json(folder / "comparison.json", report.as_json(sides, found, split, scored))
    files = [folder / "comparison.md", folder / "comparison.json"]
    files += _draw(project, sides, examples, labels, split, config)
    title = f"compare {' against '.join(side.name for side in sides)}"[:MAX_TITLE]
    run_id = _log(project, config.data.name, title, files, text, runs)
    print(text)
    print(f"wrote {folder}; MLflow run {run_id}")


def _sides(
    groups: list[list[Run]], split: str, folder: Path
) -> tuple[list[Side], NDArray[np.int64], NDArray[np.int64]]:
    """Return the sides by their runs' predictions, with the examples that were predicted and their labels."""
    predictions = {}
    for run in (run for runs in groups for run in runs):
        own = folder / run.info.run_id
        own.mkdir()
        file = queries.artifact(run, "predictions.csv" if split == "test" else "val_predictions.csv", own)
        predictions[run.info.run_id] = read_predictions(file)
    examples, labels = same_examples(predictions, split)
    sides = []
    for runs in groups:
        traits = [queries.traits(run) for run in runs]
        keys = dict.fromkeys(key for of_run in traits for key in of_run)
        params = runs[0].data.params
        sides.append(
            Side(
                plain(runs[0].data.tags["recipe"]),
                {key: {of_run.get(key, "–") for of_run in traits} for key in keys},
                np.array([predictions[run.info.run_id].predictions == labels for run in runs]),
                [sum(seconds) for run in runs if (seconds := queries.curve(run, "epoch_seconds"))],
                int(params.get("model.num_params", 0)),
                int(params.get("model.macs", 0)),  # earlier code logged none
            )
        )
    return report.disambiguate_names(sides), examples, labels


def _draw(
    project: Project,
    sides: Sequence[Side],
    examples: NDArray[np.int64],
    labels: NDArray[np.int64],
    split: str,
    config: CompareConfig,
) -> list[Path]:
    """Draw accuracies by side and, of the first two, the examples on which they differ most: the files drawn."""
    # Only to draw the examples: what is compared are predictions, made and counted by evaluate.
    stored = load_split(project, {"test": "test", "validation": "val"}[split], config.data)
    rows = {int(index): row for row, index in enumerate(stored.source_index)}
    a, b = sides[:2]
    shown = report.most_discordant_examples(a, b)
    figures = {"comparison": plots.plot_sides({side.name: side.accuracies for side in sides}, split)}

    def captioned(i: int) -> tuple[NDArray[np.uint8], str]:
        caption = f"#{examples[i]}: {config.data.classes[labels[i]]}\n{report.correct_counts(a, b, i)}".rstrip()
        return stored.images[rows[int(examples[i])]], caption

    indices = [int(i) for kind in shown.values() for i in kind]
    if indices and all(int(examples[i]) in rows for i in indices):
        figures["examples"] = plots.plot_example_rows(
            {kind: [captioned(int(i)) for i in one] for kind, one in shown.items()}
        )
    for name, figure in figures.items():
        plots.save_figure(project.job_folder / f"{name}.png", figure)
    return [project.job_folder / f"{name}.png" for name in figures]


@translate_errors()
def _log(
    project: Project, experiment_name: str, title: str, files: Sequence[Path], answer: str, compared: Sequence[Run]
) -> str:
    """Log the comparison as a run of its own, with links to what was compared: its id."""
    client, experiment = open_store(project, experiment_name)
    links = [f"[{as_text(run.info.run_name)}](#/experiments/{experiment}/runs/{run.info.run_id})" for run in compared]
    note = f"{answer}\nRuns compared: {', '.join(links)}\n"
    ids = " ".join(run.info.run_id for run in compared)
    tags = run_tags(project, "pipeline.compare") | {"mlflow.note.content": note, "compared": ids}
    run = client.create_run(experiment, run_name=title, tags=tags)
    for file in files:
        client.log_artifact(run.info.run_id, str(file))
    client.set_terminated(run.info.run_id)
    return str(run.info.run_id)
