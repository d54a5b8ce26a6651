"""Slides of an archive: a series fetched into a folder that stays within bounds, and DICOM files stored.

Source: DICOM PS3.18, 10.4 (retrieve), 10.5 (store) and 10.6 (search). What arrives lies under hashes of identifiers, so
that neither names of files nor messages lead to a patient. An instance is fetched whole or not at all, and those that
are there are not fetched again.
"""

import netrc
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import httpx
from pydantic import RootModel

from wsiseg.config.predict import LOCAL
from wsiseg.run.connection import USUAL, Client, Patience, TemporaryError, open_client, refuse_offline, shown_url
from wsiseg.run.errors import DownloadError, UsageError, counted
from wsiseg.run.outputs import written_whole
from wsiseg.run.record import Progress
from wsiseg.slides.cache import Cache
from wsiseg.slides.dicom import NOT_SLIDES, dicom_file, hashed

_ADDRESS = re.compile(r"dicomweb://(?P<root>[^@?#]+?)/studies/(?P<study>\d[\d.]*)(?:/series/(?P<series>\d[\d.]*))?/?")
_AT_ONCE = 4
_CHUNK = 1 << 20
_MOST_HEAD_BYTES = 1 << 16
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_STORED = 'multipart/related; type="application/dicom"; boundary='
_LOGIN = "set WSISEG_DICOMWEB_USER and WSISEG_DICOMWEB_PASSWORD, or WSISEG_DICOMWEB_TOKEN, or write ~/.netrc"
# Tags as DICOM JSON names them.
_IMAGE_TYPE, _INSTANCE, _SERIES, _COUNT, _FAILED = "00080008", "00080018", "0020000E", "00201209", "00081198"


class _Found(RootModel[list[dict[str, Any]]]):
    """The answer to a search: an object of DICOM JSON for each thing found."""

    def texts(self, tag: str) -> list[list[str]]:
        """Return the values of an attribute of everything that was found."""
        return [[str(value) for value in one.get(tag, {}).get("Value", ())] for one in self.root]


class Series(NamedTuple):
    """Where a series is."""

    root: str  # address of the DICOMweb service
    study: str
    series: str | None  # None for the only series of slides in the study

    @classmethod
    def of(cls, address: str) -> Self:
        """Read an address `dicomweb://HOST/PATH/studies/UID/series/UID`; other machines are asked by https.

        Raises:
            UsageError: It is not one.
        """
        found = _ADDRESS.fullmatch(address)
        if found is None:
            text = "a DICOMweb address of another form than dicomweb://HOST/PATH/studies/UID/series/UID"
            raise UsageError(text, "copy both identifiers from the archive; a login does not belong into an address")
        host = urlsplit(f"//{found['root']}").hostname
        return cls(f"{'http' if host in LOCAL else 'https'}://{found['root']}", found["study"], found["series"])


@contextmanager
def open_archive(root: str, patience: Patience = USUAL) -> Iterator[Client]:
    """Open connections to a DICOMweb service, with the credentials of the environment or of netrc for its host alone.

    Raises:
        DownloadError: The network settings of the environment cannot be used, or WSISEG_OFFLINE is set.
    """
    refuse_offline(shown_url(root), "give the files of the slide")
    host = urlsplit(root).netloc
    header = _authorization(urlsplit(root).hostname or "")

    def signed(request: httpx.Request) -> httpx.Request:
        if header and request.url.netloc.decode() == host:  # never to where a redirect leads
            request.headers["Authorization"] = header
        return request

    with open_client(patience, signed) as client:
        yield client


def _authorization(host: str) -> str:
    """Return what the environment, or else netrc, says to authorize with at a host; empty where nothing does."""
    user, password, token = (os.environ.get(f"WSISEG_DICOMWEB_{name}", "") for name in ("USER", "PASSWORD", "TOKEN"))
    if token:
        return f"Bearer {token}"
    if not user:
        try:
            user, _, password = netrc.netrc(os.environ.get("NETRC")).authenticators(host) or ("", "", "")
        except FileNotFoundError:
            return ""
        except (OSError, netrc.NetrcParseError) as error:
            raise DownloadError(f"the netrc file cannot be used: {error}", _LOGIN) from error
    request = httpx.Request("GET", f"https://{host}")
    return next(httpx.BasicAuth(user, password or "").auth_flow(request)).headers["Authorization"] if user else ""


def check(client: Client, root: str) -> None:
    """Ask the service something easy.

    Raises:
        DownloadError: It does not answer, or does not let us in.
    """
    _search(client, f"{root}/studies?limit=1")


def _search(client: Client, url: str) -> _Found:
    """Search, with advice where the login is refused."""
    try:
        return client.read(url, _Found)
    except DownloadError as error:
        if " 401 " in error.message or " 403 " in error.message:
            raise DownloadError(error.message, _LOGIN) from error
        raise


def fetch_series(addresses: Sequence[str], cache: Cache, progress: Progress, patience: Patience = USUAL) -> list[Path]:
    """Fetch the slides of some series and return a file of each; other slides leave the cache as room is needed.

    Args:
        addresses: As `Series.of` reads them.
        cache: Where each series has a folder of its own, in use until the cache is closed.
        progress: Is told how many files come.
        patience: How long to try.

    Raises:
        UsageError: An address is not one, or names a study that does not hold one series of slides.
        DownloadError: A series is not there, is not whole, is not a slide, is too large, or does not arrive.
        OutputError: The folder cannot be written.
    """
    found = list[Path]()
    for place in [Series.of(address) for address in addresses]:
        with open_archive(place.root, patience) as client:
            found.append(_fetch(client, _named(client, place), cache, progress))
    return found


