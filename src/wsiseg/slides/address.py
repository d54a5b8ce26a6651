"""Addresses of slides that lie elsewhere: `s3://BUCKET/KEY`, `gs://BUCKET/KEY` and `https://HOST/PATH`.

A key is taken as it is; a web address may hold escapes, and a query, which may be a signature and is never shown.
"""

import hashlib
import re
from pathlib import Path
from urllib.parse import unquote

from wsiseg.config.predict import LOCAL
from wsiseg.run.errors import UsageError
from wsiseg.slides.formats import ONE_FILE

_BEGINNING = re.compile(r"(s3|gs|https?)://([^/?#]*)")
_MOST_NAME_BYTES = 200


def is_address(text: str) -> bool:
    """Tell whether what names a slide is an address rather than a path."""
    return _BEGINNING.match(text) is not None


def parts_of(address: str) -> tuple[str, str, str]:
    """Return the scheme of an address, its bucket or host, and the key or the path on the host, without a query."""
    scheme, _, rest = bare(address).partition("://")
    host, _, key = rest.partition("/")
    return scheme, host, key


def bare(address: str) -> str:
    """Return an address as it may be shown and kept: without a login, and of the web without its query."""
    without_login = re.sub(r"(?<=://)[^/]*@", "", address)
    return re.sub(r"[?#].*", "", without_login, flags=re.DOTALL) if address.startswith("http") else without_login


def place_of(address: str) -> Path:
    """Return where a slide that is fetched lies in a cache, whatever the query of its address.

    Raises:
        UsageError: It is no address of a slide in one file, holds a login, or is not safe.
    """
    scheme, host, key = parts_of(address)
    name = (unquote(key) if scheme.startswith("http") else key).rpartition("/")[2]
    has_login = re.match(r"\w+://[^/?#]*@", address) is not None
    is_safe = scheme != "http" or re.sub(r":\d+$", "", host) in LOCAL
    is_name = re.search(r"[\\\x00-\x1f\x7f]", name) is None and len(name.encode()) <= _MOST_NAME_BYTES
    if has_login or not (is_safe and is_name and host and Path(name).suffix.lower() in ONE_FILE):
        text = f"{bare(address)}: not the address of a slide in one file, as s3://BUCKET/a.svs, gs:// or https://"
        raise UsageError(text, "give such an address, without a login in it, or the file itself")
    return Path(hashlib.sha256(bare(address).encode()).hexdigest()[:16]) / name
