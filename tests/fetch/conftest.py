"""The loopback server that the download tests share."""

from collections.abc import Iterator

import pytest

from making.servers import Server, serving


@pytest.fixture(scope="session")
def _running() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(_running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Give the server, empty and well-behaved."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "WSISEG_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    _running.reset()
    return _running
