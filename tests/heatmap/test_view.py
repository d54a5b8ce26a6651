"""`wsiseg view`: slides in deep zoom under their maps, for who knows the token, on this machine alone."""

import http.client
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from selenium.webdriver.common.by import By

from making.browser import Opened, opened
from making.maps import box, write_map, write_outlines
from making.slides import stained_picture, write_slide
from making.waiting import LONGEST_S
from wsiseg.config.predict import ViewConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.view import ViewServer, viewing
from wsiseg.run.errors import OutputError, UsageError
from wsiseg.run.outputs import write_json
from wsiseg.run.record import Run, SlideRecord
from wsiseg.slides.slide import Slide

SIZE, CELL_PX, NAMES = (1500, 1100), 20.0, ("a", "b", "gone")


def write_maps(folder: Path) -> None:
    """Write slides and what predict leaves of them; the slide of `gone` is not there."""
    rng = np.random.default_rng(0)
    values = rng.random((55, 75), dtype=np.float32)
    values[:5] = np.nan
    for number, name in enumerate(NAMES):
        picture = stained_picture(*SIZE, number)
        if name != "gone":
            write_slide(folder / f"{name}.tiff", picture, levels=[(750, 550)])
        unknown = (rng.random(values.shape) < 0.1) & ~np.isnan(values)
        write_map(folder / "maps" / f"{name}.ome.zarr", values, CELL_PX, unknown, size=SIZE)
        (folder / "maps" / ".thumbnails").mkdir(exist_ok=True)
        Image.fromarray(picture).resize((840, 616)).save(folder / "maps" / ".thumbnails" / f"{name}.jpg")
    records = [
        SlideRecord(slide=name, path=str(folder / f"{name}.tiff"), status="ok", tumor_share=0.5, unknown_share=0.1)
        for name in NAMES
    ]
    write_map(folder / "outside.ome.zarr", values, CELL_PX, size=SIZE)
    records.append(SlideRecord(slide="../outside", path=str(folder / "a.tiff"), status="ok"))
    run = Run(command="predict", started="2026-01-31T12:00:00Z", slides=tuple(records))
    write_json(folder / "maps" / "run.json", run.model_dump(mode="json", by_alias=True))
    write_outlines(folder / "truth" / "a.geojson", box(100, 200, 700, 900))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("view")
    write_maps(made)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ViewServer]:
    with viewing(ViewConfig(folder=folder / "maps", truth=folder / "truth")) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving
        serving.shutdown()


def ask(server: ViewServer, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    """Ask for a path below the token, or for one that begins with `/` as it stands."""
    parts = urlsplit(server.address)
    connection = http.client.HTTPConnection(parts.netloc, timeout=LONGEST_S)
    connection.putrequest("GET", path if path.startswith("/") else parts.path + path, skip_host=True)
    for name, value in {"Host": parts.netloc, **{key.replace("_", "-"): one for key, one in headers.items()}}.items():
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, answer.read(), dict(answer.headers)
    connection.close()
    return found


def test_the_address_is_of_this_machine_and_needs_its_token(server: ViewServer) -> None:
    parts = urlsplit(server.address)
    assert server.server_address[0] == parts.hostname == "127.0.0.1"
    assert len(server.token) >= 32
    assert ask(server, "")[0] == 200
    for path in (
        "/",
        "/slides.json",
        f"/{server.token[:-1]}/",
        f"/{server.token}x/slides.json",
        "//",
        "/x/" + server.token,
    ):
        assert ask(server, path)[:2] == (403, b"refused"), path


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": ""},
        {"Host": "127.0.0.1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_host_or_origin_is_refused(server: ViewServer, headers: dict[str, str]) -> None:
    assert ask(server, "slides.json", **headers)[:2] == (403, b"refused")


def test_its_own_page_is_answered_and_allows_nothing_outside(server: ViewServer) -> None:
    host = urlsplit(server.address).netloc
    status, _, headers = ask(server, "slides.json", Origin=f"http://{host}", Sec_Fetch_Site="same-origin")
    assert status == 200
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer", "or links would tell the token"
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "run.json", "../maps/run.json", "..%2frun.json", "0/../../run.json", "view.py", "0", "0/label.jpg",
        "0/macro.jpg", "0/associated/label", "0/tile/0/0", "0/tile/0/0/0/0", "0/tile/-1/0/0", "0/tile/99/0/0",
        "0/tile/11/6/0", "0/tile/11/-1/0", "3/facts.json", "-1/facts.json", "0/facts.json/1", "0/thumbnail.jpg/0",
        "/etc/passwd", "0/tile/0x1/0/0",
    ],
)  # fmt: skip
def test_nothing_but_what_is_shown_is_answered(server: ViewServer, path: str) -> None:
    status, content, _ = ask(server, path if not path.startswith("/") else f"/{server.token}{path}")
    assert (status, content) == (404, b"nothing of this name")


