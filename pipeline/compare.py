"""Stage 5: the published run and every recipe of params.yaml, in one table, one picture and one sentence.

With a=<what> b=<what> it compares any tracked runs: recipes, run ids, groups of seeds, all of a sweep, or a filter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, load_json, save_json, write_text
from pipeline.base.project import Project
from pipeline.base.verb_schemas import CompareConfig
from pipeline.data.examples import load_split
from pipeline.metrics.metrics import Interval
from pipeline.reports import recipe_table, verdicts
from pipeline.reports.tables import as_text, markdown_table, scored_in_words
from pipeline.tracking.environment import package_versions


def compare(project: Project, config: CompareConfig) -> None:
    project = project.job()
    if config.a or config.b:
        with quiet_import():
            from pipeline.experiments.compare_runs import compare_runs

        compare_runs(project, config)
        return
    metrics = {name: load_json(project.recipe_results(name) / "metrics.json") for name in config.recipes}
    for name, of_recipe in metrics.items():
        if of_recipe.get("data") != config.data.name:
            raise UserError(
                f"results/recipes/{name} is of data={of_recipe.get('data')}, not of {config.data.name}: give "
                "data=<that> or run `dvc repro`"
            )
    histories, rows, columns = {}, [], ("epoch", "train_accuracy", "val_accuracy")
    if config.data.published:
        histories[recipe_table.PUBLISHED] = load_csv(project.published_log, columns)
        rows.append(recipe_table.published_row(histories[recipe_table.PUBLISHED], config.evaluate.confidence))
    for name, of_recipe in metrics.items():
        history = load_csv(project.recipe_results(name) / "history.csv", columns)
        histories[name] = history[: of_recipe.get("best_epoch")]  # the last one drawn is that of the test figures
    rows += [recipe_table.recipe_row(name, of_recipe) for name, of_recipe in metrics.items()]
    files = {name: project.recipe_results(name) / "predictions.csv" for name in config.recipes}
    predictions = {name: verdicts.read_predictions(file) for name, file in files.items()}
    pairs = verdicts.compare_predictions(predictions, config.evaluate.confidence, "test") if predictions else []
    sentences = [recipe_table.verdict(rows), *(f"{verdict.sentence}." for verdict in pairs)]
    sentences += [f"{name}: {one['kept']}." for name, one in metrics.items() if "kept" in one]

    # Matplotlib reads the environment when it is imported: after `isolate`
    from pipeline.reports import plots, recipe_report
    from pipeline.reports.report import Section, save_report

    tests = {row.name: (row.test_accuracy, Interval(row.test_accuracy_low, row.test_accuracy_high)) for row in rows}
    curves = plots.plot_comparison(histories, tests, recipe_table.PUBLISHED)
    examples = load_split(project, "test", config.data)  # only to show those that tell the recipes apart
    images = dict(zip(examples.source_index.tolist(), examples.images, strict=True))
    answers = [f"{verdict.sentence}." for verdict in pairs] or sentences[:1]
    others = [sentence for sentence in sentences if sentence not in answers]
    sections = recipe_report.sections(
        project, config, rows, answers, others, curves, metrics, predictions, images, package_versions()
    )
    folder = project.output(project.results)
    table = {"rows": {row.name: row._asdict() for row in rows}, "verdict": sentences[0], "answers": sentences[1:]}
    save_json(folder / "comparison.json", table)
    write_text(folder / "comparison.md", recipe_table.markdown(rows, sentences, config))
    plots.save_figure(folder / "comparison.png", curves)
    if not project.stage:
        print(timed := _terminal_table(project, rows, metrics, config))
        sections.append(Section("Training time", timed))
        from pipeline.tracking.notes import describe_experiment

        said = "\n\n".join(map(as_text, [*sentences[1:], sentences[0]]))  # the page shows the first line until unfolded
        with suppress(UserError):  # MLflow is away: its table above has no seconds, either
            describe_experiment(project, config.data.name, f"{said}\n\n{recipe_table.markdown(rows, [], config)}")
    save_report(folder / "report.html", f"Recipes for {config.data.name}, compared", sections)
    print("\n".join(sentences))


def _terminal_table(
    project: Project, rows: Sequence[recipe_table.Row], metrics: Mapping[str, Any], config: CompareConfig
) -> str:
    with quiet_import():
        from pipeline.tracking import queries

    seconds, hardware = ["–"] if config.data.published else [], "no hardware known"
    for name, of_recipe in metrics.items():
        spent, tags = "–", {"model_sha256": of_recipe["model_sha256"], "dvc_stage": f"train@{name}"}
        with suppress(UserError):  # the table is of files; only the seconds are MLflow's
            for run in queries.find_trained(project, config.data.name, **tags):
                if spent == "–" and (total := queries.training_seconds(run)):
                    spent, hardware = f"{total:,.0f}", run.data.tags["hardware"]
        seconds.append(spent)
    with suppress(UserError):
        hardware += f"; {scored_in_words(queries.models_scored(project, config.data.name))}"
    lines = [[*recipe_table.header(config.evaluate.confidence), "seconds in training"]]
    lines += [[*recipe_table.cells(row), spent] for row, spent in zip(rows, seconds, strict=True)]
    return f"{markdown_table(lines)}\n\n(n = 1 run each; seconds on: {hardware})\n"


if __name__ == "__main__":
    main(compare)
