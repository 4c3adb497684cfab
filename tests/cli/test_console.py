"""What a person sees of loading and of training."""

from __future__ import annotations

import math
import os
import re
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import run

from pipeline.base.console import TrainingProgress, copied_to, quiet_import
from pipeline.base.errors import UserError

CHATTER = (
    b"WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n"
    b"I0000 00:00:1700000000.000000    1 port.cc:153] oneDNN custom operations are on.\n"
)


LOADING = f"""
import os, sys
from pipeline.base.console import quiet_import
with quiet_import():
    os.write(2, b"a real warning\\n" + {CHATTER})  # as the libraries write, below Python's own stderr
    print("said by Python", file=sys.stderr)
    os.write(2, {CHATTER} + b"W0000 another\\nthe I0000 inside a line\\n")
    print("result")
os.write(2, {CHATTER[:24]} + b" afterwards")
"""


def test_chatter_is_dropped_and_everything_else_comes_through_in_order():
    done = run(sys.executable, "-c", LOADING)
    assert done.stdout == "result\n"
    assert done.stderr == (
        "a real warning\nsaid by Python\nW0000 another\nthe I0000 inside a line\nWARNING: All log message afterwards"
    )


def test_stderr_is_the_old_one_afterwards_and_no_file_stays_open(capfd):
    def opened() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    before = opened()
    with quiet_import():
        os.write(2, b"kept\n")
    os.write(2, CHATTER)
    assert capfd.readouterr().err == "kept\n" + CHATTER.decode()
    assert opened() == before


def test_what_was_said_before_a_failed_import_is_shown(capfd):
    with pytest.raises(ImportError, match="nosuch"), quiet_import():
        os.write(2, CHATTER + b"libnosuch.so: cannot open\n")
        import nosuch  # noqa: F401
    assert capfd.readouterr().err == "libnosuch.so: cannot open\n"


def test_training_prints_one_line_an_epoch_where_there_is_no_terminal(capsys):
    with TrainingProgress("accurate", 2, 1000) as progress:
        for train, val, seconds in ((0.5, 0.6125, 0.5), (0.98765, 0.99, 0.125)):
            for done in (400, 1000):
                progress.batch(done, train)
            progress.epoch_done(train, val, seconds)
    out, err = capsys.readouterr()
    first, second = out.splitlines()
    assert re.fullmatch(r"accurate epoch 1/2  train 50\.00 %  val 61\.25 %  2,000 images/s  \d+ s left", first)
    assert second == "accurate epoch 2/2  train 98.77 %  val 99.00 %  8,000 images/s  0 s left"
    assert err == ""


def test_the_bar_of_a_terminal_counts_the_digits_of_all_epochs(capsys, monkeypatch, tmp_path):
    ours, theirs = os.openpty()  # a real terminal
    os.set_blocking(ours, False)  # what was written is there to read, and no end of it is waited for
    termios.tcsetwinsize(theirs, (24, 100))
    with os.fdopen(theirs, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        with copied_to(tmp_path / "log"), TrainingProgress("accurate", 2, 1000) as progress:
            progress.batch(1000, 0.5)
            progress.epoch_done(0.5, math.nan, 1.0)
            progress.batch(250, 0.75)
            assert (progress.bar.n, progress.bar.total) == (1250, 2000)
            progress.bar.refresh()
    shown = b""
    with suppress(OSError):  # the end, on Linux
        while part := os.read(ours, 1000):
            shown += part
    os.close(ours)
    assert b"accurate epoch 2/2, train 75.00 %:" in shown and b"1.25k/2.00k" in shown
    out = capsys.readouterr().out
    assert out.startswith("accurate epoch 1/2  train 50.00 %  val –")
    assert (tmp_path / "log").read_text() == out, "without the bar"


def test_a_log_has_what_a_terminal_shows_in_the_end_and_goes_on_where_it_was(capsys, tmp_path):
    log = tmp_path / "log"
    for number in range(2):
        with copied_to(log):
            print("10 %\r100 %\rof", end="")
            print("\r\nsaid", number)
            print("a bar 50 %\r          \rwarned", file=sys.stderr)
            kept = sys.stdout
            print("cut", end="")
        print("after", file=kept)
    assert log.read_text() == "of0 %\nsaid 0\nwarned\nof0 %\nsaid 1\nwarned\n"
    assert capsys.readouterr().out.startswith("10 %\r100 %\rof\r\nsaid 0\ncutafter\n")


def test_a_bar_of_hours_takes_no_memory(tmp_path, capsys):
    with copied_to(tmp_path / "log"):
        for number in range(10_000):
            print(f"\r{number} images", end="")
        assert len(sys.stdout.line) < 50
        print()
    assert (tmp_path / "log").read_text() == "9999 images\n" and len(capsys.readouterr().out) > 100_000


@pytest.mark.parametrize(
    ("error", "last"),
    [(UserError("the loss is not finite"), "error: the loss is not finite"), (KeyboardInterrupt(), "interrupted")],
)
def test_a_log_ends_with_the_error_as_the_terminal_has_it(tmp_path, error, last):
    with pytest.raises(type(error)), copied_to(tmp_path / "log"):
        raise error
    assert (tmp_path / "log").read_text() == f"{last}\n"


def test_where_the_log_cannot_be_written_training_goes_on(tmp_path, capsys):
    with copied_to(tmp_path):  # a folder
        print("said")
    assert capsys.readouterr().out == "said\n"


def test_keras_loads_without_what_it_does_not_need_which_is_there_afterwards():
    unused = "'sklearn', 'scipy.stats', 'matplotlib', 'IPython'"
    code = (
        "import sys\nfrom pipeline.base.keras_import import load_keras\nload_keras()\n"
        f"print('keras' in sys.modules, [name for name in ({unused}) if name in sys.modules])\n"
        "from sklearn.metrics import f1_score\nfrom matplotlib import pyplot\nprint(f1_score([0, 1], [0, 1]))"
    )
    assert run(sys.executable, "-c", code).stdout == "True []\n1.0\n"
