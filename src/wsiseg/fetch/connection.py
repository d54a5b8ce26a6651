"""Connections: requests that go where they may, bounded answers, and every way to fail as one of our errors."""

import json
import os
import re
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from wsiseg.fetch.hosts import redirected
from wsiseg.fetch.names import shown_url
from wsiseg.fetch.patience import Patience, TemporaryError, asked_s, patiently
from wsiseg.run.errors import DownloadError
from wsiseg.run.version import __version__

_MOST_REDIRECTS = 5
_MOST_ANSWER_BYTES = 64 << 20
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}


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
        with opened(client, method, url, {"Accept": accept}, body) as response:
            for chunk in steadily(response.iter_bytes(), patience):
                received += chunk
                if len(received) > _MOST_ANSWER_BYTES:
                    raise DownloadError(f"{name}: answers with more than {_MOST_ANSWER_BYTES >> 20} MiB")
        return received.decode("utf-8", errors="replace")

    return patiently(attempt, name, patience, stop or threading.Event())


@contextmanager
def opened(
    client: httpx.Client,
    method: str,
    url: str,
    headers: Mapping[str, str],
    body: Any = None,  # noqa: ANN401  any JSON value
) -> Iterator[httpx.Response]:
    """Send a request, follow the redirects that are allowed, and give the answer before its body is read.

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
    """Say whether a certificate is behind an error, however deep."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
        cause = cause.__cause__ or cause.__context__
    return cause is not None
