"""Measure memory and time of a generated data set of any size:  python -m benchmarks.large <images> <side> <channels>

It copies the repository to a folder for temporary files, makes the raw arrays there, and runs `preprocess` and one
epoch of `train` with a tiny network. It appends a line to benchmarks/results/large.jsonl, and removes the folder.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.report import table
from pipeline.data.blocks import Rows
from pipeline.data.examples import save_arrays
from pipeline.tracking.environment import hardware

ROOT = Path(__file__).parents[1]
TINY = (
    "model.convolutions=[{multiple: 1, kernel_size: 5, strides: 4, padding: valid, pool: 1}]",
    *("model.filters=8", "model.units=[]", "model.pooling=average", "model.batch_norm=false"),
    *("optimizer.batch_size=256", "optimizer.filter_groups=1", "train.epochs=1"),
)
DIFFERENT = 2000  # images; the set repeats them
CLASSES = 10


def make(folder: Path, images: int, side: int, channels: int) -> int:
    """Write data/raw/large.npz and its description: the bytes of the file."""
    generator = np.random.default_rng(0)
    shape = (side, side, 3) if channels == 3 else (side, side)
    labels = (np.arange(DIFFERENT) % CLASSES).astype(np.uint8)
    base = generator.integers(0, 128, (DIFFERENT, *shape)).astype(np.uint8)
    base += (12 * labels).reshape(-1, *[1] * len(shape))
    parts = {"train": np.arange(images) % DIFFERENT, "test": np.arange(DIFFERENT)}
    arrays: dict[str, Any] = {}
    for part, rows in parts.items():
        arrays |= {f"{part}_images": Rows(base, rows), f"{part}_labels": labels[rows]}
    path = folder / "data" / "raw" / "large.npz"
    settings = {
        "image_shape": [side, side],
        "channels": channels,
        "classes": [str(label) for label in range(CLASSES)],
        "published": False,
        "val_size": images // 20,
        "split_seed": 0,
        "fraction": 1.0,
        "sources": [],
        "sha256": save_arrays(path, **arrays),
    }
    (folder / "conf" / "data" / "large.yaml").write_text(yaml.safe_dump(settings))
    return path.stat().st_size


def measured(folder: Path, *words: str, stage: str = "") -> dict[str, float]:
    """Run a command, as a stage of DVC or not: its seconds, and the most memory that it held at once, mapped pages
    included."""
    begin = time.perf_counter()
    variables = os.environ | ({"DVC_STAGE": stage} if stage else {})
    process = subprocess.Popen([sys.executable, "-m", *words], cwd=folder, env=variables)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{words[0]} failed")
    return {"seconds": round(time.perf_counter() - begin, 1), "peak_mb": round(usage.ru_maxrss * 1024 / 1e6)}


def blocks(read: Callable[[str], str]) -> dict[str, str]:
    """Return the table for docs/your-own.md."""
    rows = [json.loads(line) for line in read("benchmarks/results/large.jsonl").splitlines()]
    head = ("images", "shape", "GB", "preprocess, s", "peak of preprocess, MB", "an epoch, s", "peak of train, MB")
    cells = [
        (
            f"{row['images']:,}",
            " × ".join(map(str, row["shape"])),
            f"{row['gb']:.2f}",
            f"{row['preprocess']['seconds']:.0f}",
            f"{row['preprocess']['peak_mb']:,}",
            f"{row['epoch_seconds']:.1f}",
            f"{row['train']['peak_mb']:,}",
        )
        for row in rows
    ]
    return {"large": f"{table(head, cells)}\nn = 1 each, on: {rows[0]['hardware']}.\n"}


def main() -> None:
    images, side, channels = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory(prefix="large-") as temporary:
        folder = Path(temporary)
        for name in ("conf", "pipeline"):
            shutil.copytree(ROOT / name, folder / name)
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / name, folder)
        size = make(folder, images, side, channels)
        row: dict[str, Any] = {"images": images, "shape": [side, side, channels], "gb": round(size / 1e9, 2)}
        measured(folder, "pipeline.compose", "data=large", stage="compose_data")
        row["preprocess"] = measured(folder, "pipeline.preprocess", "data=large", stage="preprocess")
        row["train"] = measured(folder, "pipeline.train", "data=large", "recipe=baseline", *TINY)
        [history] = (folder / "outputs").glob("*/metrics.jsonl")
        values = json.loads(history.read_text().split("\n")[1])["values"]
        row["epoch_seconds"] = round(values["speed/epoch_seconds"], 1)
        row["hardware"] = hardware()
        row["val_accuracy"] = values["val_accuracy"]
    print(json.dumps(row))
    with (ROOT / "benchmarks" / "results" / "large.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
