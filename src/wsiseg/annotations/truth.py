"""Truth: where the tumour of a slide is, and regions that people marked, whoever drew them and in whichever format."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import shapely
from shapely import affinity

from wsiseg.annotations.classes import Classes, is_cut, marked
from wsiseg.annotations.coverage import Area, Polygons, Truth
from wsiseg.annotations.geojson import read_json
from wsiseg.annotations.labels import read_labels
from wsiseg.annotations.masks import read_mask, read_region
from wsiseg.annotations.outlines import Drawn
from wsiseg.annotations.xml_outlines import read_xml
from wsiseg.run.errors import UsageError
from wsiseg.slides.slide import SlideFacts

_ZARR = (".ome.zarr", ".zarr")
_JSON = (".geojson", ".geojson.gz", ".json", ".json.gz")
MASKS = (".png", ".tif", ".tiff")
TRUTH_SUFFIXES = (*_ZARR, *_JSON, ".xml", *MASKS)
"""What the files of a truth folder end in, after the name of the slide."""
_SAME_SIZE = 0.05  # the um/px that ImageScope wrote may differ by this share

Origin = Literal["auto", "slide", "bounds"]


@dataclass(frozen=True)
class Region:
    """A part of one slide that a person marked: where to look, where not to look, or its tissue."""

    area: Area  # the part, in level-0 pixels of OpenSlide's frame
    pieces: tuple[Area, ...]  # what was drawn, one by one, before anything was cut from it
    notes: tuple[str, ...] = ()  # what a person should know of it


@dataclass(frozen=True)
class Reading:
    """How annotations are to be read."""

    classes: Classes = field(default_factory=Classes)  # what the classes of outlines and the labels of masks mean
    # Where the coordinates of outlines begin: at the corner of level 0 (`slide`), at that of the scan within it
    # (`bounds`), or as the program does it that writes such files (`auto`): QuPath, and so GeoJSON, counts from the
    # bounds, all others from level 0.
    origin: Origin = "auto"
    mask_mpp: float | None = None  # micrometers per pixel of masks; where it is not given, a mask covers its slide


def truth_files(place: Path) -> dict[str, list[Path]]:
    """List the truth of a folder by the name of the slide that each file is for.

    A folder that holds heatmaps was written by `wsiseg predict`: there only the heatmaps count.

    Raises:
        UsageError: There is no such folder.
    """
    if not place.exists():
        raise UsageError(f"{place}: no such folder", "give the folder of outlines or masks with --truth")
    paths = [place] if not place.is_dir() or suffix_of(place) in _ZARR else sorted(place.iterdir())
    maps = [path for path in paths if suffix_of(path) in _ZARR]
    found: dict[str, list[Path]] = {}
    for path in maps or paths:
        if suffix := suffix_of(path):
            found.setdefault(path.name[: -len(suffix)].removesuffix("_mask"), []).append(path)
    return found


def open_truth(path: Path, slide: SlideFacts, reading: Reading) -> Truth:
    """Read the truth of a slide from outlines, a mask or NGFF labels; the slide says where things lie.

    Raises:
        AnnotationError: The file cannot be read, or nothing says what in it is tumour.
    """
    suffix = suffix_of(path)
    if suffix in _ZARR:
        return read_labels(path, slide, reading.classes)
    if suffix in MASKS:
        return read_mask(path, slide, reading.classes, reading.mask_mpp)
    return marked(path.name, _drawn(path, slide, reading.origin), reading.classes)


def open_region(path: Path, slide: SlideFacts, reading: Reading | None = None, *, cuts: bool = True) -> Region:
    """Read a part of a slide that a person marked.

    Args:
        path: Outlines or a mask; of a mask every label counts.
        slide: The slide, whose size and bounds say where things lie.
        reading: How to read it.
        cuts: Cut out outlines of classes that say what is not meant (`Ignore*`, `Exclude`, `Artefact`, `Hole`, `Pen`);
            otherwise they count like the others.

    Raises:
        AnnotationError: The file cannot be read.
    """
    reading = reading or Reading()
    if suffix_of(path) in MASKS:
        area, notes = read_region(path, slide, reading.mask_mpp)
        return Region(area, (area,), notes)
    found = _drawn(path, slide, reading.origin)
    pieces = [(one.polygon, is_cut(one) if cuts else one.is_negative) for one in found.outlines]
    kept, out = (shapely.union_all([one for one, is_out in pieces if is_out == wanted]) for wanted in (False, True))
    marked_area = Polygons(shapely.difference(kept, out))
    return Region(marked_area, tuple(Polygons(one) for one, _ in pieces), found.notes)


def _drawn(path: Path, slide: SlideFacts, origin: Origin) -> Drawn:
    """Read outlines and move them into OpenSlide's frame."""
    is_xml = suffix_of(path) == ".xml"
    found = read_xml(path) if is_xml else read_json(path)
    if found.mpp is not None and abs(found.mpp / slide.mpp[0] - 1) > _SAME_SIZE:
        note = f"{path.name}: was drawn at {found.mpp:g} um/px, the slide has {slide.mpp[0]:g} um/px"
        found = replace(found, notes=(*found.notes, note))
    if slide.bounds_px is None or origin == "slide" or (is_xml and origin == "auto"):
        return found
    corner = slide.bounds_px[:2]
    moved = [replace(one, polygon=affinity.translate(one.polygon, *corner)) for one in found.outlines]
    return replace(found, outlines=tuple(moved))


def suffix_of(path: Path) -> str:
    """Return what the name of an annotation ends in after the name of its slide; empty for files of other kinds."""
    return next((suffix for suffix in TRUTH_SUFFIXES if path.name.lower().endswith(suffix)), "")
