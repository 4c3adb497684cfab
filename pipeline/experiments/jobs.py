"""The jobs of a sweep, before the first one runs: every combination of the values, those of sweep.zip side by side."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from hydra._internal.core_plugins import basic_sweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from pipeline.base.errors import UserError, one_line, shorten
from pipeline.base.hydra import compose
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.base.verb_schemas import TrainConfig
from pipeline.data.examples import check_split
from pipeline.tracking.fingerprint import NON_TRAINING_KEYS

MAX_JOBS = 1_000  # each is composed before the first one runs, which takes a minute or two
OWN_KEYS = TrainConfig.model_fields.keys() - Config.model_fields.keys()  # how jobs run and are labelled


def grid(overrides: Sequence[str], zipped: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """Return the factors of a grid and the overrides of every job, without `zipped` as Hydra's sweeper makes them.

    A factor is a key that varies; those of `zipped`, whose i-th values belong together, are one, joined by commas.
    """
    last = by_key(overrides)
    varies, zipped = [key for key, one in last.items() if one.is_sweep_override()], list(dict.fromkeys(zipped))
    if missing := [key for key in zipped if key not in varies]:
        raise UserError(
            f"sweep.zip names {missing[0]}, which has one value or none: give {missing[0]}=a,b or leave it out"
        )
    split = basic_sweeper.BasicSweeper.split_arguments  # not public, as seen in Hydra 1.3.8
    columns = [[word for [word] in split([last[key]], None)[0]] for key in zipped]
    if len(set(map(len, columns))) > 1:
        counts = ", ".join(f"{key} has {len(column)}" for key, column in zip(zipped, columns, strict=True))
        raise UserError(f"sweep.zip takes the i-th values together, but {counts}: give as many of each")
    [others] = split([one for key, one in last.items() if key not in zipped], None)
    jobs = list(itertools.product(zip(*columns, strict=True) if zipped else [()], others))
    if not 0 < len(jobs) <= MAX_JOBS:
        raise UserError(f"{shorten(' '.join(overrides))}: {len(jobs):,} jobs, expected 1 to {MAX_JOBS:,}")
    factors = ([",".join(zipped)] if zipped else []) + [key for key in varies if key not in zipped]
    return factors, [[*together, *rest] for together, rest in jobs]


def search_space(overrides: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the keys that a search varies and, as the only job that is known before, what all its trials share."""
    last = by_key(overrides)
    keys = [key for key, one in last.items() if one.is_sweep_override()]
    return keys, [[str(one.input_line) for key, one in last.items() if key not in keys]]


def by_key(overrides: Sequence[str]) -> dict[str, Override]:
    """Return overrides by their keys; of a key that is given twice the last one counts."""
    parser = OverridesParser.create(GlobalHydra.instance().config_loader())
    return {override.get_key_element(): override for override in parser.parse_overrides(list(overrides))}


def run_just(jobs: list[list[str]]) -> None:
    """Let Hydra's sweeper run these jobs, in batches if it is told to; by itself it knows all combinations alone."""
    sweeper = basic_sweeper.BasicSweeper  # asked for late: Hydra runs that module again when it looks for plugins

    def batches(_: object, size: int | None) -> list[list[list[str]]]:
        return list(sweeper.split_overrides_to_chunks(jobs, size))

    sweeper.split_arguments = staticmethod(batches)


def compose_jobs(project: Project, keys: Sequence[str], jobs: Sequence[Sequence[str]]) -> list[TrainConfig]:
    """Return the configuration of every job; one that cannot be trained is a UserError that names it."""
    if idle := [key for key in keys if key.lstrip("+").partition(".")[0] in (*NON_TRAINING_KEYS, *OWN_KEYS)]:
        raise UserError(f"{idle[0]} changes nothing in training, each value trains the same: give one value, or none")
    configs = []
    for job in jobs:
        try:
            configs.append(compose(project, *job, schema=TrainConfig, name="train"))
            check_split(project, configs[-1].data)
        except Exception as error:
            if (message := one_line(error)) is None:
                raise
            given = " ".join(swept(job, keys))
            raise UserError(f"{given}: {message}" if given else message) from error
    return configs


def keys_of(factors: Sequence[str]) -> list[str]:
    """Return the keys of factors."""
    return [key for factor in factors for key in factor.split(",")]


def swept(overrides: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Return those overrides of a job, key=value, whose keys vary."""
    return [override for override in overrides if override.partition("=")[0] in keys]


def named(overrides: Sequence[str]) -> list[str]:
    """Return the overrides that a run is named by: all but its note and tags."""
    return [override for override in overrides if not re.match(r"\+*(note|tags)\b", override)]
