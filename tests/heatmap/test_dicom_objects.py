"""Maps as DICOM objects lie where their slide's tissue lies, and say what made them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("highdicom")

from making.dicom_slides import ORIGIN_MM, in_parts, write_dicom_slide
from making.maps import slide_facts
from wsiseg.heatmap import dicom
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.run.errors import SlideError
from wsiseg.slides.slide import Slide

SIZES = ((1001, 767), (333, 255), (62, 47))  # downsamples that are no whole numbers
CELL_PX = 8.3


def blank(*sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    return [np.full((height, width, 3), 240, np.uint8) for width, height in sizes]


def a_map(size: tuple[int, int] = SIZES[0], cell_px: float = CELL_PX, seed: int = 0) -> Heatmap:
    random = np.random.default_rng(seed)
    shape = tuple(int(np.ceil(side / cell_px)) for side in size[::-1])
    values = random.random(shape).astype(np.float32)
    values[random.random(shape) < 0.3] = np.nan
    facts = slide_facts(*size)
    model = {"name": "a model", "version": "3", "sha256": "ab" * 32}
    return Heatmap(values, cell_px * 0.5, facts, model=model, unknown=random.random(shape) < 0.2, version="1.2.3")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    files = write_dicom_slide(tmp_path_factory.mktemp("slide"), blank(*SIZES))
    return dicom.source_images(files[-1])


def cells_of(made: Any, heatmap: Heatmap) -> tuple[NDArray[np.int_], NDArray[np.int_]]:
    """Return the row and the column of the cell at the centre of each pixel, counted from the corner of the matrix."""
    cell_mm = heatmap.cell_um / 1000
    spacing = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    sizes = made.TotalPixelMatrixRows, made.TotalPixelMatrixColumns
    rows, columns = ((np.arange(n) + 0.5) * step / cell_mm for n, step in zip(sizes, spacing, strict=True))
    return rows.astype(int), columns.astype(int)


def test_objects_hold_the_cell_that_each_pixel_lies_in(images: list[Any]) -> None:
    heatmap = a_map()
    binary, fractional = dicom.segmentation(heatmap, images), dicom.probability(heatmap, images)
    parametric = dicom.parametric_map(heatmap, images)
    places = np.ix_(*cells_of(binary, heatmap))
    shares: Any = fractional.get_total_pixel_matrix(rescale_fractional=False)
    states: Any = binary.get_total_pixel_matrix()
    floats: Any = parametric.get_total_pixel_matrix(apply_real_world_transform=False)
    assert floats.shape == (255, 333)  # the coarsest level whose pixels are no larger than cells
    assert np.array_equal(states[..., 0], heatmap.tumor[places])
    assert np.array_equal(states[..., 1], heatmap.unknown[places])
    assert np.array_equal(floats, np.nan_to_num(heatmap.probabilities, nan=dicom.NOT_LOOKED_AT)[places])
    assert np.abs(shares[..., 0] / 255 - np.nan_to_num(heatmap.probabilities)[places]).max() <= 1 / 255
    assert np.array_equal(shares[..., 1] == 255, heatmap.unknown[places])
    assert set(np.unique(places[0])) == set(range(heatmap.shape[0]))  # no cell is lost


@pytest.mark.parametrize("cell_px", [3.44, 8.3, 32.5, 90.0])
def test_corners_lie_within_half_a_cell(images: list[Any], cell_px: float) -> None:
    heatmap = a_map(cell_px=cell_px)
    values = np.zeros(heatmap.shape, np.float32)
    corners = {1.0: (0, 0), 0.75: (0, -1), 0.5: (-1, 0), 0.25: (-1, -1)}
    for value, place in corners.items():
        values[place] = value
    made = dicom.parametric_map(replace(heatmap, probabilities=values), images)
    matrix: Any = made.get_total_pixel_matrix(apply_real_world_transform=False)
    slide = np.asarray(SIZES[0][::-1])
    step = slide / matrix.shape  # by the sizes, not by the spacing that the object states
    for value, place in corners.items():
        found = np.argwhere(matrix == value)
        first = np.asarray([np.arange(size)[at] for size, at in zip(heatmap.shape, place, strict=True)]) * cell_px
        assert (abs(found.min(0) * step - first) < cell_px / 2).all()
        assert (abs((found.max(0) + 1) * step - np.minimum(first + cell_px, slide)) < cell_px / 2).all()


def test_objects_belong_to_the_slide_and_say_what_made_them(images: list[Any]) -> None:
    heatmap = a_map()
    for make in (dicom.segmentation, dicom.probability, dicom.parametric_map):
        made, same = make(heatmap, images), make(heatmap, images)
        other = make(replace(heatmap, threshold=0.7), images)
        assert made.SOPInstanceUID == same.SOPInstanceUID != other.SOPInstanceUID
        for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID", "ImageOrientationSlide"):
            assert made[name].value == images[0][name].value
        for x, y in zip(made.TotalPixelMatrixOriginSequence, images[0].TotalPixelMatrixOriginSequence, strict=True):
            assert x.XOffsetInSlideCoordinateSystem == y.XOffsetInSlideCoordinateSystem == ORIGIN_MM[0]
            assert x.YOffsetInSlideCoordinateSystem == y.YOffsetInSlideCoordinateSystem == ORIGIN_MM[1]
        assert made.SeriesInstanceUID != images[0].SeriesInstanceUID
        referenced = {
            item.ReferencedSOPInstanceUID for item in made.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        }
        assert referenced == {image.SOPInstanceUID for image in images}
        assert "not for diagnosis" in made.ContentDescription
        assert made.DeviceSerialNumber == "ab" * 32
    algorithm = dicom.segmentation(heatmap, images).SegmentSequence[0].SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("a model", "3")
    assert "ab" * 32 in algorithm.AlgorithmParameters


def test_a_map_without_tumour_becomes_an_object_too(images: list[Any]) -> None:
    heatmap = replace(a_map(), threshold=2.0)
    assert not dicom.segmentation(heatmap, images).get_total_pixel_matrix()[..., 0].any()


def test_the_bounds_of_a_scan_are_cut_off(tmp_path: Path) -> None:
    facts = slide_facts(1200, 900, bounds=(40, 80, 1001, 767))
    values = np.arange(90 * 120, dtype=np.float32).reshape(90, 120) / 1e5
    heatmap = Heatmap(values, 5.0, facts)
    images = dicom.source_images(write_dicom_slide(tmp_path, blank((1001, 767)))[0])
    matrix: Any = dicom.parametric_map(heatmap, images).get_total_pixel_matrix(apply_real_world_transform=False)
    assert matrix[0, 0] == values[8, 4]
    assert matrix[766, 1000] == values[(80 + 766) // 10, (40 + 1000) // 10]


def test_another_slide_and_no_slide_are_refused(images: list[Any], tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="has 1001 x 767 pixels, so the map is of another"):
        dicom.segmentation(a_map((1000, 767)), images)
    (tmp_path / "a.svs").write_bytes(b"II")
    with pytest.raises(SlideError, match=r"a\.svs: not a DICOM slide.*--dicomize"):
        dicom.source_images(tmp_path / "a.svs")


def test_made_slides_are_slides(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(size[0]).integers(0, 255, (*size[::-1], 3)).astype(np.uint8) for size in SIZES]
    write_dicom_slide(tmp_path, pictures)
    with Slide(tmp_path) as slide:
        assert slide.level_sizes_px == SIZES
        assert np.array_equal(slide.read_level(1, (0, 0), SIZES[1]), pictures[1])


def test_a_level_in_several_files_is_read_and_gets_objects(tmp_path: Path) -> None:
    pictures = [np.random.default_rng(size[0]).integers(0, 255, (*size[::-1], 3)).astype(np.uint8) for size in SIZES]
    files = write_dicom_slide(tmp_path, pictures)
    heatmap = a_map(cell_px=3.5)
    whole = dicom.parametric_map(heatmap, dicom.source_images(files[0]))
    parts = [part for file in files[:2] for part in in_parts(file)]
    with Slide(parts[1]) as slide:
        assert slide.level_sizes_px == SIZES
        for level, picture in enumerate(pictures):
            assert np.array_equal(slide.read_level(level, (0, 0), SIZES[level]), picture)
    made = dicom.parametric_map(heatmap, dicom.source_images(parts[1]))
    assert made.TotalPixelMatrixColumns == whole.TotalPixelMatrixColumns == SIZES[1][0]
    assert made.FloatPixelData == whole.FloatPixelData
    parts[1].unlink()
    with pytest.raises(SlideError, match=r"cannot be opened: Found only one SOP instance in concatenation \.\.\.;"):
        Slide(parts[0])
