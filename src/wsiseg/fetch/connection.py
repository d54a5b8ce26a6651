"""Connections: requests that go where they may, bounded answers, and every way to fail as one of our errors.

Nothing from outside is trusted: what is not plainly a file name is refused, never repaired, and addresses are shown
without what is secret in them.
"""

import ipaddress
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from wsiseg.fetch.patience import Patience, TemporaryError, asked_s, patiently
from wsiseg.run.errors import DownloadError
from wsiseg.run.version import __version__

_MOST_REDIRECTS = 5
_MOST_ANSWER_BYTES = 64 << 20
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED_NAME = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST_NAME = 200  # file systems take 255 bytes, and `.part` and the like must fit behind


class GoneError(DownloadError):
    """The server knows no such file (404, 410)."""


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


def read_json(client: httpx.Client, url: str, patience: Patience, body: Any = None) -> Any:  # noqa: ANN401  any JSON value
    """Read a JSON answer; with a `body` the request is a POST.

    Raises:
        GoneError: There is no such address.
        DownloadError: There is no answer, or it is not JSON.
    """
    text = read_text(client, url, patience, accept="application/json", body=body)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        advice = "a login page or a proxy may stand between: open the address in a browser"
        raise DownloadError(f"{shown_url(url)}: answered with something that is not JSON", advice) from error


def read_text(client: httpx.Client, url: str, patience: Patience, *, accept: str, body: Any = None) -> str:  # noqa: ANN401  any JSON value
    """Read a short answer as text; with a `body` the request is a POST of JSON.

    Raises:
        GoneError: There is no such address.
        DownloadError: There is no answer, or an endless one.
    """
    name = shown_url(url)
    refuse_offline(name, "everything that needs no network works on files that are already there")

    def attempt() -> str:
        received = bytearray()
        with opened(client, "GET" if body is None else "POST", url, {"Accept": accept}, body) as response:
            for chunk in steadily(response.iter_bytes(), patience):
                received += chunk
                if len(received) > _MOST_ANSWER_BYTES:
                    raise DownloadError(f"{name}: answers with more than {_MOST_ANSWER_BYTES >> 20} MiB")
        return received.decode("utf-8", errors="replace")

    return patiently(attempt, name, patience, threading.Event())


@contextmanager
def opened(
    client: httpx.Client,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Any = None,  # noqa: ANN401  any JSON value
) -> Iterator[httpx.Response]:
    """Send a request, follow the redirects that are allowed, and yield the answer before its body is read.

    Raises:
        TemporaryError: The server or the network faltered.
        GoneError: There is no such address.
        DownloadError: The answer is a refusal, or a redirect leads where it must not.
    """
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
        if _is_untrusted(error):
            advice = "where a firewall opens https, set SSL_CERT_FILE to the certificates of your house"
            raise DownloadError(f"{shown_url(url)}: its certificate is not trusted", advice) from error
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


def refuse_offline(name: str, advice: str) -> None:
    """Refuse to use the network where WSISEG_OFFLINE is set; `advice` says what to do without it."""
    if os.environ.get("WSISEG_OFFLINE", "") not in {"", "0"}:
        raise DownloadError(f"{name}: not fetched, as WSISEG_OFFLINE is set", advice)


def steadily(chunks: Iterator[bytes], patience: Patience) -> Iterator[bytes]:
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


def _is_untrusted(error: BaseException) -> bool:
    """Tell whether a certificate is behind an error, however deep."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None


def redirected(url: str, location: str) -> str:
    """Return the address that a redirect leads to.

    It must be https, or lead from plain http to the same host; and a server of the internet may not send us to an
    address of a private network, of this machine, or to a file.

    Args:
        url: The address that answered.
        location: What its `Location` header says.

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
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        pass
    if "." not in host:
        return True
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(not ipaddress.ip_address(str(entry[4][0]).split("%")[0]).is_global for entry in found)


def name_problem(name: str) -> str:
    """Say what is wrong with a file name that came from outside; return nothing where it is safe."""
    if len(name) > _LONGEST_NAME:
        return f"it has {len(name)} characters"
    if not _PLAIN_NAME.fullmatch(name):
        return "it is not made of letters, digits, dots, dashes and underscores alone"
    if name.endswith("."):
        return "it ends with a dot"
    return "Windows reserves it" if _RESERVED_NAME.fullmatch(name) else ""


def safe_name(name: str) -> str:
    """Return a file name that came from outside as it is.

    Raises:
        DownloadError: It could leave its folder or trouble a file system.
    """
    problem = name_problem(name)
    if problem:
        raise DownloadError(f"{shown(name)}: a file name that is refused: {problem}")
    return name


def shown(text: str) -> str:
    """Return a foreign text as it may stand in a message: short and on one line."""
    short = text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"  # noqa: PLR2004  a line's width
    return short.encode("unicode_escape").decode("ascii")


def shown_url(url: str) -> str:
    """Return an address as it may stand in a message: without user, password, token or query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "a broken address"
    return shown(f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}")
