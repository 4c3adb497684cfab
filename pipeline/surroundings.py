"""What decides a trained model, as hashes; and what it was trained on and with."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config import ROOT, Config, PipelineError, explicit, flatten, to_dict
from pipeline.console import quiet_import
from pipeline.files import sha256

NOBODY = {"mlflow.user": "pipeline", "mlflow.source.name": "pipeline"}  # instead of a login name, and somebody's path
PACKAGES = ("tensorflow", "keras", "numpy", "hydra-core", "mlflow", "dvc")
THREADS = "intra-op 1, inter-op 2"  # as engine.start sets them
COMPUTES = PACKAGES[:3]  # those whose version can change a result
# What these do shows in the values and arrays that they hand over, which are hashed themselves.
NOT_COMPUTING = ("config", "files")
# Variables that choose how TensorFlow, XLA, oneDNN and NumPy compute; not those that only log, allot memory, or set
# threads, which engine.start does; and not Terraform's, TF_ too, which hold passwords.
COMPUTE_VARIABLES = re.compile(
    r"TF_(AUTOTUNE|AUTO_MIXED|CONV2D|CUBLAS|CUDNN|DETERMINISTIC|ENABLE|FP16|MATMUL|ONEDNN|SET_ONEDNN|USE|XLA)_\w+"
    r"|XLA_FLAGS|(ONEDNN|DNNL)_(?!VERBOSE)\w+|TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL"
    r"|NPY_(DIS|EN)ABLE_CPU_FEATURES|NVIDIA_TF32_OVERRIDE"
)
# What decides nothing about a trained model: its name, how it is evaluated, and what else `dvc repro` builds.
DECIDES_NOTHING = ("evaluate", "recipes", "dataset", "name")
# What DVC deletes and rewrites around a stage, and the benchmark between trials, does not make a tree dirty.
NOT_SOURCE = (":!results", ":!dvc.lock", ":!benchmarks/results", ":!docs/benchmark", ":!docs/benchmark.md")


class Identity(NamedTuple):
    """SHA-256 of what decides a trained model; on one machine, the same `content` gives the same bits."""

    config_sha256: str
    data_sha256: str
    code_sha256: str
    content_sha256: str  # of all three, the versions that compute, and the variables that choose how
    group: str  # the same without the seed, 12 digits after a g: runs of one group differ in their seed alone


def deciding(config: Config) -> dict[str, Any]:
    """What of a configuration can change a trained model, to be hashed."""
    return {key: value for key, value in explicit(config).items() if key not in DECIDES_NOTHING}


def trained_with(config: Config) -> dict[str, str]:
    """The same to be logged: under dotted keys, as text, defaults included."""
    return flatten({key: value for key, value in to_dict(config).items() if key not in DECIDES_NOTHING})


def identity(config: Config, data_files: Sequence[Path]) -> Identity:
    values = deciding(config)
    data = _sha256_of_all(tuple(data_files))
    code = _sha256_of("".join(map(sha256, computing_modules())))
    versions = [importlib.metadata.version(name) for name in COMPUTES]
    variables = [chosen] if (chosen := compute_variables()) != "none" else []  # without any, the hash of earlier runs
    without_seed = {key: value for key, value in values.items() if key != "seed"}
    content, group = (
        _sha256_of(json.dumps([of, data, code, versions, *variables], sort_keys=True)) for of in (values, without_seed)
    )
    # The g: 9447e1230643 would be a number, and infinite, to Hydra and to whoever reads a ranking.
    return Identity(_sha256_of(json.dumps(values, sort_keys=True)), data, code, content, f"g{group[:12]}")


def computing_modules() -> list[Path]:
    """The files whose code can change a trained model: the training loop, the data, all that these import, and the
    module that puts them together."""
    package = ROOT / "pipeline"
    skipped = {package / f"{name}.py" for name in NOT_COMPUTING}
    reached: set[Path] = set()
    waiting = {package / "engine.py", package / "data.py"}
    while waiting:
        reached |= waiting
        waiting = set().union(*map(_imported, waiting)) - reached - skipped
    return sorted(reached | {package / "training.py"})


def _imported(file: Path) -> set[Path]:
    """The files of this package that a module imports, at the top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    modules = {name.replace(".", "/") for name in names if name.startswith("pipeline.")}
    files = {ROOT / f"{module}{end}" for module in modules for end in (".py", "/__init__.py")}
    return {path for path in files if path.is_file()}


