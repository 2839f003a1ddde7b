"""A stand-in of the Hugging Face Hub on this machine: as much of its HTTP API as `huggingface_hub` uses for models."""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_ann"
OWNER = "ann"
LFS_ENDINGS = (".safetensors",)


@dataclass
class Repository:
    """A repository: its commits, each with all files by name."""

    visibility: str = "public"
    gated: bool = False
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def private(self):
        return self.visibility == "private"

    def commit(self, files):
        before = self.commits[-1][1] if self.commits else {}
        number = hashlib.sha1(f"{len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits.append((number, before | files))
        return number

    def at(self, revision):
        """Commit and files at a revision; None if there is none."""
        if not self.commits:
            return None
        if revision == "main":
            return self.commits[-1]
        wanted = self.tags.get(revision, revision)
        return next((one for one in self.commits if one[0] == wanted), None)


class HubServer:
    """Serves repositories within a `with` block.

    Attributes:
        url: of the server.
        repositories: by "owner/name".
        truncated: files of which half is sent.
        failing: part of a path, to the status that is answered there.
        requests: "METHOD path" of each request.
    """

    def __init__(self):
        self.repositories, self.truncated, self.failing, self.requests = {}, set(), {}, []
        self.uploaded = {}
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def files(self, repository):
        """The newest files of a repository."""
        return self.repositories[repository].commits[-1][1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubServer

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._serve()

    def do_GET(self):
        self._serve()

    def do_POST(self):
        self._serve()

    def do_PUT(self):
        self._serve()

    def _serve(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        for part, status in self.hub.failing.items():
            if part in path:
                self._json({"error": "as the test asks"}, status)
                return
        routes = {
            r"/api/repos/create": self._create,
            r"/api/validate-yaml": self._validate,
            r"/api/models/([^/]+/[^/]+)/preupload/main": self._preupload,
            r"/api/models/([^/]+/[^/]+)/commit/main": self._commit,
            r"/api/models/([^/]+/[^/]+)": self._info,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self._batch,
            r"/lfs/(\w+)": self._put,
            r"/([^/]+/[^/]+)/resolve/([^/]+(?:/pr/\d+)?)/(.+)": self._resolve,
        }
        for pattern, answer in routes.items():
            if found := re.fullmatch(pattern, path):
                answer(body, *found.groups())
                return
        self._json({"error": "no such page"}, 404)

    # ------------------------------------------------------------------------------------------------- reading

    def _resolve(self, _, name, revision, file):
        if (repository := self._readable(name)) is None:
            return
        if (found := repository.at(revision)) is None:
            self._error(404, "RevisionNotFound")
            return
        number, files = found
        headers = {"X-Repo-Commit": number}
        if file not in files:
            self._error(404, "EntryNotFound", headers)
            return
        content = files[file]
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range") or "") or ["", "0"])[1])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        sent = content[start : start + len(content) // 2] if file in self.hub.truncated else content[start:]
        if self.command == "GET" and file in self.hub.truncated:
            headers["Content-Length"] = str(len(sent))
        self._send(206 if start else 200, sent, {"Content-Length": str(len(content) - start)} | headers)

    def _info(self, _, name):
        if (repository := self._readable(name)) is not None:
            number = repository.commits[-1][0] if repository.commits else "0" * 40
            self._json({"id": name, "private": repository.private, "sha": number, "siblings": []})

    def _readable(self, name):
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._known):
            self._error(404 if self._known else 401, "RepoNotFound")
        elif repository.gated and not self._known:
            self._error(401, "GatedRepo")
        else:
            return repository
        return None

    @property
    def _known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # ------------------------------------------------------------------------------------------------- writing

    def _create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if not self._known:
            self._json({"error": "Invalid username or password."}, 401)
        elif asked["organization"] != OWNER:
            self._json({"error": f"You don't have the rights to create a model under {asked['organization']}"}, 403)
        elif name in self.hub.repositories:
            self._json({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
        else:
            self.hub.repositories[name] = Repository(visibility=asked.get("visibility", "public"))
            self._json({"url": f"{self.hub.url}/{name}", "name": name})

    def _validate(self, body):
        bad = "license: nonsense" in json.loads(body)["content"]
        errors = [{"message": '"license" must be one of [...]'}] if bad else []
        self._json({"errors": errors, "warnings": []}, 400 if bad else 200)

    def _preupload(self, body, _):
        files = json.loads(body)["files"]
        modes = {one["path"]: "lfs" if one["path"].endswith(LFS_ENDINGS) else "regular" for one in files}
        self._json(
            {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}
        )

    def _batch(self, body, _):
        answered = [
            {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}
            for one in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": answered})

    def _put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            self._json({"error": "other bytes"}, 400)
            return
        self.hub.uploaded[oid] = body
        self._send(200, b"", {})

    def _commit(self, body, name):
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploaded[value["oid"]]
        number = self.hub.repositories[name].commit(files)
        address = f"{self.hub.url}/{name}/commit/{number}"
        self._json({"success": True, "commitOid": number, "commitUrl": address, "hookOutput": ""})

    # ------------------------------------------------------------------------------------------------- answers

    def _error(self, status, code, headers=None):
        self._send(status, b"", {"X-Error-Code": code, **(headers or {})})

    def _json(self, content, status=200):
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status, content, headers):
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
