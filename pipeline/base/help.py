"""`python -m pipeline.<verb> --help`, and the table of docs/configuration.md, both from the schema."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pipeline.base.hydra import compose
from pipeline.base.project import Project
from pipeline.base.schema import Config, Section, flatten

KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "to below"}


def help_text(
    project: Project, verb: Callable[..., Any], schema: type[Config], name: str, overrides: Sequence[str]
) -> str:
    """Say what a verb does, and list every key with its value today, its type and range, and its meaning."""
    values = flatten(compose(project, *overrides, schema=schema, name=name).model_dump())
    recipes, data = (
        ", ".join(sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml")))
        for folder in (project.conf / "recipe", project.conf / "data")
    )
    lines = [
        inspect.getdoc(inspect.getmodule(verb)) or "",
        "",
        f"python -m pipeline.{verb.__name__} key=value ...",
        f"  recipe=<name>  {recipes}",
        f"  data=<name>    {data}",
    ]
    if verb.__name__ == "train":
        sweeps = ", ".join(sorted(file.stem for file in (project.conf / "sweep").glob("*.yaml")))
        lines += [f"  sweep=<name>   {sweeps}", "  -m key=a,b     a sweep: every combination"]
    for key, kind, meaning in described(schema):
        value = values.get(key)
        shown = f"{key}={value}" if value is not None and len(value) < 60 else key
        explained = "; ".join(filter(None, (meaning, kind)))
        lines += ["", shown, *textwrap.wrap(explained, 100, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(lines)


def described(schema: type[Section]) -> Iterator[tuple[str, str, str]]:
    """Yield every key that can be given, its type and range in words, and its meaning with its unit."""
    definitions = schema.model_json_schema()
    for key, properties in _properties(definitions, definitions):
        if key not in ("name", "data.name"):  # those of their files
            yield key, _kind(properties, definitions), properties.get("description", "")


def _properties(node: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, properties in node["properties"].items():
        section = _resolved(properties, definitions)
        if "properties" in section:
            yield from _properties(section, definitions, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", properties


def _resolved(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    reference = properties.get("$ref", "").rpartition("/")[2]
    return definitions["$defs"][reference] if reference else properties


def _kind(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Put a type and its range into words, as `number from 0 to below 1`."""
    properties = _resolved(properties, definitions)
    if "anyOf" in properties:
        return " or ".join(_kind(part, definitions) for part in properties["anyOf"])
    if "enum" in properties:
        return " or ".join(str(value) for value in properties["enum"])
    kind = properties.get("type")
    if kind == "array":
        return f"list: {_kind(properties['items'], definitions)}"
    if kind == "object":
        keys = properties.get("properties")
        return f"mapping with {', '.join(keys)}" if keys else "mapping of names to values"
    bounds = [f"{words} {properties[name]:,}" for name, words in BOUNDS.items() if name in properties]
    return " ".join([KINDS.get(str(kind), "anything"), *bounds])
