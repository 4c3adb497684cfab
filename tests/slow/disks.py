"""Disks that are small, or may only be read: mounted where the user may mount, else as near to it as a user gets."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LARGE = 2 << 30  # bytes of a disk that is never full
PAGE = os.sysconf("SC_PAGE_SIZE")


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def unmount(place: Path) -> None:
    subprocess.run(["umount", "--lazy", str(place)], check=True, capture_output=True)


def mounts() -> bool:
    """Whether we may mount."""
    return not subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode


class Disk:
    """A folder with a disk of its own, whose room can be changed; for a user who may not mount, files in it can be
    bounded instead, in the process `writer`."""

    def __init__(self, place: Path, writer: int = 0) -> None:
        self.place, self.writer, self.own = place, writer, mounts()
        place.mkdir(exist_ok=True)

    def __enter__(self) -> Disk:
        if self.own:
            mount("-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", self.place)
        return self

    def __exit__(self, *_: object) -> None:
        if self.own:
            unmount(self.place)

    def used(self) -> int:
        found = os.statvfs(self.place)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Leave `size` bytes of room meanwhile."""
        if not self.own:
            with limited(self.writer, resource.RLIMIT_FSIZE, size):
                yield
            return
        self._resize(self.used() + size)
        try:
            yield
        finally:
            self._resize(LARGE)

    def _resize(self, size: int) -> None:
        mount("-o", f"remount,size={max(PAGE, size // PAGE * PAGE)}", self.place)


@contextmanager
def limited(process: int, kind: int, limit: int) -> Iterator[None]:
    """Bound what a process, and its children to come, may take."""
    before = resource.prlimit(process, kind)
    resource.prlimit(process, kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, kind, before)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Let nobody write to a file, or below a folder, meanwhile: its mode does not stop root."""
    if mounts() and folder.is_mount():
        mount("-o", "remount,ro", folder)
        try:
            yield
        finally:
            mount("-o", "remount,rw", folder)
        return
    if mounts():
        mount("--bind", folder, folder)
        try:
            mount("-o", "remount,bind,ro", folder)
            yield
        finally:
            unmount(folder)
        return
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    try:
        for path, mode in modes.items():
            path.chmod(mode & 0o555)
        yield
    finally:
        for path, mode in modes.items():
            with suppress(FileNotFoundError):
                path.chmod(mode)
