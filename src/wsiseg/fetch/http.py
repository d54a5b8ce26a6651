"""The one download: resumed, checked while it streams, patient with servers that falter, and bounded in time.

A file grows under `<name>.part` and gets its own name when its checksum is right. So whatever stands under its own name
is good, a killed download goes on where it was, and a wrong one never replaces a right one.
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx

from wsiseg.fetch.connection import opened, refuse_offline, steadily
from wsiseg.fetch.part import Checksum, Part, checksum_of, held
from wsiseg.fetch.patience import Patience, StoppedError, TemporaryError, patiently
from wsiseg.run.errors import DownloadError

_SAMPLE_BYTES, _SAMPLE_S = 8 << 20, 5.0


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
    algorithm = remote.checksum.algorithm if remote.checksum else "sha256"
    with held(path, algorithm) as part:
        problem = DownloadError(f"{remote.name}: no address is known")
        for url in remote.urls:
            attempt = _Attempt(client, url, remote, part, patience, told, stop)
            try:
                patiently(attempt, remote.name, patience, stop, lambda: part.size)
            except DownloadError as error:
                problem = error
            else:
                return
        raise problem


def is_complete(remote: Remote, path: Path, *, by_size: bool = False) -> bool:
    """Say whether a file is there already.

    Args:
        remote: What it should be.
        path: Where it should be.
        by_size: Believe the size, where it is known, rather than hash the file: a file under its own name was checked
            when it arrived.
    """
    if not path.is_file() or (remote.size is not None and path.stat().st_size != remote.size):
        return False
    if remote.checksum is None or (by_size and remote.size is not None):
        return True
    return checksum_of(path, remote.checksum.algorithm).hex == remote.checksum.hex.lower()


@dataclass(frozen=True)
class _Attempt:
    """One attempt to bring a part to its end from one address."""

    client: httpx.Client
    url: str
    remote: Remote
    part: Part
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
        is_rest = response.status_code == httpx.codes.PARTIAL_CONTENT
        if is_rest and not _goes_on_at(response, part.size):
            part.restart()
            raise TemporaryError("the server sent another part of the file than was asked for")
        stated = response.headers.get("content-length", "")
        whole = int(stated) + (part.size if is_rest else 0) if stated.isdigit() else None
        if None not in {size, whole} and whole != size:
            raise TemporaryError(f"the server announced {whole} bytes rather than {size}")
        if not is_rest and part.size:
            part.restart()  # the server does not know ranges and sends the whole file

    def _fitting(self, chunk: bytes) -> bytes:
        """Cut a chunk at the end of the file; refuse what has no known end and does not stop."""
        if self.remote.size is not None:
            return chunk[: self.remote.size - self.part.size]
        if self.part.size + len(chunk) > self.remote.most:
            raise DownloadError(f"{self.remote.name}: the server sends more than {self.remote.most} bytes")
        return chunk


def _goes_on_at(response: httpx.Response, size: int) -> bool:
    """Say whether a partial answer continues at byte `size`."""
    stated = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return stated is not None and int(stated[1]) == size


def _refuse_web_page(name: str, response: httpx.Response) -> None:
    if response.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
        advice = "log in to the network, or check the proxy and the address, and run it again"
        raise DownloadError(f"{name}: a web page came in place of the file", advice)


def measure_speed(client: httpx.Client, url: str, patience: Patience) -> float:
    """Give the bytes a second at which a server sends, over its first 8 MB or 5 seconds.

    Raises:
        DownloadError: It sends nothing.
    """
    refuse_offline("measuring the speed", "give no --dry-run")

    def attempt() -> float:
        began, count = time.monotonic(), 0
        with opened(client, "GET", url, {"Range": f"bytes=0-{_SAMPLE_BYTES - 1}"}) as response:
            for chunk in steadily(response.iter_raw(), patience):
                count += len(chunk)
                if count >= _SAMPLE_BYTES or time.monotonic() - began > _SAMPLE_S:
                    break
        return count / max(time.monotonic() - began, 1e-6)

    return patiently(attempt, "measuring the speed", patience, threading.Event())
