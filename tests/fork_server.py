"""Run `python -m pipeline.<verb>`, and `dvc`, in a fork of a process that has imported what is slow already.

The client stands as `python` and `dvc` first on PATH, so that DVC's stages are served too. It looks like the command to
whoever started it: it hands over its arguments, environment, folder, umask and open files 0 to 2, passes signals on,
and ends as the command does; if it is killed, so is the command. What a fork could not do as a new process would
(`refusal`) becomes a new process. The server imports nothing of ours, and runs no operation of TensorFlow: after one, a
fork hangs.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

SECONDS = 600  # that one command may take
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
IMPORTS = """
    alembic.command dvc.cachemgr dvc.cli.parser dvc.data_cloud dvc.repo.experiments dvc.repo.graph dvc.repo.index
    dvc.repo.trie dvc.utils.strictyaml dvc_data.index dvc_http dvc_render.vega fastapi filelock git
    hydra._internal.core_plugins.basic_launcher hydra.experimental.callback hydra.main
    hydra_plugins.hydra_joblib_launcher.joblib_launcher matplotlib.backends.backend_agg optuna
    mlflow.pyfunc mlflow.store.tracking.sqlalchemy_store mlflow.tensorflow
    mlflow.tracing.provider mlflow.types.agent networkx PIL.PngImagePlugin pygit2 ruamel.yaml scipy.interpolate
    scipy.stats sklearn.datasets sqlalchemy.dialects.sqlite tensorflow uvicorn
"""
# Variables that are read when they are used; what else is unlike the server's own may have been read by an import.
LATE = ("_MP_", "DVC_", "FAULTS_", "GIT_", "HYDRA_", "MLFLOW_", "MNIST_", "PYTEST_")
LATE_NAMES = {"PATH", "PS1", "PWD", "OLDPWD", "SHLVL", "TMPDIR", "_"}


def ask(address: str, words: list[str]) -> NoReturn:
    """Be the command `python *words`: the client. It imports little, as it starts for every command."""
    try:
        for file in range(3):
            os.fstat(file)
    except OSError:  # one of them is closed
        os.execv(sys.executable, [sys.executable, *words])
    umask = os.umask(0)
    os.umask(umask)
    ignored = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]
    request = {"words": words, "variables": dict(os.environ), "folder": str(Path.cwd()), "umask": umask}
    request |= {"ignored": ignored, "pid": os.getpid()}
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(SECONDS)
        server.connect(address)
        socket.send_fds(server, [b"."], [0, 1, 2])
        server.sendall(json.dumps(request).encode() + b"\n")
        answers = server.makefile()
        try:
            child = int(answers.readline())
            if not child:
                os.execv(sys.executable, [sys.executable, *words])
            for number in SIGNALS:
                signal.signal(number, lambda number, _: os.kill(child, number))
            code = os.waitstatus_to_exitcode(int(answers.readline()))
        except TimeoutError:
            sys.exit(f"{__file__}: no end within {SECONDS} seconds: {words}")
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def serve(listening: int, owner: int) -> None:
    """Fork for every client until the process `owner` has ended."""
    import gc
    import select

    started = dict(os.environ)
    # What a command of ours would set first.
    os.environ |= {"KERAS_BACKEND": "tensorflow", "KERAS_HOME": os.devnull, "MPLBACKEND": "agg"}
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true"}
    for name in IMPORTS.split():
        __import__(name)
    gc.freeze()
    listener, ended = socket.socket(fileno=listening), os.pidfd_open(owner)
    while listener in select.select([listener, ended], [], [])[0]:
        client = listener.accept()[0]
        if not os.fork():
            listener.close()
            keep(client, ended, started)
        client.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def keep(client: socket.socket, owner: int, started: dict[str, str]) -> NoReturn:
    """Fork the command that a client is, and tell it how that ended; kill it where the client or the owner was."""
    import select

    files = socket.recv_fds(client, 1, 3)[1]
    request = json.loads(client.makefile().readline())
    if why := refusal(started, **request):
        print(f"a new process, as {why}: {request['words']}", flush=True)
        client.sendall(b"0\n")
        os._exit(0)
    child = os.fork()
    if not child:
        client.close()
        os.close(owner)
        become(files, **request)
    for file in files:
        os.close(file)
    client.sendall(b"%d\n" % child)
    if (ended := os.pidfd_open(child)) not in select.select([client, ended, owner], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    with suppress(BrokenPipeError):
        client.sendall(b"%d\n" % os.waitpid(child, 0)[1])
    os._exit(0)


def refusal(
    started: dict[str, str], words: list[str], variables: dict[str, str], folder: str, pid: int, **_: Any
) -> str:
    """Why the command has to be a new process, or nothing."""
    import resource

    if words[:1] != ["-c"] and not (words[:1] == ["-m"] and words[1].startswith(("pipeline.", "dvc"))):
        return "it is none of ours"
    for name in {**started, **variables}:
        early = name not in LATE_NAMES and not name.startswith(LATE)
        if early and started.get(name) != variables.get(name):
            return f"{name} is {variables.get(name)}"
    limits = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
    if any(resource.prlimit(pid, limit) != resource.getrlimit(limit) for limit in limits):
        return "it has other limits"
    return "there is a matplotlibrc" if Path(folder, "matplotlibrc").exists() else ""


def become(
    files: list[int], words: list[str], variables: dict[str, str], folder: str, umask: int, ignored: list[int], pid: int
) -> NoReturn:
    """Do what `python *words` does, in place of the process `pid`."""
    import atexit
    import importlib
    import runpy
    import tempfile
    import threading
    import traceback
    from types import ModuleType

    import numpy as np

    for number in SIGNALS:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in ignored else usual)
    os.setpgid(0, 0)
    os.umask(umask)
    os.chdir(folder)
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None
    np.random.seed()
    importlib.invalidate_caches()
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        old, lines = getattr(sys, name), 1 if number == 2 or os.isatty(number) else -1
        setattr(sys, name, open(number, mode, lines, old.encoding, old.errors, closefd=False))  # noqa: SIM115
    option, what, *sys.argv[1:] = words
    sys.path.insert(0, folder if option == "-m" else "")
    code: Any = 0
    try:
        if option == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv[0], sys.modules["__main__"] = "-c", ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), sys.modules["__main__"].__dict__)
    except SystemExit as end:
        code = end.code
        if code is not None and not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException as error:
        traceback.print_exc()
        code = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if code == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 255)  # without the second that TensorFlow takes to end


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        sys.path.pop(0)  # this folder
        serve(*map(int, sys.argv[2:]))
    else:
        ask(sys.argv[1], sys.argv[2:])