def depends_on_length(config: Config) -> bool:
    """Whether the weights after an epoch depend on how many are to follow."""
    varies = config.augment
    amounts = (varies.rotation, varies.scale, varies.stretch, varies.shear, varies.shift)
    return config.optimizer.schedule != "constant" or (any(amounts) and varies.last < 1)


def origin(config: Config, identity: Identity) -> dict[str, str]:
    """What decides the bits after an epoch: a checkpoint is gone on with where all of it is the same."""
    values = deciding(config)
    if not depends_on_length(config):
        values = values | {"train": {key: value for key, value in values["train"].items() if key != "epochs"}}
    return {
        "configuration": _sha256_of(json.dumps(values, sort_keys=True)),
        "data": identity.data_sha256,
        "code": identity.code_sha256,
        "versions": versions(COMPUTES),
        "threads": THREADS,
        "processor": processor(),
        "environment": compute_variables(),
    }


@functools.cache  # the jobs of a sweep share them
def _sha256_of_all(files: tuple[Path, ...]) -> str:
    return _sha256_of("".join(sha256(file) for file in files))


def _sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def processor() -> str:
    """The processor's name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def hardware() -> str:
    """Processor, cores this process may use, memory, and graphics processors, in words."""
    import psutil

    with quiet_import():
        import tensorflow as tf

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = round(psutil.virtual_memory().total / 2**30)
    devices = tf.config.list_physical_devices("GPU")
    cards = [tf.config.experimental.get_device_details(card).get("device_name", "GPU") for card in devices]
    return ", ".join([processor(), f"{cores} cores", f"{memory} GiB", platform.system(), *(cards or ["no GPU"])])


def versions(packages: Sequence[str] = PACKAGES) -> str:
    return ", ".join(
        [f"python {platform.python_version()}"] + [f"{name} {importlib.metadata.version(name)}" for name in packages]
    )


def compute_variables() -> str:
    """Return the environment variables that can change a result, as name=value, or "none"; paths in them are left out,
    being somebody's."""
    chosen = {name: value for name, value in sorted(os.environ.items()) if COMPUTE_VARIABLES.fullmatch(name)}
    return ", ".join(f"{name}={re.sub(r'[~/][^ ,]*', '…', value)}" for name, value in chosen.items()) or "none"


def git(*words: str) -> str | None:
    """What a git command prints, or None without git or outside a clone; what git refuses is a PipelineError."""
    try:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace")
    except OSError:
        return None
    if done.returncode and done.stderr and (ROOT / ".git").exists():  # as in a clone that another user owns
        raise PipelineError(f"git: {' '.join(done.stderr.split())}")
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def commit() -> str:
    """Return the hash of the checked-out commit, or "none"."""
    return git("rev-parse", "--verify", "--quiet", "HEAD") or "none"


def uncommitted() -> str | None:
    """What stands in the working tree but not in the commit, as git names it: empty for nothing."""
    return git("status", "--porcelain", "--untracked-files=normal", "--", ".", *NOT_SOURCE)


def about(source: str) -> dict[str, str]:
    """The tags of a run: where it comes from, and no person."""
    return NOBODY | {
        "mlflow.source.name": source,
        "mlflow.source.git.commit": commit(),
        "git_commit": commit(),
        "git_dirty": {"": "false", None: "unknown"}.get(uncommitted(), "true"),
        "dvc_stage": os.environ.get("DVC_STAGE", "none"),
        "dvc_experiment": os.environ.get("DVC_EXP_NAME", "none"),
        "hardware": hardware(),
        "threads": THREADS,
        "versions": versions(),
        "environment": compute_variables(),
    }


def packages() -> str:
    """The installed packages, a line each."""
    installed = sorted(f"{found.metadata['Name']}=={found.version}" for found in importlib.metadata.distributions())
    return "\n".join(installed) + "\n"


def difference() -> str | None:
    """What stands in the working tree but not in the commit, with the lines; None for nothing."""
    if changes := uncommitted():  # diff-index heeds no colours, prefixes or tools of the user's git
        lines = git("diff-index", "-p", "HEAD", "--", ".", *NOT_SOURCE) if commit() != "none" else ""
        return f"{changes}\n\n{lines}\n"
    return None
