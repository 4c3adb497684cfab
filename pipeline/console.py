"""What a person sees: a bar on a terminal, a line an epoch elsewhere, and nothing of TensorFlow's own chatter."""

from __future__ import annotations

import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

from pipeline.config import PipelineError

CHATTER = (b"WARNING: All log messages before absl", b"I0000 ", b"INFO: Created TensorFlow Lite XNNPACK delegate")

# Bytes of addresses that TensorFlow takes at least, and a small network with it. With less its libraries abort, raise
# whatever comes, or turn in a loop for ever.
ADDRESSES = 4 << 30


@contextmanager
def quiet_import() -> Iterator[None]:
    """Drop the notes that TensorFlow's libraries write to stderr while they load; the rest comes through afterwards.

    No setting of TensorFlow reaches these: they are written before its log level is read. Too small a limit of memory
    is a PipelineError.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < ADDRESSES:
        raise PipelineError(
            f"ulimit -v is {limit >> 10:,} KiB: TensorFlow needs {ADDRESSES >> 10:,} at least: lift the limit"
        )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # from then on: fatal errors only
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            for line in written:
                if not line.startswith(CHATTER):
                    os.write(2, line)


class TrainingProgress:
    """Shows epoch, running accuracy, images a second and time left. `size` is examples an epoch, `done` epochs behind.

    The moving bar is for a terminal that no other job writes to.
    """

    def __init__(self, name: str, epochs: int, size: int, done: int = 0, bar: bool = True) -> None:
        self.name, self.epochs, self.size = name, epochs, size
        self.done = done
        self.epoch = done + 1
        self.begin = time.perf_counter()
        shown = bar and sys.stderr.isatty()
        self.bar = tqdm(
            total=epochs * size, initial=done * size, unit=" images", unit_scale=True, leave=False, disable=not shown
        )

    def __enter__(self) -> TrainingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def batch(self, done: int, accuracy: float) -> None:
        """`done` examples of the running epoch."""
        self.bar.set_description(f"{self.name} epoch {self.epoch}/{self.epochs}, train {100 * accuracy:.2f} %", False)
        self.bar.update((self.epoch - 1) * self.size + done - self.bar.n)

    def epoch_done(self, train_accuracy: float, val_accuracy: float, seconds: float) -> None:
        """Print the epoch's line; `seconds` is its time in training."""
        left = (time.perf_counter() - self.begin) / (self.epoch - self.done) * (self.epochs - self.epoch)
        val = "–" if math.isnan(val_accuracy) else f"{100 * val_accuracy:.2f} %"
        tqdm.write(
            f"{self.name} epoch {self.epoch}/{self.epochs}  train {100 * train_accuracy:.2f} %  "
            f"val {val}  {self.size / seconds:,.0f} images/s  {left:.0f} s left",
            file=sys.stdout,
        )
        sys.stdout.flush()
        self.epoch += 1
