"""Stage 1: bring the published arrays, from the user's own copy or the first source that has them."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from pipeline.base.command import main
from pipeline.base.errors import UserError
from pipeline.base.files import process_name, remove_left_over
from pipeline.base.project import Project
from pipeline.base.schema import Config, Data
from pipeline.data.download import download, reason
from pipeline.data.examples import save_arrays
from pipeline.data.readers import Arrays, read_source


def fetch(project: Project, config: Config) -> None:
    """Write the verified arrays of the data set, published or made of the user's own pictures, to one .npz."""
    own = os.environ.get(own_variable(config.data)) if config.data.sources else None
    arrays = find_arrays(config.data, own, project.downloads)
    path = project.output(project.raw) / f"{config.data.name}.npz"
    save_arrays(path, **arrays)
    print(f"wrote {path}")


def own_variable(data: Data) -> str:
    """Return the environment variable that names the user's own copy: MNIST_SOURCE, FASHION_MNIST_SOURCE, …"""
    return re.sub(r"\W", "_", data.name).upper() + "_SOURCE"


def find_arrays(data: Data, own: str | None, downloads: Path) -> Arrays:
    """Return the four arrays of `data`, verified, from the path `own`, if set, or else from `downloads`.

    What is missing or damaged there comes from the first source that has it; if none has, it is a UserError.
    """
    kept = downloads / data.name
    problem = f"{kept} is gone, and {data.name} was not published"
    if own or kept.exists():
        try:
            return read_source(Path(own).expanduser() if own else kept, data)
        except UserError as error:
            problem = f"{own_variable(data) if own else kept} is not {data.name}: {error}"
    if own or not data.sources:
        fix = "give a folder of the four IDX files, or the .npz" if own else "`python -m pipeline.adopt` makes it again"
        raise UserError(f"{problem}: {fix}")
    if kept.exists():
        print(f"{problem}: downloading again", flush=True)
    downloads.mkdir(parents=True, exist_ok=True)
    remove_left_over(downloads)
    for source in data.sources:  # the folder `kept` appears whole or not at all
        with tempfile.TemporaryDirectory(prefix=f".{process_name()}.partial-", dir=downloads) as temporary:
            folder = Path(temporary, data.name)
            try:
                download(source, data, folder)
                arrays = read_source(folder, data)
            except (UserError, OSError, ValueError) as error:
                print(f"skipped {source.url}: {reason(error)}", flush=True)
                continue
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
        print(f"took {data.name} from {source.url}")
        return arrays
    raise UserError(f"no source has {data.name}: connect to the network, or set {own_variable(data)}=<file or folder>")


if __name__ == "__main__":
    main(fetch)
