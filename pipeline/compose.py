"""Stage 0: write the configuration that a recipe really has, inherited and shared values included.

The later stages take their parameters from it, so DVC sees a value change however the recipe came to it. Outside of DVC
it is printed.
"""

from __future__ import annotations

import yaml

from pipeline.base import own
from pipeline.base.command import main
from pipeline.base.errors import UserError
from pipeline.base.files import load_yaml, save_yaml
from pipeline.base.hydra import composed_values
from pipeline.base.project import Project
from pipeline.base.schema import Config, own_functions
from pipeline.base.validation import flatten


def compose(project: Project, config: Config) -> None:
    path, values = composed_values(project, config)
    if not project.stage:
        print(yaml.safe_dump(values, sort_keys=False), end="")
        return
    for file in own.sources(project.root, own_functions(config)).values():
        if not file.is_relative_to(project.root / own.WATCHED):
            raise UserError(
                f"{file.relative_to(project.root)} is used by {config.name}, and DVC would not see it change: move it "
                f"into the folder {own.WATCHED}, and write {own.WATCHED}.{file.stem}:<function>"
            )
    save_yaml(path, values)
    shared, composed = flatten(load_yaml(project.root / "params.yaml")), flatten(values)
    differing = [f"{key}={composed[key]}" for key in shared if key in composed and composed[key] != shared[key]]
    overridden = f"; {config.name} sets {', '.join(differing)} itself" if differing else ""
    print(f"wrote {path.relative_to(project.root)}{overridden}")


if __name__ == "__main__":
    main(compose)
