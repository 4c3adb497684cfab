"""Make a data set of your own pictures: path=letters, with folders letters/<class>/…, makes data=letters.

It writes conf/data/<name>.yaml and data/downloads/<name>. A name that begins with a digit gets a prefix.
"""

from __future__ import annotations

import yaml

from pipeline.apps.images import read_pictures
from pipeline.base.command import main
from pipeline.base.errors import UserError, shorten
from pipeline.base.files import write_text
from pipeline.base.project import Project
from pipeline.base.validation import validate
from pipeline.base.verb_schemas import AdoptConfig
from pipeline.data.examples import save_arrays
from pipeline.data.readers import array_sha256
from pipeline.reports.tables import plain


def adopt(project: Project, config: AdoptConfig) -> None:
    """Write conf/data/<name>.yaml and the arrays of the pictures in `config.path`."""
    folder = (project.root / (config.path or ".")).resolve()
    if project.root not in folder.parents or not folder.is_dir():
        raise UserError(f"path={config.path} is no folder in this repository: give one with a folder for each class")
    name = data_name(folder.name)
    header = f"# Made by `python -m pipeline.adopt path={folder.relative_to(project.root)}`"
    target = project.conf / "data" / f"{name}.yaml"
    if target.exists() and not target.read_text(encoding="utf-8").startswith(header):
        raise UserError(f"{target} describes other data: give the folder another name, or remove that file")
    classes, arrays, ignored = read_pictures(folder, config.data.image_shape)
    train_count, test_count = (len(arrays[f"{part}_labels"]) for part in ("train", "test"))
    data = {
        "image_shape": config.data.image_shape,
        "classes": classes,
        "published": False,
        "val_size": train_count // 10,
        "split_seed": config.data.split_seed,
        "fraction": 1.0,
        "sources": [],
        "sha256": {key: array_sha256(array) for key, array in arrays.items()},
    }
    validate(AdoptConfig, config.model_dump() | {"data": data | {"name": name}})
    save_arrays(project.downloads / name / f"{name}.npz", **arrays)
    values = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120)
    write_text(target, f"{header}; a fifth of the pictures of each class are test images.\n{values}")
    if ignored:
        names = ", ".join(entry.relative_to(folder).as_posix() for entry in ignored)
        print(f"ignored, no pictures of a class: {shorten(plain(names))}")
    print(f"{len(classes)} classes, {train_count:,} training and {test_count:,} test images: wrote {target}")
    print(f"next: `dataset: {name}` in params.yaml, and `dvc repro`")


def data_name(folder: str) -> str:
    """Return the folder's name, with a prefix where Hydra or YAML might read it as a number, a date, null or true."""
    return folder if folder[0].isalpha() and yaml.safe_dump(folder)[0] not in "'\"" else f"data_{folder}"


if __name__ == "__main__":
    main(adopt)
