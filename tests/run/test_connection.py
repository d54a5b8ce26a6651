from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.fetch.manifest import name_problem
from wsiseg.run.connection import is_private, redirected, shown, shown_url
from wsiseg.run.errors import DownloadError


@given(st.text(max_size=300))
def test_a_name_that_passes_is_a_plain_file_in_its_folder(name: str) -> None:
    if not name_problem(name):
        path = Path("/folder") / name
        assert path.parent == Path("/folder")
        assert path.resolve().parent == Path("/folder")
        assert name.isascii()
        assert len(name) <= 200


@pytest.mark.parametrize(
    "name", ["TCGA-BH-A0B7-11A-03-TSC.f0571ac2.svs", "model.safetensors", "a", "CONTENT.txt", "com.svs"]
)
def test_usual_names_pass(name: str) -> None:
    assert not name_problem(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/x", "a/b", "a\\b", "C:x", "CON", "con.svs", "Lpt1.txt", "x.", "a" * 201, "\U0001f600",
     "a b\n", ".hidden", "-rf", "x\x00", "\u0661"],
)  # fmt: skip
def test_others_are_refused(name: str) -> None:
    assert name_problem(name)


def test_foreign_text_is_shown_short_and_on_one_line() -> None:
    assert shown("a\nb\x1b[31m") == "a\\nb\\x1b[31m"
    assert len(shown("x" * 10_000)) < 100


def test_addresses_are_shown_without_their_secrets() -> None:
    assert shown_url("https://me:secret@host:8080/a?token=secret#secret") == "https://host:8080/a"
    assert shown_url("https://[broken") == "a broken address"


@pytest.mark.parametrize(
    ("url", "location", "target"),
    [
        ("https://8.8.8.8/a", "https://1.1.1.1/b", "https://1.1.1.1/b"),
        ("https://8.8.8.8/a", "/b", "https://8.8.8.8/b"),
        ("http://mirror/a", "/b", "http://mirror/b"),
        ("http://mirror/a", "https://10.0.0.1/b", "https://10.0.0.1/b"),
        ("http://8.8.8.8/a", "https://1.1.1.1/b", "https://1.1.1.1/b"),
    ],
)
def test_redirects_to_https_on_the_same_side_of_the_wall_are_followed(url: str, location: str, target: str) -> None:
    assert redirected(url, location) == target


@pytest.mark.parametrize(
    ("url", "location"),
    [
        ("https://8.8.8.8/a", "http://8.8.8.8/b"),
        ("https://8.8.8.8/a", "file:///etc/passwd"),
        ("https://8.8.8.8/a", "https://127.0.0.1/b"),
        ("https://8.8.8.8/a", "https://[::1]/b"),
        ("https://8.8.8.8/a", "https://10.1.2.3/b"),
        ("https://8.8.8.8/a", "https://169.254.169.254/latest/meta-data"),
        ("https://8.8.8.8/a", "https://localhost/b"),
        ("https://8.8.8.8/a", "https://[::ffff:10.0.0.1]/b"),
        ("https://8.8.8.8/a", "https://[broken"),
        ("https://8.8.8.8/a", "https://1.1.1.1:99999999/b"),
        ("http://mirror/a", "http://other/b"),
        ("http://mirror:80/a", "http://mirror:22/b"),
    ],
)
def test_redirects_that_lead_elsewhere_are_refused(url: str, location: str) -> None:
    with pytest.raises(DownloadError, match="redirects to"):
        redirected(url, location)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("8.8.8.8", False),
        ("192.168.1.1", True),
        ("localhost", True),
        ("server", True),
        ("name.invalid", False),
        ("", True),
    ],
)
def test_what_is_private(host: str, *, expected: bool) -> None:
    assert is_private(host) == expected
