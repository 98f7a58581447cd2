# SPDX-License-Identifier: Apache-2.0
"""As much of the Hugging Face Hub, on loopback, as its client needs to upload, tag and download a repository."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlparse

from tests.tools.registry_fixtures import QuietHandler


@dataclass
class Repository:
    """Files of each commit by path, and the commits that branches and tags name."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(repr((len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[name] = files
        self.branches["main"] = name
        return name

    def resolve(self, revision: str) -> str | None:
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        return commit if commit in self.commits else None

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[self.resolve(revision) or ""]


@dataclass
class Hub:
    repositories: dict[str, Repository] = field(default_factory=dict)
    large_files: dict[str, bytes] = field(default_factory=dict)


class HubHandler(QuietHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, hub: Hub) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def do_GET(self) -> None:  # noqa: N802 - the server's names
        self.answer()

    def do_HEAD(self) -> None:  # noqa: N802
        self.answer()

    def do_POST(self) -> None:  # noqa: N802
        self.answer()

    def do_PUT(self) -> None:  # noqa: N802
        self.answer()

    @property
    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlparse(self.path).path)
        for method, pattern, handle in ROUTES:
            if self.command in method and (found := re.fullmatch(pattern, path)):
                handle(self, body, *found.groups())
                return
        raise AssertionError(f"the client asks for more than this server has: {self.command} {self.path}")

    def send(self, content: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, content: object, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(content).encode(), status, Content_Type="application/json", **headers)

    def send_none(self, what: str) -> None:
        self.send_json({"error": f"{what} not found"}, 404, X_Error_Code=f"{what}NotFound")

    def create(self, body: bytes) -> None:
        request = json.loads(body)
        name = f"{request['organization']}/{request['name']}"
        url = {"url": f"{self.address}/{name}"}
        if name in self.hub.repositories:
            self.send_json(url, 409)
            return
        self.hub.repositories[name] = Repository()
        self.hub.repositories[name].commit({".gitattributes": b"*.pt filter=lfs\n"})
        self.send_json(url)

    def validate(self, body: bytes) -> None:
        assert "---" in json.loads(body)["content"]
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        assert self.hub.repositories[name].resolve(revision)
        files = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith(".pt") else "regular" for path in files}
        self.send_json({"files": [{"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in modes.items()]})

    def batch(self, body: bytes, name: str) -> None:
        assert name in self.hub.repositories
        objects = [
            {**o, "actions": {"upload": {"href": f"{self.address}/large/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, digest: str) -> None:
        assert hashlib.sha256(body).hexdigest() == digest
        self.hub.large_files[digest] = body
        self.send(b"")

    def commit(self, body: bytes, name: str, revision: str) -> None:
        repository = self.hub.repositories[name]
        files = dict(repository.commits[repository.branches[revision]])
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large_files[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        commit = repository.commit(files)
        self.send_json({"success": True, "commitUrl": f"{self.address}/{name}/commit/{commit}", "commitOid": commit})

    def tag(self, body: bytes, name: str, revision: str) -> None:
        repository, tag = self.hub.repositories[name], json.loads(body)["tag"]
        if tag in repository.tags:
            self.send_json({"error": "Tag reference exists already"}, 409)
            return
        repository.tags[tag] = repository.branches[revision]
        self.send_json({})

    def refs(self, _: bytes, name: str) -> None:
        repository = self.hub.repositories[name]
        as_json = {
            kind: [{"name": n, "ref": f"refs/{folder}/{n}", "targetCommit": c} for n, c in references.items()]
            for kind, folder, references in (
                ("branches", "heads", repository.branches),
                ("tags", "tags", repository.tags),
            )
        }
        self.send_json({**as_json, "converts": []})

    def revision(self, _: bytes, name: str, revision: str | None) -> None:
        if name not in self.hub.repositories:
            self.send_none("Repo")
        elif not (commit := self.hub.repositories[name].resolve(revision or "main")):
            self.send_none("Revision")
        else:
            files = [{"rfilename": path} for path in self.hub.repositories[name].commits[commit]]
            self.send_json({"id": name, "modelId": name, "sha": commit, "siblings": files, "tags": [], "private": True})

    def tree(self, _: bytes, name: str, revision: str) -> None:
        repository = self.hub.repositories[name]
        files = repository.commits[repository.resolve(revision) or ""]
        self.send_json(
            [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in files.items()
            ]
        )

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        repository = self.hub.repositories[name]
        commit = repository.resolve(revision) or ""
        data = repository.commits[commit][path]
        self.send(data, X_Repo_Commit=commit, ETag=f'"{hashlib.sha1(data).hexdigest()}"')


NAME = r"([^/]+/[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", HubHandler.create),
    ("POST", "/api/validate-yaml", HubHandler.validate),
    ("POST", rf"/api/models/{NAME}/preupload/(.+)", HubHandler.preupload),
    ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", HubHandler.batch),
    ("PUT", "/large/(.+)", HubHandler.upload),
    ("POST", rf"/api/models/{NAME}/commit/(.+)", HubHandler.commit),
    ("POST", rf"/api/models/{NAME}/tag/(.+)", HubHandler.tag),
    ("GET", rf"/api/models/{NAME}/refs", HubHandler.refs),
    ("GET", rf"/api/models/{NAME}(?:/revision/(.+))?", HubHandler.revision),
    ("GET", rf"/api/models/{NAME}/tree/([^/]+)", HubHandler.tree),
    ("GET HEAD", rf"/{NAME}/resolve/([^/]+)/(.+)", HubHandler.resolve),
]
