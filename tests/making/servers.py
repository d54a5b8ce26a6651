"""A real HTTP server on loopback that behaves as the GDC does, and misbehaves on request."""

import hashlib
import json
import random
import shutil
import socket
import ssl
import struct
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

FAULTS = (
    *("ok", "slow", "429", "429_date", "500", "503", "reset", "reset_early", "cut", "short", "long", "no_range"),
    *("wrong_range", "corrupt", "html", "stall", "chunked", "surplus", "truncated_chunks", "garbage"),
)
"""What can become of one request for a file; besides there is `hold`: half of it comes, the rest once `go` is set."""
_STALL_S, _HOLD_S = 30.0, 120.0  # at the most
_SLOW_S = 0.002
_CHUNK = 1 << 14


@dataclass
class Stored:
    """A file on the server."""

    id: str
    name: str
    content: bytes
    site: str = "Breast"
    project: str = "TCGA-BRCA"
    sample_type: str = "Primary Tumor"
    tissue_type: str = "Tumor"
    measures: dict[str, float] = field(default_factory=dict)
    other_sections: list[dict[str, Any]] = field(default_factory=list)

    @property
    def md5(self) -> str:
        return hashlib.md5(self.content, usedforsecurity=False).hexdigest()

    def hit(self) -> dict[str, Any]:
        """Describe it as the GDC does: what can occur several times is a list."""
        barcode = self.name.partition(".")[0]
        section = {"submitter_id": barcode, "section_location": "TOP", **self.measures}
        sample = {
            "submitter_id": barcode[:16],
            "sample_type": self.sample_type,
            "tissue_type": self.tissue_type,
            "portions": [{"slides": [{"percent_tumor_cells": 1.0}]}, {"slides": [*self.other_sections, section]}],
        }
        other = {"submitter_id": f"{barcode[:12]}-10A", "sample_type": "Blood Derived Normal", "tissue_type": "Normal"}
        case = {
            "submitter_id": barcode[:12],
            "primary_site": self.site,
            "project": {"project_id": self.project},
            "samples": [other, sample],
        }
        known = {"file_id": self.id, "file_name": self.name, "md5sum": self.md5, "file_size": len(self.content)}
        return {"id": self.id, **known, "access": "open", "state": "released", "cases": [case]}


def made_file(number: int, size: int = 20_000, **facts: Any) -> Stored:
    """Make a file of random bytes with the name of a TCGA slide; odd numbers are normal."""
    seed = random.Random(number)
    code = "11" if number % 2 else "01"
    word = "Normal" if number % 2 else "Tumor"
    kind = "Solid Tissue Normal" if number % 2 else "Primary Tumor"
    key = uuid.UUID(int=seed.getrandbits(128))
    name = f"TCGA-BH-{number // 2:04d}-{code}A-01-TS1.{key}.svs"
    stored = Stored(str(uuid.UUID(int=seed.getrandbits(128))), name, seed.randbytes(size))
    stored.sample_type, stored.tissue_type = kind, word
    return _changed(stored, facts)


def _changed(stored: Stored, facts: dict[str, Any]) -> Stored:
    for name, value in facts.items():
        setattr(stored, name, value)
    return stored


class Server:
    """The state of the server; tests set it and read it."""

    def __init__(self) -> None:
        self.url, self.go = "", threading.Event()
        self.reset()

    def reset(self) -> None:
        self.go.set()
        self.files: dict[str, Stored] = {}
        self.pages: dict[str, Callable[[Handler], None]] = {}
        self.authorization = ""  # the header that every request for a file must have, if any
        self.fault: Callable[[str, int], str] = lambda _path, _number: "ok"
        self.list_fault: Callable[[int], str] = lambda _number: "ok"
        self.extra_hits: list[dict[str, Any]] = []
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()  # bytes of files, without those that only learned a size
        self.begins: dict[str, list[int]] = {}  # the bytes that answers began at, in order, by the name of the file
        self.go = threading.Event()
        self.pause_s = 0.0
        self.lock = threading.Lock()

    def add(self, *files: Stored) -> None:
        self.files |= {stored.id: stored for stored in files}

    def count(self, path: str) -> int:
        with self.lock:
            self.requests[path] += 1
            return self.requests[path]