def test_the_list_has_the_slides_of_the_folder_alone(server: ViewServer) -> None:
    listed = json.loads(ask(server, "slides.json")[1])
    assert [one["slide"] for one in listed["slides"]] == list(NAMES)
    assert np.shape(listed["palette"]) == (256, 3)


def test_tiles_are_the_slide_at_every_scale(server: ViewServer, folder: Path) -> None:
    facts = json.loads(ask(server, "0/facts.json")[1])
    assert (facts["size"], facts["layers"], facts["um"]) == ([*SIZE], 11, 0.5)
    with Slide(folder / "a.tiff") as slide:
        for layer, column, row in ((11, 2, 1), (11, 5, 4), (10, 1, 1), (9, 0, 0)):
            step = 2 ** (11 - layer)
            size = [min(256, -(-side // step) - 256 * at) for side, at in zip(SIZE, (column, row), strict=True)]
            out = np.empty((1, size[1], size[0], 3), np.uint8)
            slide.fill_scaled([(256 * column * step, 256 * row * step)], out, (step, step))
            status, content, _ = ask(server, f"0/tile/{layer}/{column}/{row}")
            assert status == 200
            with Image.open(io.BytesIO(content)) as image:
                assert image.format == "JPEG"
                off = np.abs(np.asarray(image, float) - out[0])
            assert off.mean() < (12 if layer > 9 else 25), "small tiles are of the small picture"


def test_the_coarsest_tile_is_one_pixel(server: ViewServer) -> None:
    with Image.open(io.BytesIO(ask(server, "0/tile/0/0/0")[1])) as image:
        assert image.size == (1, 1)


def test_cells_tell_values_unknown_and_where_nobody_looked(server: ViewServer, folder: Path) -> None:
    facts = json.loads(ask(server, "0/facts.json")[1])
    cells = np.frombuffer(ask(server, "0/cells")[1], "<f4").reshape(facts["cells"])
    values = Heatmap.open(folder / "maps" / "a.ome.zarr").probabilities
    np.testing.assert_array_equal(np.isnan(cells), np.isnan(values))
    judged = cells >= 0
    np.testing.assert_array_equal(cells[judged], values[judged])
    assert 0.02 < (cells == -1).mean() < 0.2
    assert {"100 200", "700 900"} <= set(re.findall(r"[^MLZ]+", facts["truth"]))


def test_a_slide_that_is_gone_is_shown_by_its_small_picture(server: ViewServer, folder: Path) -> None:
    facts = json.loads(ask(server, "2/facts.json")[1])
    assert facts["warnings"] == ["the slide is not where it was: see --slides"]
    assert ask(server, "2/thumbnail.jpg")[0] == 200
    assert ask(server, "2/tile/9/0/0")[0] == 404
    (folder / "elsewhere").mkdir(exist_ok=True)
    write_slide(folder / "elsewhere" / "gone.tiff", stained_picture(*SIZE, 2))
    with viewing(ViewConfig(folder=folder / "maps", slides=folder / "elsewhere")) as moved:
        assert moved.gallery.open(2).facts()["warnings"] == []


def test_what_cannot_be_viewed_is_a_sentence(folder: Path, tmp_path: Path, server: ViewServer) -> None:
    with pytest.raises(UsageError, match="no maps there"), viewing(ViewConfig(folder=tmp_path)):
        pass
    taken = ViewConfig(folder=folder / "maps", port=server.server_port)
    with pytest.raises(OutputError, match=f"port {server.server_port}"), viewing(taken):
        pass


def test_the_first_tile_of_a_large_slide_is_there_at_once(tmp_path: Path) -> None:
    picture = np.tile(stained_picture(512, 512), (8, 8, 1))
    slide = write_slide(tmp_path / "a.tiff", picture, compression="jpeg")  # of one level: the worst
    write_map(tmp_path / "maps" / "a.ome.zarr", np.ones((128, 128)), 32.0, size=(4096, 4096))
    record = SlideRecord(slide="a", path=str(slide), status="ok")
    run = Run(command="predict", started="2026-01-31T12:00:00Z", slides=(record,))
    write_json(tmp_path / "maps" / "run.json", run.model_dump(mode="json", by_alias=True))
    with viewing(ViewConfig(folder=tmp_path / "maps")) as serving:
        began = time.process_time()
        serving.gallery.answer("0/tile/8/0/0")
        serving.gallery.answer("0/tile/12/5/5")
        assert time.process_time() - began < 1


def state(shown: Opened) -> dict[str, Any]:
    """Give what the page shows: slide, threshold, share, zoom, and how many pixels of the overlay have which colour."""
    script = """
        const over = document.getElementById("over"), count = {ink: 0, truth: 0, warm: 0, cold: 0, grey: 0};
        const {data} = over.getContext("2d").getImageData(0, 0, over.width, over.height);
        for (let k = 0; k < data.length; k += 4) {
          if (!data[k + 3]) continue;
          const r = data[k], g = data[k + 1], b = data[k + 2];
          if (r === 0 && g === 190 && b === 115) count.truth += 1;
          else if (r === 34 && g === 34 && b === 34) count.ink += 1;
          else if (Math.abs(r - b) < 4) count.grey += 1;
          else if (r > b) count.warm += 1;
          else count.cold += 1;
        }
        return {...count, name: document.getElementById("name").textContent, tumor: Number(over.dataset.tumor),
          threshold: Number(document.getElementById("threshold").value), zoom: viewer.viewport.getZoom(),
          loaded: viewer.world.getItemAt(0)?.getFullyLoaded(), share: document.getElementById("share").textContent,
          current: [...document.querySelectorAll("[aria-current=true]")].map(one => one.innerText.split("\\n")[0])};
    """
    found: dict[str, Any] = shown.driver.execute_script(script)
    return found


def settled(shown: Opened, name: str) -> dict[str, Any]:
    """Wait until a slide is shown with all tiles; give the state."""
    for _ in range(1000):
        time.sleep(0.1)
        now = state(shown)
        if now["name"] == name and now["loaded"] and now["ink"]:
            return now
    raise AssertionError(now)


def test_the_page_zooms_moves_the_threshold_and_switches_slides(server: ViewServer, folder: Path) -> None:
    values = Heatmap.open(folder / "maps" / "a.ome.zarr").probabilities
    with opened(server.address) as shown:
        first = settled(shown, "a")
        assert first["current"] == ["a"]
        assert first["threshold"] == 0.5
        assert min(first["truth"], first["warm"], first["cold"], first["grey"]) > 200
        body = shown.driver.find_element(By.TAG_NAME, "body")
        body.send_keys("t")
        assert state(shown)["truth"] == 0
        body.send_keys("o")
        assert state(shown)["ink"] == 0
        body.send_keys("om")
        assert (state(shown)["warm"], state(shown)["cold"]) == (0, 0)
        body.send_keys("m")
        slide = (
            "const one = document.getElementById('threshold'); one.value = 0.9; one.dispatchEvent(new Event('input'))"
        )
        shown.driver.execute_script(slide)
        moved = state(shown)
        assert moved["threshold"] == 0.9
        assert moved["tumor"] < first["tumor"] / 2
        assert moved["tumor"] <= int((np.nan_to_num(values, nan=-1) >= np.float32(0.9)).sum())
        assert moved["warm"] < first["warm"] / 2
        assert moved["ink"] != first["ink"]
        assert moved["share"] != first["share"]
        shown.driver.find_element(By.ID, "reset").click()
        assert state(shown)["tumor"] == first["tumor"]
        shown.driver.execute_script("viewer.viewport.zoomTo(8, null, true); viewer.forceRedraw()")
        time.sleep(0.3)
        near = settled(shown, "a")
        assert near["zoom"] == pytest.approx(8)
        body.send_keys("n")
        second = settled(shown, "b")
        assert second["current"] == ["b"]
        assert second["truth"] == 0, "there is none"
        shown.driver.find_elements(By.CSS_SELECTOR, "ol button")[2].click()
        assert settled(shown, "gone")["current"] == ["gone"]
        assert "not where it was" in shown.driver.find_element(By.ID, "warning").text
        shown.driver.find_element(By.ID, "filter").send_keys("b")
        assert [one.is_displayed() for one in shown.driver.find_elements(By.CSS_SELECTOR, "ol li")] == [
            False,
            True,
            False,
        ]
        assert [line for line in shown.console() if "getImageData" not in line] == []
        assert [one for one in shown.outside_requests() if not one.startswith((server.address, "blob:"))] == []


def test_the_command_prints_the_address(folder: Path) -> None:
    command = [sys.executable, "-m", "wsiseg", "view", str(folder / "maps"), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        parts = urlsplit(address)
        connection = http.client.HTTPConnection(parts.netloc, timeout=LONGEST_S)
        connection.request("GET", parts.path)
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=LONGEST_S) == 130
