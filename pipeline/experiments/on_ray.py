"""Sweeps on Ray: what Hydra's launcher gives it, decided before it starts Ray or joins a cluster."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf, open_dict, read_write

from pipeline.base.errors import UserError

# Ray by default reports usage to its makers, folds log lines of jobs that differ in numbers alone, and repeats errors.
SETTINGS = {"USAGE_STATS_ENABLED": "0", "DEDUP_LOGS": "0", "COLOR_PREFIX": "0", "IGNORE_UNHANDLED_ERRORS": "1"}
# For a Ray that starts here: nobody else may give it work. The first is what keeps it to the loopback.
LOCAL_ONLY = {"ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "AUTH_MODE": "token"}


def prepare_ray(launcher: Any, defaults: Mapping[str, Any]) -> None:
    """Give the launcher what the command leaves open: `init` and `remote` of `defaults`, and the address."""
    # By default Ray joins any cluster that it finds on this machine.
    address = launcher.ray.init.address or os.environ.get("RAY_ADDRESS") or "local"
    if address != "local":
        given = "hydra.launcher.ray.init.address" if launcher.ray.init.address else "RAY_ADDRESS"
        host, _, port = address.rpartition(":")
        try:  # Ray would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, OverflowError, ValueError) as error:
            raise UserError(
                f"{given}={address}: no Ray answers ({error}): give host:port of `ray start --head`"
            ) from None
    for key, value in (SETTINGS if address != "local" else SETTINGS | LOCAL_ONLY).items():
        os.environ.setdefault(f"RAY_{key}", value)
    with read_write(launcher), open_dict(launcher):
        launcher.ray = OmegaConf.merge(defaults, launcher.ray)
        launcher.ray.init.address = address
