"""A stand-in for the Hub: the calls that huggingface_hub makes to create a repository and to commit to it, over LFS too."""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import yaml

USER, TOKEN = "somebody", "hf_standInTokenOfTheTests"
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")


class StandInHub(ThreadingHTTPServer):
    """Repositories in memory: `repos[id]` is {path: bytes}, `private` the ids made private, `calls` what was asked for.

    `refusals` maps the last word of a call ("commit", "create", ...) to the status of its response.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.private, self.calls, self.objects, self.refusals = {}, set(), [], {}, {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def stand_in_hub():
    with StandInHub() as hub:
        thread = Thread(target=hub.serve_forever, args=[0.02], daemon=True)
        thread.start()
        yield hub
        hub.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self._serve()

    do_POST = do_PUT = do_GET  # noqa: N815

    def _serve(self):
        body, path = self._body(), self.path.split("?")[0]
        for pattern, call in ROUTES.items():
            found = re.fullmatch(pattern, path)
            if found is None:
                continue
            self.server.calls.append(call.__name__)
            if call is not store and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self._answer(401, {"error": "Invalid username or password."})
            if call.__name__ in self.server.refusals:
                # A careless server might echo the token, which must not reach a log either.
                return self._answer(self.server.refusals[call.__name__], {"error": f"No, {TOKEN}: the disk is full."})
            return self._answer(*call(self.server, body, *found.groups()))
        self.server.calls.append(path)
        return self._answer(404, {"error": f"nothing at {path}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _answer(self, status: int, content) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def create(hub, body):
    asked = json.loads(body)
    repo = f"{asked['organization'] or USER}/{asked['name']}"
    answer = {"url": f"{hub.url}/{repo}", "name": repo}
    if repo in hub.repos:
        return 409, {**answer, "error": "You already created this model repo"}
    hub.repos[repo] = {}
    if asked.get("private") or asked.get("visibility") == "private":
        hub.private.add(repo)
    return 200, answer


def validate(hub, body):
    """What the Hub refuses in a card: metadata that are no mapping, names that are no repositories."""
    found = re.match(r"---\n(.*?)\n---", json.loads(body)["content"], re.DOTALL)
    metadata = yaml.safe_load(found.group(1)) if found else None
    if not isinstance(metadata, dict):
        return 400, {"errors": [{"message": "metadata are missing"}], "warnings": []}
    named = [name for key in ("base_model", "datasets") for name in _listed(metadata.get(key))]
    errors = [{"message": f"{name!r} is no repository"} for name in named if not REPO_ID.fullmatch(name)]
    return (400 if errors else 200), {"errors": errors, "warnings": []}


def preupload(hub, body, repo):
    files = json.loads(body)["files"]
    modes = [{"path": f["path"], "uploadMode": _mode(f["path"]), "shouldIgnore": False, "oid": None} for f in files]
    return (200, {"files": modes}) if repo in hub.repos else (404, {"error": "no such repository"})


def batch(hub, body, repo):
    objects = [
        {**wanted, "actions": {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}}}
        for wanted in json.loads(body)["objects"]
    ]
    return 200, {"transfer": "basic", "objects": objects}


def store(hub, body, oid):
    if hashlib.sha256(body).hexdigest() != oid:
        return 400, {"error": "the content does not have this hash"}
    hub.objects[oid] = body
    return 200, {}


def tree(hub, body, repo):
    return 200, [{"type": "file", "path": p, "size": len(c), "oid": "0" * 40} for p, c in hub.repos[repo].items()]


def commit(hub, body, repo):
    files = dict(hub.repos[repo])
    for line in body.splitlines():
        change = json.loads(line)
        value = change["value"]
        if change["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif change["key"] == "lfsFile":
            files[value["path"]] = hub.objects[value["oid"]]
        elif change["key"] == "deletedFile":
            del files[value["path"]]
    hub.repos[repo] = files
    return 200, {"commitUrl": f"{hub.url}/{repo}/commit/{'1' * 40}", "commitOid": "1" * 40}


def _listed(value):
    return value if isinstance(value, list) else [value] if value else []


def _mode(path):
    return "lfs" if path.endswith((".safetensors", "tokenizer.json", ".png")) else "regular"


ROUTES = {
    r"/api/repos/create": create,
    r"/api/validate-yaml": validate,
    r"/api/models/([\w.-]+/[\w.-]+)/preupload/main": preupload,
    r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch": batch,
    r"/lfs/(\w+)": store,
    r"/api/models/([\w.-]+/[\w.-]+)/tree/main": tree,
    r"/api/models/([\w.-]+/[\w.-]+)/commit/main": commit,
}
