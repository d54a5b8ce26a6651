"""Slides that lie elsewhere come whole, once, and into a cache that keeps its bounds; no secret is told."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from making.buckets import ANYBODY, Bucket, bucket, google_login
from making.models import write_color_filter_model
from making.predictions import command, digest, write_slides
from making.servers import Server, Stored
from wsiseg.config.tile import TileConfig
from wsiseg.run.connection import GoneError, Patience
from wsiseg.run.errors import DownloadError, SlideError, UsageError
from wsiseg.run.record import Progress
from wsiseg.slides import remote
from wsiseg.slides.address import bare, is_address, place_of
from wsiseg.slides.cache import Cache
from wsiseg.slides.cohort import Cohort, CohortSlide
from wsiseg.tiles.tile import tile
from wsiseg.training.slides import labelled_slides

HASTY = Patience(tries=2, first_wait_s=0.01, read_s=20, room_s=0)
SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105  nobody's


def stored(server: Server, name: str = "a.svs", content: bytes = bytes(range(256)) * 400) -> str:
    """Put a file on the server, and return its address."""
    server.add(Stored(name.partition(".")[0], name, content))
    return f"{server.url}/{name.partition('.')[0]}/{name}"


def fetched(address: str, cache: Cache, patience: Patience = HASTY) -> Path:
    row = CohortSlide("a", cache.folder / place_of(address), address=address)
    remote.fetch(row, cache, Progress(), patience)
    return row.path


def test_addresses() -> None:
    name = "s3://slides/a b/ä?.svs"
    assert place_of(name).name == "ä?.svs"
    assert place_of("https://a.example/x/a%20b.tiff?token=1") == place_of("https://a.example/x/a%20b.tiff?token=2")
    assert place_of("https://a.example/x/a%20b.tiff").name == "a b.tiff"
    assert place_of("https://a.example/x/a.tiff") != place_of("https://a.example/y/a.tiff")
    assert bare("https://me:pw@a.example/a.svs?sig=1#x") == "https://a.example/a.svs"
    assert not is_address("s3/a.svs")
    assert not is_address("dicomweb://a/studies/1")


@pytest.mark.parametrize(
    "address",
    [
        *("https://me:secret@a.example/a.svs", "http://a.example/a.svs", "s3://bucket", "s3:///a.svs"),
        *("s3://bucket/a.mrxs", "gs://bucket/a.dcm", "https://a.example/get?file=a.svs", "https://a.example/a%00.svs"),
        *("https://a.example/..%5Ca.svs", f"s3://bucket/{'a' * 300}.svs"),
    ],
)
def test_what_is_no_safe_address_of_a_slide_is_refused(address: str, tmp_path: Path) -> None:
    for inputs in ([address], [str(tmp_path / "cohort.csv")]):
        (tmp_path / "cohort.csv").write_text(f'slide,path\na,"{address}"\n')
        with pytest.raises(UsageError, match="not the address of a slide in one file") as caught:
            Cohort.from_inputs(inputs)
        assert "secret" not in str(caught.value)


def test_a_table_and_a_name_give_the_same_slide(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("slide,path,label\nfirst,s3://bucket/a.svs,1\n")
    (listed,) = Cohort.from_inputs([str(tmp_path / "cohort.csv"), "s3://bucket/a.svs"]).slides
    (named,) = Cohort.from_inputs(["s3://bucket/a.svs"]).slides
    assert (listed.slide, listed.label, named.slide) == ("first", 1, "a")
    assert listed.address == named.address == "s3://bucket/a.svs"
    with pytest.raises(SlideError, match=r"s3://bucket/a\.svs: is an address"):
        named.open()
    with pytest.raises(UsageError, match="differ in their query alone"):
        Cohort.from_inputs(["https://a.example/a.svs?x=1", "https://a.example/a.svs?x=2"])


def test_a_slide_comes_once_and_anew_when_it_changed(server: Server, tmp_path: Path) -> None:
    address, cache = stored(server), Cache(tmp_path, 1e9)
    path = fetched(address, cache)
    assert path.read_bytes() == server.files["a"].content
    fetched(address, cache)
    assert server.sent["a.svs"] == len(path.read_bytes()), "only asked for"
    stored(server, content=b"other" * 20_480)  # of the same size
    assert fetched(address, cache).read_bytes() == b"other" * 20_480


@pytest.mark.parametrize("fault", ["reset", "cut", pytest.param("stall", marks=pytest.mark.slow)])
def test_a_server_that_goes_in_the_middle_is_gone_on_with(fault: str, server: Server, tmp_path: Path) -> None:
    content = os.urandom(2_000_000)
    address, cache = stored(server, content=content), Cache(tmp_path, 1e9)
    server.fault = lambda _path, number: "ok" if number == 1 else fault
    with pytest.raises(DownloadError, match=r"a\.svs: .*, 2 times in a row; run it again later"):
        fetched(address, cache, replace(HASTY, read_s=0.5) if fault == "stall" else HASTY)
    part = next(tmp_path.glob("*/a.svs.part")).stat().st_size
    assert part > 0
    assert not list(tmp_path.glob("*/a.svs"))
    server.fault, server.sent["a.svs"] = lambda _path, _number: "ok", 0
    assert fetched(address, cache).read_bytes() == content
    assert server.sent["a.svs"] == len(content) - part, "the rest alone"


def test_what_changes_while_it_comes_is_refused(server: Server, tmp_path: Path) -> None:
    address = stored(server)

    def changing(_path: str, number: int) -> str:
        if number == 2:
            stored(server, content=bytes(102_400))
        return "ok" if number == 1 else "cut"

    server.fault = changing
    with pytest.raises(DownloadError, match="changed while it was fetched; run it again"):
        fetched(address, Cache(tmp_path, 1e9), replace(HASTY, tries=9))


@pytest.mark.parametrize(
    ("fault", "said"), [("html", "a web page"), ("503", "503 Service Unavailable, 2 times in a row"), ("slow", "")]
)
def test_other_answers(fault: str, said: str, server: Server, tmp_path: Path) -> None:
    address = stored(server)
    server.fault = lambda _path, _number: fault
    if not said:
        assert fetched(address, Cache(tmp_path, 1e9)).exists()
        return
    with pytest.raises(DownloadError, match=said):
        fetched(address, Cache(tmp_path, 1e9))
    with pytest.raises(GoneError, match="there is no such file"):
        fetched(f"{server.url}/other/b.svs", Cache(tmp_path, 1e9))


def test_the_cache_keeps_its_bounds_and_what_is_in_use(server: Server, tmp_path: Path) -> None:
    addresses = [stored(server, f"{name}.svs", bytes(1000)) for name in "abcd"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "photo.jpg").write_bytes(bytes(9000))
    cache = Cache(tmp_path, 2500)
    first, second = (fetched(address, cache) for address in addresses[:2])
    for number, path in enumerate((second, first)):  # the second was asked for earlier
        os.utime(path.parent / ".fetched", (number, number))
    with Cache(tmp_path, 2500) as other:
        other.keep(first.parent)
        third = fetched(addresses[2], cache)
        assert [path.exists() for path in (first, second, third)] == [True, False, True]
        with Cache(tmp_path, 2500) as further, pytest.raises(DownloadError, match="another run has this slide in use"):
            further.keep(first.parent)
        other.keep(third.parent)
        with pytest.raises(
            DownloadError, match=r"the slides in use take .* more than the cache may hold; set a higher cache-gb"
        ):
            fetched(addresses[3], cache)
    fourth = fetched(addresses[3], cache)
    assert [path.exists() for path in (first, third, fourth)] == [False, True, True]
    assert (tmp_path / "own" / "photo.jpg").exists()


def test_nothing_is_asked_offline(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"a\.svs: not fetched, as WSISEG_OFFLINE is set"):
        fetched(stored(server), Cache(tmp_path, 1e9))
    assert not server.requests


@pytest.fixture
def _google(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the server be Google's, with a login here."""
    remote._google.cache_clear()
    for name, value in google_login(server, tmp_path).items():
        monkeypatch.setenv(name, value)
    yield
    remote._google.cache_clear()


