"""The descriptions that MLflow's page shows above the runs of an experiment and on the page of a run.

What we write stands between two marks, which the page does not show; what somebody wrote beside them stays.
"""

from __future__ import annotations

import re
from contextlib import suppress

from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from pipeline.base.project import Project
from pipeline.reports.tables import markdown_table, percent
from pipeline.tracking import queries
from pipeline.tracking.store import open_store, translate_errors
from pipeline.tracking.views import NAMES, route

NOTE = "mlflow.note.content"
MAX_EXPERIMENT_NOTE = 15_000  # characters of ours; MLflow takes 20,000 in all
OURS = re.compile("<!-- figures -->.*?<!-- end -->", re.DOTALL)
# A row is shown where the run has all that it names: metrics of the epoch that was kept, and sizes.
FIGURES = {
    "test accuracy": "{test_accuracy} ({test_accuracy_low} to {test_accuracy_high})",
    "test errors": "{test_errors:,.0f} of {test_examples:,.0f}",
    "test errors without TTA": "{test_errors_no_tta:,.0f}",
    "validation accuracy": "{val_accuracy}",
    "training accuracy": "{train_accuracy}",
    "validation loss": "{val_loss:.4f}",
    "training loss": "{train_loss:.4f}",
    "epochs": "{epochs}",
    "parameters": "{num_params:,}",
    "MACs per image": "{macs:,}",
    "training time": "{speed/training_seconds:,.1f} s, on {hardware}",
    "note": "{note}",
}


def describe_run(client: MlflowClient, run_id: str) -> None:
    """Renew the description of a run: its figures in one table, read from MLflow, and where its configuration is."""
    run = client.get_run(run_id)
    page = f"#/experiments/{run.info.experiment_id}/runs/{run_id}/artifacts"
    ours = f"{figures_table(run)}\n\n[The composed configuration]({page}/config.yaml)"
    before = run.data.tags.get(NOTE, "")
    note = _replaced(before, ours)
    if note != before and len(note) <= queries.MAX_TAG:
        client.set_tag(run_id, NOTE, note)


def figures_table(run: Run) -> str:
    """Return the figures of a run as a table in Markdown."""
    metrics, params, tags = run.data.metrics, run.data.params, run.data.tags
    values = {key: queries.final(run, key) for key in metrics}
    shown = {key: percent(value) if "_accuracy" in key else value for key, value in values.items()}
    shown |= {key: int(params[f"model.{key}"]) for key in ("num_params", "macs") if f"model.{key}" in params}
    shown |= {key: tags[key] for key in ("hardware", "note") if key in tags}
    if epochs := tags.get("kept", params.get("train.epochs")):
        shown["epochs"] = epochs
    if values.get("test_errors_no_tta") == values.get("test_errors"):
        shown.pop("test_errors_no_tta", None)
    rows = [["figure", "value"]]
    for name, text in FIGURES.items():
        with suppress(KeyError):
            rows.append([name, text.format_map(shown)])
    own = sorted(key for key in values if key.startswith("val_") and key not in ("val_accuracy", "val_loss"))
    return markdown_table(rows + [[key, f"{values[key]:.6g}"] for key in own])


@translate_errors()
def describe_experiment(project: Project, experiment_name: str, comparison: str) -> None:
    """Renew the description of an experiment: the comparison, in Markdown, and what to open next."""
    client, experiment = open_store(project, experiment_name)
    links = " · ".join(f"[{name}]({route(experiment, key)})" for key, name in NAMES.items())
    curves = f"Curves: results/comparison.png in the repository. Views: {links}."
    note = client.get_experiment(experiment).tags.get(NOTE, "")
    ours = f"{comparison[:MAX_EXPERIMENT_NOTE].strip()}\n\n{curves}"
    client.set_experiment_tag(experiment, NOTE, _replaced(note, ours))


def _replaced(note: str, ours: str) -> str:
    block = f"<!-- figures -->\n{ours}\n<!-- end -->"
    return OURS.sub(lambda _: block, note) if OURS.search(note) else f"{block}\n\n{note}".strip()
