"""A Hugging Face hub on 127.0.0.1: what its client asks for when models are looked up, downloaded and uploaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

CDN = "/cdn/"  # where large files are redirected to, under another name of this host
LARGE = (".bin", ".safetensors", ".pth")


@dataclass
class Repository:
    """The files of each commit, the newest last, and what the hub says instead of them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    refused: tuple[int, str] | None = None  # status and error code, of everything
    gated: bool = False  # files are refused, and what there is is told

    def commit(self, files: dict[str, bytes]) -> str:
        """Files on top of those that are there; the new commit."""
        content = {**(self.commits[self.refs["main"]] if self.refs else {}), **files}
        name = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        self.commits[name] = content
        self.refs["main"] = name
        return name


class Hub(ThreadingHTTPServer):
    """Its repositories, what it was asked for, and how it fails."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.asked: list[str] = []  # "METHOD path", with the range
        self.cut: dict[str, int] = {}  # file → how many more times its connection is cut halfway
        self.wrong_size: set[str] = set()  # files that are told to be larger than they are
        self.status: int | None = None  # of every answer, where the hub is out of order

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name: str, files: dict[str, bytes] | Path, **said: Any) -> Repository:
        """A repository of files, or of all files of a folder."""
        if isinstance(files, Path):
            files = {path.name: path.read_bytes() for path in files.iterdir() if path.is_file()}
        self.repositories[name] = Repository(**said)
        self.repositories[name].commit(files)
        return self.repositories[name]

    def downloads(self) -> list[str]:
        """The files whose content was asked for."""
        gets = [one.split()[1] for one in self.asked if one.startswith("GET ") and "/api/" not in one]
        return [path.rpartition("/")[2] for path in gets if CDN in path or not path.endswith(LARGE)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path, part = unquote(urlsplit(self.path).path), self.headers.get("Range", "")
        self.server.asked.append(f"{self.command} {path} {part}".strip())
        if self.server.status is not None:
            self._send(self.server.status, b"<html>out of order</html>")
        elif self.command == "POST":
            self._post(path, body)
        elif path.startswith(CDN):
            name, commit, file = path.removeprefix(CDN).rsplit("/", 2)
            self._content(self.server.repositories[name].commits[commit][file], file, {})
        elif found := re.fullmatch(r"/api/models/(.+?)(?:/revision/(.+))?", path):
            self._listing(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/(.+?)/resolve/(.+)/([^/]+)", path):
            self._file(*found.groups())
        else:
            self._refuse(404, "")

    def _repository(self, name: str) -> Repository | None:
        found = self.server.repositories.get(name)
        if found is None or found.refused:
            self._refuse(*(found.refused if found is not None and found.refused else (404, "RepoNotFound")))
            return None
        return found

    def _listing(self, name: str, revision: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        files = [{"rfilename": file, "size": len(data)} for file, data in repository.commits[commit].items()]
        self._json({"id": name, "sha": commit, "siblings": files, "tags": []})

    def _file(self, name: str, revision: str, file: str) -> None:
        if (repository := self._repository(name)) is None:
            return
        commit = repository.refs.get(revision, revision)
        if commit not in repository.commits:
            return self._refuse(404, "RevisionNotFound")
        if repository.gated:
            return self._refuse(403, "GatedRepo")
        told = {"X-Repo-Commit": commit}
        if (data := repository.commits[commit].get(file)) is None:
            return self._refuse(404, "EntryNotFound", told)
        told["ETag"] = f'"{hashlib.sha256(data).hexdigest()}"'
        if file.endswith(LARGE):
            size, port = len(data) + (100 if file in self.server.wrong_size else 0), self.server.server_address[1]
            told |= {"X-Linked-Size": str(size), "X-Linked-Etag": told["ETag"]}
            return self._send(302, b"", {**told, "Location": f"http://localhost:{port}{CDN}{name}/{commit}/{file}"})
        self._content(data, file, told)

    def _content(self, data: bytes, file: str, told: dict[str, str]) -> None:
        status, start = 200, 0
        if (part := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) is not None:
            status, start = 206, int(part[1])
            told["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if self.server.cut.get(file, 0) > 0 and self.command == "GET":
            self.server.cut[file] -= 1
            self._send(status, data[start:], told, cut=(len(data) - start) // 2)
        else:
            self._send(status, data[start:], told)

    def _post(self, path: str, body: bytes) -> None:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, [asked.get("organization") or "me", asked["name"]]))
            self.server.repositories.setdefault(name, Repository()).commit({})
            return self._json({"url": f"{self.server.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        found = re.fullmatch(r"/api/models/(.+?)/(preupload|commit)/main", path)
        assert found is not None, path
        if found[2] == "preupload":
            paths = [one["path"] for one in json.loads(body)["files"]]
            return self._json(
                {"files": [{"path": one, "uploadMode": "regular", "shouldIgnore": False} for one in paths]}
            )
        files = [line["value"] for line in map(json.loads, body.splitlines()) if line["key"] == "file"]
        content = {one["path"]: base64.b64decode(one["content"]) for one in files}
        commit = self.server.repositories[found[1]].commit(content)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{found[1]}/commit/{commit}"})

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, told: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": f"it is {status}", **(told or {})})

    def _send(self, status: int, data: bytes, told: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in (told or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        if cut is not None:
            self.close_connection = True


@contextmanager
def running_hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client in this process asks, with a cache of its own."""
    from huggingface_hub import constants, hf_api

    hub = Hub()
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # which versions before 2 keep from their import on
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
