"""The views that the runs page of MLflow has in its menu: Recipes, Sweep, Seeds, Speed; and the link to the first one.

By itself the page shows runs without a metric or a parameter. A view is a tag of the experiment, in the page's own form
as seen in MLflow 3.17.2, which is no public interface: a page that does not know it shows its own choice. To learn the
form of another chart, make it in the page, save the view, and read the tag.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
import sys
import zlib
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import Any

from pipeline.tracking.record import PARENT, now

SHARED = "mlflow.sharedViewState."
WRITTEN = "views"  # tag of an experiment: the digest of each view as it was last written
SWEPT = "swept_keys"  # tag of an experiment: the keys that its last sweep varied
# Its chart comes first, where no view says otherwise.
PRIMARY = {"mlflow.experiment.primaryMetric.name": "val_accuracy"}
SECONDS = "speed/training_seconds"
NAMES = {"recipes": "Recipes", "sweep": "Sweep", "seeds": "Seeds", "speed": "Speed"}
Json = dict[str, Any]


def renewed(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that an experiment with `tags` is to get: views that are new, or whose form has changed.

    A view that was renamed, changed or deleted in the page stays so.
    """
    written, views = json.loads(tags.get(WRITTEN, "{}")), _views(tags.get(SWEPT, "").split())
    digests = {key: _digest(NAMES[key], view) for key, view in views.items()}
    if written == digests:
        return {}
    fresh = {} if written else {key: value for key, value in PRIMARY.items() if key not in tags}
    for key, view in views.items():
        if key not in written or written[key] == _digest_of(tags.get(f"{SHARED}{key}", "")) != digests[key]:
            state = base64.b64encode(zlib.compress(json.dumps(view).encode())).decode()
            form = {"name": NAMES[key], "createdAt": now(), "updatedAt": now(), "state": f"deflate;{state}"}
            fresh[f"{SHARED}{key}"] = json.dumps(form)
    return {**fresh, WRITTEN: json.dumps(digests)}


def _digest(name: str, view: Any) -> str:
    return hashlib.sha256(json.dumps([name, view]).encode()).hexdigest()[:16]


def _digest_of(tag: str) -> str:
    """Return the digest of a view as its tag has it; "" where it has none that is ours to change."""
    with suppress(ValueError, KeyError, zlib.error):
        form = json.loads(tag)
        return _digest(form["name"], json.loads(zlib.decompress(base64.b64decode(form["state"].partition(";")[2]))))
    return ""


def _views(swept: Sequence[str]) -> dict[str, Json]:
    params = [key for key in swept if key not in ("recipe", "seed")] or ["train.epochs", "model.filters"]
    accuracy, loss = _line("val_accuracy"), _line("val_loss", "train_loss", scaleType="log")
    against_seconds = _scatter(SECONDS, "val_accuracy")
    from_swept = {"type": "PARALLEL", "selectedParams": params, "selectedMetrics": ["val_accuracy"]}
    return {
        "recipes": _view(
            "tags.recipe metrics.test_accuracy metrics.test_errors metrics.val_accuracy params.train.epochs "
            "params.model.filters params.model.num_params attributes.Duration",
            [
                _line("val_accuracy", "train_accuracy"),
                loss,
                _line("test_accuracy_low", "test_accuracy", "test_accuracy_high"),  # points, at the epoch that is kept
                _bar("test_errors"),
            ],
            searchFilter="tags.dvc_stage LIKE 'train@%'",
            orderByKey="metrics.`test_accuracy`",
        ),
        "sweep": _view(
            f"{' '.join(f'params.{key}' for key in params)} metrics.val_accuracy metrics.train_accuracy "
            f"metrics.{SECONDS} params.model.num_params",
            [from_swept | {"showAllRuns": False}, against_seconds, accuracy],
            [PARENT],
            searchFilter="tags.swept != ''",
            orderByKey="metrics.`val_accuracy`",
            useGroupedValuesInCharts=False,
            runsHiddenMode="SHOW_ALL",
        ),
        "seeds": _view(
            "metrics.val_accuracy metrics.test_accuracy metrics.test_errors params.seed params.train.epochs "
            "params.model.filters tags.recipe",
            [accuracy, loss, _bar("test_errors")],
            ["group"],
            searchFilter="tags.group != ''",
            orderByKey="metrics.`val_accuracy`",
        ),
        "speed": _view(
            f"tags.recipe metrics.speed/images_per_second metrics.speed/epoch_seconds metrics.{SECONDS} "
            "metrics.val_accuracy params.model.num_params params.model.macs tags.hardware",
            [
                _bar("speed/images_per_second"),
                _line("speed/epoch_seconds"),
                against_seconds,
                _line("system/cpu_utilization_percentage"),
            ],
            searchFilter="tags.recipe != ''",
            orderByKey="metrics.`speed/images_per_second`",
        ),
    }


def _view(columns: str, charts: Sequence[Json], group_by: Sequence[str] = (), **more: Any) -> Json:
    """Return a view: columns of the table, charts in one section before the page's own, tags to group runs by."""
    ours = {"deleted": False, "isGenerated": False}
    groups = [{"mode": "tag", "groupByData": tag} for tag in group_by]
    return {
        "selectedColumns": ["{0}.`{2}`".format(*column.partition(".")) for column in columns.split()],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": groups} if groups else None,
        "orderByAsc": False,
        "hideEmptyCharts": True,
        "runsHiddenMode": "FIRST_20_RUNS",  # that the charts show
        "isAccordionReordered": True,
        "compareRunSections": [{"uuid": "ours", "name": "Charts", "display": True, "isReordered": True, **ours}],
        "compareRunCharts": [
            {"uuid": f"chart {i}", "metricSectionId": "ours", **ours, **chart} for i, chart in enumerate(charts)
        ],
        **more,
    }


def _line(*metrics: str, **more: Any) -> Json:
    keys = {"metricKey": metrics[0], "selectedMetricKeys": metrics}
    axes = {"xAxisKey": "step", "lineSmoothness": 0, "scaleType": "linear", "useGlobalXaxisKey": True}
    return {"type": "LINE", **keys, **axes, **more}


def _bar(metric: str) -> Json:
    return {"type": "BAR", "metricKey": metric}


def _scatter(x: str, y: str) -> Json:
    return {"type": "SCATTER"} | {axis: {"key": key, "type": "METRIC"} for axis, key in (("xaxis", x), ("yaxis", y))}


def route(experiment: str, view: str = "recipes") -> str:
    """Return the part of the page's address that opens a view."""
    return f"#/experiments/{experiment}/runs?viewStateShareKey={view}"


def link(experiment_name: str, port: str) -> str:
    """Return the address of the view Recipes under `make ui`; that of the page where the store has no such runs."""
    with suppress(sqlite3.Error), closing(sqlite3.connect("file:mlflow.db?mode=ro", uri=True)) as store:
        query = "SELECT experiment_id FROM experiments WHERE name = ?"
        for [experiment] in store.execute(query, [experiment_name]):
            return f"http://127.0.0.1:{port}/{route(experiment)}"
    return f"http://127.0.0.1:{port}"


if __name__ == "__main__":  # for the Makefile: MLflow itself would take seconds to say it
    print(link(*sys.argv[1:]))
