"""Models on disk: .keras files whose bytes depend on the model alone."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.base.errors import UserError
from pipeline.base.files import REMAKE, replacing, require_file

if TYPE_CHECKING:  # the store is asked about models without loading any
    import keras


def save_model(path: Path, model: keras.Model) -> None:
    """Write a .keras file with the same bytes for the same model.

    Keras writes the date, zip the time, and Keras's shared_object_id (seen in 3.15) is an address in memory.
    """
    with replacing(path) as temporary:
        model.save(temporary)
        with zipfile.ZipFile(temporary) as archive:
            members = {name: archive.read(name) for name in sorted(archive.namelist())}
        metadata = json.loads(members["metadata.json"]) | {"date_saved": "1980-01-01@00:00:00"}
        members["metadata.json"] = json.dumps(metadata).encode()
        numbers: dict[str, str] = {}  # address -> order of first appearance
        members["config.json"] = re.sub(
            r'(?<="shared_object_id": )\d+',
            lambda address: numbers.setdefault(address[0], str(len(numbers) + 1)),
            members["config.json"].decode(),
        ).encode()
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, content in members.items():
                archive.writestr(zipfile.ZipInfo(name), content)


def load_model(path: Path) -> keras.Model:
    """Load a .keras file; a UserError if it is missing, damaged, of a newer Keras, or brings code of its own."""
    import keras

    require_file(path)
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # a damaged file makes Keras raise nearly anything
        written_by = _keras_version(path)
        if _numbers(written_by) > _numbers(keras.__version__):
            raise UserError(
                f"{path} was written by Keras {written_by}, which Keras {keras.__version__} cannot read: install that "
                "version, as `make env` does"
            ) from None
        if unknown := _code_of_its_own(path):
            raise UserError(f"{path} {unknown}") from None
        reason = str(error).partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{path} is damaged or no .keras file of ours ({reason}): {REMAKE}") from None


def weights_sha256(path: Path) -> str:
    """Return the SHA-256 of the weights in a .keras file: the rest of a file of MLflow's differs from save to save."""
    try:
        with zipfile.ZipFile(require_file(path)) as archive:
            return hashlib.sha256(archive.read("model.weights.h5")).hexdigest()
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path} is damaged ({error}): bring it back, or train again") from None


def _code_of_its_own(path: Path) -> str:
    """Say which layer of a .keras file brings code, or needs code that was not imported; "" for none."""
    import keras

    with suppress(Exception), zipfile.ZipFile(path) as archive:  # whoever wrote it
        nodes: list[Any] = [json.loads(archive.read("config.json"))]
        while nodes:
            node = nodes.pop()
            if isinstance(node, dict):
                kind, module, registered = (str(node.get(key)) for key in ("class_name", "module", "registered_name"))
                if kind == "Lambda":
                    return f"has the Lambda layer {node['config']['name']!r}, which brings code of its own: not loaded"
                is_own = "module" in node and module.partition(".")[0] not in ("keras", "builtins", "None")
                if is_own and keras.saving.get_registered_object(registered) is None:
                    name = node["config"] if kind == "function" else kind
                    return f"needs {name!r} of {module!r}, and no network of your own that has it was imported"
            nodes += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    return ""


def _keras_version(path: Path) -> str:
    """Return the version of Keras that wrote a .keras file, or "" where the file does not say."""
    with suppress(Exception), zipfile.ZipFile(path) as archive:
        return str(json.loads(archive.read("metadata.json"))["keras_version"])
    return ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]
