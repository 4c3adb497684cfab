"""How the commands import Keras."""

from __future__ import annotations

import sys

from pipeline.base.console import quiet_import

UNUSED = ("sklearn", "matplotlib", "matplotlib.pyplot", "mpl_toolkits", "IPython")


def load_keras() -> None:
    """Import Keras, quietly, and without UNUSED, which 3.15 would import for its wrappers and galleries: a second.

    Nothing else is imported meanwhile, so a user's own code finds them all.
    """
    hidden = [name for name in UNUSED if sys.modules.setdefault(name, None) is None]  # type: ignore[arg-type]
    try:
        with quiet_import():
            import keras  # noqa: F401
    finally:
        for name in hidden:
            sys.modules.pop(name, None)
