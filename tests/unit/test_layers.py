"""Who may import what, read from the source; and that DVC knows of every file that a stage computes with."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator

import pytest
import yaml
from conftest import ROOT

from pipeline.tracking.fingerprint import code_sha256

PACKAGE = ROOT / "pipeline"
SOURCE = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): ast.parse(path.read_text())
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}
ROOMS = ("base", "data", "model", "training", "metrics", "reports", "tracking", "experiments", "apps", "verbs")
COMPUTING = ("data", "model", "training", "metrics")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
VERBS = [stage for stage in STAGES if stage != "compose_data"]  # which is compose again, for the data alone
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def walk(node: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING"
        if into_functions or not (isinstance(child, FUNCTIONS) or for_types):
            yield from walk(child, into_functions)


def imported(module: str, into_functions: bool = True) -> set[str]:
    """What a module imports: names of packages, and of our modules with a dot before them."""
    names: set[str] = set()
    for node in walk(SOURCE[module], into_functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute here"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name.removeprefix("pipeline.") in SOURCE else node.module for name in inner}
    return {name.removeprefix("pipeline") if name.startswith("pipeline.") else name.split(".")[0] for name in names}


def room(module: str) -> str:
    return module.split(".", maxsplit=1)[0] if "." in module else "verbs"


def closure(module: str) -> set[str]:
    """The module and all of ours that it reaches through imports, at the top and inside functions."""
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        reached |= waiting
        waiting = {name[1:] for one in waiting for name in imported(one) if name.startswith(".")} - reached
    return reached


def test_imports_go_from_a_later_room_to_an_earlier_one():
    assert {room(module) for module in SOURCE} == set(ROOMS)
    upward = [
        (module, name)
        for module in SOURCE
        for name in imported(module)
        if name.startswith(".") and ROOMS.index(room(name[1:])) > ROOMS.index(room(module))
    ]
    assert upward == []


def test_no_verb_is_imported_and_no_module_imports_itself_in_a_circle():
    assert [name for module in SOURCE for name in imported(module) if name[1:] in SOURCE and "." not in name[1:]] == []
    direct = {module: {name[1:] for name in imported(module, False) if name.startswith(".")} for module in SOURCE}
    seen: set[str] = set()
    while ready := {module for module in SOURCE if module not in seen and direct[module] <= seen}:
        seen |= ready
    assert seen == set(SOURCE)


def test_the_rooms_that_compute_know_nothing_of_commands_progress_and_tracking():
    allowed = {".base.errors", ".base.files", ".base.own", ".base.schema", ".base.project"}
    for module in SOURCE:
        if room(module) in COMPUTING:
            ours = {name for name in imported(module) if name.startswith(".")}
            assert {name for name in ours if room(name[1:]) == "base"} <= allowed, module
            assert not {"mlflow", "hydra", "tqdm"} & imported(module), module


@pytest.mark.parametrize(
    ("packages", "modules"),
    [
        (
            ("mlflow",),
            {
                *(
                    f"tracking.{name}"
                    for name in (
                        "copying",
                        "leftovers",
                        "live",
                        "notes",
                        "queries",
                        "registry",
                        "sending",
                        "store",
                        "sweep_log",
                    )
                ),
                *("experiments.children", "experiments.compare_runs", "experiments.run_report"),
            },
        ),
        (
            ("hydra",),
            {"base.command", "base.hydra", "experiments.jobs", "experiments.sweep"},
        ),
        (("omegaconf",), {"base.command", "base.hydra", "experiments.on_ray"}),
        (("fastapi", "starlette"), {"apps.service"}),
        (("uvicorn",), {"serve"}),
        (("pooch",), {"data.download"}),
    ],
)
def test_a_package_is_imported_behind_its_fence_alone(packages, modules):
    assert {module for module in SOURCE if imported(module) & set(packages)} == modules


def test_a_verb_reaches_no_slow_package_before_its_checks():
    slow = {"tensorflow", "keras", "mlflow"}
    for verb in (module for module in SOURCE if room(module) == "verbs"):
        reached, waiting = set(), {verb}
        while waiting:
            reached |= waiting
            direct = {name[1:] for one in waiting for name in imported(one, False) if name.startswith(".")}
            waiting = direct - reached
        assert not slow & set().union(*(imported(one, False) for one in reached)), verb


def test_fetch_and_preprocess_reach_neither_tensorflow_nor_mlflow():
    reached = {verb: set().union(*map(imported, closure(verb))) for verb in ("compose", "fetch", "preprocess", "train")}
    heavy = {"tensorflow", "keras", "mlflow"}
    assert heavy <= reached["train"]
    assert not heavy & (reached["compose"] | reached["fetch"] | reached["preprocess"])


# They compose, check, show, write and log, which cannot change a result.
NO_DEPENDENCY = ("base", "tracking", "experiments")


@pytest.mark.parametrize("stage", [verb for verb in VERBS if verb != "compose"])
def test_a_stage_depends_on_every_room_it_computes_with(stage):
    depends = {path for path in STAGES[stage]["deps"] if path.startswith("pipeline")}
    reached = {module for module in closure(stage) if room(module) not in NO_DEPENDENCY}
    needed = {f"pipeline/{stage}.py"} | {f"pipeline/{room(module)}" for module in reached if module != stage}
    if stage == "train":
        # It draws and logs a sheet of augmented images, and is wired by one file; no report changes what it writes.
        needed = needed - {"pipeline/reports", "pipeline/metrics"} | {"pipeline/experiments/run.py"}
    if stage == "evaluate":
        needed -= {"pipeline/training"}  # which the fingerprint of a run is of
    if stage == "compare":
        needed -= {"pipeline/model", "pipeline/training"}  # of a=, b=, which is no stage
    if stage == "robustness":
        needed -= {"pipeline/training"}
    assert depends == needed
    assert f"python -m pipeline.{stage} " in STAGES[stage]["cmd"] + " "


def test_the_test_digits_are_a_dependency_of_what_tests_alone():
    name = "data/processed/test.npz"
    hiding = {name, "data/processed", "data", "data/processed/"}
    assert {stage for stage in STAGES if hiding & set(STAGES[stage]["deps"])} == {
        "evaluate",
        "compare",
        "robustness",
    }
    readers = {
        module
        for module, tree in SOURCE.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") == "load_split"
        and any(isinstance(part, ast.Constant) and part.value == "test" for part in ast.walk(node))
    }
    # compare and compare_runs only show test digits; their metrics are evaluate's.
    assert readers == {"evaluate", "compare", "robustness", "experiments.compare_runs"}


def test_the_hash_of_the_code_is_of_what_it_does_in_the_rooms_that_compute(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    before = code_sha256(tmp_path)

    def changed(name: str, old: str, new: str) -> bool:
        file = tmp_path / "pipeline" / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new, 1))
        after = code_sha256(tmp_path)
        file.write_text(text)
        return after != before

    assert changed("training/optimizer.py", "beta1=0.9,", "beta1=0.8,")
    assert changed("model/build.py", "BATCH_NORM_MOMENTUM = 0.95", "BATCH_NORM_MOMENTUM = 0.9")
    assert changed("experiments/run.py", "start(config.seed)", "start(config.seed + 1)")
    assert not changed("training/optimizer.py", '"""The optimizers, and', '"""THE optimizers, and')
    assert not changed("training/optimizer.py", "import numpy as np\n", "import numpy as np\n\n# A comment.\n")
    assert not changed("serve.py", "import", "\nimport")
    (tmp_path / "pipeline/model/layers").mkdir()
    (tmp_path / "pipeline/model/layers/dropout.py").write_text("RATE = 0.5\n")
    assert code_sha256(tmp_path) != before, "a module that is added counts"
