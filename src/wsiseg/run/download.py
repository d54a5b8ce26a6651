"""The one download: resumed, checked, patient with servers that falter, and bounded in time.

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
from io import BufferedIOBase
from pathlib import Path
from typing import Literal, NamedTuple

import httpx

from wsiseg.run.connection import Client, TemporaryError, refuse_offline
from wsiseg.run.errors import DownloadError, OutputError
from wsiseg.run.outputs import locked


class Checksum(NamedTuple):
    """What the bytes of a file must hash to."""

    algorithm: Literal["md5", "sha256"]
    hex: str

    def fits(self, file: BufferedIOBase) -> bool:
        """Hash a whole file and compare."""
        file.seek(0)
        digest = hashlib.file_digest(file, lambda: hashlib.new(self.algorithm, usedforsecurity=False))
        return digest.hexdigest() == self.hex.lower()


@dataclass(frozen=True)
class Wanted:
    """A file to fetch, and how to know that it has arrived whole."""

    path: Path
    urls: tuple[str, ...]  # the later ones are tried where the earlier fail
    size: int | None = None  # bytes
    checksum: Checksum | None = None  # without this or the next a download cannot be resumed
    most: int = 16 << 30  # more bytes than this are refused where the size is not known
    version: str = ""  # the ETag that the server must still have for it

    @property
    def name(self) -> str:
        """What it is called, for messages."""
        return self.path.name

    @property
    def part(self) -> Path:
        """Where it lies while it arrives."""
        return self.path.with_name(f"{self.name}.part")

    @property
    def rest(self) -> int:
        """How many bytes have still to come; 0 where nobody knows."""
        return max(0, (self.size or 0) - (self.part.stat().st_size if self.part.exists() else 0))

    def is_complete(self, *, by_size: bool = False) -> bool:
        """Tell whether the file is there already; `by_size` believes the size, where it is known, and does not hash.

        A file under its own name was checked when it arrived.
        """
        if not self.path.is_file() or (self.size is not None and self.path.stat().st_size != self.size):
            return False
        if self.checksum is None or (by_size and self.size is not None):
            return True
        with self.path.open("rb") as file:
            return self.checksum.fits(file)


def download(
    client: Client, wanted: Wanted, told: Callable[[int], None] = lambda _: None, stop: threading.Event | None = None
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


@dataclass(frozen=True)
class _Part:
    """What has arrived of a file."""

    wanted: Wanted
    file: BufferedIOBase
    told: Callable[[int], None]
    stop: threading.Event

    @property
    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)

    def complete(self, client: Client, url: str) -> None:
        """Attempt to bring the file to its end from one address."""
        size, checksum = self.wanted.size, self.wanted.checksum
        has_mark = checksum is not None or self.wanted.version
        if not has_mark or (size is not None and self.size > size):
            self._restart()
        if size is None or self.size < size:
            self._receive(client, url)
        if size is not None and self.size != size:
            raise TemporaryError(f"ended after {self.size} of {size} bytes")
        if checksum is not None and not checksum.fits(self.file):
            self._restart()
            raise TemporaryError(f"arrived with a wrong {checksum.algorithm}")

    def _receive(self, client: Client, url: str) -> None:
        headers = {"Range": f"bytes={self.size}-"} if self.size else {}
        headers |= {"If-Match": self.wanted.version} if self.wanted.version else {}
        with client.opened(url, headers) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if self.wanted.size is not None:
                    self._restart()
                    raise TemporaryError("the server does not know the rest of the file")
                return
            self._begin(response)
            for chunk in client.steadily(response.iter_raw()):
                if self.stop.is_set():
                    raise TemporaryError("was stopped")
                if self.size == self.wanted.size:
                    return  # whatever a server sends beyond the end is left unread
                self._append(chunk)

    def _begin(self, response: httpx.Response) -> None:
        """Check that an answer is the file or the rest of it before what has arrived is touched."""
        if response.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
            advice = "log in to the network, or check the proxy and the address, and run it again"
            raise DownloadError(f"{self.wanted.name}: a web page came in place of the file", advice)
        size = self.wanted.size
        start, whole = stated(response)
        if start is None or start not in {0, self.size}:
            self._restart()
            raise TemporaryError("the server sent another part of the file than was asked for")
        if None not in {size, whole} and whole != size:
            raise TemporaryError(f"the server announced {whole} bytes rather than {size}")
        if start == 0 and self.size:
            self._restart()  # the server does not know ranges and sends the whole file

    def _append(self, chunk: bytes) -> None:
        """Write what has arrived up to the end of the file; refuse what has no known end and does not stop."""
        size, most = self.wanted.size, self.wanted.most
        if size is not None:
            chunk = chunk[: size - self.size]
        elif self.size + len(chunk) > most:
            raise DownloadError(f"{self.wanted.name}: the server sends more than {most} bytes")
        self.file.write(chunk)
        self.file.flush()  # a program that is killed loses no byte
        self.told(len(chunk))

    def _restart(self) -> None:
        """Throw away what has arrived."""
        self.told(-self.size)
        self.file.truncate(0)


def stated(response: httpx.Response) -> tuple[int | None, int | None]:
    """Return the byte that an answer begins at and the size of the whole file, each None where it is not stated."""
    is_part = response.status_code == httpx.codes.PARTIAL_CONTENT
    whole = f"bytes 0-0/{response.headers.get('content-length', '*')}"
    stated = response.headers.get("content-range", "") if is_part else whole
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", stated.strip())
    if found is None:
        return None, None
    return int(found[1]), int(found[2]) if found[2] != "*" else None


@contextmanager
def _held(wanted: Wanted) -> Iterator[BufferedIOBase]:
    """Open the part of a file for this process alone, and rename it to the file when the block ends well.

    When the block fails the part stays for another attempt, unless it is empty.
    """
    from filelock import Timeout  # noqa: PLC0415  only where something is written

    part = wanted.part
    try:
        with locked(part.with_name(f".{part.name}.lock"), wait=False):
            try:
                with part.open("a+b") as file:
                    yield file
                    os.fsync(file.fileno())  # a power failure must not leave a hole under the final name
                part.replace(wanted.path)
            finally:
                if part.exists() and not part.stat().st_size:
                    part.unlink()
    except Timeout as error:
        raise DownloadError(f"{part}: another wsiseg is fetching it", "wait for it to end") from error
    except OSError as error:
        advice = "free some room or choose another --out; what has arrived is kept"
        raise OutputError(f"{wanted.path}: cannot be written: {error.strerror or error}", advice) from error
