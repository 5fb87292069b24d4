"""A local HTTP server of files, whose answers break as a test asks."""

from __future__ import annotations

import collections
import contextlib
import http.server
import re
import threading
import time
from collections.abc import Iterator


class FaultServer(http.server.ThreadingHTTPServer):
    """Serves `files` {path: bytes} and records `requests` (path, Range or "").

    faults  {path: faults of its next answers}: "cut" (half of the body), "stall" (half, then silence), "no range"
            (the complete file), or a status such as 503
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[str | int]] = collections.defaultdict(list)
        self.requests: list[tuple[str, str]] = []
        self.seconds = 0.0  # before each block of 1,000 bytes
        self.stalled = threading.Event()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FaultServer

    def do_GET(self):
        path, asked = self.path.lstrip("/"), self.headers.get("Range", "")
        self.server.requests.append((path, asked))
        faults = self.server.faults[path]
        fault = faults.pop(0) if faults else ""
        body = self.server.files.get(path)
        if isinstance(fault, int) or body is None:
            self.send_error(fault or 404)
            return
        begin = int(match[1]) if (match := re.fullmatch(r"bytes=(\d+)-", asked)) and fault != "no range" else 0
        if begin and begin >= len(body):
            self.send_error(416)
            return
        self.send_response(206 if begin else 200)
        self.send_header("Content-Length", str(len(body) - begin))
        self.end_headers()
        end = begin + (len(body) - begin) // 2 if fault in ("cut", "stall") else len(body)
        for first in range(begin, end, 1000):
            time.sleep(self.server.seconds)
            self.wfile.write(body[first : min(first + 1000, end)])
        if fault == "stall":
            self.wfile.flush()
            self.server.stalled.wait(10)
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def running() -> Iterator[FaultServer]:
    server = FaultServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stalled.set()
        server.shutdown()
        server.server_close()
