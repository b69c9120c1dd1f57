"""A server on the loopback that stands in for the hub of Hugging Face."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Serves ``files`` (name -> content) of one repository at one revision as the hub resolves them, nothing else.

    ``repository``: as it stands in the address, with ``datasets/`` in front of a data set's. ``truncate`` breaks each
    answer off half-way. ``requests``: what was asked, e.g. ``"GET /some/model/resolve/main/config.json"``.
    """

    def __init__(self, repository: str, revision: str, files: dict[str, bytes] | None = None) -> None:
        self.files = files if files is not None else {}
        self.truncate = False
        self.requests: list[str] = []
        outer = self
        prefix = f"/{repository}/resolve/{revision}/"

        class Handler(BaseHTTPRequestHandler):
            def _answer(self, send: bool) -> None:
                outer.requests.append(f"{self.command} {self.path}")
                data = outer.files.get(self.path.removeprefix(prefix)) if self.path.startswith(prefix) else None
                if data is None:
                    self.send_response(404)
                    self.send_header("X-Error-Code", "EntryNotFound")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(200)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("X-Repo-Commit", revision)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if send:
                    self.wfile.write(data[: len(data) // 2] if outer.truncate else data)
                    self.close_connection = True

            def do_HEAD(self) -> None:
                self._answer(False)

            def do_GET(self) -> None:
                self._answer(True)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
