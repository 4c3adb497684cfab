"""Compare tracked runs: recipes, single runs, groups of seeds, all of a sweep, what a filter matches; or our baseline
and the published run."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from mlflow.entities import Run
from numpy.typing import NDArray

from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, save_json, write_text
from pipeline.base.hydra import compose
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.base.verb_schemas import CompareConfig
from pipeline.data.examples import load_split
from pipeline.experiments import folds
from pipeline.experiments.run_report import learning_curves, provenance
from pipeline.metrics.metrics import Interval
from pipeline.metrics.significance import FEWEST, prediction_interval
from pipeline.reports import comparison_report as report
from pipeline.reports import plots, sheets
from pipeline.reports.answers import mistakes_and_calibration, telling_examples
from pipeline.reports.report import Section, save_report
from pipeline.reports.tables import as_text, percent, plain
from pipeline.reports.verdicts import Predictions, Side, read_predictions, same_examples, verdicts
from pipeline.tracking import queries
from pipeline.tracking.environment import run_tags
from pipeline.tracking.fingerprint import fingerprint
from pipeline.tracking.notes import NOTE
from pipeline.tracking.store import open_store, translate_errors


def compare_runs(project: Project, config: CompareConfig) -> None:
    """Compare what `a` and `b` name by their predictions of the same examples; write, log and print the report."""
    named = [queries.find_runs(project, what, config.data.name) for what in filter(None, (config.a, config.b))]
    groups = queries.by_group([run for found in named for members in found.values() for run in members])
    if len(groups) < 2:
        raise UserError(
            "one configuration alone, and its seeds are not compared with each other: give a=<what> and b=<what> of "
            "two, or the id of a sweep of several"
        )
    runs = [run for members in groups.values() for run in members]
    folded = [folds.count_folds(run) > 0 for run in runs]
    if any(folded) and not all(folded):
        raise UserError("one side is a cross-validation and another is not: train both with sweep=folds, or neither")
    split = "test" if all("evaluated_by" in run.data.tags for run in runs) else "validation"
    split = "out-of-fold" if any(folded) else split
    if split == "validation" and any(run.data.params.get("data.val_examples") == "0" for run in runs):
        raise UserError(
            "a run has no validation examples: evaluate all on the test examples (pipeline.evaluate run=<id>)"
        )
    name = "predictions.csv" if split == "test" else "val_predictions.csv"
    sides, answers = _load_sides(groups, name, split)
    examples, labels = answers[sides[0].name][0].example, answers[sides[0].name][0].labels
    found = verdicts(sides, config.evaluate.confidence, split)
    scored = queries.models_scored(project, config.data.name)
    text = report.markdown(sides, found, config.evaluate.confidence, split, scored)
    # Only to draw the examples: what is compared are predictions, made and counted by evaluate.
    parts = ["train", "val"] if any(folded) else [split]
    loaded = [load_split(project, {"test": "test", "validation": "val"}.get(part, part), config.data) for part in parts]
    images = {index: image for part in loaded for index, image in zip(part.source_index, part.images, strict=True)}

    def captioned(i: int) -> tuple[NDArray[np.uint8], str]:
        counts = " : ".join(f"{side.correct[:, i].sum()} of {len(side.correct)}" for side in sides[:2])
        return images[examples[i]], f"#{examples[i]}: {config.data.classes[labels[i]]}\n{counts}"

    chosen = report.most_discordant_examples(sides[0], sides[1])
    rows = {kind: [captioned(i) for i in positions if examples[i] in images] for kind, positions in chosen.items()}
    figures = {"comparison.png": plots.plot_sides({side.name: side.accuracies for side in sides}, split)}
    if any(rows.values()):
        figures["examples.png"] = sheets.plot_example_rows(rows)
    members = dict(zip((side.name for side in sides), groups.values(), strict=True))
    sections = [
        Section("", text, {f"{split} accuracy of every run": figures["comparison.png"]}),
        *learning_curves(members),
        *mistakes_and_calibration(answers, config.data.classes, config.evaluate.calibration_bins),
        telling_examples(sides, answers, images, config.data.classes),
        provenance(members),
    ]
    folder = project.job_folder
    write_text(folder / "comparison.md", text)
    save_json(folder / "comparison.json", report.as_json(sides, found, split, scored))
    for name, figure in figures.items():
        plots.save_figure(folder / name, figure)
    title = f"compare {' against '.join(members)}"[: queries.MAX_NAME]
    save_report(folder / "report.html", title.replace("compare", "Comparison:", 1), sections)
    files = [folder / name for name in ("comparison.md", "comparison.json", "report.html", *figures)]
    run_id = _log(project, config.data.name, title, files, text, runs)
    print(text)
    print(f"wrote {folder}; MLflow run {run_id}")


def _load_sides(
    groups: Mapping[str, Sequence[Run]], name: str, split: str
) -> tuple[list[Side], dict[str, list[Predictions]]]:
    """Return each group as a side, by its files `name`; and what it predicted, by its name, of the same examples."""
    runs = [run for members in groups.values() for run in members]
    with tempfile.TemporaryDirectory() as temporary:
        read = {run.info.run_id: read_predictions(queries.artifact(run, name, Path(temporary))) for run in runs}
    validations = {
        group: folds.cross_validation(members) for group, members in groups.items() if split == "out-of-fold"
    }
    rows = {group: {run.info.run_id: read[run.info.run_id] for run in members} for group, members in groups.items()}
    rows |= {group: one.predictions(read) for group, one in validations.items()}
    _, labels = same_examples({key: row for of_group in rows.values() for key, row in of_group.items()}, split)
    sides = []
    for group, members in groups.items():
        correct = np.array([row.predictions == labels for row in rows[group].values()])
        sides.append(_side(members, correct))
        if validations:
            accuracies = validations[group].accuracies(lambda run: read[run.info.run_id].accuracy)
            sides[-1] = sides[-1]._replace(fold_accuracies=accuracies)
    sides = report.disambiguate_names(sides)
    return sides, {side.name: list(of_side.values()) for side, of_side in zip(sides, rows.values(), strict=True)}


def _side(runs: Sequence[Run], correct: NDArray[np.bool_]) -> Side:
    traits, params = [queries.traits(run) for run in runs], runs[0].data.params
    keys = dict.fromkeys(key for of_run in traits for key in of_run)
    return Side(
        plain(runs[0].data.tags["recipe"]),
        {key: {of_run.get(key, "–") for of_run in traits} for key in keys},
        correct,
        [seconds for run in runs if (seconds := queries.training_seconds(run))],
        int(params.get("model.num_params", 0)),
        int(params.get("model.macs", 0)),  # earlier code logged none
    )


@translate_errors(OSError)
def _log(
    project: Project, experiment_name: str, title: str, files: Sequence[Path], answer: str, compared: Sequence[Run]
) -> str:
    """Log the comparison as a run of its own, with links to what was compared: its id."""
    client, experiment = open_store(project, experiment_name)
    links = [f"[{as_text(run.info.run_name)}](#/experiments/{experiment}/runs/{run.info.run_id})" for run in compared]
    note = f"{answer}\nRuns compared: {', '.join(links)}\n"
    ids = " ".join(run.info.run_id for run in compared)
    tags = run_tags(project, "pipeline.compare") | {
        NOTE: note[: queries.MAX_TAG],
        "compared": ids[: queries.MAX_TAG],
    }
    run_id = str(client.create_run(experiment, run_name=title, tags=tags).info.run_id)
    for file in files:
        client.log_artifact(run_id, str(file))
    client.set_terminated(run_id)
    return run_id


def compare_with_published(project: Project, config: Config) -> None:
    """Say whether the published training accuracy lies where one more seed of our baseline would; print and draw it."""
    if not config.data.published:
        raise UserError(f"no run of {config.data.name} was published: give run=<id>")
    log = [row["train_accuracy"] for row in load_csv(project.published_log, ["epoch", "train_accuracy"])]
    baseline: Config = compose(project, f"data={config.data.name}", "recipe=baseline", f"train.epochs={len(log)}")
    group = fingerprint(project, baseline, project.training_files).group
    runs = queries.find_trained(project, config.data.name, group=group)
    curves = [queries.curve(run, "train_accuracy") for run in queries.by_group(runs).get(group, [])]
    if not curves or any(len(curve) != len(log) for curve in curves):
        raise UserError(f"the published log has {len(log)} epochs: train baseline with train.epochs={len(log)}")
    confidence = config.evaluate.confidence
    bands = [prediction_interval(epoch, confidence) for epoch in zip(*curves, strict=True)]
    sentence = published_sentence(log, curves, bands, confidence)
    plots.save_figure(project.job_folder / "published.png", plots.plot_band(log, curves, bands))
    write_text(project.job_folder / "published.md", f"{sentence}\n")
    print(f"{sentence}\nwrote {project.job_folder}")


def published_sentence(
    log: Sequence[float], curves: Sequence[Sequence[float]], bands: Sequence[Interval], confidence: float
) -> str:
    """Say in how many epochs the published accuracy lies in the band for one more seed, and how both end."""
    n, last, ends = len(curves), percent(log[-1]), [curve[-1] for curve in curves]
    ours = " to ".join(dict.fromkeys(map(percent, (min(ends), max(ends)))))
    if n < FEWEST:
        return (
            f"published training accuracy {last} after {len(log)} epochs, ours {ours} (n = {n}, too few seeds to say "
            "where one more would lie: python -m pipeline.train sweep=seeds recipe=baseline)"
        )
    inside = sum(band.low <= value <= band.high for value, band in zip(log, bands, strict=True))
    return (
        f"the published training accuracy lies inside the {100 * confidence:g} % prediction interval for one more seed "
        f"in {inside} of {len(log)} epochs (n = {n} seeds of baseline; by chance {(1 - confidence) * len(log):.2g} "
        f"would lie outside); at the end it is {last}, ours are {ours} (published: 60,000 digits, baseline: 55,000)"
    )
