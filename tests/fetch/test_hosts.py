import pytest

from wsiseg.fetch.connection import is_private, redirected
from wsiseg.run.errors import DownloadError


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
