"""What a run was trained on and with: hardware, versions, environment variables, commit. No person's name or home."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError
from pipeline.base.isolation import DEFAULTS
from pipeline.base.project import Project

ANONYMOUS_TAGS = {"mlflow.user": "pipeline", "mlflow.source.name": "pipeline"}  # instead of a login name and a path
PACKAGES = ("tensorflow", "keras", "numpy", "hydra-core", "mlflow", "dvc")
NUMERIC_PACKAGES = PACKAGES[:3]  # those whose version can change a result
THREADS = "one per operation"  # as model.inference.start sets them; how many operations run at once changes no bit
# Variables that choose how TensorFlow, XLA, oneDNN and NumPy compute; not those that only log, allot memory, or set
# threads, which `start` does; and not Terraform's, TF_ too, which hold passwords.
COMPUTE_VARIABLES = re.compile(
    r"TF_(AUTOTUNE|AUTO_MIXED|CONV2D|CUBLAS|CUDNN|DETERMINISTIC|ENABLE|FP16|MATMUL|ONEDNN|SET_ONEDNN|USE|XLA)_\w+"
    r"|XLA_FLAGS|(ONEDNN|DNNL)_(?!VERBOSE)\w+|TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL"
    r"|NPY_(DIS|EN)ABLE_CPU_FEATURES|NVIDIA_TF32_OVERRIDE"
)
# What DVC deletes and rewrites around a stage, and the benchmark between trials, does not make a tree dirty.
NOT_SOURCE = (":!results", ":!dvc.lock", ":!benchmarks/results", ":!docs/benchmark", ":!docs/benchmark.md")


def processor() -> str:
    """Return the processor's name and vector instructions: in a cloud, those of one name round in several ways."""
    path = Path("/proc/cpuinfo")
    cpuinfo = path.read_text() if path.is_file() else ""
    found = re.search(r"^model name\s*: (.+)", cpuinfo, re.MULTILINE)
    name = found[1].strip() if found else platform.processor() or platform.machine()
    vectors = [label for flag, label in (("avx512f", "AVX-512"), ("avx2", "AVX2")) if f" {flag} " in cpuinfo]
    return f"{name} ({vectors[0]})" if vectors else name


def hardware() -> str:
    """Return processor, cores that this process may use, memory, and graphics processors, in words."""
    import psutil

    with quiet_import():
        import tensorflow as tf

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = round(psutil.virtual_memory().total / 2**30)
    devices = tf.config.list_physical_devices("GPU")
    gpus = [tf.config.experimental.get_device_details(device).get("device_name", "GPU") for device in devices]
    return ", ".join([processor(), f"{cores} cores", f"{memory} GiB", platform.system(), *(gpus or ["no GPU"])])


def versions(packages: Sequence[str] = PACKAGES) -> str:
    return f"python {platform.python_version()}, {package_versions(packages)}"


def package_versions(packages: Sequence[str] = PACKAGES) -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


def compute_variables() -> str:
    """Return the environment variables that can change a result and are not as every run has them, as name=value, or
    "none"; paths in them are left out, as they may name a person."""
    differing = os.environ.items() - DEFAULTS.items()
    chosen = {name: value for name, value in sorted(differing) if COMPUTE_VARIABLES.fullmatch(name)}
    return ", ".join(f"{name}={re.sub(r'[~/][^ ,]*', '…', value)}" for name, value in chosen.items()) or "none"


def git(root: Path, *arguments: str) -> str | None:
    """Return what a git command prints, or None without git or outside a clone; git's own error is a UserError."""
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, encoding="utf-8", errors="replace")
    except OSError:
        return None
    if done.returncode and done.stderr and (root / ".git").exists():  # as in a clone that another user owns
        raise UserError(f"git: {' '.join(done.stderr.split())}")
    return done.stdout.rstrip("\n") if done.returncode == 0 else None


def commit(root: Path) -> str:
    """Return the hash of the checked-out commit, or "none"."""
    return git(root, "rev-parse", "--verify", "--quiet", "HEAD") or "none"


def uncommitted(root: Path) -> str | None:
    """Return the changes that are not committed, as git lists them: empty for none, None where git does not know."""
    return git(root, "status", "--porcelain", "--untracked-files=normal", "--", ".", *NOT_SOURCE)


def git_diff(root: Path) -> str | None:
    """Return the changes that are not committed, with their lines; None for none."""
    if changes := uncommitted(root):  # diff-index heeds no colours, prefixes or tools of the user's git
        lines = git(root, "diff-index", "-p", "HEAD", "--", ".", *NOT_SOURCE) if commit(root) != "none" else ""
        return f"{changes}\n\n{lines}\n"
    return None


@functools.cache  # half a second, for every job of a sweep
def packages() -> str:
    """Return the installed packages, one per line."""
    described = [distribution.metadata for distribution in importlib.metadata.distributions()]
    return "\n".join(sorted(f"{one['Name']}=={one['Version']}" for one in described)) + "\n"


def run_tags(project: Project, source: str) -> dict[str, str]:
    """Return the tags of every run: where it comes from, and no person. `source` is the command, as pipeline.train."""
    revision = commit(project.root)
    return {
        **ANONYMOUS_TAGS,
        "mlflow.source.name": source,
        "mlflow.source.git.commit": revision,
        "git_commit": revision,
        "git_dirty": {"": "false", None: "unknown"}.get(uncommitted(project.root), "true"),
        "dvc_stage": project.stage or "none",
        "dvc_experiment": project.dvc_experiment,
        "hardware": hardware(),
        "threads": THREADS,
        "versions": versions(),
        "environment": compute_variables(),
    }
