import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.run.errors import PixelSizeError
from wsiseg.slides.pixel_size import pixel_size

SIZE = (40_000, 30_000)
READER = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.251"}
VENDOR = {"aperio.MPP": "0.26"}
TAGS = {"tiff.ResolutionUnit": "centimeter", "tiff.XResolution": "37037.037", "tiff.YResolution": "37037.037"}
OBJECTIVE = {"openslide.objective-power": "40"}


@pytest.mark.parametrize(
    ("properties", "mpp", "source"),
    [
        (READER | VENDOR | TAGS | OBJECTIVE, (0.25, 0.251), "openslide.mpp-x"),
        (VENDOR | TAGS | OBJECTIVE, (0.26, 0.26), "aperio.MPP"),
        (TAGS | OBJECTIVE, (0.27, 0.27), "tiff.XResolution"),
        (OBJECTIVE, (0.25, 0.25), "openslide.objective-power"),
        ({"openslide.mpp-x": "0.3"}, (0.3, 0.3), "openslide.mpp-x"),
        ({"openslide.mpp-y": "0,3"}, (0.3, 0.3), "openslide.mpp-x"),
        ({"openslide.mpp-x": "nonsense", **VENDOR}, (0.26, 0.26), "aperio.MPP"),
        ({"openslide.mpp-x": "0", **VENDOR}, (0.26, 0.26), "aperio.MPP"),
        ({"tiff.ResolutionUnit": "inch", "tiff.XResolution": "50800"}, (0.5, 0.5), "tiff.XResolution"),
    ],
)
def test_the_first_statement_of_the_chain_counts(
    properties: dict[str, str], mpp: tuple[float, float], source: str
) -> None:
    found = pixel_size("a.svs", properties, SIZE)
    assert found.mpp == pytest.approx(mpp)
    assert found.source == source
    assert found.raw == properties


@pytest.mark.parametrize(
    ("properties", "sentence"),
    [
        ({}, r"a\.svs: no pixel size in the file; give --slide-mpp or the mpp column"),
        ({"tiff.ResolutionUnit": "none", "tiff.XResolution": "1"}, "no pixel size"),
        ({"openslide.mpp-x": "352.8"}, r"a\.svs: its pixels are said to be 352\.8 x 352\.8 um.*outside 0\.05-10"),
        ({"openslide.mpp-x": "0.01", **VENDOR}, "outside 0.05-10 um"),
        ({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.27"}, "not square"),
    ],
)
def test_no_pixel_size_and_nonsense_are_errors_unless_the_user_knows_better(
    properties: dict[str, str], sentence: str
) -> None:
    with pytest.raises(PixelSizeError, match=sentence) as caught:
        pixel_size("a.svs", properties, SIZE)
    assert "--slide-mpp" in caught.value.hint
    assert pixel_size("a.svs", properties, SIZE, user=0.25).mpp == (0.25, 0.25)
    assert pixel_size("a.svs", properties, SIZE, user=0.25).source == "user"


def test_the_objective_is_a_guess_and_a_contradiction_is_told() -> None:
    assert "guessed from the 40x objective" in pixel_size("a.svs", OBJECTIVE, SIZE).warnings[0]
    assert pixel_size("a.svs", READER | OBJECTIVE, SIZE).warnings == ()
    (warning,) = pixel_size("a.svs", {"openslide.mpp-x": "0.5"} | OBJECTIVE, SIZE).warnings
    assert "40x objective does not fit 0.5 um/px" in warning
    assert "does not fit" in pixel_size("a.svs", READER | OBJECTIVE, SIZE, user=0.5).warnings[0]
    assert "outside 0.05-10" in pixel_size("a.svs", {}, (2000, 1000), user=28.9).warnings[0]


def test_a_slide_wider_than_any_glass_is_refused() -> None:
    """The user may have typed nanometers."""
    with pytest.raises(PixelSizeError, match="would measure 10000 x 7500 mm"):
        pixel_size("a.svs", READER, SIZE, user=250)


@given(st.dictionaries(st.sampled_from(sorted(READER | VENDOR | TAGS | OBJECTIVE)), st.text(max_size=12)))
def test_whatever_a_file_says_the_size_can_be_true_or_is_refused(properties: dict[str, str]) -> None:
    try:
        found = pixel_size("a.svs", properties, SIZE)
    except PixelSizeError:
        return
    assert all(math.isfinite(value) and 0.05 <= value <= 10 for value in found.mpp)
    assert max(found.mpp) <= 1.05 * min(found.mpp) + 1e-9