def _named(client: Client, place: Series) -> Series:
    """Return the series itself where only its study is named."""
    if place.series is not None:
        return place
    found = _search(client, f"{place.root}/studies/{place.study}/series?Modality=SM").texts(_SERIES)
    if len(found) != 1:
        text = f"study {hashed(place.study)}: holds {len(found)} series of slides"
        raise UsageError(text, "name a series, as dicomweb://HOST/PATH/studies/UID/series/UID")
    return place._replace(series=found[0][0])


def _fetch(client: Client, place: Series, cache: Cache, progress: Progress) -> Path:
    """Fetch a series into its folder of the cache."""
    name = hashed(place.series or "")
    wanted = _instances(client, place, f"series {name}")
    folder = cache.folder / name
    cache.keep(folder)
    cache.begin(folder, "\n".join(map(hashed, wanted)))
    files = [folder / f"{name}{f'-{number}' if number else ''}.dcm" for number in range(len(wanted))]
    missing = [(uid, path) for uid, path in zip(wanted, files, strict=True) if not path.is_file()]
    progress.note(f"series {name}: {counted(len(missing), 'file')} to fetch, {len(files) - len(missing)} there")
    with ThreadPoolExecutor(_AT_ONCE, "fetcher") as pool:
        base = f"{place.root}/studies/{place.study}/series/{place.series}/instances"
        work = [pool.submit(_retrieve, client, f"{base}/{uid}", path, cache.most_bytes) for uid, path in missing]
        try:
            for one in work:
                one.result()
                cache.make_room(folder)
        finally:
            pool.shutdown(cancel_futures=True)
    return _checked(files, name)


def _checked(files: Sequence[Path], name: str) -> Path:
    """Return a file of the slide once it is known that its finest level is there."""
    images = [one for one in map(dicom_file, files) if one is not None and not one.kind]
    if not images:
        raise DownloadError(f"series {name}: not a slide", "name a series of whole-slide images")
    if all(one.is_resampled for one in images):
        raise DownloadError(f"series {name}: half a series: its finest level is missing", "complete it in the archive")
    return images[0].path


def _instances(client: Client, place: Series, name: str) -> list[str]:
    """List the instances of a series but for labels and the like, as far as the archive says which these are."""
    series = f"{place.root}/studies/{place.study}/series"
    stated = _search(client, f"{series}?SeriesInstanceUID={place.series}&includefield={_COUNT}").texts(_COUNT)
    found = _search(client, f"{series}/{place.series}/instances?includefield={_IMAGE_TYPE}")
    uids = ["".join(values) for values in found.texts(_INSTANCE)]
    if not uids:
        raise DownloadError(f"{name}: not in the archive", "check both identifiers")
    if any(values[0] != str(len(uids)) for values in stated if values):
        text = f"{name}: half a series: the archive lists {len(uids)} of {stated[0][0]} instances"
        raise DownloadError(text, "try again when all have arrived there")
    return sorted(uid for uid, kind in zip(uids, found.texts(_IMAGE_TYPE), strict=True) if not {*NOT_SLIDES} & {*kind})


def _retrieve(client: Client, url: str, path: Path, most_bytes: float) -> None:
    """Fetch an instance, whole or not at all."""

    def attempt() -> None:
        with (
            client.opened(url, {"Accept": _ACCEPT}) as response,
            written_whole(path) as partial_file,
            partial_file.open("wb") as file,
        ):
            size = 0
            boundary = re.search(r'boundary="?([^";]+)', response.headers.get("content-type", ""))
            for chunk in _first_part(client.steadily(response.iter_bytes(_CHUNK)), boundary[1] if boundary else None):
                size += len(chunk)
                if size > most_bytes:
                    raise DownloadError(f"{path.stem}: more than the cache may hold", "set a higher cache-gb")
                file.write(chunk)

    client.patiently(attempt, path.stem)


def _first_part(chunks: Iterator[bytes], boundary: str | None) -> Iterator[bytes]:
    """Yield the content of the first part of a multipart message, or the whole of what is none."""
    if boundary is None:
        yield from chunks
        return
    held, end = b"", b"\r\n--" + boundary.encode()
    try:
        while b"\r\n\r\n" not in held:
            if len(held) > _MOST_HEAD_BYTES:
                raise DownloadError("the archive sends something else than DICOM files", "check the address")
            held += next(chunks)
        held = held.partition(b"\r\n\r\n")[2]
        while end not in held:
            yield held[: -len(end)]
            held = held[-len(end) :] + next(chunks)
    except StopIteration:
        raise TemporaryError("ended in the middle") from None
    yield held.partition(end)[0]


def store(client: Client, root: str, path: Path) -> None:
    """Store a DICOM file; one that is there already stays as it is.

    Raises:
        DownloadError: The archive does not answer, or does not take it.
    """
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    headers = {
        "Content-Type": f"{_STORED}{boundary}",
        "Content-Length": str(len(head) + path.stat().st_size + len(tail)),
        "Accept": "application/dicom+json",
    }

    def content() -> Iterator[bytes]:
        yield head
        with path.open("rb") as file:
            yield from iter(partial(file.read, _CHUNK), b"")
        yield tail

    def attempt() -> bool:
        with client.opened(f"{root}/studies", headers, sent=content) as response:
            return not _Found.model_validate_json(b"[%b]" % response.read()).texts(_FAILED)[0]

    if not client.patiently(attempt, path.name):
        raise DownloadError(f"{path.name}: the archive does not take it", "see what its log says")
