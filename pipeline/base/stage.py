"""What DVC trusts a stage to do: to read the values that DVC has seen, and to write every output anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.base.errors import UserError
from pipeline.base.files import load_yaml
from pipeline.base.project import Project
from pipeline.base.schema import Config, flatten, non_defaults


def composed_values(project: Project, config: Config) -> tuple[Path, dict[str, Any]]:
    """Return the file that `compose` writes for this stage, and its values: those of a recipe, or of the data alone for
    the stages that all recipes share."""
    values = {key: value for key, value in non_defaults(config).items() if key not in ("recipes", "dataset")}
    if "@" in (project.stage or "@"):  # a stage of one recipe, or none
        return project.recipe_results(config.name) / "config.yaml", values
    return project.results / "data.yaml", {"data": values["data"]}


def check_composed(project: Project, config: Config) -> None:
    """Raise a UserError where conf/ or params.yaml have changed since `compose` ran: DVC would record other values."""
    path, values = composed_values(project, config)
    seen, now = flatten(load_yaml(path)), flatten(values)
    for key in [key for key in seen | now if seen.get(key) != now.get(key)]:
        raise UserError(
            f"{path.relative_to(project.root)} has {key}={seen.get(key)}, and conf/ with params.yaml now make it "
            f"{now.get(key)}: run `dvc repro`, or before a single stage `dvc repro compose compose_data`"
        )


def check_outputs(project: Project, config: Config, begin_ns: int) -> None:
    """Raise a UserError unless the stage has written all its outputs since `begin_ns`, nanoseconds since 1970.

    DVC would keep the old file under the new parameters. What counts is when the file itself changed: one that is
    linked here keeps the time of its content.
    """
    stage = (project.stage or "").partition("@")[0]
    listed = yaml.safe_load((project.root / "dvc.yaml").read_text(encoding="utf-8"))["stages"].get(stage, {})
    entries = [entry for kind in ("outs", "metrics", "plots") for entry in listed.get(kind, [])]
    for entry in entries:
        name = entry if isinstance(entry, str) else next(iter(entry))
        name = name.replace("${item.recipe}", config.name).replace("${dataset}", config.data.name)
        path = project.root / name
        if not path.exists() or path.stat().st_ctime_ns < begin_ns:
            raise UserError(f"the stage ended without writing {name}, which dvc.yaml promises")
