"""A tracking server's bad days: an HTTP proxy on loopback that spoils chosen requests on their way to a real server."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KINDS = ("500", "cut", "lose", "hang", "refuse")
KEPT = ("content-type", "location")  # of the headers of an answer


class Proxy:
    """Forwards to `upstream` (a port of 127.0.0.1), counting requests.

    `spoil` chooses which of them go wrong, and how: `500` for an answer, or the connection `cut`, the server not asked;
    the server's answer lost (`lose`); never an answer (`hang`); nobody listens any more (`refuse`).
    """

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.asked: list[str] = []  # "METHOD path" of each request since `spoil` or `heal`
        self.kind, self.first, self.last = "", 0, 0
        self._lock, self._healed = threading.Lock(), threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = self._listen(0)
        self.uri = f"http://127.0.0.1:{self.port}"

    def spoil(self, kind: str, first: int = 1, last: int = 1 << 60) -> None:
        """From now on spoil the requests from the `first` to the `last`, counted from now."""
        self.heal()
        self._healed.clear()
        with self._lock:
            self.kind, self.first, self.last = kind, first, last
        if kind == "refuse" and first == 1:
            self.close()

    def heal(self) -> None:
        """Forward everything again, counted from now."""
        with self._lock:
            self.kind, self.asked = "", []
            if self._server is None:
                self._listen(self.port)
        self._healed.set()  # lets go of what hangs

    def close(self) -> None:
        with self._lock:
            server, self._server = self._server, None
        if server:
            server.shutdown()
            server.server_close()

    def _listen(self, port: int) -> int:
        self._server = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"proxy": self}))
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self._server.server_address[1]

    def take(self, handler: _Handler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        with self._lock:
            self.asked.append(f"{handler.command} {handler.path}")
            kind = self.kind if self.first <= len(self.asked) <= self.last else ""
        if kind == "500":
            handler.reply(500, {"Content-Type": "text/plain"}, b"spoiled on purpose")
        elif kind in ("", "lose"):
            answer = self._forward(handler, body)
            handler.reset() if kind else handler.reply(*answer)
        else:
            if kind == "hang":
                self._healed.wait(120)
            handler.reset()
            if kind == "refuse":
                self.close()

    def _forward(self, handler: _Handler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        headers = {key: value for key, value in handler.headers.items() if key.lower() != "connection"}
        try:
            connection.request(handler.command, handler.path, body, headers)
            answer = connection.getresponse()
            kept = {key: value for key, value in answer.getheaders() if key.lower() in KEPT}
            return answer.status, kept, answer.read()
        except OSError:
            return 502, {}, b""  # the server itself is down
        finally:
            connection.close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """A client that went away, killed or tired of waiting, is what we are here for."""


class _Handler(BaseHTTPRequestHandler):
    proxy: Proxy

    def reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


for _method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
    setattr(_Handler, f"do_{_method}", lambda self: self.proxy.take(self))