@pytest.mark.usefixtures("_google")
def test_a_slide_comes_from_google_to_who_has_the_key(server: Server, tmp_path: Path) -> None:
    server.add(Stored("bucket", "a ä.svs", bytes(100_000)))
    path = fetched("gs://bucket/a ä.svs", Cache(tmp_path / "cache", 1e9))
    assert path.read_bytes() == bytes(100_000)
    fetched("gs://bucket/a ä.svs", Cache(tmp_path / "cache", 1e9))
    assert server.requests["/token"] == 1, "a token is used until it expires"


@pytest.mark.usefixtures("_google")
def test_who_has_no_login_at_google_reads_what_is_open_alone(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(Stored("bucket", "a.svs", bytes(100_000)))
    for name, value in ANYBODY.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DownloadError, match=r"gs://bucket/a\.svs: the server answered 401 .*; set GOOGLE_APPLICATION"):
        fetched("gs://bucket/a.svs", Cache(tmp_path, 1e9))
    server.authorization = ""
    assert fetched("gs://bucket/a.svs", Cache(tmp_path, 1e9)).stat().st_size == 100_000
    assert "/token" not in server.requests


@pytest.mark.usefixtures("_google")
def test_a_wrong_key_at_google_is_one_sentence(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    of_another = google_login(server, tmp_path / "other")["GOOGLE_APPLICATION_CREDENTIALS"]
    google_login(server, tmp_path)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", of_another)
    with pytest.raises(DownloadError, match=r"gs://bucket/a\.svs: no login can be made: .*Invalid JWT") as caught:
        fetched("gs://bucket/a.svs", Cache(tmp_path, 1e9))
    assert "PRIVATE" not in str(caught.value)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_color_filter_model(tmp_path_factory.mktemp("model") / "colors.onnx")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slides(tmp_path_factory.mktemp("slides"), 3)


def test_tiles_of_slides_that_lie_elsewhere_are_those_of_their_files(
    server: Server, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, files = [], []
    for number, at_last in ((0, 2), (1, 1)):
        path = slides / f"s{number}.tiff"
        files.append(f"s{number},{slides / f's{at_last}.tiff'},{number},train")
        rows.append(f"s{number},{stored(server, path.name, path.read_bytes())}?sig={SECRET},{number},train")
    there, here = tmp_path / "there", tmp_path / "here"
    for folder, lines in ((there, rows), (here, files)):
        folder.mkdir()
        (folder / "slides.csv").write_text("\n".join(["slide,path,label,split", *lines]) + "\n")
    most = 1.5 * (slides / "s1.tiff").stat().st_size / 1e9

    def tiled(folder: Path) -> list[str]:
        table = str(folder / "slides.csv")
        config = TileConfig(inputs=(table,), out=folder / "tiles", tissue="none", tile=512, pixels=True, cache_gb=most)
        return [record.status for record in tile(config).slides]

    assert tiled(there) == tiled(here) == ["ok", "ok"]
    assert len(list((there / "tiles" / ".slides").glob("*/*.tiff"))) == 1
    server.sent.clear()
    assert tiled(there) == ["up_to_date", "up_to_date"]
    assert sum(server.sent.values()) == 0, "they are asked for alone"
    stored(server, "s0.tiff", (slides / "s2.tiff").read_bytes())
    assert tiled(there) == ["ok", "up_to_date"]
    written = {path: path.read_bytes() for path in (there / "tiles").rglob("*") if path.is_file()}
    assert not any(SECRET.encode() in content for content in written.values())
    monkeypatch.setenv("WSISEG_OFFLINE", "1")
    for far, near in zip(*(labelled_slides(one / "tiles" / "cohort.csv") for one in (there, here)), strict=True):
        assert (far.slide, far.label, far.tiles) == (near.slide, near.label, near.tiles)
        every = np.arange(far.tiles)
        np.testing.assert_array_equal(far.read(every), near.read(every))
    assert bare(rows[0].split(",")[1]) in (there / "tiles" / "cohort.csv").read_text()


def said(*arguments: object, **settings: str) -> "subprocess.CompletedProcess[str]":
    arguments = (sys.executable, "-m", "wsiseg", *arguments)
    env = {**os.environ, **settings}
    return subprocess.run([*map(str, arguments)], env=env, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_signature_in_an_address_is_never_told(server: Server, slides: Path, model: Path, tmp_path: Path) -> None:
    address = f"{stored(server, 's0.tiff', (slides / 's0.tiff').read_bytes())}?X-Amz-Signature={SECRET}"
    out = tmp_path / "out"
    (tmp_path / "cohort.csv").write_text(f"slide,path\ns0,{address}\ngone,{server.url}/gone/x.svs?sig={SECRET}\n")
    predict = ("predict", tmp_path / "cohort.csv", "--model", model, "--tissue", "none", "--out", out, "--verbose")
    done = said(*predict)
    assert done.returncode == 1
    assert "x.svs: there is no such file" in done.stderr
    assert "Traceback" not in done.stderr
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != "cohort.csv"]
    assert not any(SECRET.encode() in text for text in (*texts, done.stdout.encode(), done.stderr.encode()))
    assert bare(address).encode() in (out / "run.json").read_bytes()
    loud = "import logging; logging.basicConfig(level=logging.DEBUG); from wsiseg.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    logged = subprocess.run(
        [sys.executable, "-c", loud, *map(str, predict), "--overwrite"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "HTTP Request: GET" in logged.stderr
    assert SECRET not in logged.stderr + logged.stdout


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with bucket() as made:
        for name, value in made.login().items():
            monkeypatch.setenv(name, value)
        yield made


@pytest.mark.slow
def test_slides_of_a_bucket_have_the_maps_of_their_files(
    store: Bucket, slides: Path, model: Path, tmp_path: Path
) -> None:
    rows = [f"{path.stem},{store.put(path, f'a folder/{path.name}')}" for path in sorted(slides.glob("*.tiff"))]
    (tmp_path / "cohort.csv").write_text("\n".join(["slide,path", *rows]) + "\n")
    small = max(path.stat().st_size for path in slides.glob("*.tiff")) * 2.5 / 1e9
    (tmp_path / "settings.toml").write_text(f"cache-gb = {small:.9f}\n")
    subprocess.run(command(slides, model, tmp_path / "here"), check=True, capture_output=True)
    elsewhere = (tmp_path / "cohort.csv", model, tmp_path / "there", "--config", str(tmp_path / "settings.toml"))
    done = subprocess.run(command(*elsewhere), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    there = digest(tmp_path / "there")
    cached = {name for name in there if name.startswith(".slides")}
    assert {name: sha for name, sha in there.items() if name not in cached} == digest(tmp_path / "here")
    assert 1 <= len([name for name in cached if name.endswith(".tiff")]) <= 2
    both = subprocess.run([*command(*elsewhere), "--jobs", "2"], check=False, capture_output=True, text=True)
    assert both.returncode == 0, both.stderr
    assert both.stderr.count(": up_to_date,") == len(rows), both.stderr
    assert "to fetch" not in both.stderr
    store.put(slides / "s1.tiff", "a folder/s0.tiff")
    changed = subprocess.run(command(*elsewhere), check=False, capture_output=True, text=True)
    assert changed.stderr.count("to fetch") == 1
    assert changed.stderr.count(": up_to_date,") == len(rows) - 1


@pytest.mark.slow
def test_what_goes_wrong_with_a_bucket_is_one_sentence(
    store: Bucket, slides: Path, model: Path, tmp_path: Path
) -> None:
    first, second = (store.put(slides / f"s{number}.tiff", f"s{number}.tiff") for number in range(2))
    more = ("--model", model, "--tissue", "none", "--out", tmp_path / "out")
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
        done = said("predict", first, *more, **{name: SECRET})
        assert done.returncode == 6
        assert done.stderr.count("\n") == 1
        assert f"{first}: the server answered 403 FORBIDDEN; set AWS_PROFILE" in done.stderr
        assert SECRET not in done.stderr
        assert store.secret not in done.stderr
    assert said("predict", first, *more, WSISEG_OFFLINE="1").returncode == 6
    assert said("predict", first, *more, AWS_PROFILE="nobody").returncode == 6
    assert not (tmp_path / "out").exists()
    store.remove("s1.tiff")
    done = said("predict", second, first, *more)
    assert done.returncode == 1
    assert f"{second}: there is no such file; it may have been moved or deleted" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out" / "s0.ome.zarr").exists()
