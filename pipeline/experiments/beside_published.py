"""Set our baseline beside the published run: does its training accuracy lie where one more seed of ours would?"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.base.errors import UserError
from pipeline.base.files import load_csv, write_text
from pipeline.base.hydra import compose
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.metrics.metrics import Interval
from pipeline.metrics.significance import FEWEST, prediction_interval
from pipeline.reports import plots
from pipeline.reports.tables import percent
from pipeline.tracking import queries
from pipeline.tracking.fingerprint import fingerprint


def beside_published(project: Project, config: Config) -> None:
    if not config.data.published:
        raise UserError(f"no run of {config.data.name} was published: give run=<id>")
    log = [row["train_accuracy"] for row in load_csv(project.published_log, ["epoch", "train_accuracy"])]
    group = fingerprint(project, compose(project, "recipe=baseline"), project.training_files).group
    runs = [run for members in queries.find_runs(project, group, config.data.name).values() for run in members]
    curves = [queries.curve(run, "train_accuracy") for run in runs]
    if any(len(curve) != len(log) for curve in curves):
        raise UserError(f"the published log has {len(log)} epochs: train baseline with train.epochs={len(log)}")
    bands = [prediction_interval(epoch, config.evaluate.confidence) for epoch in zip(*curves, strict=True)]
    sentence = published_sentence(log, curves, bands, config.evaluate.confidence)
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
    by_chance = f"{(1 - confidence) * len(log):.2g}"
    return (
        f"the published training accuracy lies inside the {100 * confidence:g} % prediction interval for one more seed "
        f"in {inside} of {len(log)} epochs (n = {n} seeds of baseline; by chance {by_chance} would lie outside); "
        f"at the end it is {last}, ours are {ours} (published: 60,000 digits, baseline: 55,000)"
    )
