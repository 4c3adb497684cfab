"""Write the configuration that a recipe really has, inherited and shared values included; print it outside of DVC.

The stages after it take their parameters from what it writes: so DVC sees a value change however the recipe came to it.
"""

from __future__ import annotations

import yaml

from pipeline.command import composed_file, entry_point
from pipeline.config import ROOT, Config, flatten, in_dvc_stage
from pipeline.files import load_yaml, save_yaml


@entry_point
def compose(config: Config) -> None:
    path, values = composed_file(config)
    if not in_dvc_stage():
        print(yaml.safe_dump(values, sort_keys=False), end="")
        return
    save_yaml(path, values)
    shared, composed = (flatten(tree) for tree in (load_yaml(ROOT / "params.yaml"), values))
    own = [f"{key}={composed[key]}" for key in shared if key in composed and composed[key] != shared[key]]
    print(f"wrote {path.relative_to(ROOT)}" + (f"; {config.name} sets {', '.join(own)} itself" if own else ""))


if __name__ == "__main__":
    compose()
