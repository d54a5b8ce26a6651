"""What servers, manifests and archives call things: names safe to give a file, addresses safe to show.

No name from outside is trusted: what is not plainly a file name is refused, never repaired.
"""

import re
from urllib.parse import urlsplit

from wsiseg.run.errors import DownloadError

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_LONGEST = 200  # file systems take 255 bytes, and `.part` and the like must fit behind


def name_problem(name: str) -> str:
    """Say what is wrong with a file name that came from outside; empty where nothing is."""
    if len(name) > _LONGEST:
        return f"it has {len(name)} characters"
    if not _PLAIN.fullmatch(name):
        return "it is not made of letters, digits, dots, dashes and underscores alone"
    if name.endswith("."):
        return "it ends with a dot"
    if _RESERVED.fullmatch(name):
        return "Windows reserves it"
    return ""


def safe_name(name: str) -> str:
    """Give back a file name that came from outside.

    Raises:
        DownloadError: It could leave its folder or trouble a file system.
    """
    problem = name_problem(name)
    if problem:
        raise DownloadError(f"{shown(name)}: a file name that is refused: {problem}")
    return name


def shown(text: str) -> str:
    """Give a foreign text as it may stand in a message: short and on one line."""
    short = text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"  # noqa: PLR2004  a line's width
    return short.encode("unicode_escape").decode("ascii")


def shown_url(url: str) -> str:
    """Give an address as it may stand in a message: without user, password, token or query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "a broken address"
    return shown(f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}")
