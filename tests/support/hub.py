"""A stand-in for the model hub: its cache's layout on disk, and its HTTP API on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["COMMIT", "HubServer", "blob_name", "hub_server", "write_hub_cache"]

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _is_large(name: str) -> bool:
    return name.endswith(".safetensors")


def blob_name(name: str, content: bytes) -> str:
    """Return the hash that names a file's content: SHA-256 of large files, git's of small ones."""
    if _is_large(name):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def write_hub_cache(cache: Path, repository: str, source: Path) -> Path:
    """Write a directory's files as the hub's library would have cached them; return the snapshot."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for directory in (folder / "refs", folder / "blobs", snapshot):
        directory.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for path in source.iterdir():
        content = path.read_bytes()
        blob = blob_name(path.name, content)
        (folder / "blobs" / blob).write_bytes(content)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob}")
    return snapshot


class HubServer(ThreadingHTTPServer):
    """Serves one repository, and counts and breaks what a test asks for."""

    daemon_threads = True

    def __init__(self, repository: str, source: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.files = {path.name: path.read_bytes() for path in source.iterdir()}
        self.cut_at: dict[str, int] = {}
        """Bytes of a file after which its next download is cut, once."""
        self.stop_at: dict[str, int] = {}
        """Bytes of a file after which its download stands still for ever."""
        self.failures = 0
        """How many of the next questions for the repository get 503."""
        self.standing_still = threading.Event()
        self.downloads: list[tuple[str, int]] = []
        """Each download: file, and first byte asked for."""
        self.released = threading.Event()

    @property
    def url(self) -> str:
        """The endpoint for ``HF_ENDPOINT``."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def entry(self, name: str) -> dict[str, Any]:
        """Return a file's line in the listing."""
        content = self.files[name]
        entry = {
            "type": "file",
            "path": name,
            "size": len(content),
            "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
        }
        if _is_large(name):
            digest = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return entry


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        repository = self.server.repository
        if path.startswith("/api/models/") and self.server.failures:
            self.server.failures -= 1
            self._json({"error": "Service unavailable"}, status=503)
        elif path.startswith(f"/api/models/{repository}/tree/"):
            self._json([self.server.entry(name) for name in self.server.files])
        elif path in (f"/api/models/{repository}", f"/api/models/{repository}/revision/main"):
            siblings = [{"rfilename": name} for name in self.server.files]
            self._json({"id": repository, "sha": COMMIT, "siblings": siblings})
        elif path.startswith(f"/{repository}/resolve/"):
            self._file(path.rpartition("/")[2], body=body)
        else:
            self._json({"error": "Repository not found"}, status=404, code="RepoNotFound")

    def _json(self, content: object, *, status: int = 200, code: str = "") -> None:
        raw = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(raw)

    def _file(self, name: str, *, body: bool) -> None:
        content = self.server.files[name]
        start = 0
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            start = int(asked.removeprefix("bytes=").partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{blob_name(name, content)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if not body:
            return
        self.server.downloads.append((name, start))
        stop = self.server.stop_at.get(name)
        cut = self.server.cut_at.pop(name, None)
        self.wfile.write(content[start : stop or cut])
        if stop is not None:
            self.server.standing_still.set()
            self.server.released.wait()
        if stop is not None or cut is not None:
            self.close_connection = True


@contextmanager
def hub_server(repository: str, source: Path) -> Iterator[HubServer]:
    """Run a hub that has one repository with the files of a directory."""
    with HubServer(repository, source) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
            thread.join()
