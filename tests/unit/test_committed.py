"""What of its user ends in a committed file, and what the lock installs: nothing, and nothing with a known hole."""

from __future__ import annotations

import re
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

from conftest import ROOT
from packaging.version import Version


def inside(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a file's bytes, and those of the members of a .keras file."""
    yield str(path), path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f"{path}: {name}", archive.read(name)


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name]


def test_no_committed_file_holds_a_home_or_a_key():
    homes = re.compile(
        rb"/(?:home|Users)/[A-Za-z0-9]|/roo[t]/|[A-Z]:\\Users\\|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE"
    )
    files = [path for path in committed() if path.is_file()]
    found = [(place, match[0]) for path in files for place, value in inside(path) if (match := homes.search(value))]
    assert len(files) > 100 and found == []


LEAST = {  # the first version without a hole that is known
    "mlflow": "3.15",  # CVE-2026-2611, CVE-2026-2614: requests of other sites
    "keras": "3.13.2",  # model files that ran code in safe mode
    "hydra-core": "1.3.6",  # GHSA-37p2-j732-x8pj: configuration that calls functions
}


def test_the_lock_pins_every_package_by_hash_and_none_with_a_known_hole():
    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", text.strip())
    pinned = {}
    for entry in entries:
        found = re.match(r"([a-z0-9][a-z0-9._-]*)==(\S+)", entry)
        assert found and re.search(r"--hash=sha256:[0-9a-f]{64}", entry), entry.splitlines()[0]
        pinned[found[1]] = Version(found[2])
    assert len(entries) > 150
    for name, least in LEAST.items():
        assert pinned[name] >= Version(least)
        assert re.search(rf'"{name}>=([\d.]+)"', (ROOT / "pyproject.toml").read_text()), "`make lock` keeps to it"
    assert not re.search(r"://|--(extra-)?index-url|--find-links| @ ", text), "an address of one registry"
