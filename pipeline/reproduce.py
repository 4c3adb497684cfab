"""Train a tracked run again and say whether the bits are the same, or what differs; or set ours beside the published.

It changes nothing by itself: where the run is of another commit, it says how to get there.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline import data
from pipeline.command import Folders, entry_point, job_folder
from pipeline.config import ROOT, Config, PipelineError, RunConfig, compose, from_dict
from pipeline.console import quiet_import
from pipeline.files import load_csv, load_json, load_yaml, replacing, sha256
from pipeline.metrics import Interval
from pipeline.statistics import FEWEST, prediction_interval
from pipeline.surroundings import commit, identity, uncommitted, versions
from pipeline.tables import percent, plain, points

PUBLISHED_LOG = ROOT / "reference" / "published_run.csv"
TAGS = {"recipe": r"[\w/-]+", "model_sha256": "[0-9a-f]{64}", "git_commit": "[0-9a-f]{40}|none"}  # used unquoted
SPLIT = [ROOT / "data" / "processed" / f"{name}.npz" for name in ("train", "val")]


class Recorded(NamedTuple):
    """What a run left behind."""

    config: Config
    tags: dict[str, str]
    history: list[dict[str, float]]
    val_predictions: list[dict[str, float]]


@entry_point
def reproduce(config: RunConfig) -> None:
    if config.run is None:
        raise PipelineError("no run given: give run=<id>, run=<folder of a run's files> or run=published")
    if config.run == "published":
        _beside_published(config)
        return
    with tempfile.TemporaryDirectory() as folder:
        recorded = _recorded(config.run, config.data.name, Path(folder))
    _train_again(config.run, recorded)


def _recorded(run: str, data_name: str, folder: Path) -> Recorded:
    """From the folder that `run` names, with the artifacts of a run in it, or from the store."""
    files = ("config.yaml", "tags.json", "history.csv", "val_predictions.csv")
    if Path(run).is_dir():
        paths = [Path(run) / name for name in files]
    else:
        with quiet_import():
            from pipeline import tracking
        found = tracking.find_run(run, data_name)
        paths = [tracking.artifact(found, name, folder) for name in files]
    tags = {key: plain(str(value)) for key, value in load_json(paths[1]).items()}
    for key, pattern in TAGS.items():
        if not re.fullmatch(pattern, tags.get(key, "")):
            raise PipelineError(f"{paths[1]} has {key}={tags.get(key)!r}, which no run of ours has: take its own file")
    return Recorded(
        from_dict(load_yaml(paths[0]), str(paths[0])),
        tags,
        load_csv(paths[2], ["train_accuracy", "val_accuracy"]),
        load_csv(paths[3], ["index", "prediction"]),
    )


def _train_again(run: str, recorded: Recorded) -> None:
    config, tags = recorded.config, recorded.tags
    data.check_split(load_json(ROOT / "data" / "processed" / "split.json"), config.data, SPLIT[0].parent)
    examples, val = (data.load_examples(file, config.data) for file in SPLIT)
    if len(recorded.val_predictions) != len(val.labels):
        raise PipelineError(
            f"{run} has predictions of {len(recorded.val_predictions)} examples, expected {len(val.labels)}"
        )
    now = identity(config, SPLIT)
    with quiet_import():
        from pipeline import surroundings, training

    here = now._asdict() | {
        "git_commit": commit(),
        "versions": versions(),
        "hardware": surroundings.hardware(),
        "environment": surroundings.compute_variables(),
    }
    differing = _differing(tags, here)
    print("\n".join(differing) or "code, data, versions, hardware and environment are those of the run", flush=True)
    split = training.Split(data.first(examples, config.train.examples), val)
    folder = Folders(job_folder(), job_folder())
    trained = training.train_tracked(config, split, now, folder, f"reproduce {tags['recipe']} {run[:12]}")
    again = sha256(trained.model_file)
    if again == tags["model_sha256"]:
        print(f"identical bits: model.keras has the SHA-256 of the run, {again}; {trained.where}")
        return
    last, ours = recorded.history[-1], trained.history[-1]
    predictions = load_csv(folder.results / "val_predictions.csv", ["index", "prediction"])
    changed = sum(
        a["prediction"] != b["prediction"] for a, b in zip(recorded.val_predictions, predictions, strict=True)
    )
    print(
        f"other bits: validation accuracy {percent(ours.val_accuracy)}, the run's {percent(last['val_accuracy'])} "
        f"({points(ours.val_accuracy - last['val_accuracy'])} points; {changed} of {len(predictions):,} predictions "
        f"differ); training accuracy {percent(ours.train_accuracy)} and {percent(last['train_accuracy'])}; "
        f"{trained.where}"
    )
    if not differing:
        raise PipelineError("other bits although nothing known differs: the run is not reproduced")


def _differing(tags: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """A line for each thing that may explain other bits; for another commit, how to get there."""
    tags, lines = {"environment": "none", **tags}, []  # it was not recorded always
    named = {
        "data_sha256": "data",
        "versions": "versions",
        "hardware": "hardware",
        "environment": "environment variables",
    }
    for key, words in named.items():
        if tags.get(key) != here[key]:
            lines.append(f"{words} differ: the run's {tags.get(key, 'unknown')}; here {here[key]}")
    if tags.get("code_sha256") != here["code_sha256"]:
        commit, dirty = tags.get("git_commit", "none"), tags.get("git_dirty") == "true"
        changed = " with uncommitted changes"
        lines.append(
            f"code differs: the run's is of commit {commit}{changed if dirty else ''}; "
            f"here {here['git_commit']}{changed if uncommitted() else ''}"
        )
        if commit != "none":
            lines.append(
                f"to train with its code: git worktree add ../at-{commit[:7]} {commit}"
                + (" && git -C ../at-" + commit[:7] + " apply <the run's git.diff>" if dirty else "")
            )
    return lines


def _beside_published(config: Config) -> None:
    if not config.data.published:
        raise PipelineError(f"no run of {config.data.name} was published here: give run=<id>")
    published = load_csv(PUBLISHED_LOG, ["epoch", "train_accuracy"])
    group = identity(compose("recipe=baseline"), SPLIT).group
    with quiet_import():
        from pipeline import plots, tracking

    runs = [run for of in tracking.find_runs(group, config.data.name).values() for run in of]
    curves = [tracking.curve(run, "train_accuracy") for run in runs]
    log = [row["train_accuracy"] for row in published]
    if any(len(curve) != len(log) for curve in curves):
        raise PipelineError(f"the published log has {len(log)} epochs: train baseline with train.epochs={len(log)}")
    bands = [prediction_interval(of_epoch, config.evaluate.confidence) for of_epoch in zip(*curves, strict=True)]
    sentence = _published_sentence(log, curves, bands, config.evaluate.confidence)
    folder = job_folder()
    plots.save_figure(folder / "published.png", plots.plot_band(log, curves, bands))
    with replacing(folder / "published.md") as temporary:
        temporary.write_text(f"{sentence}\n", encoding="utf-8")
    print(f"{sentence}\nwrote {folder}")


def _published_sentence(log: list[float], curves: list[list[float]], bands: list[Interval], confidence: float) -> str:
    n, last, ends = len(curves), percent(log[-1]), [curve[-1] for curve in curves]
    ours = " to ".join(dict.fromkeys(map(percent, (min(ends), max(ends)))))
    if n < FEWEST:
        return (
            f"published training accuracy {last} after {len(log)} epochs, ours {ours} (n = {n}, too few seeds to say "
            "where one more would lie: python -m pipeline.train sweep=seeds recipe=baseline)"
        )
    inside = sum(band.low <= value <= band.high for value, band in zip(log, bands, strict=True))
    return (
        f"the published training accuracy lies inside the {100 * confidence:g} % range for one more seed, from n = {n} "
        f"seeds of baseline, in {inside} of {len(log)} epochs (by chance {(1 - confidence) * len(log):.2g} would lie "
        f"outside); at the end it is {last}, ours are {ours} (published: 60,000 digits, baseline: 55,000)"
    )


if __name__ == "__main__":
    reproduce()
