"""A Hub in this process: repositories of models and data sets over a real socket, in memory, that count what is sent and
fail when told to.

It answers as https://huggingface.co/.well-known/openapi.json and the Git LFS batch API (basic transfer, no Xet) have it.
"""

import base64
import fnmatch
import hashlib
import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml


TOKEN = "hf_secretOfTheTests"
USER = "someone"
LARGE = ("*.safetensors", "*.onnx", "*.bin")  # a part of the .gitattributes that new repositories have
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LARGE).encode()


class File(NamedTuple):
    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        """SHA-256 of what is kept in the large storage, of others what Git calls them."""
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


class Commit(NamedTuple):
    oid: str
    parent: str | None
    message: str
    files: dict[str, File]


class Repository:
    def __init__(self, private: bool):
        self.private = private
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}  # full name to commit
        self.commit("refs/heads/main", None, "initial commit", {".gitattributes": File(ATTRIBUTES, False)})

    def commit(self, ref: str, parent: str | None, message: str, files: dict[str, File]) -> Commit:
        state = json.dumps([parent, message, len(self.commits), sorted((name, f.oid) for name, f in files.items())])
        commit = Commit(hashlib.sha1(state.encode()).hexdigest(), parent, message, files)
        self.commits[commit.oid] = commit
        self.refs[ref] = commit.oid
        return commit

    def ref(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request."""
        return next(
            (name for name in (revision, f"refs/heads/{revision}", f"refs/tags/{revision}") if name in self.refs), None
        )

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(revision) or self.commits.get(self.refs.get(self.ref(revision)))


class Fault(NamedTuple):
    request: str  # expression that the method and path match
    answer: int | str | Callable[[], None]  # a status, "drop", or something else that happens meanwhile


class Answer(Exception):  # noqa: N818  (not always an error)
    def __init__(self, status: int, content: object = None, **headers: str):
        self.status, self.content, self.headers = status, content, headers


def error(status: int, message: str, code: str = "", **headers: str) -> Answer:
    headers = {"X-Error-Message": message, "X-Error-Code": code, **headers}
    return Answer(status, {"error": message}, **{name: value for name, value in headers.items() if value})


class Hub(ThreadingHTTPServer):
    """
    `with Hub() as hub:` serves at `hub.url`. `repositories` by name, of data sets as `datasets/name`; `received` counts the
    bytes that came of each object by its id, whether they came whole or not; `requests` are methods and paths; each of
    `faults` happens once.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}"  # a place of its own, which must not see the token
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.received: Counter[str] = Counter()
        self.requests: list[str] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "Hub":
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.shutdown()
        self.server_close()

    def fault(self, request: str) -> int | str | None:
        with self.lock:
            found = next((fault for fault in self.faults if re.search(fault.request, request)), None)
            if found:
                self.faults.remove(found)
        if found and callable(found.answer):
            return found.answer()
        return found and found.answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Hub

    def log_message(self, *_) -> None:
        pass

    def handle(self) -> None:
        with suppress(ConnectionError):
            super().handle()

    def answer(self) -> None:
        self.hub = self.server
        url = urlsplit(self.path)
        request = f"{self.command} {url.path}"
        self.query = parse_qs(url.query)
        self.hub.requests.append(request)
        fault = self.hub.fault(request)
        self.body = self.read(half=fault == "drop")
        if self.command == "PUT":
            self.hub.received[url.path.rsplit("/", 1)[1]] += len(self.body)
        if fault == "drop":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        try:
            if fault:
                raise error(fault, f"told to answer {fault}")
            for method, pattern, function in ROUTES:
                if self.command in method and (match := re.fullmatch(pattern, url.path)):
                    raise function(self, *map(unquote, match.groups("")))
            raise error(404, f"nothing answers {request}")
        except Answer as answer:
            self.send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def read(self, half: bool) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size + 2)[:-2]
                if half:
                    return body
            self.rfile.readline()
            return body
        size = int(self.headers.get("Content-Length", 0))
        return self.rfile.read(size // 2 if half else size)

    def send(self, answer: Answer) -> None:
        content = answer.content
        if not isinstance(content, bytes):
            content = b"" if content is None else json.dumps(content).encode()
        status, headers = answer.status, answer.headers
        if status == 200 and (part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            status, headers = 206, {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            content = content[first : last + 1]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Who asks, and for what ------------------------------------------------------------------------------------------

    def authorize(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise error(401, "Invalid username or password.")

    def signed(self) -> None:
        """Addresses in the storage are signed: a token has no business there."""
        if "Authorization" in self.headers:
            raise error(400, "Only one way to authenticate is possible")

    def repository(self, name: str, write: bool = False) -> Repository:
        found = self.hub.repositories.get(name)
        if write or not found or found.private:
            self.authorize()
        if not found:
            raise error(404, "Repository not found", "RepoNotFound")
        return found

    def commit_at(self, repository: Repository, revision: str) -> Commit:
        if commit := repository.at(revision):
            return commit
        raise error(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    # Repositories ----------------------------------------------------------------------------------------------------

    def whoami(self) -> Answer:
        self.authorize()
        return Answer(200, {"name": USER, "type": "user", "orgs": []})

    def create(self) -> Answer:
        self.authorize()
        payload = json.loads(self.body)
        owner = payload["organization"] or USER
        name = f"{'datasets/' if payload.get('type') == 'dataset' else ''}{owner}/{payload['name']}"
        content = {"url": f"{self.hub.url}/{name}", "name": name}
        if owner != USER:
            raise error(403, "You don't have the rights to create a repository under this namespace")
        if name in self.hub.repositories:
            return Answer(409, {**content, "error": "You already created this repo"})
        self.hub.repositories[name] = Repository(payload.get("visibility") == "private")
        return Answer(200, content)

    def validate(self) -> Answer:
        head = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        try:
            yaml.safe_load(head[1] if head else "")
        except yaml.YAMLError as problem:
            return Answer(400, {"errors": [{"message": str(problem)}], "warnings": []})
        return Answer(200, {"errors": [], "warnings": []})

    def info(self, name: str, revision: str = "main") -> Answer:
        repository = self.repository(name)
        commit = self.commit_at(repository, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        return Answer(
            200,
            {
                "id": name.removeprefix("datasets/"),
                "sha": commit.oid,
                "private": repository.private,
                "siblings": siblings,
                "tags": [],
            },
        )

    def tree(self, name: str, revision: str, folder: str | None) -> Answer:
        entries, folders = [], set()
        for path, file in self.commit_at(self.repository(name), revision).files.items():
            inside = path[len(folder) + 1 :] if folder and path.startswith(f"{folder}/") else path
            if folder and inside == path:
                continue
            if "/" in inside and self.query.get("recursive", ["false"])[0].lower() != "true":
                folders.add(path[: -len(inside)] + inside.split("/")[0])
                continue
            entry = {"type": "file", "path": path, "size": len(file.content), "oid": File(file.content, False).oid}
            if file.lfs:
                entry["lfs"] = {"oid": file.oid, "size": len(file.content), "pointerSize": 130}
            entries.append(entry)
        if folder and not entries and not folders:
            raise error(404, f"{folder} does not exist", "EntryNotFound")
        return Answer(
            200, [*entries, *({"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders))]
        )

    def refs(self, name: str) -> Answer:
        kinds = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
        refs = self.repository(name).refs.items()
        found = {
            kind: [
                {"name": ref.removeprefix(start), "ref": ref, "targetCommit": oid}
                for ref, oid in refs
                if ref.startswith(start)
            ]
            for kind, start in kinds.items()
        }
        return Answer(200, {**found, "converts": []})

    def branch(self, name: str, branch: str) -> Answer:
        repository = self.repository(name, write=True)
        if f"refs/heads/{branch}" in repository.refs:
            raise error(409, "Reference already exists")
        start = json.loads(self.body or b"{}").get("startingPoint", "main")
        repository.refs[f"refs/heads/{branch}"] = self.commit_at(repository, start).oid
        return Answer(200)

    def tag(self, name: str, revision: str) -> Answer:
        repository = self.repository(name, write=True)
        ref = f"refs/tags/{json.loads(self.body)['tag']}"
        if ref in repository.refs:
            raise error(409, "Tag reference exists already")
        repository.refs[ref] = self.commit_at(repository, revision).oid
        return Answer(200)

    # Uploads ---------------------------------------------------------------------------------------------------------

    def preupload(self, name: str, revision: str) -> Answer:
        files = self.commit_at(self.repository(name, write=True), revision).files
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            large = any(fnmatch.fnmatch(path, pattern) for pattern in LARGE) or file["size"] > 10_000_000
            large |= b"\0" in base64.b64decode(file["sample"])
            old = {"oid": files[path].oid} if path in files else {}
            answers.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, **old})
        return Answer(200, {"files": answers})

    def batch(self, name: str) -> Answer:
        self.repository(name, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            if item["oid"] not in self.hub.objects:
                actions = {"upload": f"{self.hub.storage}/lfs", "verify": f"{self.hub.url}/lfs/verify"}
                item["actions"] = {name: {"href": f"{place}/{item['oid']}"} for name, place in actions.items()}
            objects.append(item)
        return Answer(200, {"transfer": "basic", "objects": objects})

    def put_object(self, oid: str) -> Answer:
        self.signed()
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise error(400, "The content is of another name")
        self.hub.objects[oid] = self.body
        return Answer(200)

    def verify(self, oid: str) -> Answer:
        self.authorize()
        if len(self.hub.objects.get(oid, b"")) != json.loads(self.body)["size"]:
            raise error(404, "The object is not there")
        return Answer(200)

    def commit(self, name: str, revision: str) -> Answer:
        repository = self.repository(name, write=True)
        with self.hub.lock:
            before = self.commit_at(repository, revision)
            header, *changes = map(json.loads, self.body.splitlines())
            if header["value"].get("parentCommit", before.oid) != before.oid:
                raise error(412, "A commit has happened since. Please refresh and try again.")
            files = dict(before.files)
            for change in changes:
                value, path = change["value"], change["value"]["path"]
                match change["key"]:
                    case "file":
                        files[path] = File(base64.b64decode(value["content"]), False)
                        self.hub.received[files[path].oid] += len(files[path].content)
                    case "lfsFile" if value["oid"] in self.hub.objects:
                        files[path] = File(self.hub.objects[value["oid"]], True)
                    case "lfsFile":
                        raise error(400, f"{path} was not uploaded")
                    case "deletedFile" if path in files:
                        del files[path]
                    case key:
                        raise error(400, f"{key} of {path} is not possible")
            ref = repository.ref(revision)
            content = {}
            if "create_pr" in self.query:
                number = 1 + sum(name.startswith("refs/pr/") for name in repository.refs)
                ref, content = f"refs/pr/{number}", {"pullRequestUrl": f"{self.hub.url}/{name}/discussions/{number}"}
            commit = repository.commit(ref, before.oid, header["value"]["summary"], files)
        return Answer(
            200,
            {
                "success": True,
                "commitOid": commit.oid,
                "commitUrl": f"{self.hub.url}/{name}/commit/{commit.oid}",
                **content,
            },
        )

    # Downloads -------------------------------------------------------------------------------------------------------

    def resolve(self, name: str, revision: str, path: str) -> Answer:
        commit = self.commit_at(self.repository(name), revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise error(404, "Entry not found", "EntryNotFound", **headers)
        file = commit.files[path]
        headers |= {"ETag": f'"{file.oid}"', "Accept-Ranges": "bytes"}
        if not file.lfs:
            return Answer(200, file.content, **headers)
        linked = {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(len(file.content))}
        return Answer(302, None, Location=f"{self.hub.storage}/lfs/{file.oid}", **headers, **linked)

    def get_object(self, oid: str) -> Answer:
        self.signed()
        return Answer(200, self.hub.objects[oid], ETag=f'"{oid}"')


NAME, PART = r"((?:datasets/)?[\w.-]+/[\w.-]+)", r"([^/]+)"
API = r"/api/(?:models/|(?=datasets/))"
ROUTES = [
    (("GET",), "/api/whoami-v2", Handler.whoami),
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate),
    (("GET",), f"{API}{NAME}", Handler.info),
    (("GET",), f"{API}{NAME}/revision/{PART}", Handler.info),
    (("GET",), f"{API}{NAME}/tree/{PART}(?:/(.+))?", lambda self, *groups: Handler.tree(self, *groups)),
    (("GET",), f"{API}{NAME}/refs", Handler.refs),
    (("POST",), f"{API}{NAME}/branch/{PART}", Handler.branch),
    (("POST",), f"{API}{NAME}/tag/{PART}", Handler.tag),
    (("POST",), f"{API}{NAME}/preupload/{PART}", Handler.preupload),
    (("POST",), f"/{NAME}\\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), f"/lfs/{PART}", Handler.put_object),
    (("GET", "HEAD"), f"/lfs/{PART}", Handler.get_object),
    (("POST",), f"/lfs/verify/{PART}", Handler.verify),
    (("POST",), f"{API}{NAME}/commit/{PART}", Handler.commit),
    (("GET", "HEAD"), f"/{NAME}/resolve/{PART}/(.+)", Handler.resolve),
]
