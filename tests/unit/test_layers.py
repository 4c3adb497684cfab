"""Who may import what, read from the source; and that DVC knows of every file that a stage reads."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Collection, Iterator

import pytest
import yaml
from conftest import ROOT

from pipeline import surroundings

PACKAGE = ROOT / "pipeline"
SOURCE = {
    path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): ast.parse(path.read_text())
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
}
ROOM = "beyond"  # what the core does without
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
VERBS = [stage for stage in STAGES if stage != "compose_data"]  # which is compose again, for the data alone
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def walk(node: ast.AST, into_functions: bool) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if into_functions or not isinstance(child, FUNCTIONS):
            yield from walk(child, into_functions)


def imported(module: str, into_functions: bool = True) -> set[str]:
    """What a module of ours imports: names of packages, and of our modules with a dot before them."""
    found: set[str] = set()
    for node in walk(SOURCE[module], into_functions):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, "imports are absolute here"
            packages = ("pipeline", f"pipeline.{ROOM}")
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module in packages else [node.module]
            )
        else:
            continue
        found |= {
            name.removeprefix("pipeline") if name.startswith("pipeline.") else name.split(".")[0] for name in names
        }
    return found


def importers(*packages: str) -> set[str]:
    return {module for module in SOURCE if imported(module) & set(packages)}


# They log, launch and say what a run was made of, which cannot change a result.
NO_DEPENDENCY = {"record", "sending", "store", "surroundings", "sweep", "tracking", "beyond.registry"}


def closure(module: str, without: Collection[str] = ()) -> set[str]:
    """The module and all of ours that it reaches through imports, at the top and inside functions."""
    reached: set[str] = set()
    waiting = {module}
    while waiting:
        reached |= waiting
        ours = {name[1:] for found in waiting for name in imported(found) if name.startswith(".")}
        waiting = ours - reached - set(without)
    return reached


def depended_on(stage: str) -> set[str]:
    return set(STAGES[stage]["deps"])


@pytest.mark.parametrize(
    ("packages", "modules"),
    [
        (("mlflow",), {"sending", "store", "tracking", "beyond.registry"}),
        (("matplotlib",), {"plots", "beyond.drawing", "beyond.hardship", "beyond.outside"}),
        (
            ("tensorflow", "keras"),
            {"model", "augment", "optimizer", "engine", "surroundings", "beyond.formats"},
        ),
        (("hydra", "omegaconf"), {"config", "command", "sweep", "beyond.on_ray"}),
        (("scipy",), {"metrics", "statistics", "beyond.sheet", "beyond.corruptions", "beyond.outside"}),
        (("PIL",), {"beyond.images", "beyond.pictures", "beyond.sheet", "beyond.hardship", "beyond.outside"}),
        (("fastapi", "starlette"), {"beyond.service"}),
        (("uvicorn",), {"serve"}),
        (("onnxruntime", "ai_edge_litert"), {"beyond.formats"}),
        (("requests", "urllib3"), {"fetch"}),
    ],
)
def test_a_package_is_imported_behind_its_fence_alone(packages, modules):
    assert importers(*packages) == modules


def test_the_configuration_starts_without_hydra_and_the_stages_without_their_slow_parts():
    assert imported("config") > imported("config", into_functions=False)
    assert not {"hydra", "omegaconf"} & imported("config", into_functions=False)
    slow = {".sending", ".tracking", ".debug", ".engine", ".model", ".augment", ".plots"}
    assert {stage: slow & imported(stage, into_functions=False) for stage in VERBS} == {stage: set() for stage in VERBS}


def test_nobody_imports_a_stage():
    stages = {f".{stage}" for stage in VERBS}
    assert len(stages) >= 6 and all(stage[1:] in SOURCE for stage in stages)
    assert {module: imported(module) & stages for module in SOURCE} == {module: set() for module in SOURCE}


def test_the_core_does_without_the_room_beyond():
    beyond = {module for module in SOURCE if module.startswith(f"{ROOM}.")}
    users = {module for module in SOURCE if {f".{name}" for name in beyond} & imported(module)}
    assert len(beyond) >= 8 and users - beyond == {"adopt", "export", "predict", "promote", "robustness", "serve"}


def test_what_runs_before_training_reaches_neither_tensorflow_nor_mlflow():
    reached = {
        stage: set().union(*map(imported, closure(stage))) for stage in ("compose", "fetch", "preprocess", "train")
    }
    heavy = {"tensorflow", "keras", "mlflow"}
    assert heavy <= reached["train"]
    assert not heavy & (reached["compose"] | reached["fetch"] | reached["preprocess"])


@pytest.mark.parametrize("stage", VERBS)
def test_a_stage_depends_on_every_module_it_reaches_but_for_those_that_change_no_result(stage):
    given = {name for name in depended_on(stage) if name.startswith("pipeline")}
    reached = closure(stage, NO_DEPENDENCY)
    assert given == {f"pipeline/{module.replace('.', '/')}.py" for module in reached}
    assert f"python -m pipeline.{stage} " in STAGES[stage]["cmd"] + " "
    assert STAGES["compose_data"]["deps"] == STAGES["compose"]["deps"]


def test_the_test_digits_are_a_dependency_of_what_tests_alone():
    name = "data/processed/test.npz"
    hiding = {name, "data/processed", "data", "data/processed/"}
    assert {stage for stage in STAGES if hiding & depended_on(stage)} == {"evaluate", "robustness"}
    assert name in depended_on("evaluate") and not hiding - {name} & depended_on("evaluate")
    words = {
        module: [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        for module, tree in SOURCE.items()
    }
    # compare draws test digits where a person asks it to, outside DVC; their figures are evaluate's.
    readers = {"evaluate", "compare"}
    assert {module for module, found in words.items() if "test.npz" in found} == readers


def test_a_module_that_the_training_loop_comes_to_import_is_part_of_the_codes_hash(tmp_path, monkeypatch):
    package = tmp_path / "pipeline"
    shutil.copytree(PACKAGE, package)
    monkeypatch.setattr(surroundings, "ROOT", tmp_path)
    before = surroundings.computing_modules()
    names = {path.relative_to(package).as_posix() for path in before}
    assert names == {
        f"{name}.py" for name in ("augment", "checkpoint", "data", "engine", "model", "optimizer", "training")
    }
    (package / "layers").mkdir()
    for name in ("layers/__init__.py", "layers/dropout.py"):
        (package / name).write_text("")
    (package / "layers" / "dropout.py").write_text("from pipeline import sparse\n")
    (package / "sparse.py").write_text("")
    with (package / "model.py").open("a") as file:
        file.write("from pipeline.layers import dropout\n")
    added = set(surroundings.computing_modules()) - set(before)
    assert added == {package / name for name in ("layers/__init__.py", "layers/dropout.py", "sparse.py")}
