"""Make a run independent of the shell, notebook or service that starts it."""

from __future__ import annotations

import io
import logging
import os
import platform
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn

SET = {
    "KERAS_BACKEND": "tensorflow",
    "KERAS_HOME": os.devnull,  # no keras.json: float16, float64 and channels_first would be other models
}
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",  # MLflow's own patience is minutes, while training waits
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
if platform.machine() == "x86_64":  # with AVX2 alone TensorFlow itself would not use oneDNN, which halves the time
    DEFAULTS["TF_ENABLE_ONEDNN_OPTS"] = "1"
UNSET = (
    "TF_USE_LEGACY_KERAS",
    # They name another repository than the one around this file; a hook of git's sets them.
    *(f"GIT_{name}" for name in ("DIR", "WORK_TREE", "INDEX_FILE", "COMMON_DIR", "OBJECT_DIRECTORY", "NAMESPACE")),
)
READER_GONE = 128 + signal.SIGPIPE  # as a shell shows it


def set_variables() -> None:
    """Set what TensorFlow, Keras and MLflow read when they are imported.

    Variables that a user may have set for a reason, such as TF_ENABLE_ONEDNN_OPTS=0, are kept.
    """
    os.environ |= SET | {name: value for name, value in DEFAULTS.items() if name not in os.environ}
    for name in UNSET:
        os.environ.pop(name, None)


def isolate() -> None:
    """Prepare the process of a command, before TensorFlow, Matplotlib or MLflow is imported."""
    _open_streams()
    logging.raiseExceptions = False  # Hydra logs to stdout, and a traceback would follow where nobody reads it
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it tells of its cache of fonts
    set_variables()
    os.environ["MPLBACKEND"] = "agg"  # a notebook's kernel names one that exists in that kernel alone
    try:
        Path.home()
    except RuntimeError:  # no HOME, and a user without a name: MLflow would fail, and Keras make a folder named ~
        os.environ["HOME"] = os.devnull
    if any(option.startswith("e") for option in sys.warnoptions):  # of PYTHONWARNINGS=error: third-party code warns
        warnings.simplefilter("default")
        os.environ["PYTHONWARNINGS"] = "default"


def _open_streams() -> None:
    """Open what is closed of stdin, stdout and stderr: the next file, a database perhaps, would take its number and
    get what is printed. A character that the terminal's encoding lacks is printed as an escape."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", encoding="utf-8"))
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            # By lines: whether anybody still reads is then known when it is printed, not when Python ends.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def reader_gone() -> NoReturn:
    """End without a word, as after `… | head` nobody reads it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(READER_GONE)
