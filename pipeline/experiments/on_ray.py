"""Sweeps on Ray: what Hydra's launcher gives it, decided before it starts Ray or joins a cluster."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf, open_dict, read_write

# Ray by default reports usage to its makers, folds log lines of jobs that differ in numbers alone, and repeats errors.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0"}
SETTINGS |= {"RAY_IGNORE_UNHANDLED_ERRORS": "1"}
# For a Ray that starts here: nobody else may give it work. The first is what keeps it to the loopback.
LOCAL_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
OBJECT_STORE = 100_000_000  # bytes for what jobs hand over, which is little; Ray would take a third of all memory


class RayStart(Callback):
    """`init` and `remote` are what Ray gets where the command gives nothing else."""

    def __init__(self, init: Mapping[str, Any], remote: Mapping[str, Any]) -> None:
        self.defaults: dict[str, Any] = {"init": dict(init), "remote": dict(remote)}

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        launcher = config.hydra.launcher
        if "ray" not in launcher:
            return
        # By default Ray joins any cluster that it finds on this machine.
        address = launcher.ray.init.address or os.environ.get("RAY_ADDRESS") or "local"
        if address != "local":
            try:  # Ray would try for minutes
                host, port = address.rsplit(":", 1)
                socket.create_connection((host, int(port)), timeout=10).close()
            except (OSError, OverflowError, ValueError) as error:
                sys.exit(
                    f"error: RAY_ADDRESS={address}: no Ray answers ({error}): give host:port of `ray start --head`"
                )
        else:
            self.defaults["init"]["object_store_memory"] = OBJECT_STORE
        for key, value in (SETTINGS if address != "local" else SETTINGS | LOCAL_ONLY).items():
            os.environ.setdefault(key, value)
        with read_write(config), open_dict(config):
            launcher.ray = OmegaConf.merge(self.defaults, launcher.ray)
            launcher.ray.init.address = address
