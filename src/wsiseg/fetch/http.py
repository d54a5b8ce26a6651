"""The one download: resumed, checked while it streams, patient with servers that falter, and bounded in time.

A file grows under `<name>.part`, held by one process, and gets its own name when its checksum is right. So whatever
stands under its own name is good, a killed download goes on where it was, and a wrong one never replaces a right one.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import httpx

from wsiseg.fetch.connection import opened, refuse_offline, steadily
from wsiseg.fetch.patience import Patience, StoppedError, TemporaryError, patiently
from wsiseg.run.errors import DownloadError, OutputError

_CHUNK = 1 << 20
_SAMPLE_BYTES, _SAMPLE_S = 8 << 20, 5.0


class Checksum(NamedTuple):
    """What the bytes of a file must hash to."""

    algorithm: Literal["md5", "sha256"]
    hex: str


@dataclass(frozen=True)
class Remote:
    """A file on a server, and how to know that it has arrived whole.

    Attributes:
        name: What it is called, for messages.
        urls: Where it lies; the later ones are tried where the earlier fail.
        size: Bytes, where known.
        checksum: What it hashes to, where known. Without one a download cannot be resumed.
        most: More bytes than this are refused where the size is not known.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    checksum: Checksum | None = None
    most: int = 16 << 30


def download(
    client: httpx.Client,
    remote: Remote,
    path: Path,
    patience: Patience,
    *,
    told: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> None:
    """Fetch a file, whole and right or not at all; what an earlier attempt left is used.

    Args:
        client: Of `open_client`.
        remote: What to fetch.
        path: Where it goes. What stands there is replaced when the new file is complete.
        patience: How often and how long to try.
        told: Is called with the number of bytes that are there.
        stop: Ends the download when it is set; what has arrived stays.

    Raises:
        GoneError: No address has it.
        DownloadError: It cannot be had, or is not what it should be.
        OutputError: It cannot be written.
        StoppedError: `stop` was set.
    """
    refuse_offline(remote.name, f"place the file at {path}")
    stop = stop or threading.Event()
    with _held(path, remote.checksum.algorithm if remote.checksum else "sha256") as part:
        problem = DownloadError(f"{remote.name}: no address is known")
        for url in remote.urls:
            attempt = _Attempt(client, url, remote, part, patience, told, stop)
            try:
                return patiently(attempt, remote.name, patience, stop, lambda: part.size)
            except DownloadError as error:
                problem = error
        raise problem


def is_complete(remote: Remote, path: Path, *, by_size: bool = False) -> bool:
    """Tell whether a file is there already.

    Args:
        remote: What it should be.
        path: Where it should be.
        by_size: Believe the size, where it is known, rather than hash the file: a file under its own name was checked
            when it arrived.
    """
    if not path.is_file() or (remote.size is not None and path.stat().st_size != remote.size):
        return False
    checksum = remote.checksum
    if checksum is None or (by_size and remote.size is not None):
        return True
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: _hash(checksum.algorithm))
    return digest.hexdigest() == checksum.hex.lower()


def measure_speed(client: httpx.Client, url: str, patience: Patience) -> float:
    """Return the bytes a second at which a server sends, over its first 8 MB or 5 seconds.

    Raises:
        DownloadError: It sends nothing.
    """
    refuse_offline("measuring the speed", "leave out --dry-run")

    def attempt() -> float:
        began, count = time.monotonic(), 0
        with opened(client, "GET", url, {"Range": f"bytes=0-{_SAMPLE_BYTES - 1}"}) as response:
            for chunk in steadily(response.iter_raw(), patience):
                count += len(chunk)
                if count >= _SAMPLE_BYTES or time.monotonic() - began > _SAMPLE_S:
                    break
        return count / max(time.monotonic() - began, 1e-6)

    return patiently(attempt, "measuring the speed", patience, threading.Event())


