"""A hub on a loopback port: the part of its HTTP API that resolving and downloading models and data sets uses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(kw_only=True)
class Hub:
    """One repository at one commit, and what was asked for."""

    repository: str
    folder: Path
    url: str = ""
    fetched: list[str] = field(default_factory=list)
    gated: bool = False


@contextmanager
def serve(*, repository: str, folder: Path, kind: Literal["models", "datasets"] = "models") -> Iterator[Hub]:
    """Serve the files of a folder as a repository whose main branch and tag v1 are `COMMIT`."""
    hub = Hub(repository=repository, folder=folder)
    api = f"/api/{kind}/{repository}"
    files_at = f"/{'datasets/' if kind == 'datasets' else ''}{repository}/resolve/{COMMIT}/"

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0]
            if hub.gated:
                self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
            elif path.startswith(api):
                rest = path.removeprefix(api).strip("/")
                self._describe(rest, body=body)
            elif path.startswith(files_at):
                self._file(path.removeprefix(files_at), body=body)
            else:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)

        def _describe(self, rest: str, *, body: bool) -> None:
            kind, _, revision = rest.partition("/")
            if revision and revision.split("/")[0] not in ("main", "v1", COMMIT):
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
                return
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [path.relative_to(folder).as_posix() for path in files]
            document: object
            if kind == "tree":
                document = [
                    {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}
                    for name, path in zip(names, files, strict=True)
                ]
            else:
                document = {
                    "id": repository,
                    "sha": COMMIT,
                    "private": False,
                    "tags": [],
                    "siblings": [{"rfilename": name} for name in names],
                }
            self._send(200, json.dumps(document).encode(), {"Content-Type": "application/json"}, body=body)

        def _file(self, name: str, *, body: bool) -> None:
            if body:
                hub.fetched.append(name)
            path = folder / name
            headers = {"ETag": f'"{_etag(path)}"', "X-Repo-Commit": COMMIT}
            self._send(200, path.read_bytes(), headers, body=body)

        def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
