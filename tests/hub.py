"""A loopback stand-in for the Hugging Face hub: `with serve(root) as url:`.

Set HF_ENDPOINT to the url, and give the client an empty HF_HOME, or its cache answers. The hub
serves ROOT/models/ORG/NAME/... and ROOT/datasets/ORG/NAME/... the way huggingface_hub 2 and
datasets 5 ask for them. A repository has one branch, `main`; its commit is a hash of its files.
Whoever has a token may write: `create_repo` and `upload_folder`, large files by the LFS route.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)"
    r"(?:/(revision|tree|paths-info|refs)(?:/([^/]+)(?:/(.*))?)?)?$"
)
WRITE = re.compile(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main$")
LFS_BATCH = re.compile(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch$")
BLOCK_BYTES = 2**20
LFS_BYTES = 4096  # a file of so many bytes goes the LFS route
# What may go wrong with an answer, beside an HTTP status.
CUT = "cut"  # the connection ends in the middle of the content
HANGS = "hangs"  # there is no answer for a minute
CHANGED = "changed"  # the content is as long as it should be, and its last byte is another
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@contextmanager
def serve(
    root: Path | str, gated: Sequence[str] = (), faults: Mapping[str, int | str] | None = None
) -> Iterator[str]:
    """Serve a hub over `root` from a thread of this process, and yield its address.

    Args:
        root: The folder of the repositories.
        gated: Repositories whose files are refused, as the Hub does before one accepts a licence.
        faults: A part of a request's path -> what goes wrong with it: an HTTP status, CUT, HANGS or
            CHANGED. The mapping may be changed while the hub runs.
    """

    class Handler(HubHandler):
        folder, refused = Path(root), frozenset(gated)
        wrong = {} if faults is None else faults

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # a client that gives up closes its connection
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_of(repository: Path | str) -> str:
    """The commit hash that the hub gives a repository folder: it changes with any file."""
    repository = Path(repository)
    listing = "".join(f"{file} {blob_id(repository / file)}\n" for file in files(repository))
    return hashlib.sha1(listing.encode()).hexdigest()


def files(repository: Path) -> list[str]:
    """The paths of a repository's files, inside it, in order."""
    paths = [path for path in repository.rglob("*") if path.is_file()]
    return sorted(path.relative_to(repository).as_posix() for path in paths)


def blob_id(path: Path) -> str:
    """The hash by which git names a file's content."""
    found = path.stat()
    return blob_id_of(path, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=10_000)
def blob_id_of(path: Path, size: int, changed: int) -> str:
    """The same of a file of so many bytes that was last changed then; large files are read once."""
    digest = hashlib.sha1(b"blob %d\0" % size)
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


