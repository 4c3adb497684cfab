"""Train a tracked run again and say whether the bits are the same, or what differs; or run=published.

It changes nothing by itself: where the run is of another commit, it says how to get there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.base.command import main
from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, load_json, load_yaml, sha256
from pipeline.base.project import Project
from pipeline.base.schema import Config, from_recorded
from pipeline.base.verb_schemas import RunConfig
from pipeline.data.examples import head, load_split
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
            from pipeline.experiments.beside_published import beside_published

        beside_published(project, config)
        return
    with tempfile.TemporaryDirectory() as folder:
        recorded = _load_recorded(project, config.run, config, Path(folder))
    _train_again(project, config.run, recorded)


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
    return Recorded(
        from_recorded(load_yaml(paths[0]), str(paths[0])),
        tags,
        load_csv(paths[2], ["train_accuracy", "val_accuracy"]),
        load_csv(paths[3], ["index", "prediction"]),
    )


def _train_again(project: Project, run: str, recorded: Recorded) -> None:
    config, tags = recorded.config, recorded.tags
    train, val = (load_split(project, name, config.data) for name in ("train", "val"))
    if len(recorded.val_predictions) != len(val.labels):
        raise UserError(
            f"{run} has predictions of {len(recorded.val_predictions)} examples, expected {len(val.labels)}"
        )
    identity = fingerprint(project, config, project.training_files)
    with quiet_import():
        from pipeline.experiments.run import Split, train_tracked

    here = identity.tags() | environment.run_tags(project, "pipeline.reproduce")
    differing = differences(tags, here)
    print("\n".join(differing) or "code, data, versions, hardware and environment are those of the run", flush=True)
    split = Split(head(train, config.train.examples), val)
    trained = train_tracked(project, config, split, identity, f"reproduce {tags['recipe']} {run[:12]}")
    again = sha256(trained.model_file)
    if again == tags["model_sha256"]:
        print(f"identical bits: model.keras has the SHA-256 of the run, {again}; {trained.tracked}")
        return
    last, ours = recorded.history[-1], trained.history[-1]
    predictions = load_csv(trained.model_file.with_name("val_predictions.csv"), ["index", "prediction"])
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


def differences(tags: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Return a line for each thing that may explain other bits; for another commit, how to get there."""
    tags, lines = {"environment": "none", **tags}, []  # it was not always recorded
    for key, name in COMPARED.items():
        if tags.get(key) != here[key]:
            lines.append(f"{name} differ: the run's {tags.get(key, 'unknown')}; here {here[key]}")
    if tags.get("code_sha256") != here["code_sha256"]:
        commit, dirty = tags.get("git_commit", "none"), tags.get("git_dirty") == "true"
        changed = " with uncommitted changes"
        lines.append(
            f"code differs: the run's is of commit {commit}{changed if dirty else ''}; "
            f"here {here['git_commit']}{changed if here['git_dirty'] == 'true' else ''}"
        )
        if commit != "none":
            lines.append(
                f"to train with its code: git worktree add ../at-{commit[:7]} {commit}"
                + (f" && git -C ../at-{commit[:7]} apply <the run's git.diff>" if dirty else "")
            )
    return lines


if __name__ == "__main__":
    main(reproduce)
