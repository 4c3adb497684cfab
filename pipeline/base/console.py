"""What a person sees: a bar on a terminal, a line per epoch elsewhere, and none of TensorFlow's notes on itself.

What a training prints is also written into a file.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.base.errors import one_line

NOTES = "^(WARNING: All log messages before absl|I0000 |INFO: Created TensorFlow Lite XNNPACK delegate)"


@contextmanager
def quiet_import() -> Iterator[None]:
    """Drop the notes that TensorFlow's libraries write to stderr while they load.

    They are written before TF_CPP_MIN_LOG_LEVEL is read (TensorFlow 2.21). A process of its own filters them, so that
    what a dying import says still reaches the user.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # from then on: fatal errors only
    sys.stderr.flush()
    stderr = os.dup(2)
    with subprocess.Popen(["grep", "-vE", NOTES], stdin=subprocess.PIPE, stdout=stderr) as grep:
        assert grep.stdin
        os.dup2(grep.stdin.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)


@contextmanager
def copied_to(file: Path) -> Iterator[None]:
    """Append to `file` what the block prints to stdout and stderr, as a terminal shows it in the end, and the error
    that ends it. On a full disk lines are left out."""
    is_open = True

    def add(text: str) -> None:
        if is_open:  # loggers keep the streams for longer
            with suppress(OSError), file.open("a", encoding="utf-8") as log:
                log.write(f"{text}\n")

    streams: list[Any] = [_Copied(stream, add) for stream in (sys.stdout, sys.stderr)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            yield
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                add("interrupted")
            else:
                add(f"error: {message}" if (message := one_line(error)) else traceback.format_exc().rstrip())
            raise
        finally:
            is_open = False


class _Copied:
    """A stream whose lines, when they end, are given to a function as well."""

    def __init__(self, stream: Any, add: Callable[[str], None]) -> None:
        self.stream, self.add = stream, add
        self.line = ""  # that has not ended

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            self.add(_overwritten(line).rstrip())
        shown, carriage_return, more = self.line.rpartition("\r")
        self.line = _overwritten(shown) + carriage_return + more  # a bar is one line for hours
        return self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _overwritten(line: str) -> str:
    """Return what a terminal shows of a line: after a carriage return it writes over what stands there."""
    shown = ""
    for part in line.split("\r"):
        shown = part + shown[len(part) :]
    return shown


class TrainingProgress:
    """Shows epoch, running accuracy, images a second and time left. `size` is examples an epoch, `done` epochs behind.

    The moving bar is for a terminal that no other job writes to. `said` is epoch and time left, in words.
    """

    def __init__(self, name: str, epochs: int, size: int, done: int = 0, bar: bool = True) -> None:
        self.name, self.epochs, self.size, self.done = name, epochs, size, done
        self.epoch = done + 1
        self.said = ""
        self.begin = time.perf_counter()
        hidden = None if bar else True  # None: where stderr is no terminal
        self.bar = tqdm(
            total=epochs * size, initial=done * size, unit=" images", unit_scale=True, leave=False, disable=hidden
        )

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def batch(self, done: int, accuracy: float) -> None:
        """`done` examples of the running epoch."""
        self.bar.set_description(f"{self.name} epoch {self.epoch}/{self.epochs}, train {100 * accuracy:.2f} %", False)
        self.bar.update((self.epoch - 1) * self.size + done - self.bar.n)

    def epoch_done(self, train_accuracy: float, val_accuracy: float, seconds: float) -> None:
        """Print the epoch's line; `seconds` is its time in training."""
        left = (time.perf_counter() - self.begin) / (self.epoch - self.done) * (self.epochs - self.epoch)
        val = "–" if math.isnan(val_accuracy) else f"{100 * val_accuracy:.2f} %"
        self.said = f"epoch {self.epoch}/{self.epochs}, {left:.0f} s left"
        tqdm.write(
            f"{self.name} epoch {self.epoch}/{self.epochs}  train {100 * train_accuracy:.2f} %  "
            f"val {val}  {self.size / seconds:,.0f} images/s  {left:.0f} s left",
            file=sys.stdout,
        )
        sys.stdout.flush()
        self.epoch += 1
