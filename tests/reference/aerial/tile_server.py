"""A server of the sample imagery on the loopback, with moods: slow answers, refusals, broken connections."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aerial_samples import encoded, tile_picture


def xyz_tile(path: str) -> bytes:
    """The tile of the web's grid that "/zoom/x/y.png" names."""
    zoom, x, y = (int(part) for part in path.removesuffix(".png").split("/")[-3:])
    return encoded(tile_picture(zoom, x, y))


class Server:
    """Serves what `content` gives for a path; `answers` holds what to do first: a status, or "close"."""

    def __init__(self, content: Callable[[str], bytes] = xyz_tile) -> None:
        self.requests: list[tuple[float, str]] = []
        self.answers: list[Any] = []
        self.headers: dict[str, str] = {}
        self.missing: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((time.monotonic(), self.path))
                answer = outer.answers.pop(0) if outer.answers else 200
                if self.path in outer.missing:
                    answer = 404
                if answer == "close":
                    self.connection.close()
                    return
                body = b""
                if answer == 200:
                    body = content(self.path)
                self.send_response(answer)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/"

    @property
    def url(self) -> str:
        return self.root + "{z}/{x}/{y}.png"

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()
