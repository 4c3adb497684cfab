"""Stage 5: the published run and every recipe of params.yaml, in one table, one picture and one sentence.

With a=<what> b=<what> it compares any tracked runs: recipes, run ids, groups of seeds, all of a sweep, or a filter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import comparison, data, metrics
from pipeline.command import entry_point, job_folder
from pipeline.config import ROOT, CompareConfig, Config, PipelineError, in_dvc_stage, network
from pipeline.console import quiet_import
from pipeline.files import load_csv, load_json, replacing, save_json
from pipeline.recipes import PUBLISHED, PUBLISHED_LOG, Row, cells, header, markdown, published_row, recipe_row, verdict
from pipeline.tables import markdown_table, models_scored, plain


@entry_point
def compare(config: CompareConfig) -> None:
    if config.a or config.b:
        _compare_runs(config)
    else:
        _compare_recipes(config)


def _compare_runs(config: CompareConfig) -> None:
    with quiet_import():
        from pipeline import tracking

    found: dict[str, list[Any]] = {}
    for word in filter(None, (config.a, config.b)):
        of_word = tracking.find_runs(word, config.data.name)
        for group, runs in of_word.items():
            if group in found:
                raise PipelineError(f"{word} is the same configuration as what stands before it: give two")
            found[group] = runs
    if len(found) < 2:
        raise PipelineError("one configuration alone: give a=<what> and b=<what>, or the id of a sweep of several")
    runs = [run for of in found.values() for run in of]
    of = "test" if all(map(tracking.is_evaluated, runs)) else "validation"
    if of == "validation" and any(run.data.params.get("data.val_examples") == "0" for run in runs):
        raise PipelineError(
            "a run has no validation examples: evaluate all on the test examples (pipeline.evaluate run=<id>)"
        )
    folder = job_folder()
    with tempfile.TemporaryDirectory() as temporary:
        sides, examples, labels = _sides(list(found.values()), of, Path(temporary))
    verdicts = comparison.verdicts(sides, config.evaluate.confidence, of)
    scored = tracking.models_scored(config.data.name)
    text = comparison.markdown(sides, verdicts, config.evaluate.confidence, of, scored)
    save_json(folder / "comparison.json", comparison.as_json(sides, verdicts, of, scored))
    with replacing(folder / "comparison.md") as partial:
        partial.write_text(text, encoding="utf-8")
    files = [
        folder / "comparison.md",
        folder / "comparison.json",
        *_draw_sides(folder, sides, examples, labels, of, config),
    ]
    name = " against ".join(side.name for side in sides)
    run_id = tracking.log_comparison(config.data.name, f"compare {name}"[:200], files, text, runs)
    print(text)
    print(f"wrote {folder}; MLflow run {run_id}")


def _sides(
    found: list[list[Any]], of: str, folder: Path
) -> tuple[list[comparison.Side], NDArray[np.int64], NDArray[np.int64]]:
    """The sides by their runs' predictions, with the examples that those are of and their labels."""
    from pipeline import tracking

    predictions = {}
    for run in (run for runs in found for run in runs):
        own = folder / run.info.run_id
        own.mkdir()
        file = tracking.artifact(run, "predictions.csv" if of == "test" else "val_predictions.csv", own)
        predictions[run.info.run_id] = comparison.read_predictions(file)
    examples, labels = comparison.same_examples(predictions, of)
    sides = []
    for runs in found:
        traits = [tracking.traits(run) for run in runs]
        configured = tracking.recorded_config(runs[0], folder / runs[0].info.run_id)
        sides.append(
            comparison.Side(
                plain(runs[0].data.tags["recipe"]),
                {
                    key: {of_run.get(key, "–") for of_run in traits}
                    for key in dict.fromkeys(k for t in traits for k in t)
                },
                np.array([predictions[run.info.run_id].predictions == labels for run in runs]),
                [sum(seconds) for run in runs if (seconds := tracking.curve(run, "epoch_seconds"))],
                int(runs[0].data.params.get("model.num_params", 0)),
                network(configured).multiply_adds,
            )
        )
    return comparison.told_apart(sides), examples, labels


