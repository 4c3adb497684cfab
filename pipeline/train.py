"""Stage 3: train one recipe, tracked in MLflow; with -m or sweep=<name>, a sweep."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.project import Project, open_project
from pipeline.base.schema import Config, better
from pipeline.data.split import training_examples
from pipeline.experiments import sweep
from pipeline.tracking.fingerprint import fingerprint


def train(project: Project, config: Config) -> float:
    """Return train.monitor of the model that is kept, a loss negated, NaN where it lacks: a search maximises it."""
    project = project.job()
    examples, val = training_examples(project, config)

    with quiet_import():
        from pipeline.experiments.run import Split, train_tracked
        from pipeline.training.debug import memorization_report

    split = Split(examples, val)
    identity = fingerprint(project, config, project.training_files)
    if sweep.PARENT in os.environ:
        return sweep.train_job(project, config, split, identity)
    overrides = [override for override in project.overrides if not override.startswith("recipe=")]
    name = config.name if project.stage else " ".join([config.name, *overrides])
    trained = train_tracked(project, config, split, identity, name)
    if config.train.examples and config.train.epochs > 1:
        print(memorization_report(trained.history, len(examples.labels)))
    print(f"wrote {trained.model_file}; {trained.tracked}")
    return better(config.train.monitor, trained.kept.row()[config.train.monitor])


if __name__ == "__main__":
    with sweep.reported(open_project(Path(__file__).parents[1])):
        main(train)
