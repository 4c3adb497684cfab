"""Sweeps on Ray: what Hydra's launcher is to give it, decided before it starts Ray or joins a cluster."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, open_dict, read_write

# Ray by itself reports to its makers, takes lines of jobs that differ in their numbers alone for one, and tells of
# every job that failed as well as the first.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_COLOR_PREFIX": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
}
# Of a Ray that starts here: nobody else may give it work. The first is the one thing that keeps it to the loopback.
ALONE = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
STORE = 100_000_000  # bytes of shared memory for what jobs hand over, which is little; Ray would take a third of all
PATIENCE = 10.0  # seconds


class Start(Callback):
    """`init` and `remote` are what Ray is given where the command gives nothing else."""

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
        self.given = {"init": dict(init), "remote": dict(remote)}

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        launcher = config.hydra.launcher
        if "ray" not in launcher:
            return
        # Left to itself Ray joins any cluster that it finds on this machine.
        address = launcher.ray.init.address or os.environ.get("RAY_ADDRESS") or "local"
        joins = address != "local"
        if joins:
            _refuse_silence(address)
        self.given["init"] |= {"object_store_memory": None if joins else STORE}  # a cluster has its own
        for key, value in (SETTINGS if joins else SETTINGS | ALONE).items():
            os.environ.setdefault(key, value)
        with read_write(config), open_dict(config):
            launcher.ray = OmegaConf.merge(self.given, launcher.ray)
            launcher.ray.init.address = address


def _refuse_silence(address: str) -> None:
    """End where nothing listens at host:port, which Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        sys.exit(f"error: RAY_ADDRESS={address}: no Ray answers ({error}): give host:port of a `ray start --head`")
