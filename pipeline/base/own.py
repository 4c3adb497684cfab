"""Functions and classes of your own, <module>:<name>, in files of this repository: looked up without importing them.

What they are, which arguments they take and what code they use is read from their syntax trees: a configuration is
composed in a second, and one that names anything but a file of the repository is refused before anything of it runs.
A model or a configuration that was recorded names only what stands in the repository as it was then.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.base.console import quiet_import
from pipeline.base.errors import UserError

WATCHED = "own"  # the folder of such files that DVC sees change
DOCUMENTED = (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_imported: dict[str, tuple[Path, str]] = {}  # the modules that this process imported, with file and hash


def load(root: Path, name: str) -> Any:
    """Import the module of <module>:<name>, a file of the repository at `root`, and return what the name stands for.

    Where the code was edited since this process imported it, it is imported again: what runs is what was hashed.
    """
    module, _, attribute = name.partition(":")
    definition(root, name)
    now = {one: (file, sha256_of(_tree(file))) for one, file in sources(root, [name]).items()}
    if any(_imported.get(one, version) != version for one, version in now.items()):
        for one in _imported:
            sys.modules.pop(one, None)
        _imported.clear()
    if sys.path[0] != str(root):
        sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # its cache tells edits apart by the second
    try:
        with errors_named(root, name), quiet_import():  # it may be the first to load TensorFlow
            imported = importlib.import_module(module)
    finally:
        sys.dont_write_bytecode = written
    if Path(imported.__file__ or "").resolve() != source_file(root, module).resolve():
        raise UserError(f"{name}: {module} is also the name of {imported.__file__}: rename your file")
    _imported.update(now)
    return getattr(imported, attribute)


def load_recorded(root: Path, name: str | None, recorded_sha256: str | None) -> Any:
    """Import what a model was made by, as `load`, if its code is still that of then; else a UserError.

    Nothing is done for a model of the built-in network, which has no name.
    """
    if name is None:
        return None
    if source_sha256(root, [name]) != recorded_sha256:
        raise UserError(
            f"{name} has other code than the model was made with: bring its files back, from source/ among the run's "
            "artifacts, or train again"
        )
    return load(root, name)


@contextmanager
def errors_named(root: Path, name: str) -> Iterator[None]:
    """Make of an error in a user's code a UserError that names the line of the user's where it came up."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError | MemoryError):
            raise
        files = {str(file): file.relative_to(root) for file in sources(root, [name]).values()}
        lines = [(one.filename, one.lineno) for one in traceback.extract_tb(error.__traceback__)]
        places = [f" in line {line} of {files[file]}" for file, line in lines if file in files]
        said = str(error).strip().partition("\n")[0]
        raise UserError(f"{name}{places[-1] if places else ''}: {type(error).__name__}: {said}") from error


def source_file(root: Path, module: str) -> Path:
    """Return the file of a module of the repository; a UserError where there is none."""
    path = root.joinpath(*module.split("."))
    if not all(part.isidentifier() for part in module.split(".")):
        raise UserError(f"{module} is no name of a module")
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
    if not isinstance(function, ast.FunctionDef):
        raise UserError(f"{name} is a class: name a function")
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
        with suppress(ValueError, TypeError):  # a default that is no value of YAML is part of the code's hash
            default = {} if key in given or key not in defaults else {key: ast.literal_eval(defaults[key])}
            values |= json.loads(json.dumps(default))  # a tuple is written as a list
    return values | dict(given)


def source_sha256(root: Path, names: Iterable[str]) -> str:
    """Return the hash of the code that these functions use, their `sources`.

    It is of the syntax trees, so that a comment, a docstring or a moved line is not other code.
    """
    return sha256_of([_tree(file) for _, file in sorted(sources(root, names).items())])


def sources(root: Path, names: Iterable[str]) -> dict[str, Path]:
    """Return the modules of these functions, and those of this repository that they import, with their files.

    `pipeline` is left out: the fingerprint has it.
    """
    found: dict[str, Path] = {}
    waiting = [(name.partition(":")[0], True) for name in names]
    while waiting:
        module, required = waiting.pop()
        if module in found or module.partition(".")[0] == "pipeline":
            continue
        try:
            found[module] = file = source_file(root, module)
        except UserError:
            if required:
                raise
            continue  # a package that is installed
        package = module if file.name == "__init__.py" else module.rpartition(".")[0]
        parents = [module.rsplit(".", level)[0] for level in range(1, module.count(".") + 1)]
        waiting += [(imported, False) for imported in (*_imports(_tree(file), package), *parents)]
    return found


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
