"""Connections: requests that go where they may, again where that may help, and every way to fail as one of our errors.

Nothing from outside is trusted, and addresses are shown without what is secret in them.
"""

import ipaddress
import logging
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit

import httpx
from pydantic import BaseModel, ValidationError

from wsiseg.run.errors import DownloadError, without_identifiers
from wsiseg.run.version import __version__

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
_MOST_REDIRECTS = 5
_MOST_ANSWER_BYTES = 64 << 20
_REAL_PROGRESS = 1 << 20  # an attempt that brought this many bytes has not failed
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


class GoneError(DownloadError):
    """The server knows no such file (404, 410)."""


class TemporaryError(Exception):
    """An attempt failed in a way that another may not; the server asks to wait for `asked_s` seconds."""

    def __init__(self, reason: str, asked_s: float = 0.0) -> None:
        super().__init__(reason)
        self.asked_s = asked_s


@dataclass(frozen=True)
class Patience:
    """How often and how long to try; times in seconds."""

    tries: int = 6  # attempts in a row that may fail
    first_wait_s: float = 1.0  # after the first failure; it doubles with each
    longest_wait_s: float = 60.0
    longest_asked_s: float = 300.0  # a server that asks to come back later than this is given up
    connect_s: float = 30.0  # longest time to make a connection
    room_s: float = 600.0  # longest time to wait for room in a cache
    read_s: float = 60.0  # longest silence of a server
    slowest: float = 500.0  # bytes a second; a server that stays below over `read_s` is taken for stuck


USUAL = Patience()


@contextmanager
def open_client(patience: Patience, auth: Callable[[httpx.Request], httpx.Request] | None = None) -> Iterator["Client"]:
    """Open connections that respect the proxy variables, `SSL_CERT_FILE` and `SSL_CERT_DIR`; `auth` signs requests.

    Raises:
        DownloadError: These variables cannot be used.
    """
    timeout = httpx.Timeout(patience.read_s, connect=patience.connect_s, pool=None)
    headers = {"User-Agent": f"wsiseg/{__version__}", "Accept-Encoding": "identity"}
    logging.getLogger("httpx").addFilter(_without_secrets)
    try:
        connections = httpx.Client(timeout=timeout, headers=headers, auth=auth)
    except (ImportError, ValueError, OSError) as error:
        advice = "check HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and SSL_CERT_DIR"
        raise DownloadError(f"the network settings of the environment cannot be used: {error}", advice) from error
    with connections:
        yield Client(connections, patience)


def _without_secrets(record: logging.LogRecord) -> bool:
    """Let the HTTP client log an address only as it may be shown, to whoever set up a log."""
    if isinstance(record.args, tuple):
        record.args = tuple(shown_url(str(one)) if isinstance(one, httpx.URL) else one for one in record.args)
    return True