class HubHandler(BaseHTTPRequestHandler):
    """Answers one request. `folder` is the hub's root, `refused` names the gated repositories."""

    folder, refused, wrong = Path(), frozenset(), {}
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.read_body()
        fault = self.fault()
        if fault == HANGS:
            threading.Event().wait(60)
        if isinstance(fault, int):
            return self.refuse(fault, "", "")
        self.answer(body)

    do_HEAD = do_GET

    def do_POST(self):
        body = self.read_body()
        path = unquote(urlsplit(self.path).path)
        fault = self.fault()
        if isinstance(fault, int):
            return self.refuse(fault, "", "")
        if fault == CUT:
            self.close_connection = True
            return
        writes = path in ("/api/repos/create", "/api/validate-yaml")
        if not (writes or WRITE.match(path) or LFS_BATCH.match(path)):
            return self.answer(body)
        if not (self.headers.get("Authorization") or "").startswith("Bearer "):
            return self.refuse(401, "", "Invalid username or password.")
        self.write(path, body)

    def do_PUT(self):
        """The content of a large file, under its hash."""
        content = self.read_body()
        large_files = self.folder / "lfs"
        large_files.mkdir(exist_ok=True)
        (large_files / hashlib.sha256(content).hexdigest()).write_bytes(content)
        self.send(200, b"", [])

    def fault(self) -> int | str | None:
        """What goes wrong with this request; None if nothing does."""
        path = unquote(self.path)
        return next((fault for part, fault in self.wrong.items() if part in path), None)

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def write(self, path: str, body: bytes):
        """Make a repository, say how its files are to be sent, or commit them."""
        host = f"http://{self.headers['Host']}"
        if path == "/api/validate-yaml":
            return self.send_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            made = {"url": f"{host}/{name}", "id": name}
            if (self.folder / "models" / name).exists():
                return self.send_json(made | {"error": "You already created this repo"}, 409)
            (self.folder / "models" / name).mkdir(parents=True)
            (self.folder / "created.jsonl").open("a").write(json.dumps(asked) + "\n")
            return self.send_json(made)
        if LFS_BATCH.match(path):
            objects = json.loads(body)["objects"]
            for large in objects:
                large["actions"] = {"upload": {"href": f"{host}/lfs/{large['oid']}"}}
            return self.send_json({"transfer": "basic", "objects": objects})
        name, operation = WRITE.match(path).groups()
        if operation == "preupload":
            answers = []
            for file in json.loads(body)["files"]:
                mode = "regular"
                if file["size"] >= LFS_BYTES:
                    mode = "lfs"
                answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
            return self.send_json({"files": answers})
        repository = self.folder / "models" / name
        for line in body.splitlines():
            self.apply(repository, **json.loads(line))
        commit = commit_of(repository)
        self.send_json({"commitUrl": f"{host}/{name}/commit/{commit}", "commitOid": commit})

    def apply(self, repository: Path, key: str, value: dict):
        """One line of a commit."""
        if key == "header":
            return
        path = repository / value["path"]
        if key == "deletedFile":
            return path.unlink()
        path.parent.mkdir(parents=True, exist_ok=True)
        if key == "lfsFile":
            path.write_bytes((self.folder / "lfs" / value["oid"]).read_bytes())
        else:
            path.write_bytes(base64.b64decode(value["content"]))

    def answer(self, body: bytes):
        """Answer what only reads."""
        url = urlsplit(self.path)
        if match := API.match(unquote(url.path)):
            kind, name, operation, revision, inside = match.groups()
        elif match := RESOLVE.match(unquote(url.path)):
            kind, name, revision, inside = match.groups()
            kind = kind or "models"
            operation = "resolve"
        else:
            return self.refuse(404, "NotFound", "this stand-in does not know the endpoint")
        repository = self.folder / kind / name
        if not repository.is_dir():
            # The Hub's words to a client without a token.
            return self.refuse(401, "RepoNotFound", "Invalid username or password.")
        commit = commit_of(repository)
        if revision not in (None, "main", commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if operation == "resolve":
            return self.send_file(repository / inside, name, commit)
        if operation == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": commit}
            return self.send_json({"branches": [main], "converts": [], "tags": []})
        if operation == "tree":
            recursive = parse_qs(url.query).get("recursive", ["false"])[0]
            deep = recursive.lower() in ("true", "1")
            return self.send_tree(repository, repository / (inside or ""), deep)
        if operation == "paths-info":
            if "json" in (self.headers.get("Content-Type") or ""):
                names = json.loads(body).get("paths", [])
            else:
                names = parse_qs(body.decode()).get("paths", [])
            paths = [repository / path for path in names]
            return self.send_json([entry(repository, path) for path in paths if path.exists()])
        self.send_json(self.describe(repository, name, commit))

    def describe(self, repository: Path, name: str, commit: str) -> dict:
        """What the hub says of a repository as a whole."""
        gated = False
        if name in self.refused:
            gated = "manual"
        return {
            "_id": "0",
            "id": name,
            "modelId": name,
            "sha": commit,
            "private": False,
            "disabled": False,
            "tags": [],
            "gated": gated,
            "downloads": 0,
            "likes": 0,
            "lastModified": "2024-01-01T00:00:00.000Z",
            "createdAt": "2024-01-01T00:00:00.000Z",
            "siblings": [{"rfilename": file} for file in files(repository)],
        }

    def send_file(self, path: Path, name: str, commit: str):
        if name in self.refused:
            message = f"Access to model {name} is restricted. Please log in."
            return self.refuse(401, "GatedRepo", message)
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found", [("X-Repo-Commit", commit)])
        size = path.stat().st_size
        status, start, end = 200, 0, size
        headers = [("X-Repo-Commit", commit), ("ETag", f'"{blob_id(path)}"')]
        headers.append(("Accept-Ranges", "bytes"))
        if part := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            status, start, end = 206, int(part[1]), min(int(part[2] or size) + 1, size)
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        self.send_head(status, end - start, headers)
        if self.command == "HEAD":
            return
        if self.fault() in (CUT, CHANGED):
            return self.send_damaged(path.read_bytes()[start:end])
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(min(BLOCK_BYTES, end - file.tell())):
                self.wfile.write(block)

    def send_damaged(self, content: bytes):
        """Half of the content, or all of it with another last byte."""
        if self.fault() == CUT:
            content = content[: len(content) // 2]
            self.close_connection = True
        else:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.wfile.write(content)

    def send_tree(self, repository: Path, folder: Path, deep: bool):
        if not folder.is_dir():
            return self.refuse(404, "EntryNotFound", f"{folder.name} does not exist")
        paths = folder.iterdir()
        if deep:
            paths = folder.rglob("*")
        self.send_json([entry(repository, path) for path in sorted(paths)])

    def refuse(self, status: int, code: str, message: str, headers=()):
        error_headers = [("X-Error-Code", code), ("X-Error-Message", message), *headers]
        self.send_json({"error": message}, status, error_headers)

    def send_json(self, value, status: int = 200, headers=()):
        body = json.dumps(value).encode()
        self.send(status, body, [("Content-Type", "application/json"), *headers])

    def send_head(self, status: int, length: int, headers):
        self.send_response(status)
        for key, value in (*headers, ("Content-Length", str(length))):
            self.send_header(key, value)
        self.end_headers()

    def send(self, status: int, body: bytes, headers):
        self.send_head(status, len(body), headers)
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def entry(repository: Path, path: Path) -> dict:
    """One line of a folder's listing."""
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        folder_id = hashlib.sha1(name.encode()).hexdigest()
        return {"type": "directory", "oid": folder_id, "size": 0, "path": name}
    return {"type": "file", "oid": blob_id(path), "size": path.stat().st_size, "path": name}


def hub_environment(url: str, home: Path) -> dict:
    """The environment that points every Hugging Face client at `url` and at an empty cache."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_TOKEN": "",
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_HUB_OFFLINE": "0",
        "HF_DATASETS_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # large files go to this hub, by LFS
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
        "OMP_NUM_THREADS": "1",  # threads only cost on models so small
    }
