"""Slides that stay in a store of objects or on a web server: each is fetched into a cache when its turn comes.

OpenSlide reads files, so a slide is fetched whole. Who may read it, the usual settings of the store say (`AWS_PROFILE`,
`GOOGLE_APPLICATION_CREDENTIALS` and the like); an address with its signature in the query brings that along.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from wsiseg.run.connection import USUAL, Client, GoneError, Patience, open_client, refuse_offline, shown_url
from wsiseg.run.download import Wanted, download, stated
from wsiseg.run.errors import DownloadError, UsageError
from wsiseg.run.pace import spoken_size
from wsiseg.run.record import Progress
from wsiseg.slides.address import bare, parts_of
from wsiseg.slides.cache import Cache
from wsiseg.slides.cohort_slide import CohortSlide

_CLOCK = "; a clock that is wrong is refused too"
_S3 = f"set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and AWS_REGION, to those of the bucket{_CLOCK}"
_GS = f"set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login{_CLOCK}"
_LOGIN = {"s3": _S3, "gs": _GS, "https": "get the address anew, as its signature may have expired"}
Signing = Callable[[httpx.Request], httpx.Request]


def check(rows: Sequence[CohortSlide], patience: Patience = USUAL) -> None:
    """Ask for a slide of every bucket and server, so that a wrong login stops a run before it begins.

    Raises:
        UsageError: The extra that it needs is not installed.
        DownloadError: A server does not answer, or does not let us in, or WSISEG_OFFLINE is set.
    """
    for row in {parts_of(row.address)[:2]: row for row in rows if row.address}.values():
        with suppress(GoneError):
            asked(row, patience)


def fetch(row: CohortSlide, cache: Cache, progress: Progress, patience: Patience = USUAL) -> None:
    """Fetch a slide to `row.path` in the cache, which must be kept for it; one that did not change stays.

    Raises:
        GoneError: There is no such slide.
        DownloadError: It does not arrive, or does not fit.
        OutputError: It cannot be written.
    """
    with _opened(row.address, patience) as (client, url):
        size, version = _asked(client, url)
        cache.begin(row.path.parent, f"{version}\n{size}" if version else None)
        wanted = Wanted(row.path, (url,), size, version=version if version.startswith('"') else "")
        if not wanted.is_complete():
            progress.note(f"{row.slide}: {spoken_size(wanted.rest)} to fetch from {bare(row.address)}")
            cache.make_room(row.path.parent, wanted.rest, patience.room_s)
            download(client, wanted)
            cache.trimmed(row.path.parent)  # others may have come meanwhile


def asked(row: CohortSlide, patience: Patience = USUAL) -> tuple[int, str]:
    """Return the size of a slide in bytes, and what tells its versions apart, if anything does.

    Raises:
        GoneError: There is no such slide.
        DownloadError: Its server does not answer, or does not let us in.
    """
    with _opened(row.address, patience) as (client, url):
        return _asked(client, url)


def _asked(client: Client, url: str) -> tuple[int, str]:
    def attempt() -> tuple[int | None, str]:
        with client.opened(url, {"Range": "bytes=0-0"}) as response:
            return stated(response)[1], response.headers.get("etag") or response.headers.get("last-modified", "")

    size, version = client.patiently(attempt, shown_url(url))
    if size is None:
        raise DownloadError(f"{shown_url(url)}: the server does not say how large it is", "get the file another way")
    return size, version


@contextmanager
def _opened(address: str, patience: Patience) -> Iterator[tuple[Client, str]]:
    """Open connections to where a slide lies, signed for its host alone; yield them with its address there."""
    scheme, name = parts_of(address)[0], bare(address)
    refuse_offline(name, "fetch it where there is a network, and name the file")
    stores = {"s3": _at_amazon, "gs": _at_google}
    url, signing = stores[scheme](address) if scheme in stores else (address, None)
    try:
        with open_client(patience, signing) as client:
            yield client, url
    except GoneError as error:
        raise GoneError(f"{name}: there is no such file", "it may have been moved or deleted") from error
    except DownloadError as error:
        if re.search(r"answered (301|400|401|403)\b", error.message):
            raise DownloadError(error.message.replace(shown_url(url), name), _LOGIN.get(scheme, "")) from error
        raise


def _at_amazon(address: str) -> tuple[str, Signing | None]:
    """Return the address of a file in S3, and what signs requests for it, as AWS's own tools are set."""
    try:
        from botocore import auth  # noqa: PLC0415  an extra
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415  the same
        from botocore.exceptions import BotoCoreError  # noqa: PLC0415  the same
    except ImportError as error:
        raise _extra("s3") from error
    _, bucket, key = parts_of(address)
    try:
        store, login, region = _amazon()
        url = str(store.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key}))  # signed by nobody yet
    except (BotoCoreError, ValueError) as error:
        raise DownloadError(f"{bare(address)}: no login can be made: {error}", _S3) from error

    def headers(request: httpx.Request) -> dict[str, str]:
        made = AWSRequest(request.method, str(request.url))
        auth.S3SigV4Auth(login.get_frozen_credentials(), "s3", region).add_auth(made)
        return dict(made.headers)

    return url, _signing(url, headers) if login else None


@lru_cache(maxsize=1)
def _amazon() -> tuple[Any, Any, str]:
    """Return what knows the addresses of S3, the login if there is one, and the region; slow to make, and so kept."""
    from botocore import UNSIGNED  # noqa: PLC0415  an extra
    from botocore.config import Config  # noqa: PLC0415  the same
    from botocore.session import Session  # noqa: PLC0415  the same

    session = Session()
    region = session.get_config_variable("region") or "us-east-1"
    store = session.create_client("s3", region, config=Config(signature_version=UNSIGNED))
    return store, session.get_credentials(), region


def _at_google(address: str) -> tuple[str, Signing | None]:
    """Return the address of a file in Google's storage, and what signs requests for it where there is a login."""
    try:
        from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError  # noqa: PLC0415  an extra
        from google.auth.transport.requests import Request  # noqa: PLC0415  the same
    except ImportError as error:
        raise _extra("gs") from error
    _, bucket, key = parts_of(address)
    url = f"{os.environ.get('STORAGE_EMULATOR_HOST', 'https://storage.googleapis.com')}/{bucket}/{quote(key)}"
    try:
        login = _google()
        if not login.valid:
            login.refresh(Request())
    except DefaultCredentialsError:
        return url, None
    except GoogleAuthError as error:
        raise DownloadError(f"{bare(address)}: no login can be made: {error}", _GS) from error
    return url, _signing(url, lambda _: {"Authorization": f"Bearer {login.token}"})


@lru_cache(maxsize=1)
def _google() -> Any:  # noqa: ANN401  of one of many classes
    import google.auth  # noqa: PLC0415  an extra

    return google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_only"])[0]


def _signing(url: str, headers: Callable[[httpx.Request], dict[str, str]]) -> Signing:
    """Return what adds headers to requests for the host of an address, and never to where a redirect leads."""

    def signed(request: httpx.Request) -> httpx.Request:
        if request.url.netloc.decode() == urlsplit(url).netloc:
            request.headers.update(headers(request))
        return request

    return signed


def _extra(scheme: str) -> UsageError:
    return UsageError(f"{scheme}:// needs a package that is not installed", "pip install 'wsiseg[cloud]'")
