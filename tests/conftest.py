"""Shared by all tests: the composed configuration, and small generated digits."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import pytest

from pipeline import config as configuration
from pipeline.config import Config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def compose() -> Callable[..., Config]:
    """compose("recipe=accurate", "train.epochs=1", ...) gives what a verb would get."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("run_folder", lambda parent: parent, replace=True)

    def composed(*overrides: str) -> Config:
        with hydra.initialize_config_dir(str(configuration.CONF), version_base="1.3"):
            return OmegaConf.to_object(hydra.compose("config", list(overrides)))  # type: ignore[return-value]

    return composed


def generated_digits(size: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [N, 28, 28] and labels uint8 [N] that a small network learns: a bright block a class, in noise."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(size) % classes).astype(np.uint8)
    images = generator.integers(0, 60, (size, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 5)
        image[4 + 12 * row : 11 + 12 * row, 1 + 5 * column : 6 + 5 * column] = 250
    return images, labels


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write unsigned bytes in the IDX format, by its definition."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(header + array.tobytes())


def run(*words: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user would, its output captured; the variables of MLflow and DVC are unset."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "MLFLOW_", "MNIST_"))}
    return subprocess.run(words, cwd=cwd, env=kept | variables, capture_output=True, text=True)
