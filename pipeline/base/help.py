"""`python -m pipeline.<verb> --help`, and the table of docs/configuration.md, both from the schema."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

from pydantic import TypeAdapter

from pipeline.base.hydra import compose
from pipeline.base.project import Project
from pipeline.base.schema import DERIVED, Config, Section
from pipeline.base.validation import fields, flatten

KINDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false", "null": "null"}
BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "to below"}


def help_text(
    project: Project, verb: Callable[..., Any], schema: type[Config], name: str, overrides: Sequence[str]
) -> str:
    """Say what a verb does, and list every key with its value today, its type and range, and its meaning."""
    values = flatten(compose(project, *overrides, schema=schema, name=name).model_dump())
    lines = [inspect.getdoc(inspect.getmodule(verb)) or "", "", f"python -m pipeline.{verb.__name__} key=value ..."]
    for group in ("recipe", "data", "sweep") if verb.__name__ == "train" else ("recipe", "data"):
        folder = project.conf / group
        names = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
        lines.append(f"  {f'{group}=<name>':14} {', '.join(names)}")
    if verb.__name__ == "train":
        lines.append("  -m key=a,b     a sweep: every combination")
    for key, kind, meaning in described(schema):
        value = values.get(key)
        shown = f"{key}={value}" if value is not None and len(value) < 60 else key
        explained = "; ".join(filter(None, (meaning, kind)))
        lines += ["", shown, *textwrap.wrap(explained, 100, initial_indent="    ", subsequent_indent="    ")]
    return "\n".join(lines)


def described(schema: type[Section]) -> Iterator[tuple[str, str, str]]:
    """Yield every key that can be given, its type and range in words, and its meaning with its unit."""
    for key, field in fields(schema).items():
        if key not in DERIVED:
            kind: Any = Annotated[field.annotation, field]
            properties = TypeAdapter(kind).json_schema()
            yield key, _kind(properties, properties.get("$defs", {})), field.description or ""


def _kind(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Put a type and its range into words, as `number from 0 to below 1`."""
    properties = definitions.get(properties.get("$ref", "").rpartition("/")[2], properties)
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
