"""A stand-in for the Hugging Face Hub on loopback: the routes that huggingface_hub 2.4 uses, and faults on demand.

    server = HubServer()
    server.repositories["model", "me/x"] = Repository()       # or the client makes one
    server.address                                            # for HF_ENDPOINT
    server.cut["model.safetensors"] = [1000]                  # the next answer with that file breaks off there
    server.requests                                           # [("GET", "/me/x/resolve/…", "bytes=1000-"), …]

Commits are dicts of files; large ones go through the LFS routes to a store by checksum, from which a repeated push
takes them, and come back by a redirect, as from the Hub's CDN.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import close_session

from geoloc.files import manifest_bytes

LFS_SUFFIXES = (".safetensors", ".parquet")


def git_blob_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def with_manifest(files: dict[str, bytes], /, **facts: Any) -> dict[str, bytes]:
    """Files with the manifest that promises them; a fact replaces what it would say."""
    listed = {
        name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()
    }
    return files | {"manifest.json": manifest_bytes({"schema_version": 1, "files": listed} | facts)}


@dataclass
class Repository:
    """Commits by their hash, branches by their name; `private` and `gated` ones need a token."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.commit({}, "initial commit")

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> str:
        """Make these all the files of a branch."""
        self.messages.append(message)
        sha = hashlib.sha1(f"{len(self.commits)} {message} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def find(self, revision: str) -> str | None:
        revision = unquote(revision)
        return self.branches.get(revision) or (revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[revision]]

    def change(self, files: dict[str, bytes | None], branch: str = "main") -> str:
        """A commit of whoever has the rights and no geoloc; None deletes."""
        now = self.files(branch) | {name: data for name, data in files.items() if data is not None}
        return self.commit(
            {name: data for name, data in now.items() if files.get(name, b"") is not None}, "x", branch
        )


class HubServer:
    """The server, in a thread of its own, until `close`."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.stored: dict[str, bytes] = {}  # LFS objects by their sha256
        self.requests: list[tuple[str, str, str]] = []
        self.cut: dict[
            str, list[int]
        ] = {}  # last part of a file's name -> sizes at which its next answers break
        self.fail: dict[str, int] = {}  # regex of a path -> status of all answers to it
        self.uploads_left: int | None = None  # until the store is full
        self.has_ranges = True
        self.stall: dict[
            str, int
        ] = {}  # last part of a file's name -> size at which its next answer stands still
        self.is_stalled = threading.Event()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    def close(self) -> None:
        close_session()  # the client's open connections would still be answered
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def received(self, name: str) -> list[str]:
        """The byte ranges of all requests for the contents of a file, "" for the whole."""
        pattern = re.compile(rf"/resolve/[^/]+/(.*/)?{re.escape(name)}$")
        return [r for method, path, r in self.requests if method == "GET" and pattern.search(path)]

    def uploaded(self) -> int:
        return sum(method == "PUT" for method, _, _ in self.requests)


def _blob(name: str, data: bytes) -> dict[str, Any]:
    """What the Hub says of a file when it is asked for metadata."""
    found: dict[str, Any] = {"size": len(data), "blobId": git_blob_hash(data)}
    if name.endswith(LFS_SUFFIXES):
        found["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return found


class _Handler(BaseHTTPRequestHandler):
    server_hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        hub, url = self.server_hub, urlsplit(self.path)
        path, self.query = unquote(url.path), parse_qs(url.query)
        hub.requests.append((method, path, self.headers.get("Range", "")))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        for pattern, status in hub.fail.items():
            if re.search(pattern, path):
                return self._json({"error": "told to fail"}, status)
        if path == "/api/repos/create":
            return self._create()
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if method == "PUT" and (m := re.fullmatch(r"/lfs/([0-9a-f]{64})", path)):
            return self._store(m[1])
        if m := re.fullmatch(r"/cdn/([0-9a-f]{64})/(.*)", path):
            return self._send_file(hub.stored[m[1]], m[2], {"ETag": f'"{m[1]}"'})
        if m := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/(\w+)/(.+))?", path):
            kind, repo_id, what, rest = m.groups()
        elif m := re.fullmatch(
            r"/(datasets/)?([^/]+/[^/]+)(?:/(resolve)/(.+)|\.git/info/(lfs)/objects/batch)", path
        ):
            kind, repo_id = "dataset" if m[1] else "model", m[2]
            what, rest = m[3] or m[5], m[4]
        else:
            return self._json({"error": f"no route {method} {path}"}, 404)
        repository = hub.repositories.get((kind, repo_id))
        if repository is None or (repository.private and not self.headers.get("Authorization")):
            return self._json({"error": "Repository not found"}, 401, {"X-Error-Code": "RepoNotFound"})
        answer = {
            None: self._info,
            "revision": self._info,
            "resolve": self._resolve,
            "branch": self._branch,
            "preupload": self._preupload,
            "lfs": self._batch,
            "commit": self._commit,
        }[what]
        return answer(kind, repo_id, repository, rest)

    # --- reading ---

    def _info(self, kind: str, repo_id: str, repository: Repository, rest: str | None) -> None:
        sha = repository.find(rest or "main")
        if sha is None:
            return self._json({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        siblings = [
            {"rfilename": name} | (_blob(name, data) if self.query.get("blobs") else {})
            for name, data in sorted(repository.commits[sha].items())
        ]
        return self._json({"id": repo_id, "sha": sha, "private": repository.private, "siblings": siblings})

    def _resolve(self, kind: str, repo_id: str, repository: Repository, rest: str | None) -> None:
        revision, _, name = (rest or "").partition("/")
        sha = repository.find(revision)
        if sha is None:
            return self._json({"error": "no revision"}, 404, {"X-Error-Code": "RevisionNotFound"})
        data = repository.commits[sha].get(name)
        if data is None:
            return self._json(
                {"error": "no file"}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            )
        headers = {"X-Repo-Commit": sha}
        if name.endswith(LFS_SUFFIXES):
            digest = hashlib.sha256(data).hexdigest()
            self.server_hub.stored[digest] = data
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            headers["Location"] = f"{self.server_hub.address}/cdn/{digest}/{name}"
            return self._send(302, b"", headers)
        return self._send_file(data, name, headers | {"ETag": f'"{git_blob_hash(data)}"'})

    def _send_file(self, data: bytes, name: str, headers: dict[str, str]) -> None:
        status, start = 200, 0
        asked = self.headers.get("Range", "") if self.server_hub.has_ranges else ""
        if m := re.fullmatch(r"bytes=(\d+)-", asked):
            start = int(m[1])
            if start >= len(data):
                return self._send(416, b"", headers)
            status, headers = 206, headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
        last = name.rpartition("/")[2]
        cuts = self.server_hub.cut.get(last)
        cut = cuts.pop(0) - start if cuts else None
        return self._send(status, data[start:], headers, cut, self.server_hub.stall.pop(last, None))

    # --- writing ---

    def _create(self) -> None:
        asked = json.loads(self.body)
        key = asked.get("type") or "model", f"{asked['organization']}/{asked['name']}"
        url = f"{self.server_hub.address}/{'datasets/' if key[0] == 'dataset' else ''}{key[1]}"
        if not self.headers.get("Authorization"):
            return self._json({"error": "Invalid username or password."}, 401)
        if key in self.server_hub.repositories:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.server_hub.repositories[key] = Repository(private)
        return self._json({"url": url, "name": key[1]})

    def _branch(self, kind: str, repo_id: str, repository: Repository, rest: str | None) -> None:
        assert rest is not None
        if rest in repository.branches:
            return self._json({"error": "Reference already exists"}, 409)
        repository.branches[rest] = repository.branches["main"]
        return self._json({})

    def _preupload(self, kind: str, repo_id: str, repository: Repository, rest: str | None) -> None:
        now = repository.commits[repository.find(rest or "main") or repository.branches["main"]]
        files = []
        for file in json.loads(self.body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular"
            oid, data = None, now.get(file["path"])
            if data is not None:
                oid = hashlib.sha256(data).hexdigest() if mode == "lfs" else git_blob_hash(data)
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return self._json({"files": files})

    def _batch(self, kind: str, repo_id: str, repository: Repository, rest: str | None) -> None:
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] not in self.server_hub.stored:
                href = f"{self.server_hub.address}/lfs/{item['oid']}"
                item = item | {"actions": {"upload": {"href": href}}}
            objects.append(item)
        return self._json({"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        hub = self.server_hub
        if hub.uploads_left is not None:
            hub.uploads_left -= 1
            if hub.uploads_left < 0:
                return self._json({"error": "the disk of the store is full"}, 507)
        assert hashlib.sha256(self.body).hexdigest() == oid
        hub.stored[oid] = self.body
        return self._json({})

    def _commit(self, kind: str, repo_id: str, repository: Repository, rest: str | None) -> None:
        branch = unquote(rest or "main")
        items = [json.loads(line) for line in self.body.splitlines()]
        files = dict(repository.commits[repository.branches[branch]])
        message = ""
        for item in items:
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.server_hub.stored[value["oid"]]
            else:
                del files[value["path"]]
        pr_url = None
        if self.query.get("create_pr"):
            number = sum(name.startswith("refs/pr/") for name in repository.branches) + 1
            branch = f"refs/pr/{number}"
            pr_url = f"{self.server_hub.address}/{repo_id}/discussions/{number}"
        sha = repository.commit(files, message, branch)
        url = f"{self.server_hub.address}/{repo_id}/commit/{sha}"
        return self._json({"commitUrl": url, "commitOid": sha, "pullRequestUrl": pr_url})

    # --- answers ---

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(
        self,
        status: int,
        data: bytes,
        headers: dict[str, str],
        cut: int | None = None,
        stall: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if stall is not None:
            self.wfile.write(data[:stall])
            self.wfile.flush()
            self.server_hub.is_stalled.set()
            self.rfile.read(1)  # until the client is gone
            return
        if cut is not None:
            self.wfile.write(data[:cut])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(data)
