"""Values against the schema, in one line where they do not fit; and the forms in which they are written and hashed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pipeline.base.errors import UserError, shorten
from pipeline.base.schema import DERIVED, MISSING, Config, Section

NOT_IN_KEYS = ("constrained", "dict[", "list[")  # what pydantic adds to the place of an error
KINDS = ("built_in", "own")  # and the tags of the kinds of model

AnySection = TypeVar("AnySection", bound=Section)


def validate(schema: type[AnySection], values: Any) -> AnySection:
    """Return `values` as a `schema`; the first that does not fit is a UserError that names its key and what does."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        # A mistyped key is missing as well.
        first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
        raise UserError(_in_words(schema, first)) from None


def _in_words(schema: type[Section], first: Any) -> str:
    places = [str(part) for part in first["loc"] if part not in KINDS]
    key = ".".join(part for part in places if not part.startswith(NOT_IN_KEYS))
    if first["type"] == "extra_forbidden":
        return unknown_key(schema, key)
    field = fields(schema).get(key)
    meaning = f" ({field.description})" if field and field.description else ""
    if first["type"] == "missing" or first["input"] == MISSING:
        return f"{key} is missing: give it a value{meaning}"
    said = first["msg"].removeprefix("Value error, ")
    if not key:  # of values that do not fit together
        return said
    return f"{key}={shorten(first['input'])}: {said[0].lower()}{said[1:]}{meaning}"


def unknown_key(schema: type[Section], key: str) -> str:
    """Say that there is no such key, and which one may be meant."""
    close = difflib.get_close_matches(key, [known for known in fields(schema) if known not in DERIVED], 1, cutoff=0.5)
    return f"{key} is no key: {f'did you mean {close[0]}?' if close else '--help lists the keys'}"


def fields(schema: type[Section], prefix: str = "") -> dict[str, FieldInfo]:
    """Return pydantic's FieldInfo of every key of a schema, dotted; a list of sections is one key."""
    found: dict[str, FieldInfo] = {}
    for name, field in schema.model_fields.items():
        kinds = [field.annotation]
        if get_origin(field.annotation) is Union:  # of sections, each with its tag
            kinds = [(get_args(kind) or (kind,))[0] for kind in get_args(field.annotation)]
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        for kind in sections:
            found |= fields(kind, f"{prefix}{name}.")
        if not sections:
            found[f"{prefix}{name}"] = field
    return found


def without_own_keys(config: Config) -> Config:
    """Return a verb's configuration without the keys of its own: what a training is recorded with."""
    return validate(Config, config.model_dump(include=set(Config.model_fields)))


def non_defaults(config: Section) -> dict[str, Any]:
    """Return the values that are not their default, nested: what is hashed."""
    return config.model_dump(exclude_defaults=True)


def flatten(values: Mapping[str, Any] | Sequence[Any], prefix: str = "") -> dict[str, str]:
    """Nested values under dotted keys, as text; a list of plain values stays one value."""
    flat: dict[str, str] = {}
    for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
        items = value if isinstance(value, list) else [value]
        nested = any(isinstance(item, Mapping) for item in items)
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": str(value)}
    return flat


# Keys of recorded configurations that have another name now, are gone, or are dropped as their form has changed.
FORMER_KEYS = {
    "optimizer.batch_shards": "ghost_batches",
    "evaluate.views": "tta_shifts",
    **dict.fromkeys(("train.profile_steps", "data.sha256_of", "data.sources", "data.files")),
    **dict.fromkeys(("optimizer.row_strips", "optimizer.dense_partitions")),  # other sums of the same products
}


def from_recorded(values: dict[str, Any], source: str) -> Config:
    """Return the configuration that a run recorded, perhaps long ago; one that does not fit is a UserError."""
    for old, new in FORMER_KEYS.items():
        section, name = old.split(".")
        if name in values.get(section, {}):
            value = values[section].pop(name)
            values[section] |= {new: value} if new else {}
    try:
        return validate(Config, values)
    except UserError as error:
        raise UserError(f"{source} was written by other code ({error}): check out its commit first") from None
