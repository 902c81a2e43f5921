"""A stand-in for the model hub and for a package index, on a loopback port, with faults on demand.

It speaks the part of the hub's HTTP interface that huggingface_hub uses to fetch files, and the
"simple" index of PEP 503. Every request is logged, so that tests can see that none was made.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import threading
import time
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Fault:
    """What to do to the next GETs of a file: kind, how many times, and a seed for where.

    kinds: cut, flip, longer (Content-Length too large), shorter (too small), error (HTTP 500),
    norange (a Range is answered with the whole file, after a cut), slow, redirect (to a file of
    the machine itself).
    """

    kind: str
    times: int = 1
    seed: int = 0


@dataclass
class Repo:
    """A repo: its files, which of them are large (LFS), and who may read it."""

    files: dict[str, bytes]
    large: tuple[str, ...] = (".safetensors", ".bin", ".gguf")
    commit: str = COMMIT
    access: str = "public"  # public | gated | forbidden
    wrong_sha256: bool = False
    faults: dict[str, Fault] = field(default_factory=dict)

    def is_large(self, name: str) -> bool:
        return name.endswith(self.large)

    def etag(self, name: str) -> str:
        data = self.files[name]
        if self.is_large(name):
            return "0" * 64 if self.wrong_sha256 else hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class FakeHub:
    """The state behind the server: repos, wheels, and the log of requests."""

    repos: dict[str, Repo] = field(default_factory=dict)
    wheels: dict[str, bytes] = field(default_factory=dict)
    index_hashes: bool = True
    log: list[str] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def index_url(self) -> str:
        return self.url + "/simple/"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.log.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        try:
            if parts[0] == "simple" or parts[0] == "wheels":
                self._index(parts)
            elif parts[:2] == ["api", "models"]:
                self._api(parts[2:])
            elif "resolve" in parts:
                at = parts.index("resolve")
                self._file("/".join(parts[:at]), parts[at + 1], "/".join(parts[at + 2 :]))
            else:
                self._send(404, b"")
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None:
            # As the real hub: a stranger is not told whether a private repo exists.
            self._refuse(404, "RepoNotFound")
        elif repo.access == "gated":
            self._refuse(403, "GatedRepo")
        elif repo.access == "forbidden":
            self._refuse(403, "")
        else:
            return repo
        return None

    def _api(self, parts: list[str]) -> None:
        at = parts.index("revision") if "revision" in parts else len(parts)
        repo = self._repo("/".join(parts[:at]))
        if repo is None:
            return
        revision = "/".join(parts[at + 1 :]) or "main"
        if revision not in ("main", "v1", repo.commit):
            self._refuse(404, "RevisionNotFound")
            return
        siblings = []
        for name, data in repo.files.items():
            entry: dict[str, object] = {"rfilename": name, "size": len(data)}
            if repo.is_large(name):
                entry["lfs"] = {"sha256": repo.etag(name), "size": len(data), "pointerSize": 130}
                entry["blobId"] = hashlib.sha1(name.encode()).hexdigest()
            else:
                entry["blobId"] = repo.etag(name)
            siblings.append(entry)
        body = {"id": "/".join(parts[:at]), "sha": repo.commit, "siblings": siblings}
        headers = {"Content-Type": "application/json"}
        self._send(200, json.dumps(body).encode(), headers)

    def _file(self, repo_name: str, revision: str, name: str) -> None:
        repo = self._repo(repo_name)
        if repo is None:
            return
        if name not in repo.files:
            self._refuse(404, "EntryNotFound")
            return
        data, etag = repo.files[name], repo.etag(name)
        headers = {"X-Repo-Commit": repo.commit, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if repo.is_large(name):
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        if self.command == "HEAD":
            self.send_response(200)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            return
        fault = repo.faults.get(name)
        with self.hub.lock:
            active = fault is not None and fault.times > 0
            if active and fault is not None:
                fault.times -= 1
        self._body(data, headers, fault if active else None, ignore_range=_ignores(fault))

    def _body(
        self, data: bytes, headers: dict[str, str], fault: Fault | None, ignore_range: bool
    ) -> None:
        start = 0
        asked = self.headers.get("Range")
        if asked and not ignore_range:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        rest = data[start:]
        chance = random.Random((fault.seed if fault else 0, start).__repr__())
        kind = fault.kind if fault else ""
        if kind == "error":
            self._send(500, b"oops")
            return
        if kind == "redirect":
            self._send(302, b"", {"Location": "file:///etc/passwd"})
            return
        declared = len(rest)
        if kind == "flip" and rest:
            at = chance.randrange(len(rest))
            rest = rest[:at] + bytes([rest[at] ^ (1 << chance.randrange(8))]) + rest[at + 1 :]
        if kind in ("cut", "norange") and rest:
            rest = rest[: chance.randrange(len(rest))]
        if kind == "longer":
            declared += 1 + chance.randrange(99)
        if kind == "shorter" and rest:
            declared = chance.randrange(len(rest))
            rest = rest[:declared]
        self.send_response(206 if "Content-Range" in headers else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(declared))
        self.end_headers()
        pieces = [rest[i : i + 512] for i in range(0, len(rest), 512)] if kind == "slow" else [rest]
        for piece in pieces:
            self.wfile.write(piece)
            if kind == "slow":
                self.wfile.flush()
                time.sleep(0.005)
        if len(rest) != declared:
            self.close_connection = True

    def _index(self, parts: list[str]) -> None:
        if parts[0] == "wheels":
            data = self.hub.wheels.get(parts[-1])
            self._send(200 if data else 404, data or b"", {"Content-Type": "application/zip"})
            return
        project = parts[1] if len(parts) > 1 else ""
        links = []
        for name, data in self.hub.wheels.items():
            if name.split("-")[0].replace("_", "-") == project:
                digest = hashlib.sha256(data).hexdigest() if self.hub.index_hashes else ""
                fragment = f"#sha256={digest}" if digest else ""
                links.append(f'<a href="/wheels/{name}{fragment}">{name}</a>')
        page = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode()
        self._send(200 if links else 404, page, {"Content-Type": "text/html"})


def _ignores(fault: Fault | None) -> bool:
    return fault is not None and fault.kind == "norange"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away in the middle is the normal case here."""


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the server on a free loopback port while the body runs."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = _Server(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# --- Wheels -------------------------------------------------------------------------------------


