import zipfile
from pathlib import Path

import pytest

from wsiseg.fetch.demo import extract_member
from wsiseg.run.errors import DownloadError


def test_one_member_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("folder/x", b"content")
        archive.writestr("../../evil", b"evil")
    extract_member(tmp_path / "a.zip", "folder/x", tmp_path / "out", 7)
    extract_member(tmp_path / "a.zip", "../../evil", tmp_path / "deep" / "out", 7)
    assert (tmp_path / "out").read_bytes() == b"content"
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a.zip", "out"}


def test_a_bomb_is_refused_before_it_fills_the_disk(tmp_path: Path) -> None:
    bomb = tmp_path / "a.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", b"\0" * (50 << 20))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DownloadError, match="unpacks to more than the 1000 bytes"):
        extract_member(bomb, "x", tmp_path / "out", 1000)
    assert [path.name for path in tmp_path.iterdir()] == [bomb.name]


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04" + b"\0" * 50])
def test_broken_archives_are_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(DownloadError, match="a: a broken archive"):
        extract_member(tmp_path / "a", "x", tmp_path / "out", 10)


def test_a_missing_member_is_named_as_such(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("y", b"")
    with pytest.raises(DownloadError, match="lacks the file"):
        extract_member(tmp_path / "a.zip", "x", tmp_path / "out", 10)
