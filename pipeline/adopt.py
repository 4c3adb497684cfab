"""Make a data set of your own pictures: path=letters, of folders letters/<class>/…, gives data=letters.

A folder whose name Hydra or YAML would read as a number gives another: path=2024 gives data=data_2024.

It writes conf/data/<name>.yaml, by whose hashes every stage knows these pictures again, and data/downloads/<name>.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path

import yaml

from pipeline import data
from pipeline.beyond import pictures
from pipeline.command import entry_point
from pipeline.config import ARRAYS, CONF, ROOT, AdoptConfig, Data, PipelineError, validate
from pipeline.files import load_yaml, replacing
from pipeline.tables import plain

HEADER = """\
# Made by `python -m pipeline.adopt path={path}` from {count} pictures; a fifth of each class are test images.
# Type it again when the pictures change, and `dvc repro` after it.
"""
SHOWN_NAMES = 5


@entry_point
def adopt(config: AdoptConfig) -> None:
    folder = _folder(config.path)
    name = data_name(folder.name)
    described = CONF / "data" / f"{name}.yaml"
    path, file = folder.relative_to(ROOT), described.relative_to(ROOT)
    if described.exists():
        if load_yaml(described).get("sources") != []:
            raise PipelineError(f"{file} describes published data: give the folder another name")
        if f"path={path}`" not in described.read_text(encoding="utf-8").partition("\n")[0]:
            raise PipelineError(f"{file} is of another folder of this name: give another name, or remove it")
    classes, images, labels, ignored = pictures.read_pictures(folder, config.data.image_shape)
    arrays = pictures.divided(images, labels)
    settings = Data(
        name=name,
        image_shape=config.data.image_shape,
        classes=classes,
        published=False,
        val_size=len(arrays["train_labels"]) // 10,
        split_seed=config.data.split_seed,
        fraction=1.0,
        files={key: key for key in ARRAYS},
        sources=[],
        sha256={key: data.array_sha256(array) for key, array in arrays.items()},
    )
    validate(dataclasses.replace(config, data=settings))
    data.save_arrays(ROOT / "data" / "downloads" / name / f"{name}.npz", **arrays)
    with replacing(described) as temporary:
        text = HEADER.format(path=path, count=f"{len(labels):,}")
        values = {key: value for key, value in dataclasses.asdict(settings).items() if key != "name"}  # the file's
        text += yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=120)
        temporary.write_text(text, encoding="utf-8")
    if ignored:
        names = ", ".join(entry.relative_to(folder).as_posix() for entry in ignored[:SHOWN_NAMES])
        more = f" and {len(ignored) - SHOWN_NAMES} more" if len(ignored) > SHOWN_NAMES else ""
        print(f"passed over, no pictures of a class: {plain(names)}{more}")
    print(
        f"{len(classes)} classes, {len(arrays['train_labels']):,} training and {len(arrays['test_labels']):,} test "
        f"images: wrote {file}; now `dataset: {name}` in params.yaml, and `dvc repro`"
    )


def data_name(folder: str) -> str:
    """Return the folder's name, made one that Hydra and YAML read as text."""
    with suppress(ValueError):
        float(folder)  # Hydra would read it so in data=<name>
        return f"data_{folder}"
    return f"data_{folder}" if yaml.safe_dump(folder)[0] in "'\"" else folder  # null, true, a date


def _folder(given: str | None) -> Path:
    if given is None:
        raise PipelineError("no folder given: give path=<folder of this repository, with a folder a class>")
    folder = (ROOT / given).resolve()
    if Path(given).is_absolute() or ROOT not in folder.parents or not folder.is_dir():
        raise PipelineError(f"path={given} is no folder of this repository: give one, relative to it")
    return folder


if __name__ == "__main__":
    adopt()
