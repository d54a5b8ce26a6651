"""A wheel from the package index that the user's pip is set to, with pip or, where there is none, over plain HTTP."""

import configparser
import html.parser
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from wsiseg.fetch.connection import open_client, read_text, safe_name, shown_url
from wsiseg.fetch.http import Checksum, Remote, download
from wsiseg.fetch.patience import Patience
from wsiseg.run.errors import DownloadError

_DEFAULT_INDEX = "https://pypi.org/simple"
_PIP_S = 120
_MOST_BYTES = 64 << 20
# PEP 691; an older mirror serves PEP 503 pages, which are HTML
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


def fetch_wheel(project: str, version: str, folder: Path, patience: Patience) -> Path:
    """Fetch a pure Python wheel.

    Args:
        project: Its name on the index.
        version: Exactly this one.
        folder: Where the wheel goes.
        patience: How often and how long to try.

    Returns:
        The wheel.

    Raises:
        DownloadError: No index has it, or none can be reached.
    """
    if importlib.util.find_spec("pip") is not None:
        return _fetch_with_pip(project, version, folder)
    problem = DownloadError("no package index is known", "set PIP_INDEX_URL")
    for index in index_urls():
        try:
            return _fetch_over_http(index, project, version, folder, patience)
        except DownloadError as error:
            problem = error
    raise problem


def _fetch_with_pip(project: str, version: str, folder: Path) -> Path:
    """Let pip download it: pip knows the user's index, proxy and certificates. The Python version does not matter."""
    options = ["--quiet", "--no-deps", "--no-input", "--only-binary", ":all:", "--ignore-requires-python"]
    options += ["--timeout", "10", "--retries", "1"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), f"{project}=={version}"]
    advice = "check the index that pip is set to (PIP_INDEX_URL or pip config)"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"{project} {version}: pip found no package index in {_PIP_S} s", advice) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        last = [line for line in done.stderr.splitlines() if line.startswith("ERROR")][-1:]
        raise DownloadError(
            f"{project} {version}: pip could not get it: {''.join(last)[7:] or 'no reason given'}", advice
        )
    return wheels[0]


def index_urls() -> list[str]:
    """Return the package indexes that the user has set for pip or uv, else PyPI; only those that HTTP reaches."""
    stated = [os.environ.get(name, "") for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL")]
    configured, more = _pip_settings()
    first = next((url for url in [*stated, configured] if url), _DEFAULT_INDEX)
    urls = [first, *os.environ.get("PIP_EXTRA_INDEX_URL", more).split()]
    return [url for url in urls if urlsplit(url).scheme in {"http", "https"}]


def _pip_settings() -> tuple[str, str]:
    """Read `index-url` and `extra-index-url` from pip's configuration files; later files win."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    files = [Path("/etc/pip.conf"), Path.home() / ".pip" / "pip.conf", home / "pip" / "pip.conf"]
    files += [Path(os.environ.get("APPDATA", ".")) / "pip" / "pip.ini"] if os.name == "nt" else []
    files += [Path(sys.prefix) / name for name in ("pip.conf", "pip.ini")]
    files += [Path(os.environ["PIP_CONFIG_FILE"])] if "PIP_CONFIG_FILE" in os.environ else []
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read(files, encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise DownloadError(f"pip's settings cannot be read: {error}", "mend them or set PIP_INDEX_URL") from error
    section = dict(parser["global"]) if parser.has_section("global") else {}
    return section.get("index-url", ""), section.get("extra-index-url", "")


def _fetch_over_http(index: str, project: str, version: str, folder: Path, patience: Patience) -> Path:
    page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', project).lower()}/"
    with open_client(patience) as client:
        text = read_text(client, page, patience, accept=_ACCEPT)
        for name, url, sha256 in _listed(text, page):
            if name.startswith(f"{project}-{version}-") and name.endswith("-none-any.whl"):
                checksum = Checksum("sha256", sha256) if sha256 else None
                wheel = folder / safe_name(name)
                download(client, Remote(name, (url,), checksum=checksum, most=_MOST_BYTES), wheel, patience)
                return wheel
    raise DownloadError(f"{shown_url(page)}: has no wheel of {project} {version}", "set PIP_INDEX_URL to another index")


def _listed(text: str, page: str) -> Iterator[tuple[str, str, str]]:
    """Yield name, address and sha256 (or nothing) of the files on a simple page, JSON (PEP 691) or HTML (PEP 503)."""
    try:
        files = json.loads(text)["files"]
        entries = [(file["filename"], file["url"], file.get("hashes", {}).get("sha256", "")) for file in files]
    except (json.JSONDecodeError, RecursionError, KeyError, TypeError, AttributeError):
        parser = _Links()
        parser.feed(text)
        entries = [_link(href) for href in parser.hrefs]
    for name, url, sha256 in entries:
        yield str(name), urljoin(page, str(url)), str(sha256)


class _Links(html.parser.HTMLParser):
    """Collect the addresses that a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note a link."""
        if tag == "a":
            self.hrefs += [value for key, value in attrs if key == "href" and value]


def _link(href: str) -> tuple[str, str, str]:
    url, fragment = urldefrag(href)
    sha256 = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
    return unquote(urlsplit(url).path.rpartition("/")[2]), url, sha256
