"""Stage 3: train one recipe, tracked in MLflow; with -m or sweep=<name>, a sweep."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.keras_import import load_keras
from pipeline.base.project import Project, open_project
from pipeline.base.validation import without_own_keys
from pipeline.base.verb_schemas import TrainConfig, labels
from pipeline.data.split import training_examples
from pipeline.experiments import sweep
from pipeline.experiments.jobs import named
from pipeline.model.kept import better
from pipeline.tracking.fingerprint import fingerprint

MEMORISED = 1000  # examples: where train.examples gives no more, training tries whether they can be learnt by heart


def train(project: Project, config: TrainConfig) -> float:
    """Return train.monitor of the model that is kept, a loss negated, NaN where it lacks: a search maximises it.

    `config` may also be a Config, as a notebook composes it.
    """
    own = config.sweep.model_dump(exclude_defaults=True) if isinstance(config, TrainConfig) else {}
    if own and sweep.PARENT not in os.environ:
        raise UserError(f"sweep.{min(own)} is for the jobs of a sweep: add -m, or leave it out")
    project = project.job()
    examples, val = training_examples(project, config)

    load_keras()
    with quiet_import():
        from pipeline.experiments.run import Split, train_tracked
        from pipeline.training.debug import memorization_report

    split, recorded = Split(examples, val), without_own_keys(config)
    identity = fingerprint(project, recorded, project.training_files)
    if sweep.PARENT in os.environ:
        return sweep.train_job(project, config, split, identity)
    overrides = [override for override in named(project.overrides) if not override.startswith("recipe=")]
    name = config.name if project.stage else " ".join([config.name, *overrides])
    trained = train_tracked(project, recorded, split, identity, name, labels(config))
    if len(examples.labels) <= MEMORISED and config.train.examples and config.train.epochs > 1:
        print(memorization_report(trained.history, len(examples.labels)))
    print(f"wrote {trained.model_file}; {trained.tracked}")
    return better(config.train.monitor, trained.kept.row()[config.train.monitor])


if __name__ == "__main__":
    with sweep.reported(open_project(Path(__file__).parents[1])):
        main(train)
