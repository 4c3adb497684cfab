"""What a report to send tells of tracked runs beside their comparison or ranking: curves, and where they were made."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from mlflow.entities import Run

from pipeline.reports import plots
from pipeline.reports.report import Section
from pipeline.reports.tables import as_text, plain
from pipeline.tracking import queries

MOST_CURVES = 6  # as many as there are colours
MOST_COMMANDS = 40


def learning_curves(members: Mapping[str, Sequence[Run]]) -> list[Section]:
    """Return the validation errors over the epochs, by name, means over the runs of a name; nothing without any."""
    means = {}
    for name, runs in list(members.items())[:MOST_CURVES]:
        curves = [100 * (1 - np.array(queries.curve(run, "val_accuracy"))) for run in runs]
        mean = np.mean([curve[: min(map(len, curves))] for curve in curves], axis=0)
        if np.any(mean > 0):
            means[name] = np.where(mean > 0, mean, np.nan)  # an error of 0 has no place on a log scale
    if not means:
        return []
    figure = plots.plot_curves(means, "validation error in %, log scale")
    [axes] = figure.axes
    axes.set_yscale("log")
    plots.show_plain_ticks(axes.yaxis)
    note = f"The first {MOST_CURVES} of {len(members)}." if len(members) > MOST_CURVES else ""
    return [Section("Learning curves", note, {"Validation error over the epochs, means over seeds": figure})]


def provenance(members: Mapping[str, Sequence[Run]]) -> Section:
    """Return the commit, versions and hardware of runs, and the commands that train them again."""
    made, commands = defaultdict(list), []
    for name, runs in members.items():
        for run in runs:
            tags = run.data.tags
            changed = " with uncommitted changes" if tags.get("git_dirty") == "true" else ""
            parts = [f"commit {tags.get('git_commit', 'unknown')}{changed}"]
            parts += [tags.get(key, f"{key} unknown") for key in ("versions", "hardware")]
            made["; ".join(parts)].append(name)
            words = f"run={run.info.run_id} data={queries.data_name(run)}"
            commands.append(f"    python -m pipeline.reproduce {words}  # {plain(name)}")
    places = [
        f"- {as_text(place)}" + (f": {as_text(', '.join(dict.fromkeys(names)))}" if len(made) > 1 else "")
        for place, names in made.items()
    ]
    if (left := len(commands) - MOST_COMMANDS) > 0:
        commands[MOST_COMMANDS:] = [f"    # and {left} more"]
    trained, again = "\n".join(places), "\n".join(commands)
    return Section(
        "Where it was trained, and how to reproduce it",
        f"{trained}\n\nEach command trains a run again and compares the bits, if the commit of the run is checked out "
        f"and `make env` has installed its versions:\n\n{again}\n",
    )
