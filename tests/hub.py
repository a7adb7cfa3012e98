"""A loopback stand-in for the Hugging Face hub, read side: `with serve(root) as url:`, then HF_ENDPOINT=url.

Serves ROOT/models/ORG/NAME/... and ROOT/datasets/ORG/NAME/... the way huggingface_hub 2 and datasets 5 ask for them. A
repository has one branch, `main`; its commit is a hash of its files. Give the client an empty HF_HOME, or its cache answers.
"""

import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

API = re.compile(
    r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info|refs)(?:/([^/]+)(?:/(.*))?)?)?$"
)
RESOLVE = re.compile(r"/(?:(datasets)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")


@contextmanager
def serve(root, gated=()):
    """The address of a hub over `root`, served by a thread of this process. The files of repositories named in `gated`
    are refused, as the Hub does before one accepts a licence."""

    class Handler(HubHandler):
        folder, refused = Path(root), frozenset(gated)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def commit_of(repository) -> str:
    """The commit hash that the hub gives a repository folder: it changes with any file."""
    repository = Path(repository)
    return hashlib.sha1(
        "".join(f"{f} {blob_id(repository / f)}\n" for f in files(repository)).encode()
    ).hexdigest()


def files(repository: Path) -> list[str]:
    return sorted(
        path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()
    )


def blob_id(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(
        b"blob %d\0" % len(data) + data
    ).hexdigest()  # as git names a file's content


class HubHandler(BaseHTTPRequestHandler):
    folder, refused = Path(), frozenset()
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if match := API.match(unquote(url.path)):
            kind, name, operation, revision, inside = match.groups()
        elif match := RESOLVE.match(unquote(url.path)):
            kind, name, operation, revision, inside = (
                match[1] or "models",
                match[2],
                "resolve",
                match[3],
                match[4],
            )
        else:
            return self.refuse(404, "NotFound", "this stand-in does not know the endpoint")
        repository = self.folder / kind / name
        if not repository.is_dir():
            return self.refuse(
                401, "RepoNotFound", "Invalid username or password."
            )  # the Hub's words without a token
        commit = commit_of(repository)
        if revision not in (None, "main", commit):
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if operation == "resolve":
            return self.send_file(repository / inside, name, commit)
        if operation == "refs":
            return self.send_json({"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit}],
                                   "converts": [], "tags": []})  # fmt: skip
        if operation == "tree":
            deep = parse_qs(url.query).get("recursive", ["false"])[0].lower() in ("true", "1")
            return self.send_tree(repository, repository / (inside or ""), deep)
        if operation == "paths-info":
            is_json = "json" in (self.headers.get("Content-Type") or "")
            paths = (json.loads(body) if is_json else parse_qs(body.decode())).get("paths", [])
            return self.send_json(
                [entry(repository, repository / p) for p in paths if (repository / p).exists()]
            )
        self.send_json(
            {"_id": "0", "id": name, "modelId": name, "sha": commit, "private": False, "disabled": False, "tags": [],
             "gated": "manual" if name in self.refused else False, "downloads": 0, "likes": 0,
             "lastModified": "2024-01-01T00:00:00.000Z", "createdAt": "2024-01-01T00:00:00.000Z",
             "siblings": [{"rfilename": file} for file in files(repository)]}
        )  # fmt: skip

    do_HEAD = do_POST = do_GET

    def send_file(self, path: Path, name: str, commit: str):
        if name in self.refused:
            return self.refuse(
                401, "GatedRepo", f"Access to model {name} is restricted. Please log in."
            )
        if not path.is_file():
            return self.refuse(404, "EntryNotFound", "Entry not found", [("X-Repo-Commit", commit)])
        data = path.read_bytes()
        headers = [
            ("X-Repo-Commit", commit),
            ("ETag", f'"{blob_id(path)}"'),
            ("Accept-Ranges", "bytes"),
        ]
        if part := re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(part[1]), min(int(part[2] or len(data) - 1), len(data) - 1)
            headers.append(("Content-Range", f"bytes {start}-{end}/{len(data)}"))
            return self.send(206, data[start : end + 1], headers)
        self.send(200, data, headers)

    def send_tree(self, repository: Path, folder: Path, deep: bool):
        if not folder.is_dir():
            return self.refuse(404, "EntryNotFound", f"{folder.name} does not exist")
        self.send_json(
            [
                entry(repository, path)
                for path in sorted(folder.rglob("*") if deep else folder.iterdir())
            ]
        )

    def refuse(self, status: int, code: str, message: str, headers=()):
        self.send_json(
            {"error": message},
            status,
            [("X-Error-Code", code), ("X-Error-Message", message), *headers],
        )

    def send_json(self, value, status: int = 200, headers=()):
        self.send(
            status, json.dumps(value).encode(), [("Content-Type", "application/json"), *headers]
        )

    def send(self, status: int, body: bytes, headers):
        self.send_response(status)
        for key, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


def entry(repository: Path, path: Path) -> dict:
    """A line of a listing."""
    name = path.relative_to(repository).as_posix()
    if path.is_dir():
        return {
            "type": "directory",
            "oid": hashlib.sha1(name.encode()).hexdigest(),
            "size": 0,
            "path": name,
        }
    return {"type": "file", "oid": blob_id(path), "size": path.stat().st_size, "path": name}


def hub_environment(url: str, home: Path) -> dict:
    """Everything a Hugging Face client reads, pointed at `url` and at an empty cache."""
    return {
        "HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN": "",
        "HF_DATASETS_CACHE": str(home / "datasets"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "OMP_NUM_THREADS": "1",  # threads only cost on models so small
    }  # fmt: skip