@dataclass(frozen=True)
class Client:
    """Connections, and how patient their user is; `open_client` makes it."""

    connections: httpx.Client
    patience: Patience

    def read(self, url: str, kind: type[M], body: Any = None) -> M:  # noqa: ANN401  any JSON value
        """Read a JSON answer of some kind; with a `body` the request is a POST.

        Raises:
            GoneError: There is no such address.
            DownloadError: There is no answer, an endless one, or one of another kind.
        """
        name = shown_url(url)
        refuse_offline(name, "everything that needs no network works on files that are already there")

        def attempt() -> bytes:
            received = bytearray()
            with self.opened(url, {"Accept": "application/json"}, body) as response:
                for chunk in self.steadily(response.iter_bytes()):
                    received += chunk
                    if len(received) > _MOST_ANSWER_BYTES:
                        raise DownloadError(f"{name}: answers with more than {_MOST_ANSWER_BYTES >> 20} MiB")
                if response.status_code == httpx.codes.NO_CONTENT:
                    return b"[]"  # nothing was found
            return bytes(received)

        try:
            return kind.model_validate_json(self.patiently(attempt, name))
        except ValidationError as error:
            is_json = error.errors()[0]["type"] != "json_invalid"
            what = "else than a list of files" if is_json else "that is not JSON"
            advice = "a login page or a proxy may stand between: open the address in a browser"
            raise DownloadError(f"{name}: answers with something {what}", advice) from error

    def patiently(
        self,
        attempt: Callable[[], T],
        name: str,
        stop: threading.Event | None = None,
        reached: Callable[[], int] = lambda: 0,
    ) -> T:
        """Attempt something while it raises TemporaryError, until patience ends, and return what it returns.

        An attempt after which a good deal more bytes are `reached` is no failure.

        Raises:
            DownloadError: The attempts are used up, the server asks for too long a wait, or `stop` is set.
        """
        stop, patience = stop or threading.Event(), self.patience
        failures = furthest = 0
        while not stop.is_set():
            try:
                return attempt()
            except TemporaryError as error:
                problem = error
            failures = 1 if reached() >= furthest + _REAL_PROGRESS else failures + 1
            furthest = max(furthest, reached())
            if failures >= patience.tries:
                raise DownloadError(f"{name}: {problem}, {failures} times in a row", "run it again later")
            if problem.asked_s > patience.longest_asked_s:
                text = f"{name}: the server asks to come back in {problem.asked_s:.0f} s"
                raise DownloadError(text, "run it again then")
            longest = min(patience.longest_wait_s, patience.first_wait_s * 2.0 ** (failures - 1))
            # With jitter, so that many clients do not return at once.
            stop.wait(max(problem.asked_s, longest * random.uniform(0.5, 1)))  # noqa: S311  not a secret
        raise DownloadError(f"{name}: not tried any more", "run it again later")

    @contextmanager
    def opened(
        self,
        url: str,
        headers: Mapping[str, str],
        body: Any = None,  # noqa: ANN401  any JSON value
        *,
        sent: Callable[[], Iterator[bytes]] | None = None,
    ) -> Iterator[httpx.Response]:
        """Send a request, follow the redirects that are allowed, and yield the answer before its body is read.

        It is a POST with a `body` of JSON, or with the content that `sent` returns anew for every attempt.

        Raises:
            TemporaryError: The server or the network faltered.
            GoneError: There is no such address.
            DownloadError: The answer is a refusal, or a redirect leads where it must not.
        """
        method = "GET" if body is None and sent is None else "POST"
        try:
            for _ in range(_MOST_REDIRECTS + 1):
                with self.connections.stream(
                    method, url, headers=headers, json=body, content=sent and sent()
                ) as response:
                    if not response.has_redirect_location:
                        _refuse_failure(response, url)
                        yield response
                        return
                    url = redirected(url, response.headers["location"])
            raise DownloadError(f"{shown_url(url)}: redirects without end")
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise DownloadError(f"{shown_url(url)}: not an address: {error}") from error
        except httpx.RequestError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                advice = "if a firewall inspects https, set SSL_CERT_FILE to your organisation's certificates"
                raise DownloadError(f"{shown_url(url)}: its certificate is not trusted", advice) from error
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__).lower()
            raise TemporaryError(f"{kind}: {error}".rstrip(": ")) from error

    def steadily(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """Pass chunks on as long as they keep coming at a speed that leads anywhere."""
        began, count = time.monotonic(), 0
        for chunk in chunks:
            count += len(chunk)
            yield chunk
            elapsed = time.monotonic() - began
            if elapsed > self.patience.read_s:
                if count < self.patience.slowest * elapsed:
                    raise TemporaryError(f"only {count} bytes came in {elapsed:.0f} s")
                began, count = time.monotonic(), 0


def _refuse_failure(response: httpx.Response, url: str) -> None:
    code = response.status_code
    if response.is_success or code == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
        return
    text = f"the server answered {code} {response.reason_phrase}".rstrip()
    if code in _TEMPORARY:
        asked = response.headers.get("retry-after", "")
        raise TemporaryError(text, float(asked) if asked.isdecimal() else 0.0)  # of a date nothing is known
    if code in {httpx.codes.NOT_FOUND, httpx.codes.GONE}:
        raise GoneError(f"{shown_url(url)}: {text}", "it may have been moved or withdrawn")
    if code == httpx.codes.PRECONDITION_FAILED:
        raise DownloadError(f"{shown_url(url)}: changed while it was fetched", "run it again")
    raise DownloadError(f"{shown_url(url)}: {text}", "check that it is open to you")


def refuse_offline(name: str, advice: str) -> None:
    """Refuse to use the network where WSISEG_OFFLINE is set; `advice` says what to do without it."""
    if os.environ.get("WSISEG_OFFLINE", "") not in {"", "0"}:
        raise DownloadError(f"{name}: not fetched, as WSISEG_OFFLINE is set", advice)


def redirected(url: str, location: str) -> str:
    """Return the address that the `Location` header of an answer from `url` leads to.

    It must be https, or lead from plain http to the same host; and a server of the internet may not send us to an
    address of a private network, of this machine, or to a file.

    Raises:
        DownloadError: The redirect is refused.
    """
    advice = "the server or a proxy on the way is not to be trusted: check the address and the proxy settings"
    try:
        target = urljoin(url, location)
        here, there = urlsplit(url), urlsplit(target)
        is_same_host = (there.hostname, there.port) == (here.hostname, here.port)
    except ValueError as error:
        raise DownloadError(f"{shown_url(url)}: redirects to a broken address", advice) from error
    if there.scheme != "https" and not (there.scheme == here.scheme == "http" and is_same_host):
        raise DownloadError(f"{shown_url(url)}: redirects to {shown_url(target)}, which is not https", advice)
    if not is_same_host and is_private(there.hostname or "") and not is_private(here.hostname or ""):
        raise DownloadError(f"{shown_url(url)}: redirects to {shown_url(target)}, a private address", advice)
    return target


def is_private(host: str) -> bool:
    """Tell whether a host name or address lies outside the public internet, by any of its addresses.

    A name that cannot be resolved here (a proxy resolves it) counts as public unless it has no dot.
    """
    if not re.search("[.:]", host):
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(not ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_global for entry in found)


def shown(text: str) -> str:
    """Return a foreign text as it may stand in a message: short and on one line."""
    short = text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"  # noqa: PLR2004  a line's width
    return short.encode("unicode_escape").decode("ascii")


def shown_url(url: str) -> str:
    """Return an address as it may stand in a message: without user, password, token, query or identifiers of DICOM."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "a broken address"
    return shown(f"{parts.scheme}://{parts.hostname or ''}{port}{without_identifiers(parts.path)}")