class _Part:
    """The bytes of a file that have arrived so far, in a file open for reading and writing, and their checksum."""

    def __init__(self, file: BinaryIO, algorithm: str) -> None:
        self._file, self._algorithm = file, algorithm
        self.size, self._hash = 0, _hash(algorithm)
        while chunk := file.read(_CHUNK):
            self._hash.update(chunk)
            self.size += len(chunk)

    def append(self, chunk: bytes) -> None:
        """Write what has arrived; it is in the file, not in a buffer, when this returns."""
        self._file.write(chunk)
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self) -> None:
        """Throw away what has arrived."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self._hash = 0, _hash(self._algorithm)

    def matches(self, checksum: Checksum) -> bool:
        return self._hash.hexdigest() == checksum.hex.lower()


@dataclass(frozen=True)
class _Attempt:
    """One attempt to bring a part to its end from one address."""

    client: httpx.Client
    url: str
    remote: Remote
    part: _Part
    patience: Patience
    told: Callable[[int], None]
    stop: threading.Event

    def __call__(self) -> None:
        remote, part = self.remote, self.part
        if remote.checksum is None or (remote.size is not None and part.size > remote.size):
            part.restart()
        if remote.size is None or part.size < remote.size:
            self._receive()
        if remote.size is not None and part.size != remote.size:
            raise TemporaryError(f"ended after {part.size} of {remote.size} bytes")
        if remote.checksum is not None and not part.matches(remote.checksum):
            part.restart()
            raise TemporaryError(f"arrived with a wrong {remote.checksum.algorithm}")

    def _receive(self) -> None:
        part = self.part
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        with opened(self.client, "GET", self.url, headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if self.remote.size is not None:
                    part.restart()
                    raise TemporaryError("the server does not know the rest of the file")
                return
            _refuse_web_page(self.remote.name, response)
            self._begin(response)
            for chunk in steadily(response.iter_raw(), self.patience):
                if self.stop.is_set():
                    raise StoppedError
                if part.size == self.remote.size:
                    return  # whatever a server sends beyond the end is left unread
                part.append(self._fitting(chunk))
                self.told(part.size)

    def _begin(self, response: httpx.Response) -> None:
        """Check that an answer is the file or the rest of it before what has arrived is touched."""
        part, size = self.part, self.remote.size
        start, whole = _stated(response)
        if start is None or start not in {0, part.size}:
            part.restart()
            raise TemporaryError("the server sent another part of the file than was asked for")
        if None not in {size, whole} and whole != size:
            raise TemporaryError(f"the server announced {whole} bytes rather than {size}")
        if start == 0 and part.size:
            part.restart()  # the server does not know ranges and sends the whole file

    def _fitting(self, chunk: bytes) -> bytes:
        """Cut a chunk at the end of the file; refuse what has no known end and does not stop."""
        if self.remote.size is not None:
            return chunk[: self.remote.size - self.part.size]
        if self.part.size + len(chunk) > self.remote.most:
            raise DownloadError(f"{self.remote.name}: the server sends more than {self.remote.most} bytes")
        return chunk


def _stated(response: httpx.Response) -> tuple[int | None, int | None]:
    """Return the byte that an answer begins at and the size of the whole file, each None where it is not stated."""
    length = response.headers.get("content-length", "")
    sent = int(length) if length.isdecimal() else None
    if response.status_code != httpx.codes.PARTIAL_CONTENT:
        return 0, sent
    stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", "").strip())
    if stated is None:
        return None, None
    start = int(stated[1])
    whole = None if sent is None else start + sent
    return start, int(stated[2]) if stated[2] != "*" else whole


def _refuse_web_page(name: str, response: httpx.Response) -> None:
    if response.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
        advice = "log in to the network, or check the proxy and the address, and run it again"
        raise DownloadError(f"{name}: a web page came in place of the file", advice)


@contextmanager
def _held(path: Path, algorithm: str) -> Iterator[_Part]:
    """Open `<path>.part` for this process alone, and rename it to `path` when the block ends well.

    When the block fails the part stays for another attempt, unless it is empty.
    """
    name = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(name)
        try:
            yield _Part(file, algorithm)
            os.fsync(file.fileno())  # a power failure must not leave a hole under the final name
            if os.name == "nt":
                file.close()  # Windows does not rename open files
            name.replace(path)
        finally:
            file.close()
            if name.exists() and not name.stat().st_size:
                name.unlink()
    except OSError as error:
        advice = "free some room or choose another --out; what has arrived is kept"
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}", advice) from error


def _locked(name: Path) -> BinaryIO:
    """Open and lock a file; if it was renamed away meanwhile, the one that took its place."""
    while True:
        file = os.fdopen(os.open(name, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644), "r+b", buffering=0)
        try:
            if _lock(file) and name.exists() and os.path.samestat(os.fstat(file.fileno()), name.stat()):
                return file
        except BlockingIOError as error:
            file.close()
            raise DownloadError(f"{name}: another wsiseg is fetching it", "wait for it to end") from error
        file.close()


def _lock(file: BinaryIO) -> bool:
    if os.name == "nt":
        return True  # there a file that another process holds open cannot be renamed, which is what matters
    import fcntl  # noqa: PLC0415  does not exist on Windows

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True


def _hash(algorithm: str) -> "hashlib._Hash":
    return hashlib.new(algorithm, usedforsecurity=False)
