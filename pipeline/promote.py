"""Register the model of a tracked run (run=<id>), and make it the champion if it is better than the one there is.

Better is by McNemar's test on the validation examples that both held out. The test examples are not read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.files import load_json
from pipeline.base.project import Project
from pipeline.base.verb_schemas import RunConfig
from pipeline.reports import verdicts
from pipeline.reports.tables import markdown_table, percent


def promote(project: Project, config: RunConfig) -> None:
    if config.run is None:
        raise UserError("no run given: give run=<id>, from a ranking or `mlflow ui`")
    name, run_id = config.data.name, config.run
    with quiet_import():
        from pipeline.tracking import queries, registry

    run = queries.find_run(project, run_id, config.data)
    candidate = _held_out(run)
    with tempfile.TemporaryDirectory() as folder:
        queries.recorded_model(run, Path(folder))  # is the one that it trained
    champion = registry.version_of(project, registry.CHAMPION, name)
    if champion is not None and registry.is_gone(project, champion):
        print(f"the run of the champion, version {champion.version}, was deleted: the next one is the first again")
        champion = None
    if champion is None or champion.run_id == run_id:
        version = registry.register(project, run, name, _card(project, run))
        if champion is None:  # again, it would take the alias from the challenger
            registry.point(project, registry.CHAMPION, name, version)
        print(f"models:/{name}@champion is version {version}, run {run_id}: {'already' if champion else 'the first'}")
        return
    try:
        other = _held_out(queries.find_run(project, champion.run_id, config.data))
        both = {"the champion": other, "this run": candidate}
        [verdict] = verdicts.compare_predictions(both, config.evaluate.confidence, "validation")
    except UserError as error:  # names a run that nobody typed
        raise UserError(
            f"the champion, version {champion.version} of {name}, cannot be compared with ({error}): take that alias "
            "off it in `mlflow ui` to begin again"
        ) from None
    better = verdict.test and verdict.test.difference > 0 and verdict.shown
    alias = registry.CHAMPION if better else registry.CHALLENGER
    version = registry.register(project, run, name, _card(project, run))
    registry.point(project, alias, name, version)
    stays = "" if better else f"; the champion stays version {champion.version}, run {champion.run_id}"
    print(f"{verdict.sentence}\nmodels:/{name}@{alias} is version {version}, run {run_id}{stays}")


def _card(project: Project, run: Any) -> str:  # MLflow's Run
    """The model's card, as evaluate wrote it, and what `robustness` counted of the same model."""
    from pipeline.tracking import queries

    with tempfile.TemporaryDirectory() as folder:
        try:
            text = queries.artifact(run, "model_card.md", Path(folder)).read_text(encoding="utf-8")
        except UserError:
            text = f"Not evaluated: python -m pipeline.evaluate run={run.info.run_id}\n"
    file = project.results / "robustness" / run.data.tags["recipe"] / "robustness.json"
    if file.is_file() and (robustness := load_json(file))["model_sha256"] == run.data.tags["model_sha256"]:
        kinds = {**robustness["corruptions"], **robustness["guises"]}
        rows = [["test images", "correct"]]
        rows += [[kind, percent(counts["right"] / counts["digits"])] for kind, counts in kinds.items()]
        text += f"\n## Robustness\n\n{markdown_table(rows)}\n"
    return text


def _held_out(run: Any) -> verdicts.Predictions:  # of MLflow's Run
    """What the run predicted of its validation examples; a UserError where it held out none."""
    from pipeline.experiments.folds import count_folds
    from pipeline.tracking import queries

    if count_folds(run):
        raise UserError(f"{run.info.run_id} is one fold of a cross-validation: train its configuration by itself")
    if run.data.params.get("data.val_size") == "0":
        raise UserError(
            f"{run.info.run_id} held out no validation digits to compare by: train with a data.val_size above 0"
        )
    with tempfile.TemporaryDirectory() as folder:
        return verdicts.read_predictions(queries.artifact(run, "val_predictions.csv", Path(folder)))


if __name__ == "__main__":
    main(promote)
