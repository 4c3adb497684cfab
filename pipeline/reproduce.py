"""Train a tracked run again and say whether the bits are the same, or what differs; or run=published.

It changes nothing by itself: where the run is of another commit, it says how to get there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.base import own
from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, load_json, load_yaml, sha256
from pipeline.base.keras_import import load_keras
from pipeline.base.project import Project
from pipeline.base.schema import Config, own_functions
from pipeline.base.validation import from_recorded
from pipeline.base.verb_schemas import RunConfig
from pipeline.data.split import training_examples
from pipeline.model.kept import kept_epoch
from pipeline.reports.tables import percent, plain, points
from pipeline.tracking import environment
from pipeline.tracking.fingerprint import fingerprint

# What is printed as part of a command.
SAFE_TAGS = {"recipe": r"[\w/-]+", "model_sha256": "[0-9a-f]{64}", "git_commit": "[0-9a-f]{40}|none"}
COMPARED = {
    "data_sha256": "data",
    "versions": "versions",
    "hardware": "hardware",
    "environment": "environment variables",
}


class Recorded(NamedTuple):
    """What a run left behind."""

    config: Config
    tags: dict[str, str]
    history: list[dict[str, float]]
    val_predictions: list[dict[str, float]]


def reproduce(project: Project, config: RunConfig) -> None:
    if config.run is None:
        raise UserError("no run given: give run=<id>, run=<folder of a run's files> or run=published")
    project = project.job()
    if config.run == "published":
        with quiet_import():
            from pipeline.experiments.compare_runs import compare_with_published

        compare_with_published(project, config)
        return
    with tempfile.TemporaryDirectory() as folder:
        recorded = _load_recorded(project, config.run, config, Path(folder))
    tags = recorded.tags
    examples = training_examples(project, recorded.config)
    identity = fingerprint(project, recorded.config, project.training_files)
    load_keras()
    with quiet_import():
        from pipeline.experiments.run import Split, train_tracked

    differing = differences(tags, identity.tags() | environment.run_tags(project, "pipeline.reproduce"))
    print("\n".join(differing) or "code, data, versions, hardware and environment are those of the run", flush=True)
    name = f"reproduce {tags['recipe']} {config.run[:12]}"
    trained = train_tracked(project, recorded.config, Split(*examples), identity, name)
    again = sha256(trained.model_file)
    if again == tags["model_sha256"]:
        print(f"identical bits: model.keras has the SHA-256 of the run, {again}; {trained.tracked}")
        return
    last, ours = recorded.history[kept_epoch(recorded.config.train, recorded.history) - 1], trained.kept
    predictions = load_csv(trained.model_file.with_name("val_predictions.csv"), ["index", "prediction"], least=0)
    pairs = zip(recorded.val_predictions, predictions, strict=True)
    changed = sum(before["prediction"] != now["prediction"] for before, now in pairs)
    print(
        f"other bits: validation accuracy {percent(ours.val_accuracy)}, the run's {percent(last['val_accuracy'])} "
        f"({points(ours.val_accuracy - last['val_accuracy'])} points; {changed} of {len(predictions):,} predictions "
        f"differ); training accuracy {percent(ours.train_accuracy)} and {percent(last['train_accuracy'])}; "
        f"{trained.tracked}"
    )
    if not differing:
        raise UserError("other bits although nothing known differs: the run is not reproduced")


def _load_recorded(project: Project, run: str, config: Config, folder: Path) -> Recorded:
    """Load a run from the folder that `run` names, with the run's files in it, or from the store."""
    names = ("config.yaml", "tags.json", "history.csv", "val_predictions.csv")
    if Path(run).is_dir():
        paths = [Path(run) / name for name in names]
    else:
        with quiet_import():
            from pipeline.tracking import queries

        stored = queries.find_run(project, run, config.data)
        paths = [queries.artifact(stored, name, folder) for name in names]
    tags = {key: plain(str(value)) for key, value in load_json(paths[1]).items()}
    for key, pattern in SAFE_TAGS.items():
        if not re.fullmatch(pattern, tags.get(key, "")):
            raise UserError(f"{paths[1]} has {key}={tags.get(key)!r}, which no run of ours has: take its own file")
    recorded = from_recorded(load_yaml(paths[0]), str(paths[0]))
    for file in own.sources(project.root, own_functions(recorded)).values():
        if file.resolve().is_relative_to(paths[0].parent.resolve()):  # its source/ is there to be read
            raise UserError(f"{paths[0]} names {file}, a file of the run itself: give the run's own config.yaml")
    return Recorded(
        recorded,
        tags,
        load_csv(paths[2], ["train_accuracy", "val_accuracy"]),
        load_csv(paths[3], ["index", "prediction"], least=0),
    )


def differences(tags: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return a line for each thing that may explain other bits; for another commit, how to get there."""
    tags = {"environment": "none", "git_commit": "none", **tags}  # they were not always recorded
    lines = [
        f"{name} differ: the run's {tags.get(key, 'unknown')}; here {here[key]}"
        for key, name in COMPARED.items()
        if tags.get(key) != here[key]
    ]
    if tags.get("code_sha256") != here["code_sha256"]:
        theirs, ours = (
            values["git_commit"] + (" with uncommitted changes" if values.get("git_dirty") == "true" else "")
            for values in (tags, here)
        )
        lines.append(f"code differs: the run's is of commit {theirs}; here {ours}")
        if (commit := tags["git_commit"]) != "none":
            patch = f" && git -C ../at-{commit[:7]} apply <the run's git.diff>" if theirs != commit else ""
            lines.append(f"to train with its code: git worktree add ../at-{commit[:7]} {commit}{patch}")
    return lines


if __name__ == "__main__":
    main(reproduce)
