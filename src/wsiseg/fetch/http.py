"""The one download: resumed, checked while it streams, patient with servers that falter, and bounded in time.

A file grows under `<name>.part`, held by one process, and gets its own name when its checksum is right. So whatever
stands under its own name is good, a killed download goes on where it was, and a wrong one never replaces a right one.
"""

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

import httpx

from wsiseg.fetch.connection import Client, TemporaryError, refuse_offline
from wsiseg.run.errors import DownloadError, OutputError

_CHUNK = 1 << 20


class Checksum(NamedTuple):
    """What the bytes of a file must hash to."""

    algorithm: Literal["md5", "sha256"]
    hex: str


@dataclass(frozen=True)
class Wanted:
    """A file to fetch, and how to know that it has arrived whole.

    Attributes:
        path: Where it goes.
        urls: Where it lies; the later ones are tried where the earlier fail.
        size: Bytes, where known.
        checksum: What it hashes to, where known. Without one a download cannot be resumed.
        most: More bytes than this are refused where the size is not known.
    """

    path: Path
    urls: tuple[str, ...]
    size: int | None = None
    checksum: Checksum | None = None
    most: int = 16 << 30

    @property
    def name(self) -> str:
        """What it is called, for messages."""
        return self.path.name

    @property
    def part(self) -> Path:
        """Where it lies while it arrives."""
        return self.path.with_name(f"{self.name}.part")

    def new_hash(self) -> "hashlib._Hash":
        """Return the hash of no bytes."""
        return hashlib.new(self.checksum.algorithm if self.checksum else "sha256", usedforsecurity=False)

    def is_complete(self, *, by_size: bool = False) -> bool:
        """Tell whether the file is there already; `by_size` believes the size, where it is known, and does not hash.

        A file under its own name was checked when it arrived.
        """
        if not self.path.is_file() or (self.size is not None and self.path.stat().st_size != self.size):
            return False
        if self.checksum is None or (by_size and self.size is not None):
            return True
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, self.new_hash).hexdigest() == self.checksum.hex.lower()


def download(
    client: Client,
    wanted: Wanted,
    told: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
) -> None:
    """Fetch a file, whole and right or not at all; what an earlier attempt left is used.

    What stands in its place is replaced when the new file is complete. `told` is called with the number of further
    bytes that have arrived, less than 0 where some had to go; `stop` ends the download, and what has arrived stays.

    Raises:
        GoneError: No address has it.
        DownloadError: It cannot be had, or is not what it should be.
        OutputError: It cannot be written.
    """
    refuse_offline(wanted.name, f"place the file at {wanted.path}")
    stop = stop or threading.Event()
    with _held(wanted) as file:
        part = _Part(wanted, file, told, stop)
        for url in wanted.urls:
            try:
                client.patiently(partial(part.complete, client, url), wanted.name, stop, lambda: part.size)
            except DownloadError:
                if url == wanted.urls[-1]:
                    raise
            else:
                return


class _Part:
    """What has arrived of a file, and its checksum so far."""

    def __init__(self, wanted: Wanted, file: BinaryIO, told: Callable[[int], None], stop: threading.Event) -> None:
        self._wanted, self._file, self._told, self._stop = wanted, file, told, stop
        self.size, self._hash = 0, wanted.new_hash()
        while chunk := file.read(_CHUNK):
            self._count(chunk)

    def complete(self, client: Client, url: str) -> None:
        """Attempt to bring the file to its end from one address."""
        size, checksum = self._wanted.size, self._wanted.checksum
        if checksum is None or (size is not None and self.size > size):
            self._restart()
        if size is None or self.size < size:
            self._receive(client, url)
        if size is not None and self.size != size:
            raise TemporaryError(f"ended after {self.size} of {size} bytes")
        if checksum is not None and self._hash.hexdigest() != checksum.hex.lower():
            self._restart()
            raise TemporaryError(f"arrived with a wrong {checksum.algorithm}")

    def _receive(self, client: Client, url: str) -> None:
        headers = {"Range": f"bytes={self.size}-"} if self.size else {}
        with client.opened(url, headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if self._wanted.size is not None:
                    self._restart()
                    raise TemporaryError("the server does not know the rest of the file")
                return
            self._begin(response)
            for chunk in client.steadily(response.iter_raw()):
                if self._stop.is_set():
                    raise TemporaryError("was stopped")
                if self.size == self._wanted.size:
                    return  # whatever a server sends beyond the end is left unread
                self._append(chunk)

    def _begin(self, response: httpx.Response) -> None:
        """Check that an answer is the file or the rest of it before what has arrived is touched."""
        if response.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
            advice = "log in to the network, or check the proxy and the address, and run it again"
            raise DownloadError(f"{self._wanted.name}: a web page came in place of the file", advice)
        size = self._wanted.size
        start, whole = _stated(response)
        if start is None or start not in {0, self.size}:
            self._restart()
            raise TemporaryError("the server sent another part of the file than was asked for")
        if None not in {size, whole} and whole != size:
            raise TemporaryError(f"the server announced {whole} bytes rather than {size}")
        if start == 0 and self.size:
            self._restart()  # the server does not know ranges and sends the whole file

    def _append(self, chunk: bytes) -> None:
        """Write what has arrived up to the end of the file; refuse what has no known end and does not stop."""
        size, most = self._wanted.size, self._wanted.most
        if size is not None:
            chunk = chunk[: size - self.size]
        elif self.size + len(chunk) > most:
            raise DownloadError(f"{self._wanted.name}: the server sends more than {most} bytes")
        self._file.write(chunk)
        self._file.flush()  # a program that is killed loses no byte
        self._count(chunk)
        self._told(len(chunk))

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.size += len(chunk)

    def _restart(self) -> None:
        """Throw away what has arrived."""
        self._file.truncate(0)
        self._told(-self.size)
        self.size, self._hash = 0, self._wanted.new_hash()


def _stated(response: httpx.Response) -> tuple[int | None, int | None]:
    """Return the byte that an answer begins at and the size of the whole file, each None where it is not stated."""
    if response.status_code != httpx.codes.PARTIAL_CONTENT:
        length = response.headers.get("content-length", "")
        return 0, int(length) if length.isdecimal() else None
    stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("content-range", "").strip())
    if stated is None:
        return None, None
    return int(stated[1]), int(stated[2]) if stated[2] != "*" else None


@contextmanager
def _held(wanted: Wanted) -> Iterator[BinaryIO]:
    """Open the part of a file for this process alone, and rename it to the file when the block ends well.

    When the block fails the part stays for another attempt, unless it is empty.
    """
    part = wanted.part
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(part)
        try:
            yield file
            os.fsync(file.fileno())  # a power failure must not leave a hole under the final name
            if os.name == "nt":
                file.close()  # Windows does not rename open files
            part.replace(wanted.path)
        finally:
            file.close()
            if part.exists() and not part.stat().st_size:
                part.unlink()
    except OSError as error:
        advice = "free some room or choose another --out; what has arrived is kept"
        raise OutputError(f"{wanted.path}: cannot be written: {error.strerror or error}", advice) from error


def _locked(name: Path) -> BinaryIO:
    """Open and lock a file; if it was renamed away meanwhile, the one that took its place."""
    file = name.open("a+b")
    file.seek(0)
    if os.name == "nt":  # there a file that another process holds open cannot be renamed, which is what matters
        return file
    import fcntl  # noqa: PLC0415  does not exist on Windows

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise DownloadError(f"{name}: another wsiseg is fetching it", "wait for it to end") from error
    if name.exists() and os.path.samestat(os.fstat(file.fileno()), name.stat()):
        return file
    file.close()
    return _locked(name)
