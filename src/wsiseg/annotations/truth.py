"""Truth: where the tumour of a slide is, whoever drew it and in whichever format."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from wsiseg.annotations.classes import AnnotationError, Classes, Outline, ZeroedMapError, tumor_area
from wsiseg.annotations.coverage import Mask, Polygons
from wsiseg.annotations.geojson import read_json
from wsiseg.annotations.raster import read_labels, read_mask
from wsiseg.annotations.xml_outlines import read_xml
from wsiseg.run.errors import UsageError
from wsiseg.slides.slide import SlideFacts

_ZARR = (".ome.zarr", ".zarr")
_JSON = (".geojson", ".geojson.gz", ".json", ".json.gz")
_IMAGES = (".png", ".tif", ".tiff")
TRUTH_SUFFIXES = (*_ZARR, *_JSON, ".xml", *_IMAGES)
"""What the files of a truth folder end in, after the name of the slide."""
_SAME_SIZE = 0.05  # the um/px that ImageScope wrote may differ by this share

Origin = Literal["auto", "slide", "bounds"]


@dataclass(frozen=True)
class Truth:
    """The tumour of one slide.

    Attributes:
        tumor: Its area in level-0 pixels of OpenSlide's frame.
        notes: What a person should know of it.
    """

    tumor: Polygons | Mask
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How the files of a truth folder are to be read.

    Attributes:
        classes: Which classes mean tumour.
        origin: Where the coordinates of outlines begin: at the corner of level 0 (`slide`), at that of the scan within
            it (`bounds`), or as the program that writes such files does it (`auto`): QuPath, and so GeoJSON, counts
            from the bounds, all others from level 0.
        mask_mpp: Micrometers per pixel of masks; where it is not given, a mask covers its slide.
    """

    classes: Classes = field(default_factory=Classes)
    origin: Origin = "auto"
    mask_mpp: float | None = None


def truth_files(place: Path) -> dict[str, list[Path]]:
    """List the truth of a folder by the name of the slide that each file is for.

    A folder that holds heatmaps was written by `wsiseg predict`: there only the heatmaps count.

    Raises:
        UsageError: There is no such folder.
    """
    if not place.exists():
        raise UsageError(f"{place}: no such folder", "give the folder of outlines or masks with --truth")
    is_one = not place.is_dir() or _suffix(place) in _ZARR
    paths = [place] if is_one else sorted(place.iterdir())
    if any(_suffix(path) in _ZARR for path in paths):
        paths = [path for path in paths if _suffix(path) in _ZARR]
    found: dict[str, list[Path]] = {}
    for path in paths:
        suffix = _suffix(path)
        if suffix:
            found.setdefault(path.name[: -len(suffix)].removesuffix("_mask"), []).append(path)
    return found


def open_truth(path: Path, slide: SlideFacts, reading: Reading) -> Truth:
    """Read the truth of a slide.

    Args:
        path: Outlines, a mask or NGFF labels.
        slide: The slide, whose size and bounds say where things lie.
        reading: How to read it.

    Raises:
        AnnotationError: The file cannot be read, or nothing says what in it is tumour.
    """
    suffix = _suffix(path)
    if suffix in _ZARR:
        return Truth(*read_labels(path, slide, reading.classes))
    if suffix in _IMAGES:
        return Truth(read_mask(path, slide, reading.classes, reading.mask_mpp))
    if suffix == ".xml":
        outlines, mpp = read_xml(path)
        tumor, notes = tumor_area(path.name, outlines, reading.classes)
        return Truth(_placed(tumor, slide, is_cropped=reading.origin == "bounds"), notes + _sizes(path, mpp, slide))
    tumor, notes = tumor_area(path.name, read_json(path), reading.classes)
    return Truth(_placed(tumor, slide, is_cropped=reading.origin != "slide"), notes)


def _suffix(path: Path) -> str:
    return next((suffix for suffix in TRUTH_SUFFIXES if path.name.lower().endswith(suffix)), "")


def _placed(tumor: object, slide: SlideFacts, *, is_cropped: bool) -> Polygons:
    """Bring outlines into OpenSlide's frame."""
    from shapely import affinity  # noqa: PLC0415  heavy: only where outlines are read

    if not is_cropped or slide.bounds_px is None:
        return Polygons(tumor)
    return Polygons(affinity.translate(tumor, *slide.bounds_px[:2]))


def _sizes(path: Path, mpp: float | None, slide: SlideFacts) -> tuple[str, ...]:
    if mpp is None or abs(mpp / slide.mpp[0] - 1) <= _SAME_SIZE:
        return ()
    return (f"{path.name}: was drawn at {mpp:g} um/px, the slide has {slide.mpp[0]:g} um/px",)


__all__ = [
    "TRUTH_SUFFIXES",
    "AnnotationError",
    "Classes",
    "Origin",
    "Outline",
    "Reading",
    "Truth",
    "ZeroedMapError",
    "open_truth",
    "truth_files",
]