class Handler(BaseHTTPRequestHandler):
    """Answers `/files` and `/data/ID` as the GDC does, `/ID/NAME` as its copy at Amazon, and pages of the tests."""

    protocol_version = "HTTP/1.1"
    state: Server
    sent: Counter[str]  # that of the test that the request belongs to: what comes late is not of the next one

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        path, self.sent = urlsplit(self.path).path, self.state.sent
        number = self.state.count(path)
        with suppress(BrokenPipeError, ConnectionResetError):
            if path in self.state.pages:
                self.state.pages[path](self)
                return
            parts = path.strip("/").split("/")
            stored = self.state.files.get(parts[1] if parts[0] == "data" else parts[0])
            if self.state.authorization not in ("", self.headers.get("Authorization")):
                self.answer(
                    401, b"Anonymous caller does not have storage.objects.get access", {"Content-Type": "text/xml"}
                )
            elif stored is None:
                self.answer(404, b'{"message": "file not found"}')
            else:
                self.give(stored, self.state.fault(path, number))

    def do_POST(self) -> None:
        if self.path in self.state.pages:
            self.state.count(self.path)
            self.state.pages[self.path](self)
            return
        number = self.state.count("/files")
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.state.list_fault(number)
        if fault == "500":
            self.answer(500, b"internal error", {"Content-Type": "text/plain"})
        elif fault == "429":
            self.answer(429, b"{}", {"Retry-After": "0"})
        elif fault == "html":
            self.answer(200, b"<!DOCTYPE html><title>log in</title>", {"Content-Type": "text/html"})
        elif fault == "reset":
            self.drop()
        else:
            body = json.dumps(self.listed(query, fault)).encode()
            self.answer(200, body[: len(body) // 2] if fault == "garbage" else body)

    def listed(self, query: dict[str, Any], fault: str) -> dict[str, Any]:
        hits = [stored.hit() for stored in self.state.files.values() if _fits(stored.hit(), query["filters"])]
        hits += self.state.extra_hits
        if query.get("sort") == "file_id:asc" and fault != "unsorted":
            hits.sort(key=lambda hit: str(hit["file_id"]))
        else:
            random.Random(self.state.requests["/files"]).shuffle(hits)
        start, size = int(query["from"]), int(query["size"])
        page = hits[start : start + size]
        counts = {"count": len(page), "total": len(hits), "size": size, "from": start, "sort": query.get("sort", "")}
        pages = {"page": start // size + 1, "pages": -(-len(hits) // size)}
        return {"data": {"hits": page, "pagination": {**counts, **pages}}, "warnings": {}}

    def answer(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def drop(self) -> None:
        """Reset the connection."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def give(self, stored: Stored, fault: str) -> None:
        if fault == "reset_early":
            self.drop()
        elif fault in {"500", "503"}:
            self.answer(int(fault), b"no")
        elif fault == "429":
            self.answer(429, b"{}", {"Retry-After": "0"})
        elif fault == "429_date":
            self.answer(429, b"{}", {"Retry-After": "Fri, 01 Jan 2021 00:00:00 GMT"})
        elif fault == "html":
            self.answer(200, b"<html><body>please log in</body></html>", {"Content-Type": "text/html; charset=utf-8"})
        elif fault == "garbage":
            self.answer(200, b"\x00" * 137, {"Content-Type": "application/octet-stream"})
        else:
            self.stream(stored, fault)

    def stream(self, stored: Stored, fault: str) -> None:
        if self.headers.get("If-Match", f'"{stored.md5}"') != f'"{stored.md5}"':
            self.answer(412, b"")
            return
        start = self.start_of_range(fault, len(stored.content))
        if start is None:
            self.answer(416, b"")
            return
        if not self.is_only_asked:
            with self.state.lock:
                self.state.begins.setdefault(stored.name, []).append(start)
        body = stored.content[: 1 if self.is_only_asked else None][start:]
        if fault == "corrupt" and body:
            at = random.Random(self.path).randrange(len(body))
            body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
        if fault in {"chunked", "surplus", "truncated_chunks"}:
            self.head(start, fault, stored, None)
            self.send_chunked(stored, body + (b"x" * 5000 if fault == "surplus" else b""), fault)
            return
        length = {"short": len(body) + 1000, "long": max(0, len(body) - 777)}.get(fault, len(body))
        self.head(start, fault, stored, length)
        cut = len(body) // 2 if fault in {"reset", "stall", "cut", "hold"} else min(length, len(body))
        go = self.state.go
        self.send_body(stored, body[:cut], _SLOW_S if fault == "slow" else self.state.pause_s)
        if fault == "stall":
            self.wait_until_left()
        elif fault == "hold":
            go.wait(_HOLD_S)
            self.send_body(stored, body[cut:], self.state.pause_s)
        if fault == "reset":
            self.drop()
        elif fault in {"short", "stall", "cut"}:
            self.close_connection = True

    def wait_until_left(self) -> None:
        """Wait until who asked has lost patience and closed the connection."""
        self.connection.settimeout(_STALL_S)
        with suppress(OSError):
            self.rfile.read(1)

    @property
    def is_only_asked(self) -> bool:
        """Whether it asks for the first byte alone, to learn the size of a file: it may well leave without it."""
        return self.headers.get("Range") == "bytes=0-0"

    def start_of_range(self, fault: str, size: int) -> int | None:
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        if fault == "no_range" or not asked:
            return 0
        return start if start < size else None

    def head(self, start: int, fault: str, stored: Stored, length: int | None) -> None:
        size, is_part = len(stored.content), start or self.is_only_asked
        self.send_response(206 if is_part else 200)
        self.send_header("ETag", f'"{stored.md5}"')
        if is_part:
            said = start + 1 if fault == "wrong_range" else start
            self.send_header("Content-Range", f"bytes {said}-{size - 1}/{size}")
        self.send_header("Content-Type", "application/octet-stream")
        if length is None:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def send_body(self, stored: Stored, body: bytes, pause_s: float) -> None:
        for at in range(0, len(body), _CHUNK):
            piece = body[at : at + _CHUNK]
            self.write(stored, len(piece), piece)
            if pause_s:
                time.sleep(pause_s)

    def write(self, stored: Stored, counted: int, data: bytes) -> None:
        """Write, counted before, as who has read all may look at once; what did not go through is not counted."""
        counted = 0 if self.is_only_asked else counted
        with self.state.lock:
            self.sent[stored.name] += counted
        try:
            self.wfile.write(data)
        except OSError:
            with self.state.lock:
                self.sent[stored.name] -= counted
            raise

    def send_chunked(self, stored: Stored, body: bytes, fault: str) -> None:
        pieces = [body[at : at + 5000] for at in range(0, len(body), 5000)]
        for piece in pieces[: len(pieces) // 2] if fault == "truncated_chunks" else pieces:
            self.write(stored, len(piece), f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if fault == "truncated_chunks":
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")


def _fits(hit: dict[str, Any], wanted: dict[str, Any]) -> bool:
    if wanted["op"] == "and":
        return all(_fits(hit, one) for one in wanted["content"])
    field_name, values = wanted["content"]["field"], wanted["content"]["value"]
    known = {
        "file_name": hit["file_name"],
        "access": hit["access"],
        "cases.primary_site": hit["cases"][0]["primary_site"],
        "cases.project.project_id": hit["cases"][0]["project"]["project_id"],
        "cases.submitter_id": hit["cases"][0]["submitter_id"],
    }
    return field_name not in known or known[field_name] in values


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_: object) -> None:
        """Say nothing of connections that were broken on purpose."""


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server on a free port, with `tls` over https."""
    state = Server()
    handler = type("BoundHandler", (Handler,), {"state": state})
    server = _QuietServer(("127.0.0.1", 0), handler)
    state.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_address[1]}"
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def write_certificate(folder: Path, host: str = "127.0.0.1") -> Path:
    """Write the certificate of an address, signed by nobody else, with its key in the same file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl to make a certificate")
    path = folder / "certificate.pem"
    make = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=here"]
    make += ["-addext", f"subjectAltName=IP:{host}", "-keyout", str(folder / "key.pem"), "-out", str(path)]
    subprocess.run(make, check=True, capture_output=True)
    path.write_bytes(path.read_bytes() + (folder / "key.pem").read_bytes())
    return path
