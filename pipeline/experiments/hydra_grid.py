"""The jobs of a grid as Hydra will make them: its sweeper is not public (as seen in Hydra 1.3.8); a test compares."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from pipeline.base.errors import UserError, shorten


def grid(overrides: Sequence[str], max_jobs: int) -> tuple[list[str], list[list[str]]]:
    """Return the keys that vary, and the overrides of every job; a UserError for none or more than `max_jobs`."""
    parsed = OverridesParser.create(GlobalHydra.instance().config_loader()).parse_overrides(list(overrides))
    count = math.prod(map(_count, parsed))
    if not count <= max_jobs:  # nor where it is NaN
        raise UserError(f"{shorten(' '.join(overrides))}: {count:.10g} jobs: give values for at most {max_jobs:,}")
    [jobs] = BasicSweeper.split_arguments(parsed, None)
    if not jobs:
        raise UserError(f"{' '.join(overrides)} is no job at all: give each key at least one value")
    last = {override.get_key_element(): override for override in parsed}
    return [key for key, override in last.items() if override.is_sweep_override()], jobs


def _count(override: Override) -> float:
    """Return how many values an override gives its key, without making them."""
    values = override.value()
    if isinstance(values, RangeSweep):
        return max(0.0, (values.stop - values.start) / values.step)
    return len(values.list) if isinstance(values, ChoiceSweep) else 1
