import hashlib
import ssl
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import BaseModel

from making.servers import FAULTS, Server, made_file, serving, write_certificate
from making.waiting import wait_until
from wsiseg.run.connection import GoneError, Patience, open_client
from wsiseg.run.download import Checksum, Wanted, download
from wsiseg.run.errors import DownloadError, OutputError

QUICK = Patience(tries=4, first_wait_s=0.001, longest_wait_s=0.005, read_s=20, connect_s=20, slowest=1)
CONTENT = made_file(0, 300_000)


def wanted(server: Server, path: Path, **facts: object) -> Wanted:
    known = {"size": len(CONTENT.content), "checksum": Checksum("md5", CONTENT.md5)}
    return Wanted(path, (f"{server.url}/data/{CONTENT.id}",), **{**known, **facts})  # type: ignore[arg-type]  # as named


def fetch(what: Wanted, patience: Patience = QUICK) -> None:
    with open_client(patience) as client:
        download(client, what)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "html"])
def test_a_file_arrives_whole_after_any_single_fault(server: Server, tmp_path: Path, fault: str) -> None:
    server.add(CONTENT)
    server.fault = lambda _, number: fault if number == 1 else "ok"
    fetch(wanted(server, tmp_path / "a.svs"), replace(QUICK, read_s=0.3) if fault == "stall" else QUICK)
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content
    assert [path.name for path in tmp_path.iterdir()] == ["a.svs"]


@pytest.mark.parametrize("fault", ["500", "reset_early", "garbage", "corrupt", "429"])
def test_a_server_that_never_gives_it_is_given_up(server: Server, tmp_path: Path, fault: str) -> None:
    server.add(CONTENT)
    server.fault = lambda _path, _number: fault
    with pytest.raises(DownloadError, match="4 times in a row"):
        fetch(wanted(server, tmp_path / "a.svs"))
    assert not (tmp_path / "a.svs").exists()
    assert sum(server.requests.values()) == QUICK.tries


def test_a_download_that_breaks_off_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    server.fault = lambda _, number: "cut" if number <= 3 else "ok"
    fetch(wanted(server, tmp_path / "a.svs"))
    assert server.sent[CONTENT.name] == len(CONTENT.content)


