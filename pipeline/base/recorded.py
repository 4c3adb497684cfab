"""Configurations that runs recorded, perhaps long ago: they stay readable."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pipeline.base.errors import UserError
from pipeline.base.schema import Config, validate

# Keys of recorded configurations that are gone, and those that have another name now.
RETIRED = ("train.profile_steps", "data.sha256_of", "data.sources", "data.files")
RENAMED = {
    "optimizer.batch_shards": "optimizer.ghost_batches",
    "optimizer.row_strips": "optimizer.dense_partitions",
    "evaluate.views": "evaluate.tta_shifts",
}


def from_recorded(values: Mapping[str, Any], source: str) -> Config:
    """Return the configuration that a run recorded, perhaps long ago; one that does not fit is a UserError."""
    recorded: Any = copy.deepcopy(dict(values))
    for old in (*RETIRED, *RENAMED):
        section, _, name = old.partition(".")
        if isinstance(recorded.get(section), dict) and name in recorded[section]:
            value = recorded[section].pop(name)
            if old in RENAMED:
                new_section, _, new_name = RENAMED[old].partition(".")
                recorded[new_section][new_name] = value
    try:
        return validate(Config, recorded)
    except UserError as error:
        raise UserError(f"{source} was written by other code ({error}): check out its commit first") from None
