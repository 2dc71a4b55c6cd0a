"""A small hub on this machine, as far as huggingface_hub asks for it: listings, heads, files and parts of
them.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from huggingface_hub import constants

from streamgen.checkpoints.hub import list_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server has and what it was asked.

    Attributes:
        folder: `owner/repo/...`, the files.
        cut: bytes after which the first download of a file breaks off.
        damaged: whether a byte is changed on the way.
        requests: method, path and range of each request.
        sent: bytes of files.
    """

    folder: Path
    url: str = ""
    cut: int | None = None
    damaged: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent: int = 0


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        listing = re.match(r"/api/models/([^/]+/[^/]+)/(?:tree|revision)/([^/?]+)", self.path)
        file = re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path)
        match = listing or file
        if match is None or not (self.hub.folder / match[1]).is_dir():
            self._refuse("RepoNotFound")
        elif match[2] not in ("main", COMMIT):
            self._refuse("RevisionNotFound")
        elif listing is not None:
            self._list(self.hub.folder / listing[1])
        elif not (self.hub.folder / match[1] / match[3]).is_file():
            self._refuse("EntryNotFound")
        else:
            self._send((self.hub.folder / match[1] / match[3]).read_bytes(), body)

    def _refuse(self, code: str) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, folder: Path) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        names = [path.relative_to(folder).as_posix() for path in files]
        rows: Any = [
            {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
            for name, path in zip(names, files, strict=True)
        ]
        if "/revision/" in self.path:
            rows = {"id": "x/y", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
        content = json.dumps(rows).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _send(self, content: bytes, body: bool) -> None:
        digest, whole = hashlib.sha256(content).hexdigest(), len(content)
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        start = int(part[1]) if part else 0
        last = min(int(part[2]) if part and part[2] else whole - 1, whole - 1)
        content = content[start : last + 1]
        self.send_response(206 if part else 200)
        for name, value in (
            ("ETag", f'"{digest}"'),
            ("X-Linked-Etag", f'"{digest}"'),
            ("X-Linked-Size", str(whole)),
            ("X-Repo-Commit", COMMIT),
            ("Accept-Ranges", "bytes"),
            ("Content-Length", str(len(content))),
        ):
            self.send_header(name, value)
        if part:
            self.send_header("Content-Range", f"bytes {start}-{last}/{whole}")
        self.end_headers()
        if not body:
            return
        if self.hub.damaged:
            content = bytes([content[0] ^ 1]) + content[1:]
        if self.hub.cut is not None and len(content) > self.hub.cut:
            content, self.hub.cut = content[: self.hub.cut], None
            self.close_connection = True
        self.hub.sent += len(content)
        self.wfile.write(content)


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub with the repositories of a folder, on a port of its own."""
    hub = Hub(folder)
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def asked_hub(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub asks, with a cache of its own and no listing remembered."""
    with serving(folder) as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        list_files.cache_clear()
        yield found
    list_files.cache_clear()
