"""Stage 0: write the configuration that a recipe really has, inherited and shared values included.

The later stages take their parameters from it, so DVC sees a value change however the recipe came to it. Outside of DVC
it is printed.
"""

from __future__ import annotations

import yaml

from pipeline.base.command import main
from pipeline.base.files import load_yaml, save_yaml
from pipeline.base.hydra import composed_values
from pipeline.base.project import Project
from pipeline.base.schema import Config
from pipeline.base.validation import flatten


def compose(project: Project, config: Config) -> None:
    path, values = composed_values(project, config)
    if not project.stage:
        print(yaml.safe_dump(values, sort_keys=False), end="")
        return
    save_yaml(path, values)
    shared, composed = flatten(load_yaml(project.root / "params.yaml")), flatten(values)
    own = [f"{key}={composed[key]}" for key in shared if key in composed and composed[key] != shared[key]]
    overridden = f"; {config.name} sets {', '.join(own)} itself" if own else ""
    print(f"wrote {path.relative_to(project.root)}{overridden}")


if __name__ == "__main__":
    main(compose)
