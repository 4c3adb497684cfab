"""Functions and classes of your own, <module>:<name>, in files of this repository: looked up without importing them.

What they are, which arguments they take and what code they use is read from their syntax trees: a configuration is
composed in a second, and one that names anything but a file of the repository is refused before anything of it runs.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.base.errors import UserError

DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def load(root: Path, name: str) -> Any:
    """Import the module of <module>:<name>, a file of the repository at `root`, and return what the name stands for."""
    module, _, attribute = name.partition(":")
    definition(root, name)
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    imported = importlib.import_module(module)
    if Path(imported.__file__ or "").resolve() != source_file(root, module).resolve():
        raise UserError(f"{name}: {module} is also the name of {imported.__file__}: rename your file")
    return getattr(imported, attribute)


def source_file(root: Path, module: str) -> Path:
    """Return the file of a module of the repository; a UserError where there is none."""
    path = root.joinpath(*module.split("."))
    for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
        if file.is_file():
            return file
    raise UserError(f"{module} is no file of this repository: {path.relative_to(root)}.py is missing")


def definition(root: Path, name: str) -> ast.FunctionDef | ast.ClassDef:
    """Return the syntax tree of <module>:<name>; a UserError where the file does not define it."""
    module, _, attribute = name.partition(":")
    file = source_file(root, module)
    for node in _tree(file).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == attribute:
            return node
    raise UserError(f"{name}: {file.relative_to(root)} defines no function or class {attribute}")


def arguments(root: Path, name: str, given: Mapping[str, Any], supplied: int) -> dict[str, Any]:
    """Return the arguments that a function is called with after its first `supplied` ones: its defaults, then `given`.

    An argument that it does not take, or one without a value, is a UserError.
    """
    function = definition(root, name)
    assert isinstance(function, ast.FunctionDef)
    parameters = [*function.args.posonlyargs, *function.args.args]
    defaults = dict(zip(reversed([one.arg for one in parameters]), reversed(function.args.defaults), strict=False))
    defaults |= {
        one.arg: default
        for one, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
        if default is not None
    }
    names = [one.arg for one in [*parameters[supplied:], *function.args.kwonlyargs]]
    if unknown := [key for key in given if key not in names and not function.args.kwarg]:
        raise UserError(f"{name} takes no argument {unknown[0]}: it takes {', '.join(names) or 'none'}")
    if missing := [key for key in names if key not in given and key not in defaults]:
        raise UserError(f"{name} needs the argument {missing[0]}: give it a value")
    values: dict[str, Any] = {}
    for key in names:
        with suppress(ValueError):  # a default that is no plain value is part of the code's hash
            values |= {} if key in given or key not in defaults else {key: ast.literal_eval(defaults[key])}
    return values | dict(given)


def code_sha256(root: Path, names: Iterable[str]) -> str:
    """Return the hash of the code that these functions use: their modules, and what those import of this repository.

    It is of the syntax trees, so that a comment, a docstring or a moved line is not other code. `pipeline` is left out:
    the fingerprint has it.
    """
    found: dict[str, ast.Module] = {}
    open_modules = [name.partition(":")[0] for name in names]
    while open_modules:
        module = open_modules.pop()
        if module in found or module.partition(".")[0] == "pipeline":
            continue
        file = source_file(root, module)
        found[module] = _tree(file)
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        for imported in _imports(found[module], package):
            with suppress(UserError):  # a package that is installed
                source_file(root, imported)
                open_modules.append(imported)
    return sha256_of([found[module] for module in sorted(found)])


def _imports(tree: ast.Module, package: str) -> set[str]:
    """Return all modules that a module may import, with the names that it takes from them, which may be modules too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join(filter(None, [*parents, node.module]))
            found |= {module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)}
    return found - {""}


def _tree(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{file}: {error}: mend the file") from None


def sha256_of(value: Any) -> str:
    """Return the SHA-256 of a value of JSON, in which syntax trees may stand."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=_syntax).encode()).hexdigest()


def _syntax(node: Any) -> Any:
    """Return a node of a syntax tree as a list, the same for every Python that we support: empty fields differ."""
    if not isinstance(node, ast.AST):
        return repr(node)  # a constant that is no JSON
    fields = {name: value for name, value in ast.iter_fields(node) if value not in (None, [])}
    if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        fields["body"] = node.body[1:]
    return [type(node).__name__, *fields.items()]