def test_a_web_page_in_place_of_a_slide_is_refused_at_once(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    server.fault = lambda _path, _number: "html"
    with pytest.raises(DownloadError, match="a web page came in place of the file"):
        fetch(wanted(server, tmp_path / "a.svs"))
    assert sum(server.requests.values()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_file_never_replaces_a_right_one(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    server.fault = lambda _path, _number: "corrupt"
    (tmp_path / "a.svs").write_bytes(b"what stood there")
    with pytest.raises(DownloadError, match="wrong md5"):
        fetch(wanted(server, tmp_path / "a.svs"))
    assert (tmp_path / "a.svs").read_bytes() == b"what stood there"


def test_a_part_of_another_file_is_thrown_away(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    (tmp_path / "a.svs.part").write_bytes(b"something else" * 1000)
    fetch(wanted(server, tmp_path / "a.svs"))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content


@pytest.mark.parametrize("size", [0, len(CONTENT.content), len(CONTENT.content) + 50])
def test_a_part_of_any_length_is_put_right(server: Server, tmp_path: Path, size: int) -> None:
    server.add(CONTENT)
    (tmp_path / "a.svs.part").write_bytes((CONTENT.content + b"x" * 50)[:size])
    fetch(wanted(server, tmp_path / "a.svs"))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content


@pytest.mark.parametrize(
    ("start", "whole", "reason"),
    [
        (99_999, len(CONTENT.content), "another part of the file"),
        (100_001, len(CONTENT.content), "another part of the file"),
        (None, None, "another part of the file"),
        (100_000, len(CONTENT.content) - 1, "announced 299999 bytes rather than 300000"),
        (100_000, 2 * len(CONTENT.content), "announced 600000 bytes rather than 300000"),
    ],
)
def test_another_range_than_was_asked_for_is_refused(
    server: Server, tmp_path: Path, start: int | None, whole: int | None, reason: str
) -> None:
    rest = CONTENT.content[start:] if start else CONTENT.content[100_000:]
    stated = {"Content-Range": f"bytes {start}-{len(CONTENT.content) - 1}/{whole}"} if start else {}
    kind = {"Content-Type": "application/octet-stream"}
    server.pages[f"/data/{CONTENT.id}"] = lambda handler: handler.answer(206, rest, {**kind, **stated})
    (tmp_path / "a.svs.part").write_bytes(CONTENT.content[:100_000])
    arrived: list[int] = []
    with open_client(replace(QUICK, tries=1)) as client, pytest.raises(DownloadError, match=reason):
        download(client, wanted(server, tmp_path / "a.svs"), arrived.append)
    assert not any(count > 0 for count in arrived)
    assert not (tmp_path / "a.svs").exists()


def test_a_resumed_download_whose_server_answers_another_range_begins_anew(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    server.fault = lambda _path, _number: "wrong_range"
    (tmp_path / "a.svs.part").write_bytes(CONTENT.content[:100_000])
    fetch(wanted(server, tmp_path / "a.svs"))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content
    assert sum(server.requests.values()) == 2


def test_the_whole_file_in_place_of_its_rest_is_taken(server: Server, tmp_path: Path) -> None:
    headers = {"Content-Type": "application/octet-stream", "Content-Range": "bytes 0-299999/300000"}
    server.pages[f"/data/{CONTENT.id}"] = lambda handler: handler.answer(206, CONTENT.content, headers)
    (tmp_path / "a.svs.part").write_bytes(CONTENT.content[:100_000])
    fetch(wanted(server, tmp_path / "a.svs"))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content
    assert sum(server.requests.values()) == 1


def test_a_complete_part_costs_no_request(server: Server, tmp_path: Path) -> None:
    (tmp_path / "a.svs.part").write_bytes(CONTENT.content)
    fetch(wanted(server, tmp_path / "a.svs"))
    assert not server.requests
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content


def test_without_a_size_a_sha256_is_enough_to_resume(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    (tmp_path / "a.svs.part").write_bytes(CONTENT.content[:100_000])
    checksum = Checksum("sha256", hashlib.sha256(CONTENT.content).hexdigest().upper())
    fetch(wanted(server, tmp_path / "a.svs", size=None, checksum=checksum))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content
    assert server.sent[CONTENT.name] == len(CONTENT.content) - 100_000


def test_without_a_checksum_nothing_is_resumed(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    (tmp_path / "a.svs.part").write_bytes(b"who knows")
    fetch(wanted(server, tmp_path / "a.svs", size=None, checksum=None))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content


def test_more_bytes_than_a_file_may_have_are_refused(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    with pytest.raises(DownloadError, match="more than 1000 bytes"):
        fetch(wanted(server, tmp_path / "a.svs", size=None, checksum=None, most=1000))
    assert not (tmp_path / "a.svs").exists()


def test_the_next_address_is_tried_where_one_fails(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    urls = (f"{server.url}/data/none", f"{server.url}/{CONTENT.id}/{CONTENT.name}")
    fetch(Wanted(tmp_path / "a", urls, None, Checksum("md5", CONTENT.md5)))
    assert (tmp_path / "a").read_bytes() == CONTENT.content


def test_a_missing_file_is_gone_and_not_asked_for_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(GoneError, match="404"):
        fetch(wanted(server, tmp_path / "a.svs"))
    assert sum(server.requests.values()) == 1
    assert list(tmp_path.iterdir()) == []


def test_retry_after_is_honoured(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    server.pages["/busy"] = lambda handler: (
        handler.answer(429, b"", {"Retry-After": "1"}) if server.requests["/busy"] == 1 else handler.give(CONTENT, "ok")
    )
    began = time.monotonic()
    fetch(Wanted(tmp_path / "a.svs", (f"{server.url}/busy",), None, Checksum("md5", CONTENT.md5)))
    assert 1 <= time.monotonic() - began < 30


def test_a_server_that_asks_for_an_hour_is_given_up(server: Server, tmp_path: Path) -> None:
    server.pages["/busy"] = lambda handler: handler.answer(503, b"", {"Retry-After": "3600"})
    with pytest.raises(DownloadError, match="come back in 3600 s"):
        fetch(Wanted(tmp_path / "a.svs", (f"{server.url}/busy",)))


def test_a_server_that_drips_is_given_up(server: Server, tmp_path: Path) -> None:
    def drip(handler: object) -> None:
        handler.head(0, "ok", made_file(0, 10_000), 10_000)  # type: ignore[attr-defined]  # the handler of the server
        for _ in range(3000):  # for a minute
            handler.wfile.write(b"x")  # type: ignore[attr-defined]  # the same
            time.sleep(0.02)

    server.pages["/drip"] = drip
    patience = Patience(tries=1, read_s=2, slowest=1000)
    began = time.monotonic()
    with pytest.raises(DownloadError, match=r"only \d+ bytes came"):
        fetch(Wanted(tmp_path / "a.svs", (f"{server.url}/drip",)), patience)
    assert time.monotonic() - began < 30


def test_a_stopped_download_keeps_what_has_arrived(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    stop = threading.Event()
    with open_client(QUICK) as client, pytest.raises(DownloadError, match="not tried any more"):
        download(client, wanted(server, tmp_path / "a.svs"), lambda _: stop.set(), stop)
    assert 0 < (tmp_path / "a.svs.part").stat().st_size < len(CONTENT.content)
    fetch(wanted(server, tmp_path / "a.svs"))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content


def test_two_programs_cannot_fetch_the_same_file_at_once(server: Server, tmp_path: Path) -> None:
    server.add(CONTENT)
    server.fault = lambda _path, _number: "hold"
    first = threading.Thread(target=fetch, args=(wanted(server, tmp_path / "a.svs"),))
    first.start()
    wait_until(lambda: server.sent[CONTENT.name])
    with pytest.raises(DownloadError, match="another wsiseg is fetching it"):
        fetch(wanted(server, tmp_path / "a.svs"))
    server.go.set()
    first.join()
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content


def test_what_has_arrived_is_in_the_file_before_more_comes(server: Server, tmp_path: Path) -> None:
    stored = made_file(1, 5_000)  # so little that Python would keep it in memory
    server.add(stored)
    server.fault = lambda _path, _number: "hold"
    what = Wanted(tmp_path / "a.svs", (f"{server.url}/data/{stored.id}",), 5_000, Checksum("md5", stored.md5))
    fetching = threading.Thread(target=fetch, args=(what,))
    fetching.start()
    wait_until(lambda: what.part.exists() and what.part.stat().st_size == 2_500)
    server.go.set()
    fetching.join()
    assert (tmp_path / "a.svs").read_bytes() == stored.content


def test_offline_names_the_file_to_place(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"WSISEG_OFFLINE is set; place the file at .*a\.svs"):
        fetch(wanted(server, tmp_path / "a.svs"))
    with open_client(QUICK) as client, pytest.raises(DownloadError, match="WSISEG_OFFLINE"):
        client.read(f"{server.url}/files", BaseModel, body={})
    assert not server.requests


def test_what_is_complete_is_known_by_size_or_by_hash(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    assert not wanted(server, path).is_complete()
    path.write_bytes(b"x" * len(CONTENT.content))
    assert wanted(server, path).is_complete(by_size=True)
    assert not wanted(server, path).is_complete()
    path.write_bytes(CONTENT.content)
    assert wanted(server, path).is_complete()


def test_the_proxy_of_the_environment_is_used(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add(CONTENT)
    monkeypatch.setenv("HTTP_PROXY", server.url)
    url = f"http://api.gdc.invalid/data/{CONTENT.id}"
    fetch(Wanted(tmp_path / "a.svs", (url,), None, Checksum("md5", CONTENT.md5)))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content


def test_a_proxy_that_cannot_be_used_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "gopher://nowhere")
    with pytest.raises(DownloadError, match="network settings of the environment"):
        fetch(Wanted(tmp_path / "a", ("https://example.org/a",)))


def test_a_certificate_of_the_house_is_trusted_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(context) as server:
        server.add(CONTENT)
        with pytest.raises(DownloadError, match=r"its certificate is not trusted; .* SSL_CERT_FILE"):
            fetch(wanted(server, tmp_path / "a.svs"))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        fetch(wanted(server, tmp_path / "a.svs"))
    assert (tmp_path / "a.svs").read_bytes() == CONTENT.content


def test_no_message_shows_a_password_or_a_token(server: Server, tmp_path: Path) -> None:
    host = server.url.removeprefix("http://")
    with pytest.raises(DownloadError) as caught:
        fetch(Wanted(tmp_path / "a", (f"http://me:secret@{host}/none?token=secret",)))
    assert "secret" not in str(caught.value)


def test_what_a_server_sends_beyond_the_end_is_left_unread(server: Server, tmp_path: Path) -> None:
    stored = made_file(1, 12_345)  # ends within a chunk
    server.add(stored)
    server.fault = lambda _path, _number: "surplus"
    urls = (f"{server.url}/data/{stored.id}",)
    fetch(Wanted(tmp_path / "a.svs", urls, len(stored.content), Checksum("md5", stored.md5)))
    assert (tmp_path / "a.svs").read_bytes() == stored.content
    assert sum(server.requests.values()) == 1


def test_a_disk_that_takes_only_the_beginning_of_a_write_is_told(server: Server, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits are set on POSIX alone")
    stored = made_file(1, 5_000)  # comes as one piece
    server.add(stored)
    urls, checksum = (f"{server.url}/data/{stored.id}",), Checksum("md5", stored.md5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            fetch(Wanted(tmp_path / "a.svs", urls, len(stored.content), checksum))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "a.svs").exists()