def make_wheel(
    files: dict[str, bytes],
    name: str = "tiny_weights",
    version: str = "1.0",
    *,
    record: Callable[[dict[str, str]], dict[str, str]] = lambda rows: rows,
    info: Callable[[zipfile.ZipInfo], None] = lambda member: None,
) -> bytes:
    """A wheel with these files. `record` and `info` may falsify RECORD's rows and the headers."""
    home = f"{name}-{version}.dist-info"
    everything = {
        **files,
        f"{home}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{home}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = {
        member: "sha256=" + urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        for member, data in everything.items()
    }
    lines = [
        f"{member},{digest},{len(everything.get(member, b''))}"
        for member, digest in record(rows).items()
    ]
    everything[f"{home}/RECORD"] = ("\n".join([*lines, f"{home}/RECORD,,"]) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in everything.items():
            header = zipfile.ZipInfo(member)
            header.external_attr = 0o100644 << 16
            info(header)
            archive.writestr(header, data)
    return buffer.getvalue()


# --- Contents -----------------------------------------------------------------------------------


def tiny_model(seed: int = 0, size: int = 40_000) -> dict[str, bytes]:
    """The files of a repo: weights in two formats, configuration, and what nobody needs."""
    chance = random.Random(seed)
    return {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "README.md": b"# A model\n",
        "config.json": json.dumps({"model_type": "bert", "seed": seed}).encode(),
        "tokenizer.json": json.dumps({"version": "1.0", "pad": "x" * 3000}).encode(),
        "vocab.txt": b"[PAD]\n[UNK]\n",
        "model.safetensors": chance.randbytes(size),
        "pytorch_model.bin": chance.randbytes(size),
        "tf_model.h5": chance.randbytes(64),
        "flax_model.msgpack": chance.randbytes(64),
        "onnx/model.onnx": chance.randbytes(64),
        "openvino/openvino_model.bin": chance.randbytes(64),
        "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    }
