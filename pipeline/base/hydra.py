"""Composing the configuration with Hydra: plain values, checked by the schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from datetime import datetime
from typing import Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from pipeline.base.errors import UserError, shorten
from pipeline.base.project import Project
from pipeline.base.schema import Config, Section, keys, nearest, validate

MISSING = "???"  # OmegaConf's mark of a value that has to be given
AnyConfig = TypeVar("AnyConfig", bound=Config)


def register(project: Project, schema: type[Config]) -> None:
    """Tell Hydra which keys there are, with their defaults, and where a job writes.

    The keys come first in the list of defaults in conf/config.yaml, so that one which stands in no YAML can be given.
    """
    ConfigStore.instance().store(name="schema", node=_defaults(schema))
    folder = "." if project.stage else ""
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
    OmegaConf.register_new_resolver("run_folder", lambda parent: folder or f"{parent}/{stamp}", replace=True)
    OmegaConf.register_new_resolver("root", lambda: str(project.root), replace=True)
    OmegaConf.clear_resolver("oc.env")  # no environment variable may end in what is logged


def _defaults(schema: type[Section]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            values[name] = _defaults(field.annotation)
        else:
            values[name] = MISSING if field.is_required() else field.get_default()
    return values


def compose(project: Project, *overrides: str, schema: type[AnyConfig] = Config, name: str = "config") -> AnyConfig:  # type: ignore[assignment]
    """Compose conf/<name>.yaml with overrides, key=value, inside a command of Hydra's or not."""
    register(project, schema)
    ready = GlobalHydra.instance().is_initialized()
    with nullcontext() if ready else hydra.initialize_config_dir(str(project.conf), version_base="1.3"):
        try:
            composed = hydra.compose(name, list(overrides), return_hydra_config=True)
        except (HydraException, ValueError) as error:
            if message := explain(error, schema):
                raise UserError(message) from None
            raise
    choices = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    return checked(composed, choices, schema)


def explain(error: Exception, schema: type[Config]) -> str | None:
    """Return in words what is wrong with an override, where Hydra's own words do not help; None for another error."""
    if key := re.match(r"Could not override '([\w.]+)'", str(error)):
        return f"{key[1]} is no key: {nearest(key[1], keys(schema))}"
    if str(error).startswith("Config group override must be a string"):
        return "recipe, data and sweep take the name of a file: give recipe=baseline, or in quotes recipe=\"'7'\""
    return None


def checked(composed: DictConfig, choices: Mapping[str, str], schema: type[AnyConfig]) -> AnyConfig:
    """Return what Hydra composed as a `schema`. Recipe and data set are named by the files that were chosen."""
    values = _given(OmegaConf.to_container(composed, resolve=True))
    assert isinstance(values, dict)
    for section, group in ((values, "recipe"), (values.get("data"), "data")):
        if not isinstance(section, dict):
            continue
        if choices.get(group) is None:
            raise UserError(f"no {group} is chosen: give {group}=<name>, a file of conf/{group}")
        name = section.setdefault("name", choices[group])
        if name != choices[group]:
            raise UserError(
                f"name={shorten(name)}: the name is that of the file, {group}={choices[group]}: remove the key"
            )
    return validate(schema, values)


def _given(value: Any) -> Any:
    """The value without keys that nobody gave."""
    if isinstance(value, dict):
        return {key: _given(inner) for key, inner in value.items() if inner != MISSING}
    return [_given(inner) for inner in value] if isinstance(value, list) else value


def is_sweep() -> bool:
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)
