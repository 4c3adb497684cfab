"""Composing the configuration with Hydra: plain values, checked by the schema. What DVC has seen of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from pipeline.base import own
from pipeline.base.errors import UserError
from pipeline.base.files import load_yaml
from pipeline.base.project import Project
from pipeline.base.schema import DERIVED, MISSING, NAMES, Config, OwnModel, Section
from pipeline.base.validation import AnySection, fields, flatten, unknown_key, validate


def register(project: Project, schema: type[Section]) -> None:
    """Tell Hydra which keys there are, with their defaults.

    The keys come first in the list of defaults in conf/config.yaml, so that one which stands in no YAML can be given.
    """
    defaults = OmegaConf.create()
    for key, field in fields(schema).items():
        if key not in DERIVED:
            OmegaConf.update(defaults, key, MISSING if field.is_required() else field.get_default())
            if field.default == {}:  # a mapping whose keys the user names
                OmegaConf.set_struct(OmegaConf.select(defaults, key), False)
    ConfigStore.instance().store(name="schema", node=defaults)
    OmegaConf.register_new_resolver("root", lambda: str(project.root), replace=True)
    OmegaConf.clear_resolver("oc.env")  # no environment variable may end in what is logged


def compose(project: Project, *overrides: str, schema: type[AnySection] = Config, name: str = "config") -> AnySection:  # type: ignore[assignment]
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
        return checked(project, composed, composed.hydra, schema)


def explain(error: Exception, schema: type[Section]) -> str | None:
    """Return in words what is wrong with an override, where Hydra's own words do not help; None for another error."""
    if key := re.match(r"Could not override '([\w.]+)'", str(error)):
        return unknown_key(schema, key[1])
    if str(error).startswith("Config group override must be a string"):
        return "recipe, data and sweep take the name of a file: give recipe=baseline, or in quotes recipe=\"'7'\""
    return None


def checked(project: Project, composed: DictConfig, settings: DictConfig, schema: type[AnySection]) -> AnySection:
    """Return what Hydra composed, with its own section as `settings`, as a `schema`. Recipe and data set are named by
    the files that were chosen."""
    OmegaConf.set_struct(composed, False)
    composed.pop("hydra", None)
    for key, group in zip(NAMES, ("recipe", "data"), strict=True):
        OmegaConf.update(composed, key, settings.runtime.choices.get(group))
    model: Any = composed.get("model")
    if isinstance(model, DictConfig):
        model = OmegaConf.to_container(model)
        if model.get("build", MISSING) != MISSING:
            model = _common(model, _of_own_network(project, settings))
        elif args := model.get("args"):
            raise UserError(f"model.args={args}: only your own network has arguments: give model.build too")
        else:
            model = {key: value for key, value in model.items() if key not in fields(OwnModel)}
        OmegaConf.update(composed, "model", model, merge=False)
    return _with_sources(project.root, validate(schema, OmegaConf.to_container(composed, resolve=True)))


def _of_own_network(project: Project, settings: DictConfig) -> dict[str, Any]:
    """Return the keys of the section `model` that are said of its own network, and not inherited with another one: by
    the last file that sets model.build, the files that are merged after it, and the command line.

    A key of the built-in network among them is a UserError.
    """
    overrides, loader = list(settings.overrides.task), GlobalHydra.instance().config_loader()
    defaults = loader.compute_defaults_list(settings.job.config_name, overrides, RunMode.RUN).defaults
    files = [project.conf / f"{one.config_path}.yaml" for one in defaults]
    sections = [(load_yaml(file) or {}).get("model") for file in files if file.is_file()]
    given = OmegaConf.create()
    for override in OverridesParser.create(loader).parse_overrides(overrides):
        if override.key_or_group.startswith("model."):
            OmegaConf.update(given, override.key_or_group, override.value())
    said: Any = {}
    for section in (*sections, OmegaConf.to_container(given).get("model")):  # type: ignore[union-attr]
        if isinstance(section, dict):
            said = section if "build" in section else OmegaConf.to_container(OmegaConf.merge(said, section))
    if others := [key for key in said if key not in fields(OwnModel)]:
        raise UserError(f"model.{others[0]} is a key of the built-in network: give model.args, which your own takes")
    return said


def _common(values: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of nested `values` whose keys are `wanted`."""
    return {
        key: _common(value, wanted[key]) if isinstance(value, dict) and isinstance(wanted[key], dict) else value
        for key, value in values.items()
        if key in wanted
    }


def _with_sources(root: Path, config: AnySection) -> AnySection:
    """Return the configuration with the hash of the user's own code, and with the defaults of its arguments."""
    changed: dict[str, Any] = {}
    if isinstance(config, Config):
        if isinstance(config.model, OwnModel):
            args = own.arguments(root, config.model.build, config.model.args, supplied=2)
            source = own.source_sha256(root, [config.model.build])
            changed["model"] = config.model.model_copy(update={"args": args, "source_sha256": source})
        for name, section, functions in (
            ("train", config.train, config.train.metrics),
            ("evaluate", config.evaluate, config.evaluate.plots),
        ):
            if functions:
                source = own.source_sha256(root, functions.values())
                changed[name] = section.model_copy(update={"source_sha256": source})
        for name in (*config.train.metrics.values(), *config.evaluate.plots.values(), *config.trackers):
            own.definition(root, name)
    return config.model_copy(update=changed)


def composed_values(project: Project, config: Config) -> tuple[Path, dict[str, Any]]:
    """Return the file that `compose` writes for this stage, and its values: those of a recipe, or of the data alone for
    the stages that all recipes share."""
    values = config.model_dump(exclude_defaults=True, exclude={"recipes", "dataset"})
    if project.stage is None or "@" in project.stage:  # not one of the stages that all recipes share
        return project.recipe_results(config.name) / "config.yaml", values
    return project.results / "data.yaml", {"data": values["data"]}


def load_network_of_recipe(project: Project, config: Config) -> None:
    """Import what the model of `dvc repro` was built by, where that is the user's own, so that its layers are known.

    Its code is compared with what `compose` saw: where it was edited since, that is a UserError.
    """
    if isinstance(config.model, OwnModel):
        composed = load_yaml(project.recipe_results(config.name) / "config.yaml")["model"]
        own.load_recorded(project.root, composed.get("build"), composed.get("source_sha256"))


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
    """Raise a UserError unless a stage has written all its outputs since `begin_ns`, nanoseconds since 1970.

    DVC would keep the old file under the new parameters. What counts is when the file itself changed: one that is
    linked here keeps the time of its content.
    """
    stage = (project.stage or "").partition("@")[0]
    listed = load_yaml(project.root / "dvc.yaml")["stages"].get(stage, {}) if stage else {}
    for entry in [entry for kind in ("outs", "metrics", "plots") for entry in listed.get(kind, [])]:
        name = entry if isinstance(entry, str) else next(iter(entry))
        name = name.replace("${item.recipe}", config.name).replace("${dataset}", config.data.name)
        path = project.root / name
        if not path.exists() or path.stat().st_ctime_ns < begin_ns:
            raise UserError(f"the stage ended without writing {name}, which dvc.yaml promises")
