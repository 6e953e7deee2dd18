# Copyright 2026 The hf_ssl authors. Licensed under the Apache License, Version 2.0.
"""A Hub on 127.0.0.1 with the endpoints that huggingface_hub's client uses (LFS included), and faults on demand."""

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


TOKEN = "hf_" + "x" * 34  # not a real token


@dataclass
class FakeHub:
    """Repositories in memory: each commit is a whole tree, and a branch points to a commit.

    `faults`: (method, part of the path) -> an HTTP status to return, or "drop" to close the connection while the
    request is read. Faults stay until removed.
    """

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, dict[str, str]] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: dict[tuple[str, str], int | str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    large: int = 20_000  # files of at least this many bytes go through LFS

    def __enter__(self) -> "FakeHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str, branch: str = "main") -> dict[str, bytes]:
        """Files at the head of a branch: path -> content."""
        return self.commits[self.branches[repo][branch]]

    def environment(self, home) -> dict[str, str]:
        """Environment of processes that use this Hub."""
        return {
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def make(self, repo: str, private: bool) -> bool:
        if repo in self.branches:
            return False
        self.branches[repo] = {"main": self._commit({})}
        self.private[repo] = private
        return True

    def _commit(self, tree: dict[str, bytes]) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}".encode()).hexdigest()
        self.commits[oid] = tree
        return oid

    def apply(self, repo: str, branch: str, lines: list[dict]) -> str:
        tree = dict(self.files(repo, branch))
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                tree[value["path"]] = self.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del tree[value["path"]]
        self.branches[repo][branch] = self._commit(tree)
        return self.branches[repo][branch]

    def find(self, repo: str, revision: str) -> str | None:
        """The commit of a branch, or the commit itself."""
        branches = self.branches.get(repo, {})
        return branches.get(revision) or (revision if branches and revision in self.commits else None)


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_HEAD(self) -> None:
        self._get()

    def do_GET(self) -> None:
        self._get()

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def _fault(self) -> bool:
        self.hub.log.append(f"{self.command} {self.path}")
        for (method, part), what in self.hub.faults.items():
            if method == self.command and part in self.path:
                if what == "drop":
                    self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
                    self.close_connection = True
                    self.connection.close()
                else:
                    self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    self._json({"error": "a fault of the test"}, what)
                return True
        return False

    def _json(self, content, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(content).encode(), status, **{"Content-Type": "application/json", **headers})

    def _bytes(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _get(self) -> None:
        if self._fault():
            return
        path = self.path.split("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            return self._info(found[1], found[2] or "main")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
            return self._tree(found[1], found[2])
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*found.groups())
        self._json({"error": "not found"}, 404)

    def _commit_of(self, repo: str, revision: str) -> str | None:
        if repo not in self.hub.branches:
            self._json({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return None
        commit = self.hub.find(repo, revision)
        if commit is None:
            self._json({"error": "Revision not found"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        return commit

    def _info(self, repo: str, revision: str) -> None:
        if commit := self._commit_of(repo, revision):
            files = [{"rfilename": name} for name in self.hub.commits[commit]]
            about = {"id": repo, "modelId": repo, "sha": commit, "private": self.hub.private[repo], "siblings": files}
            self._json({**about, "tags": [], "downloads": 0, "likes": 0, "lastModified": "2026-01-01T00:00:00.000Z"})

    def _tree(self, repo: str, revision: str) -> None:
        if commit := self._commit_of(repo, revision):
            tree = self.hub.commits[commit]
            self._json([{"type": "file", "path": p, "size": len(b), "oid": _git_oid(b)} for p, b in tree.items()])

    def _file(self, repo: str, revision: str, name: str) -> None:
        commit = self._commit_of(repo, revision)
        if commit is None:
            return
        content = self.hub.commits[commit].get(name)
        if content is None:
            return self._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
        self._bytes(content, ETag=f'"{_git_oid(content)}"', **{"X-Repo-Commit": commit})

    def _write(self) -> None:
        if self._fault():
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, hub = self.path.split("?")[0], self.hub
        if found := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            if hashlib.sha256(body).hexdigest() != found[1]:
                return self._json({"error": "the content has another hash"}, 400)
            hub.objects[found[1]] = body
            return self._bytes(b"")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid user token."}, 401)
        if path == "/api/repos/create":
            about = json.loads(body)
            repo = f"{about.get('organization') or 'user'}/{about['name'].split('/')[-1]}"
            made = hub.make(repo, about.get("private") is True or about.get("visibility") == "private")
            answer = {"url": f"{hub.address}/{repo}", "name": repo, "id": repo}
            return self._json(answer if made else {**answer, "error": "exists"}, 200 if made else 409)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", path):
            branches = hub.branches[found[1]]
            known = found[2] in branches
            branches.setdefault(found[2], branches["main"])
            return self._json({}, 409 if known else 200)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            kinds = [
                {"path": f["path"], "uploadMode": "lfs" if f["size"] > hub.large else "regular", "shouldIgnore": False}
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": kinds})
        if found := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            return self._json({"transfer": "basic", "objects": [self._lfs(o) for o in json.loads(body)["objects"]]})
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            commit = hub.apply(found[1], found[2], [json.loads(line) for line in body.splitlines() if line])
            address = f"{hub.address}/{found[1]}/commit/{commit}"
            return self._json({"success": True, "commitOid": commit, "commitUrl": address, "hookOutput": ""})
        self._json({"error": "not found"}, 404)

    def _lfs(self, wanted: dict) -> dict:
        if wanted["oid"] in self.hub.objects:
            return wanted  # no actions: the object exists
        return {**wanted, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{wanted['oid']}"}}}


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