def _draw_sides(
    folder: Path,
    sides: Sequence[comparison.Side],
    examples: NDArray[np.int64],
    labels: NDArray[np.int64],
    of: str,
    config: Config,
) -> list[Path]:
    """Draw accuracies by side and, of the first two, the examples that tell them apart: the files drawn."""
    from pipeline import plots

    # Only to draw the examples: what is compared are predictions, made and counted by evaluate.
    name = {"test": "test.npz", "validation": "val.npz"}[of]
    stored = data.load_split(name, config.data)
    place = {int(index): row for row, index in enumerate(stored.source_index)}
    a, b = sides[:2]
    shown = comparison.telling_examples(a, b)
    figures = {"comparison": plots.plot_sides({side.name: side.accuracies for side in sides}, of)}
    if sum(map(len, shown.values())) > 0 and all(
        int(examples[i]) in place for of_kind in shown.values() for i in of_kind
    ):

        def captioned(i: int) -> tuple[NDArray[np.uint8], str]:
            caption = f"#{examples[i]}: {config.data.classes[labels[i]]}\n{comparison.hits(a, b, i)}".rstrip()
            return stored.images[place[int(examples[i])]], caption

        figures["examples"] = plots.plot_example_rows(
            {kind: [captioned(i) for i in of_kind] for kind, of_kind in shown.items()}
        )
    for file, figure in figures.items():
        plots.save_figure(folder / f"{file}.png", figure)
    return [folder / f"{file}.png" for file in figures]


def _compare_recipes(config: Config) -> None:
    recipes = ROOT / "results" / "recipes"
    found = {name: load_json(recipes / name / "metrics.json") for name in config.recipes}
    for name, figures in found.items():
        if figures.get("data") != config.data.name:
            raise PipelineError(
                f"results/recipes/{name} is of data={figures.get('data')}, not of {config.data.name}: give data=<that> "
                "or run `dvc repro`"
            )
    histories, rows = {}, []
    if config.data.published:
        histories[PUBLISHED] = load_csv(PUBLISHED_LOG, ["epoch", "train_accuracy", "val_accuracy"])
        rows.append(published_row(histories[PUBLISHED], config.evaluate.confidence))
    histories |= {name: load_csv(recipes / name / "history.csv", ["epoch"]) for name in config.recipes}
    rows += [recipe_row(name, of_recipe) for name, of_recipe in found.items()]
    sentence = verdict(rows)
    answers = _answers(config)

    folder = ROOT / "results" if in_dvc_stage() else job_folder()
    save_json(
        folder / "comparison.json",
        {"rows": {row.name: row._asdict() for row in rows}, "verdict": sentence, "answers": answers},
    )
    with replacing(folder / "comparison.md") as temporary:
        temporary.write_text(markdown(rows, [sentence, *answers], config), encoding="utf-8")
    _draw(folder / "comparison.png", histories, rows)
    if not in_dvc_stage():
        print(_terminal_table(rows, found, config))
    print("\n".join([sentence, *answers]))


def _answers(config: Config) -> list[str]:
    """Which of every two recipes is better on the test examples, one run each: a sentence a pair."""
    predictions = {
        name: comparison.read_predictions(ROOT / "results" / "recipes" / name / "predictions.csv")
        for name in config.recipes
    }
    verdicts = comparison.compare_predictions(predictions, config.evaluate.confidence, "test") if predictions else []
    return [f"{verdict.sentence}." for verdict in verdicts]


def _terminal_table(rows: Sequence[Row], found: dict[str, Any], config: Config) -> str:
    with quiet_import():
        from pipeline import tracking

    seconds, hardware = ["–"] if config.data.published else [], "no hardware known"
    for name, figures in found.items():
        try:
            known = tracking.seconds_in_training(name, figures["model_sha256"], config.data.name)
        except PipelineError:  # the table is of files; only the seconds are MLflow's
            known = None
        seconds.append(f"{known[0]:,.0f}" if known else "–")
        hardware = known[1] if known else hardware
    with suppress(PipelineError):
        hardware += f"; {models_scored(tracking.models_scored(config.data.name))}"
    lines = [[*header(config.evaluate.confidence), "seconds in training"]]
    lines += [[*cells(row), spent] for row, spent in zip(rows, seconds, strict=True)]
    return f"{markdown_table(lines)}\n(n = 1 run each; seconds on: {hardware})\n"


def _draw(path: Path, histories: dict[str, Any], rows: Sequence[Row]) -> None:
    from pipeline import plots

    tests = {
        row.name: (row.test_accuracy, metrics.Interval(row.test_accuracy_low, row.test_accuracy_high)) for row in rows
    }
    plots.save_figure(path, plots.plot_comparison(histories, tests, PUBLISHED))


if __name__ == "__main__":
    compare()
