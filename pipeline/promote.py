"""Register the model of a tracked run (run=<id>), and make it the champion if it is better than the one there is.

Better is by McNemar's test on the validation digits that both held out. The test digits are not read.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from pipeline import comparison
from pipeline.command import entry_point
from pipeline.config import ROOT, PipelineError, RunConfig
from pipeline.console import quiet_import
from pipeline.files import load_json
from pipeline.tables import markdown_table, percent


@entry_point
def promote(config: RunConfig) -> None:
    if config.run is None:
        raise PipelineError("no run given: give run=<id>, from a ranking or `mlflow ui`")
    name, run = config.data.name, config.run
    with quiet_import():
        from pipeline import tracking
        from pipeline.beyond import registry

    found = tracking.find_run(run, name)
    champion = registry.found(registry.CHAMPION, name)
    if champion is not None and champion.run_id == run:
        registry.register(found, name, _card(found))
        print(f"models:/{name}@champion is version {champion.version}, run {run}, already")
        return
    if champion is not None and registry.is_gone(champion):
        print(f"the run of the champion, version {champion.version}, was deleted: the next one is the first again")
        champion = None
    this = _held_out(found)
    with tempfile.TemporaryDirectory() as folder:
        tracking.recorded_model(found, Path(folder))  # is the one that it trained
    if champion is None:
        version = registry.register(found, name, _card(found))
        registry.point(registry.CHAMPION, name, version)
        print(f"models:/{name}@champion is version {version}, run {run}: the first")
        return
    try:
        both = {"the champion": _held_out(tracking.find_run(champion.run_id, name)), "this run": this}
        [verdict] = comparison.compare_predictions(both, config.evaluate.confidence, "validation")
    except PipelineError as error:  # names a run that nobody typed
        raise PipelineError(
            f"the champion, version {champion.version} of {name}, cannot be compared with ({error}): take that alias "
            "off it in `mlflow ui` to begin again"
        ) from None
    better = bool(verdict.test and verdict.test.difference > 0 and verdict.shown)
    version = registry.register(found, name, _card(found))
    alias = registry.CHAMPION if better else registry.CHALLENGER
    now = registry.found(registry.CHAMPION, name)
    if now is None or now.version != champion.version:
        raise PipelineError(f"the champion of {name} has changed meanwhile: the same command compares with the new one")
    registry.point(alias, name, version)
    if better and (challenger := registry.found(registry.CHALLENGER, name)) and challenger.version == version:
        registry.drop(registry.CHALLENGER, name)
    stays = "" if better else f"; the champion stays version {champion.version}, run {champion.run_id}"
    print(f"{verdict.sentence}\nmodels:/{name}@{alias} is version {version}, run {run}{stays}")


def _card(found: Any) -> str:  # MLflow's Run
    """The model's card, as evaluate wrote it, and what `robustness` counted of the same model."""
    from pipeline import tracking

    with tempfile.TemporaryDirectory() as folder:
        try:
            text = tracking.artifact(found, "model_card.md", Path(folder)).read_text(encoding="utf-8")
        except PipelineError:
            text = f"Not evaluated: python -m pipeline.evaluate run={found.info.run_id}\n"
    counted = ROOT / "results" / "robustness" / found.data.tags["recipe"] / "robustness.json"
    if counted.is_file() and (of := load_json(counted))["model_sha256"] == found.data.tags["model_sha256"]:
        rows = [["test images", "right"]]
        rows += [
            [kind, f"{percent(one['right'] / one['digits'])}"]
            for kind, one in {**of["corruptions"], **of["guises"]}.items()
        ]
        text += f"\n## Robustness\n\n{markdown_table(rows)}\n"
    return text


def _held_out(run: Any) -> comparison.Predictions:  # of MLflow's Run
    """What the run predicted of the validation digits, which it saw once each; without any, a PipelineError."""
    from pipeline import tracking

    if run.data.params.get("data.val_size") == "0":
        raise PipelineError(
            f"{run.info.run_id} held out no validation digits to compare by: train with a data.val_size above 0"
        )
    with tempfile.TemporaryDirectory() as folder:
        return comparison.read_predictions(tracking.artifact(run, "val_predictions.csv", Path(folder)))


if __name__ == "__main__":
    promote()
