import base64
import io
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from making.machines import with_memory
from making.slides import GLASS, write_slide
from wsiseg.run.errors import NotASlideError, PixelSizeError, SlideError
from wsiseg.slides.slide import Slide, SlideFacts

MakeSlide = Callable[..., Path]


def smooth_picture(width: int, height: int, seed: int = 0, soft: int = 60) -> NDArray[np.uint8]:
    """Give soft shapes some 60 pixels wide, so that every sound way to average them gives nearly the same."""
    small = np.random.default_rng(seed).integers(30, 220, (height // soft + 2, width // soft + 2, 3), np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def area_average(picture: NDArray[np.uint8], box: tuple[float, float, float, float], size: tuple[int, int]) -> object:
    """Average exactly, pixel by pixel: the weight of a source pixel is its share of the box of a result pixel."""

    def weights(begin: float, end: float, count: int, pixels: int) -> NDArray[np.float64]:
        edges = np.linspace(begin, end, count + 1)
        low, high = edges[:-1, None], edges[1:, None]
        covered = np.minimum(high, np.arange(pixels) + 1) - np.maximum(low, np.arange(pixels))
        shares: NDArray[np.float64] = np.clip(covered, 0, None) / (high - low)
        return shares

    rows = weights(box[1], box[3], size[1], picture.shape[0])
    columns = weights(box[0], box[2], size[0], picture.shape[1])
    return np.einsum("rwc,kw->rkc", np.tensordot(rows, picture, 1), columns, optimize=True)


def centroid(image: NDArray[np.uint8]) -> tuple[float, float]:
    """Give x, y of the middle of what is dark, counted from the image's corner."""
    ink = GLASS - image.mean(2)
    ink[ink < 8] = 0
    y, x = np.mgrid[0 : image.shape[0], 0 : image.shape[1]] + 0.5
    return float((x * ink).sum() / ink.sum()), float((y * ink).sum() / ink.sum())


LEVELS: dict[str, tuple[tuple[int, int], ...]] = {
    "one": (),
    "2.0009 and 2.001": ((600, 450),),
    "4.0027 and 4.0178": ((300, 224),),
    "many": ((600, 450), (300, 225), (75, 56), (37, 28)),
    "3.0, 7.3": ((400, 300), (164, 123)),
}


@pytest.mark.parametrize("name", LEVELS)
@settings(max_examples=12)
@given(st.data())
def test_a_region_is_the_area_average_of_its_pixels(tmp_path: Path, name: str, data: st.DataObject) -> None:
    picture = smooth_picture(1201, 901)
    path = tmp_path / "a.tiff"
    if not path.exists():
        write_slide(path, picture, levels=LEVELS[name], mpp=0.2525)
    mpp = data.draw(st.floats(0.26, 4.0))
    size = data.draw(st.tuples(st.integers(3, 70), st.integers(3, 70)))
    scale = mpp / 0.2525
    width, height = size[0] * scale, size[1] * scale
    if width > 1200 or height > 900:
        return
    x, y = data.draw(st.floats(0, 1201 - width)), data.draw(st.floats(0, 901 - height))
    with Slide(path) as slide:
        image = slide.read(x, y, size, mpp)
    expected = area_average(picture, (x, y, x + width, y + height), size)
    difference = np.abs(image - np.asarray(expected))
    # A level used as it is may lie half a pixel aside; nothing may lie further.
    assert difference.mean() < 5
    assert np.percentile(difference, 95) < 14


@pytest.mark.parametrize(
    ("size", "levels"),
    [
        ((4443, 3567), ()),
        ((4444, 3568), ((2222, 1784),)),
        ((4443, 3567), ((2221, 1783),)),  # 2.0005
        ((24001, 1602), ((6000, 400),)),  # 4.00017 along x, 4.005 along y, between which OpenSlide takes the mean
        ((4443, 3567), ((1111, 892), (609, 489), (278, 223))),
    ],
)
@pytest.mark.parametrize("mpp", [0.2525, 0.5, 1.01, 1.7, 4.0])
def test_dots_in_the_corners_are_found_where_they_are(
    tmp_path: Path, size: tuple[int, int], levels: tuple[tuple[int, int], ...], mpp: float
) -> None:
    """A dot may appear at most half a pixel of the level beside its place, as far from the origin as can be."""
    (width, height), radius = size, 24
    picture = np.full((height, width, 3), GLASS, np.uint8)
    centers = [(x, y) for x in (300.0, width - 300.0) for y in (300.0, height - 300.0)]
    y_grid, x_grid = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = x_grid**2 + y_grid**2 <= radius**2
    for x, y in centers:
        picture[int(y) - radius : int(y) + radius + 1, int(x) - radius : int(x) + radius + 1][disc] = 20
    with Slide(write_slide(tmp_path / "a.tiff", picture, levels=levels, mpp=0.2525)) as slide:
        scale = mpp / 0.2525
        side = int(90 / scale)
        for x, y in centers:
            left, top = x - 44.3, y - 42.7
            found = centroid(slide.read(left, top, (side, side), mpp))
            seen = (left + found[0] * scale, top + found[1] * scale)
            used = max(d for level in slide.levels if (d := level.downsample[0]) <= scale * 1.01)
            drift = 0.45 if abs(used / scale - 1) <= 0.011 else 0.05  # of a level that is used as it is
            assert seen == pytest.approx((x + 0.5, y + 0.5), abs=0.5 * used + drift)


def test_whole_factors_give_exact_averages(make_slide: MakeSlide) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    with Slide(make_slide("a.tiff", picture, mpp=0.25)) as slide:
        image = slide.read(64, 128, (100, 80), 1.0)
    expected = picture[128 : 128 + 320, 64 : 64 + 400].reshape(80, 4, 100, 4, 3).mean((1, 3))
    assert np.abs(image - expected).max() <= 1


def test_a_level_within_one_percent_is_used_as_it_is(make_slide: MakeSlide) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    with Slide(make_slide("a.tiff", picture, mpp=0.499)) as slide:
        assert (slide.read(10, 20, (50, 40), 0.5) == picture[20:60, 10:60]).all()
        assert (slide.read(10, 20, (50, 40), 0.51) != picture[20:60, 10:60]).any()


def test_neighbouring_tiles_join_without_a_seam(make_slide: MakeSlide) -> None:
    picture = smooth_picture(900, 700)
    with Slide(make_slide("a.tiff", picture, mpp=0.3)) as slide:
        whole = slide.read(0, 0, (128, 64), 0.5)
        step = 64 * 0.5 / 0.3
        halves = [slide.read(x, 0, (64, 64), 0.5) for x in (0, step)]
    assert np.abs(np.concatenate(halves, 1).astype(int) - whole).max() <= 1


def test_a_coarse_region_is_the_same_in_blocks(
    make_slide: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Slide(make_slide("a.tiff")) as slide:
        whole = slide.read(30.5, 50, (60, 40), 8.0)
        monkeypatch.setattr("wsiseg.slides.slide._BLOCK_PX", 64)
        np.testing.assert_allclose(slide.read(30.5, 50, (60, 40), 8.0).astype(int), whole.astype(int), atol=1)


def test_a_coarse_region_of_a_large_slide_needs_little_memory(make_slide: MakeSlide) -> None:
    """One level only: 100 times coarser than asked is averaged in blocks, not read at once."""
    picture = smooth_picture(6000, 5000)
    with Slide(make_slide("a.tiff", picture, mpp=0.25)) as slide:
        image = slide.read(500, 300, (50, 40), 25.0)
    expected = picture[300:4300, 500:5500].reshape(40, 100, 50, 100, 3).mean((1, 3))
    assert np.abs(image - expected).mean() < 1.5


def test_the_overview_covers_the_whole_slide(make_slide: MakeSlide) -> None:
    picture = smooth_picture(3001, 2203)
    for levels in ((), ((750, 551),), ((1500, 1101), (187, 137))):
        with Slide(make_slide(f"{len(levels)}.tiff", picture, levels=levels, mpp=0.5)) as slide:
            overview = slide.overview(8.0, threads=2)
            rows, columns = overview.unreadable.shape
            assert (rows, columns) == ((137, 187) if len(levels) > 1 else (138, 188))  # 187 is a level as it is
            assert not overview.unreadable.any()
            expected = area_average(picture, (0, 0, 3001, 2203), (columns, rows))
            assert np.abs(overview.image - np.asarray(expected)).mean() < 2.5


def test_beyond_the_slide_is_background(make_slide: MakeSlide) -> None:
    with Slide(make_slide("a.tiff", np.full((100, 100, 3), 50, np.uint8))) as slide:
        image = slide.read(60, 60, (80, 80), 0.5)
    assert (image[:40, :40] == 50).all()
    assert (image[40:] == 255).all()
    assert (image[:, 40:] == 255).all()


def test_bounds_are_known_and_positions_stay_those_of_level_0(make_slide: MakeSlide) -> None:
    picture = smooth_picture(700, 500)
    with Slide(make_slide("a.scn", picture, frame=(300, 900, 2000, 3000))) as slide:
        assert slide.size_px == (2000, 3000)
        assert slide.bounds_px == (300, 900, 700, 500)
        assert (slide.read(300, 900, (700, 500), 0.5) == picture).all()


def broken_slide(path: Path, seed: int = 0) -> tuple[Path, NDArray[np.uint8]]:
    """Write a JPEG slide of 4 x 4 tiles, one of which (the third of the second row) is no JPEG any more."""
    import tifffile  # noqa: PLC0415  only here

    picture = smooth_picture(1024, 1024, seed)
    write_slide(path, picture, compression="jpeg")
    with tifffile.TiffFile(path) as tiff:
        page = tiff.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        begin, length = page.dataoffsets[6], page.databytecounts[6]
    with path.open("r+b") as file:
        file.seek(begin)
        file.write(b"\xff" * length)
    return path, picture


def test_an_unreadable_region_is_an_error_and_the_rest_can_still_be_read(tmp_path: Path) -> None:
    path, picture = broken_slide(tmp_path / "a.tiff")
    with Slide(path) as slide:
        for _ in range(2):
            with pytest.raises(SlideError, match=r"a\.tiff.*cannot be read.*get it again"):
                slide.read(512, 256, (256, 256), 0.5)
            image = slide.read(0, 0, (512, 256), 0.5)
            assert np.abs(image.astype(int) - picture[:256, :512]).mean() < 4


def test_threads_do_not_spoil_each_others_reads_on_a_broken_slide(tmp_path: Path) -> None:
    path, _ = broken_slide(tmp_path / "a.tiff")
    corners = [(column * 256, row * 256) for row in range(4) for column in range(4)] * 12
    bad: list[tuple[int, int]] = []
    with Slide(path) as slide:
        reference = {(0, 0): slide.read(0, 0, (256, 256), 0.5)}

        def read(corner: tuple[int, int]) -> None:
            try:
                image = slide.read(*corner, (256, 256), 0.5)
            except SlideError:
                bad.append(corner)
            else:
                assert corner not in reference or (image == reference[corner]).all()

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(read, corners))
    assert bad == [(512, 256)] * 12


def test_the_overview_says_what_could_not_be_read(tmp_path: Path) -> None:
    path, _ = broken_slide(tmp_path / "a.tiff")
    with Slide(path) as slide:
        with pytest.raises(SlideError, match=r"a\.tiff"):
            slide.overview(4.0)
        overview = slide.overview(4.0, most_unreadable=0.1)
        with pytest.raises(SlideError):
            slide.overview(4.0, most_unreadable=0.0)
    assert overview.unreadable.mean() == pytest.approx(1 / 16, abs=0.01)
    assert overview.unreadable[40:60, 70:90].all()
    assert (overview.image[40:60, 70:90] == 0).all()


def test_a_slide_that_disappears_is_an_error(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff", compression="jpeg")
    with Slide(path) as slide:
        path.write_bytes(path.read_bytes()[:2000])
        with pytest.raises(SlideError, match=r"a\.tiff"):
            slide.read(0, 0, (900, 700), 0.5)
    with pytest.raises(SlideError, match="no such file"):
        Slide(tmp_path / "b.tiff")


def test_a_cut_off_slide_has_another_fingerprint(make_slide: MakeSlide, tmp_path: Path) -> None:
    path = make_slide("a.tiff")
    with Slide(path) as slide:
        whole = slide.facts
    copy = tmp_path / "b" / "a.tiff"
    copy.parent.mkdir()
    shutil.copy(path, copy)
    with Slide(copy) as slide:
        assert slide.facts == whole
    with copy.open("ab") as file:
        file.write(b"more")
    with Slide(copy) as slide:
        assert slide.fingerprint != whole.fingerprint


def test_facts_survive_json(make_slide: MakeSlide) -> None:
    import json  # noqa: PLC0415  only here
    from dataclasses import asdict  # noqa: PLC0415  only here

    with Slide(make_slide("a.scn", frame=(300, 900, 2000, 3000))) as slide:
        assert SlideFacts.from_json(json.loads(json.dumps(asdict(slide.facts)))) == slide.facts


@pytest.mark.parametrize("name", ["with space.tiff", "größe é.tiff", "日本 🔬.tiff", "a'b\"c.tiff", "-rf.tiff"])
def test_names_of_any_script_open(make_slide: MakeSlide, name: str) -> None:
    with Slide(make_slide(name)) as slide:
        assert slide.facts.file == name
        slide.read(0, 0, (16, 16), 0.5)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_plain_images_are_slides_once_their_pixel_size_is_given(tmp_path: Path, suffix: str) -> None:
    picture = smooth_picture(500, 300)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(picture).save(path, quality=95)
    with pytest.raises(PixelSizeError, match=rf"a\{suffix}: no pixel size.*--slide-mpp"):
        Slide(path)
    with Slide(path, mpp=0.5) as slide:
        assert slide.facts.vendor == "image"
        assert slide.facts.mpp_source == "user"
        assert np.abs(slide.read(100, 50, (64, 64), 0.5).astype(int) - picture[50:114, 100:164]).mean() < 4


def test_transparent_parts_of_a_plain_image_are_background(tmp_path: Path) -> None:
    picture = np.zeros((100, 100, 4), np.uint8)
    picture[:50] = (10, 20, 30, 255)
    Image.fromarray(picture).save(tmp_path / "a.png")
    with Slide(tmp_path / "a.png", mpp=0.5) as slide:
        image = slide.read(0, 0, (100, 100), 0.5)
    assert (image[:50] == (10, 20, 30)).all()
    assert (image[50:] == 255).all()


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 40_000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(SlideError, match=r"8 bits a sample.*convert"):
        Slide(tmp_path / "a.png", mpp=0.5)


@pytest.mark.filterwarnings("error")
def test_a_large_plain_image_opens_without_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("P", (1600, 1600))
    image.putpalette([200, 150, 180])
    image.save(tmp_path / "a.png", compress_level=1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # it warns of more, and refuses twice as many
    with Slide(tmp_path / "a.png", mpp=0.5) as slide:
        assert slide.overview(8.0).image.shape == (100, 100, 3)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("content", [b"", b"just text\n" * 100, b"\x89PNG\r\n\x1a\n" + b"\0" * 64, b"II*\0\x08\0\0\0"])
def test_what_is_no_slide_is_told_from_a_broken_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes.txt").write_bytes(content)
    (tmp_path / "a.svs").write_bytes(content)
    with pytest.raises(NotASlideError, match=r"notes\.txt: not a slide"):
        Slide(tmp_path / "notes.txt")
    with pytest.raises(SlideError, match=r"a\.svs.*get the file again") as caught:
        Slide(tmp_path / "a.svs")
    assert not isinstance(caught.value, NotASlideError)


def test_a_slide_without_its_suffix_is_found_by_its_content(make_slide: MakeSlide) -> None:
    with Slide(make_slide("scan-0001")) as slide:
        assert slide.size_px == (1024, 768)


def test_a_file_cut_off_is_blamed_for_that_and_not_for_its_pixel_size(make_slide: MakeSlide) -> None:
    path = make_slide("a.tiff", smooth_picture(1024, 768), mpp=None, compression="jpeg")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 3000])
    with pytest.raises(SlideError, match="get it again") as caught:
        Slide(path)
    assert not isinstance(caught.value, PixelSizeError)


def test_many_threads_read_what_one_reads(data: Path) -> None:
    with Slide(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        corners = [(x, y) for x in range(0, 2000, 310) for y in range(0, 2700, 310)]
        alone = [slide.read(x, y, (224, 224), 0.7) for x, y in corners]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda corner: slide.read(corner[0], corner[1], (224, 224), 0.7), corners))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_pixels_much_coarser_than_asked_are_spoken_of(make_slide: MakeSlide) -> None:
    with Slide(make_slide("a.tiff", mpp=1.0)) as slide:
        assert slide.coarseness(0.5) == ("its pixels of 1 um are 2.0 times coarser than 0.5 um",)
        assert slide.coarseness(0.7) == ()


def test_a_notebook_shows_a_small_picture_of_the_scan_alone(make_slide: MakeSlide) -> None:
    path = make_slide("a<b>.scn", np.full((1000, 1500, 3), (200, 60, 60), np.uint8), frame=(700, 300, 4000, 3000))
    with Slide(path) as slide:
        html = slide._repr_html_()
    (picture,) = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
        assert abs(image.width - 600) <= 2
        assert abs(image.height - 400) <= 2
        assert np.asarray(image)[..., 1].max() < 100, "nothing of the empty surround"
    assert "a&lt;b&gt;.scn: 4000 x 3000 px" in html


def test_the_cache_of_a_slide_fits_into_memory(make_slide: MakeSlide, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    make = openslide.OpenSlideCache

    def noted(size: int) -> openslide.OpenSlideCache:
        sizes.append(size)
        return make(size)

    monkeypatch.setattr(openslide, "OpenSlideCache", noted)
    path = make_slide("a.tiff")
    for memory in (64 * 2**30, 2**29):
        with_memory(monkeypatch, memory)
        Slide(path).close()
    assert sizes == [2**26, 2**25]
