"""A server on this machine that speaks as much of wandb's protocol as an upload needs, and keeps what it is sent."""

from __future__ import annotations

import gzip
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class WandbServer:
    """Runs by id: ``runs[id] = {"config": ..., "history": [...], "summary": ..., "files": {...}, "exit": 0}``."""

    def __init__(self) -> None:
        self.runs: dict[str, dict[str, Any]] = {}
        self.starts: list[str] = []  # ids in the order in which runs were created
        self.broken = False  # answer every request with an error
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None: ...

            def answer(self, body: bytes) -> None:
                if server.broken:
                    self.reply({"errors": [{"message": "out of order"}]}, 403)
                elif self.path == "/graphql":
                    self.reply({"data": server.graphql(json.loads(body))})
                elif self.path.startswith("/files/"):
                    server.stream(self.path.split("/")[4], json.loads(body))
                    self.reply({"exitcode": None, "limits": {}})
                elif self.path.startswith("/store/"):
                    _, _, run, name = self.path.split("/", 3)
                    server.runs[run]["files"][name] = body
                    self.reply({})
                else:
                    self.reply({}, 404)

            def reply(self, content: Any, code: int = 200) -> None:
                data = json.dumps(content).encode()
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.answer(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)

            do_PUT = do_GET = do_POST

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, values = request["query"], request.get("variables") or {}
        if "upsertBucket" in query:
            return {"upsertBucket": {"bucket": self._bucket(values), "inserted": True}}
        if "createRunFiles" in query:
            links = [{"name": n, "uploadUrl": f"{self.url}/store/{values['run']}/{n}"} for n in values["files"]]
            return {"createRunFiles": {"runID": values["run"], "uploadHeaders": [], "files": links}}
        return {}

    def _bucket(self, values: dict[str, Any]) -> dict[str, Any]:
        name = values["name"]
        if values.get("displayName"):  # the first call of a run; without resume=, it starts from nothing
            self.starts.append(name)
            self.runs[name] = {**values, "history": {}, "summary": {}, "files": {}, "exit": None, "config": {}}
        if values.get("config"):
            sent = json.loads(values["config"])
            self.runs[name]["config"] |= {key: item["value"] for key, item in sent.items() if key != "_wandb"}
        project = {"id": "p", "name": values["project"], "entity": {"id": "e", "name": values.get("entity") or "me"}}
        return {"id": "b", "name": name, "displayName": name, "historyLineCount": 0, "project": project}

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        found = self.runs[run]
        for name, chunk in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                for i, line in enumerate(chunk["content"]):
                    found["history"][chunk["offset"] + i] = json.loads(line)
            if name == "wandb-summary.json":
                found["summary"] = json.loads(chunk["content"][-1])
        if sent.get("complete"):
            found["exit"] = sent.get("exitcode")

    def rows(self, run: str) -> list[dict[str, Any]]:
        """The history of a run, without wandb's own keys."""
        ordered = [row for _, row in sorted(self.runs[run]["history"].items())]
        return [{key: value for key, value in row.items() if not key.startswith("_")} for row in ordered]
