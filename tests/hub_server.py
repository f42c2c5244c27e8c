"""A Hugging Face hub of a few lines on the loopback address: repositories in memory, by the routes that are asked for.

`repositories[name][revision]` maps paths to bytes; the commit of a revision is the digest of its files.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


class FakeHub:
    """The repositories, the requests that came, and how many bytes of a file are sent before the line breaks."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Files]] = {}
        self.requests: list[str] = []
        self.cut: int | None = None
        self.endpoint = ""

    def files(self, name: str, revision: str) -> Files | None:
        branches = self.repositories[name]
        return next((files for branch, files in branches.items() if revision in (branch, commit(files))), None)


def commit(files: Files) -> str:
    digest = hashlib.sha1()
    for path, content in sorted(files.items()):
        digest.update(path.encode() + content)
    return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    """The routes of the hub."""

    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        return

    def answer(self, code: int, body: bytes | dict[str, Any] | list[Any], **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if self.hub.cut is None or code != 200 else data[: self.hub.cut])

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.requests.append(f"{self.command} {unquote(self.path)}")
        parts = parts[2:] if parts[:2] == ["api", "models"] else parts
        name, verb, revision = "/".join(parts[:2]), *[*parts, "", ""][2:4]
        if name not in self.hub.repositories:
            return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
        files = self.hub.files(name, revision)
        if files is None:
            return self.answer(404, {"error": "Invalid rev id"}, X_Error_Code="RevisionNotFound")
        if verb == "revision":
            siblings = [{"rfilename": path} for path in files]
            return self.answer(200, {"id": name, "sha": commit(files), "siblings": siblings})
        if verb == "tree":
            return self.answer(200, [{"type": "file", "path": path, "size": len(content), "oid": etag(content)}
                                     for path, content in files.items()])
        content = files["/".join(parts[4:])]
        return self.answer(200, content, ETag=f'"{etag(content)}"', X_Repo_Commit=commit(files))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.hub.requests.append(f"POST {unquote(self.path)}")
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}"
            self.hub.repositories.setdefault(name, {"main": {}})
            return self.answer(200, {"url": f"{self.hub.endpoint}/{name}"})
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        user, name, verb, revision = path.removeprefix("/api/models/").split("/")
        if verb == "branch":
            branches = self.hub.repositories[f"{user}/{name}"]
            branches.setdefault(revision, dict(branches["main"]))
            return self.answer(200, {})
        if verb == "preupload":
            return self.answer(200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                               for file in json.loads(body)["files"]]})
        files = self.hub.repositories[f"{user}/{name}"][revision]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        url = f"{self.hub.endpoint}/{user}/{name}/commit/{commit(files)}"
        return self.answer(200, {"commitUrl": url, "commitOid": commit(files), "success": True, "hookOutput": ""})


def etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Serve a hub at `endpoint` while the block runs."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
