"""Make a data set of your own pictures: path=letters, with folders letters/<class>/…, makes data=letters.

It writes conf/data/<name>.yaml and data/downloads/<name>. A name that begins with a digit gets a prefix. In colour:
data.channels=3; another size than 28 x 28: data.image_shape=[H,W]. A job that was killed goes on where it was.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml

from pipeline.apps.adoption import list_pictures, read_pictures
from pipeline.base.command import main
from pipeline.base.errors import UserError, shorten
from pipeline.base.files import write_text
from pipeline.base.project import Project
from pipeline.base.schema import ARRAYS
from pipeline.base.validation import validate
from pipeline.base.verb_schemas import AdoptConfig
from pipeline.data.examples import save_arrays
from pipeline.reports.tables import plain


def adopt(project: Project, config: AdoptConfig) -> None:
    """Write conf/data/<name>.yaml and the arrays of the pictures in `config.path`."""
    folder = Path(os.path.normpath(project.root / (config.path or ".")))
    if project.root not in folder.parents or not folder.is_dir():
        raise UserError(
            f"path={config.path} is no folder in this repository: give one, or a link to one, with folders of pictures"
        )
    name = data_name(folder.name)
    header = f"# Made by `python -m pipeline.adopt path={folder.relative_to(project.root)}`"
    target = project.conf / "data" / f"{name}.yaml"
    if target.exists() and not target.read_text(encoding="utf-8").startswith(header):
        raise UserError(f"{target} describes other data: give the folder another name, or remove that file")
    shape, listing, work = config.data.shape, list_pictures(folder), project.downloads / f".{name}.adopting"
    data = {
        "image_shape": config.data.image_shape,
        **({"channels": config.data.channels} if config.data.channels > 1 else {}),
        "classes": listing.classes,
        "published": False,
        "val_size": 0,
        "split_seed": config.data.split_seed,
        "fraction": 1.0,
        "sources": [],
        "sha256": dict.fromkeys(ARRAYS, "0" * 64),
    }
    validate(AdoptConfig, config.model_dump() | {"data": data | {"name": name}})  # before hours of work
    arrays, damaged = read_pictures(folder, listing, shape, work, config.skip_damaged)
    train_count, test_count = (arrays[f"{part}_labels"].shape[0] for part in ("train", "test"))
    data["val_size"] = train_count // 10
    data["sha256"] = save_arrays(project.downloads / name / f"{name}.npz", **arrays)
    values = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=120)
    write_text(target, f"{header}; a fifth of the pictures of each class are test images.\n{values}")
    shutil.rmtree(work)
    if listing.ignored:
        names = ", ".join(entry.relative_to(folder).as_posix() for entry in listing.ignored)
        print(f"ignored, no pictures of a class: {shorten(plain(names))}")
    if damaged:
        print(f"left out, {len(damaged):,} that cannot be read: {shorten(plain(', '.join(damaged)))}")
    counts = f"{len(listing.classes):,} classes, {train_count:,} training and {test_count:,} test images"
    print(f"{counts}: wrote {target}")
    print(f"next: `dataset: {name}` in params.yaml, and `dvc repro`")


def data_name(folder: str) -> str:
    """Return the folder's name, with a prefix where Hydra or YAML might read it as a number, a date, null or true."""
    return folder if folder[0].isalpha() and yaml.safe_dump(folder)[0] not in "'\"" else f"data_{folder}"


if __name__ == "__main__":
    main(adopt)
