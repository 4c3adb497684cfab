"""The process that imports TensorFlow and MLflow once, and forks children, all those in a line of stdin at once.

A line is a JSON list: for each child the arguments of `become`, and the signals to send it, each as seconds and number.
The answer is a list of their statuses, as of os.waitpid.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import runpy
import select
import sys
import tempfile
import threading
import time
import traceback
from typing import NoReturn


def serve(imports: list[str]) -> None:
    # They run no operation yet: TensorFlow makes its threads with the first, and those do not fork.
    for name in imports:
        __import__(name)
    for line in sys.stdin:
        begin, children, signals = time.monotonic(), [], []
        for request in json.loads(line):
            times = request.pop("signals")
            child = os.fork()
            if not child:
                become(**request)
            children.append(child)
            signals += [(after, child, number) for after, number in times]
        for after, child, number in sorted(signals):
            ended = os.pidfd_open(child)
            if not select.select([ended], [], [], max(0.0, begin + after - time.monotonic()))[0]:
                os.kill(child, number)
            os.close(ended)
        print(json.dumps([os.waitpid(child, 0)[1] for child in children]), flush=True)


def become(module: str, words: list[str], variables: dict[str, str], files: list[str]) -> NoReturn:
    """Run a module as `python -m` does, faulty.c armed where it is loaded, stdout and stderr in `files`."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ |= variables
    tempfile.tempdir = None  # TMPDIR may be another now
    sys.argv = [module, *words]
    if "FAULTY_KIND" in variables:
        ctypes.CDLL(None).faulty_arm()
    code = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)  # without the second that TensorFlow takes to end


if __name__ == "__main__":
    sys.path.pop(0)  # this folder
    serve(sys.argv[1:])
