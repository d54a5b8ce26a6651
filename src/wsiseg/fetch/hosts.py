"""Where a redirect may lead: never away from https, and never from the internet into a private network."""

import ipaddress
import socket
from urllib.parse import urljoin, urlsplit

from wsiseg.fetch.names import shown_url
from wsiseg.run.errors import DownloadError


def redirected(url: str, location: str) -> str:
    """Give the address that a redirect leads to.

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
    """Say whether a host name or address lies outside the public internet, by any of its addresses.

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
