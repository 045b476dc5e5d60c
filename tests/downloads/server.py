"""A server on this machine that sends files as bad servers do: cut off, refused, changed, slowly, without parts."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


@dataclass
class Served:
    """How a file is sent.

    cuts: after so many bytes of the first, second … answer the connection ends.
    ranges: whether parts are sent. code: instead of the file. kind: its Content-Type. sized: its length is told.
    seconds: between two pieces of 1,000 bytes.
    """

    content: bytes = b""
    cuts: list[int] = field(default_factory=list)
    ranges: bool = True
    code: int = 200
    mark: str | None = '"first"'
    kind: str = "application/octet-stream"
    sized: bool = True
    seconds: float = 0.0


class Server(ThreadingHTTPServer):
    """`files` by path, with its query; `asked` has (path, Range or "") of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict[str, Served]()
        self.asked = list[tuple[str, str]]()
        self.begun = list[int]()  # the first byte of what was sent

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that have gone are no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append((unquote(self.path), wanted))
        served = self.server.files.get(unquote(self.path), Served(code=404))
        self.close_connection = True
        if served.code != 200:
            self.send_response(served.code)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted and served.ranges else 0
        condition = self.headers.get("If-Range")
        if condition is not None and (condition != served.mark or condition.startswith("W/")):  # a weak one never holds
            start = 0
        self.server.begun.append(start)
        if start and start >= len(served.content):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
        self.send_header("Content-Type", served.kind)
        if served.sized:
            self.send_header("Content-Length", str(len(served.content) - start))
        if served.mark:
            self.send_header("ETag", served.mark)
        self.end_headers()
        body = served.content[start:]
        body = body[: served.cuts.pop(0)] if served.cuts else body
        for at in range(0, len(body), 1000):
            self.wfile.write(body[at : at + 1000])
            if served.seconds:
                self.wfile.flush()
                time.sleep(served.seconds)


@contextmanager
def serving() -> Iterator[Server]:
    """A server on a free port of 127.0.0.1, as long as the block lasts."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
