"""The one download: resumed, checked while it streams, patient with servers that falter, and bounded in time.

A file grows under `<name>.part` and gets its own name when its checksum is right. So whatever stands under its own name
is good, a killed download goes on where it was, and a wrong one never replaces a right one.
"""

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from wsiseg import __version__
from wsiseg.errors import DownloadError
from wsiseg.fetch.hosts import redirected
from wsiseg.fetch.names import shown_url
from wsiseg.fetch.part import Checksum, Part, checksum_of, held
from wsiseg.fetch.patience import Patience, StoppedError, TemporaryError, asked_s, patiently

_MOST_REDIRECTS = 5
_MOST_ANSWER_BYTES = 64 << 20
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


class GoneError(DownloadError):
    """The server knows no such file (404, 410)."""


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


@contextmanager
def open_client(patience: Patience) -> Iterator[httpx.Client]:
    """Open connections that respect the proxy variables, `SSL_CERT_FILE` and `SSL_CERT_DIR`.

    Raises:
        DownloadError: These variables cannot be used.
    """
    timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s, pool=None)
    headers = {"User-Agent": f"wsiseg/{__version__}", "Accept-Encoding": "identity"}
    try:
        client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)
    except (ImportError, ValueError, OSError) as error:
        advice = "check HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        raise DownloadError(f"the network settings of the environment cannot be used: {error}", advice) from error
    with client:
        yield client


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
        with _opened(self.client, "GET", self.url, headers, None) as response:
            if response.status_code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
                if self.remote.size is not None:
                    part.restart()
                    raise TemporaryError("the server does not know the rest of the file")
                return
            _refuse_web_page(self.remote.name, response)
            if part.size and not _goes_on_at(response, part.size):
                part.restart()
            for chunk in _steadily(response.iter_raw(), self.patience):
                if self.stop.is_set():
                    raise StoppedError
                part.append(self._fitting(chunk))
                self.told(part.size)
                if part.size == self.remote.size:
                    return  # whatever a server sends beyond the end is left unread

    def _fitting(self, chunk: bytes) -> bytes:
        """Cut a chunk at the end of the file; refuse what has no known end and does not stop."""
        if self.remote.size is not None:
            return chunk[: self.remote.size - self.part.size]
        if self.part.size + len(chunk) > self.remote.most:
            raise DownloadError(f"{self.remote.name}: the server sends more than {self.remote.most} bytes")
        return chunk


def read_json(
    client: httpx.Client,
    url: str,
    patience: Patience,
    *,
    body: Any = None,  # noqa: ANN401  any JSON value
    stop: threading.Event | None = None,
) -> Any:  # noqa: ANN401  any JSON value
    """Read a JSON answer; with a `body` the request is a POST.

    Raises:
        GoneError: There is no such address.
        DownloadError: There is no answer, or it is no JSON.
    """
    text = read_text(client, url, patience, accept="application/json", body=body, stop=stop)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        advice = "a login page or a proxy may stand between: open the address in a browser"
        raise DownloadError(f"{shown_url(url)}: answered with something that is no JSON", advice) from error


def read_text(
    client: httpx.Client,
    url: str,
    patience: Patience,
    *,
    accept: str,
    body: Any = None,  # noqa: ANN401  any JSON value
    stop: threading.Event | None = None,
) -> str:
    """Read a short answer as text; with a `body` the request is a POST of JSON.

    Raises:
        GoneError: There is no such address.
        DownloadError: There is no answer, or an endless one.
    """
    name = shown_url(url)
    refuse_offline(name, "everything that needs no network works on files that are already there")

    def attempt() -> str:
        method = "GET" if body is None else "POST"
        received = bytearray()
        with _opened(client, method, url, {"Accept": accept}, body) as response:
            for chunk in _steadily(response.iter_bytes(), patience):
                received += chunk
                if len(received) > _MOST_ANSWER_BYTES:
                    raise DownloadError(f"{name}: answers with more than {_MOST_ANSWER_BYTES >> 20} MiB")
        return received.decode("utf-8", errors="replace")

    return patiently(attempt, name, patience, stop or threading.Event())


@contextmanager
def _opened(
    client: httpx.Client,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Any,  # noqa: ANN401  any JSON value
) -> Iterator[httpx.Response]:
    """Send a request, follow the redirects that are allowed, and turn every way to fail into one of our errors."""
    try:
        for _ in range(_MOST_REDIRECTS + 1):
            request = client.build_request(method, url, headers=dict(headers), json=body)
            response = client.send(request, stream=True)
            try:
                if response.has_redirect_location:
                    url = redirected(url, response.headers["location"])
                    continue
                _refuse_failure(response, url)
                yield response
                return
            finally:
                response.close()
        raise DownloadError(f"{shown_url(url)}: redirects without end")
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise DownloadError(f"{shown_url(url)}: not an address: {error}") from error
    except httpx.RequestError as error:
        raise TemporaryError(_reason(error)) from error


def _refuse_failure(response: httpx.Response, url: str) -> None:
    code = response.status_code
    if response.is_success or code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        return
    text = f"the server answered {code} {response.reason_phrase}".rstrip()
    if code in _TEMPORARY:
        raise TemporaryError(text, asked_s(response.headers.get("retry-after")))
    if code in {httpx.codes.NOT_FOUND, httpx.codes.GONE}:
        raise GoneError(f"{shown_url(url)}: {text}", "it may have been moved or withdrawn")
    raise DownloadError(f"{shown_url(url)}: {text}", "check that it is open to you")


def _refuse_web_page(name: str, response: httpx.Response) -> None:
    if response.headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml")):
        advice = "log in to the network, or check the proxy and the address, and run it again"
        raise DownloadError(f"{name}: a web page came in place of the file", advice)


def refuse_offline(name: str, advice: str) -> None:
    """Refuse to use the network where WSISEG_OFFLINE is set; `advice` says what to do without it."""
    if os.environ.get("WSISEG_OFFLINE", "") not in {"", "0"}:
        raise DownloadError(f"{name}: not fetched, as WSISEG_OFFLINE is set", advice)


def _goes_on_at(response: httpx.Response, size: int) -> bool:
    """Say whether an answer continues at byte `size`; servers may ignore the range and send the whole file."""
    stated = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return response.status_code == httpx.codes.PARTIAL_CONTENT and stated is not None and int(stated[1]) == size


def _steadily(chunks: Iterator[bytes], patience: Patience) -> Iterator[bytes]:
    """Pass chunks on as long as they keep coming at a speed that leads anywhere."""
    began, count = time.monotonic(), 0
    for chunk in chunks:
        count += len(chunk)
        yield chunk
        elapsed = time.monotonic() - began
        if elapsed > patience.read_s:
            if count < patience.slowest * elapsed:
                raise TemporaryError(f"only {count} bytes came in {elapsed:.0f} s")
            began, count = time.monotonic(), 0


def _reason(error: httpx.RequestError) -> str:
    kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
    return f"{kind}: {error}".rstrip(": ")
