"""What tests share: the real data where they lie, and slides made on the spot."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from making.servers import Server, serving
from making.slides import write_slide

MakeSlide = Callable[..., Path]

settings.register_profile(
    "shared",
    deadline=None,  # on a busy machine a deadline fails what is right, and so does a limit for drawing
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,  # the same code has the same outcome; what chance finds, --hypothesis-profile=random looks for
)
settings.register_profile("random", settings.get_profile("shared"), derandomize=False, print_blob=True)
settings.register_profile("planted", settings.get_profile("shared"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("shared")


@pytest.fixture(scope="session")
def data() -> Path:
    """Give the folder of real slides, outlines and replies; the test is skipped where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("WSISEG_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"needs the real slides; {folder} is absent, WSISEG_TEST_DATA may name another folder")
    return folder


@pytest.fixture
def make_slide(tmp_path: Path) -> MakeSlide:
    """Give `write_slide` for names in the test's own folder: `make_slide("a.tiff", levels=[(256, 192)])`."""

    def make(name: str | Path, picture: object = None, **settings: object) -> Path:
        return write_slide(tmp_path / name, picture, **settings)  # type: ignore[arg-type]  # checked in write_slide

    return make


@pytest.fixture(scope="session")
def _running() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(_running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """Give a server on loopback, empty and well-behaved."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "WSISEG_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    _running.reset()
    return _running
