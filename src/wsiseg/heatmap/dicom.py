"""Tumour maps as DICOM objects that lie on the slide they belong to, for archives and viewers of hospitals.

An object takes the pixel matrix of one level of the DICOM slide: its origin, orientation and spacing, in its frame of
reference, and each pixel has the value of the cell that its centre lies in. So nothing is interpolated, viewers that
compare pixel matrices find it on the slide, and it belongs to the slide's patient and study, whose attributes are
copied as the standard asks. Its identifiers follow from what it holds: the same map becomes the same object.

Source: DICOM PS3.3 A.51 (Segmentation), A.75 (Parametric Map), C.8.12.4 (pixel matrix of whole-slide images), PS3.16
(codes). The extra `dicom` is needed.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.pages.pictures import TUMOR
from wsiseg.run.errors import SlideError, WsisegError
from wsiseg.slides.dicom import by_series, dicom_file

if TYPE_CHECKING:
    from pydicom import Dataset

    from wsiseg.heatmap.heatmap import Heatmap

NOT_LOOKED_AT = -1.0
"""The pixel value of a parametric map where nobody looked, which it states as its padding value."""

RESEARCH = "For research, not for diagnosis"
_MOST_PIXELS = 1 << 28
_LONGEST = 64  # characters of a DICOM text
_GREY = (128, 128, 128)


def source_images(path: Path) -> list["Dataset"]:
    """Read the levels of a DICOM slide by any of its files, finest first, without their pixels.

    Raises:
        SlideError: It is not a DICOM slide, or a file of it cannot be read.
    """
    import pydicom  # noqa: PLC0415  only where objects are made

    path = path.resolve()
    found = by_series(filter(None, map(dicom_file, sorted(path.parent.iterdir()))))
    files = next((series for series in found if path in {file.path for file in series}), None)
    if files is None:
        raise SlideError(f"{path.name}: not a DICOM slide, so no DICOM object can lie on it", "give --dicomize")
    with discreetly(path.name):
        images = [pydicom.dcmread(file.path, stop_before_pixels=True) for file in files]
        return sorted(images, key=lambda image: -image.TotalPixelMatrixColumns)


@contextmanager
def discreetly(name: str) -> Iterator[None]:
    """Keep to ourselves what libraries say of DICOM attributes, as names of patients stand in it.

    Raises:
        SlideError: They cannot be read or copied; `name` is what they are of.
    """
    import pydicom  # noqa: PLC0415  only where objects are made

    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        try:
            yield
        except (ValueError, TypeError, AttributeError, LookupError, pydicom.errors.InvalidDicomError) as error:
            text = f"{name}: an attribute of the DICOM slide is missing or not as the standard asks"
            raise SlideError(text, f"check it with dciodvfy ({type(error).__name__})") from None


def segmentation(heatmap: "Heatmap", images: Sequence["Dataset"]) -> "Dataset":
    """Return a binary DICOM Segmentation with the segments tumour and unknown, made of what `source_images` read.

    Raises:
        SlideError: The images are not of the map's slide, or lack a level that is coarse enough.
    """
    return _segmented(heatmap, images, heatmap.tumor, "segmentation", threshold=f"{heatmap.threshold:g}")


def probability(heatmap: "Heatmap", images: Sequence["Dataset"]) -> "Dataset":
    """Return a fractional DICOM Segmentation: the probability of tumour in steps of 1/255, and 255 where unknown.

    Raises:
        SlideError: The images are not of the map's slide, or lack a level that is coarse enough.
    """
    return _segmented(heatmap, images, np.nan_to_num(heatmap.probabilities), "probability")


def _segmented(
    heatmap: "Heatmap", images: Sequence["Dataset"], tumor: NDArray[Any], kind: str, **parameters: str
) -> "Dataset":
    import highdicom as hd  # noqa: PLC0415  only where objects are made

    image, cells = _level(heatmap, images)
    made = hd.seg.Segmentation(
        [image],
        np.stack([tumor[cells], heatmap.unknown[cells].astype(tumor.dtype)], -1)[None],
        "BINARY" if tumor.dtype == np.bool_ else "FRACTIONAL",
        _segments(heatmap, parameters),
        omit_empty_frames=bool(tumor.any() or heatmap.unknown.any()),
        content_label=kind.upper(),
        **_stated(heatmap, images, image, kind),
    )
    made.PatientOrientation = None  # must stand there, and nobody knows it
    return made


def parametric_map(heatmap: "Heatmap", images: Sequence["Dataset"]) -> "Dataset":
    """Return a DICOM Parametric Map of the probability of tumour as float32, `NOT_LOOKED_AT` where nobody looked.

    Raises:
        SlideError: The images are not of the map's slide, or lack a level that is coarse enough.
    """
    import highdicom as hd  # noqa: PLC0415  only where objects are made
    from pydicom.sr.codedict import codes  # noqa: PLC0415  the same

    image, cells = _level(heatmap, images)
    quantity = hd.sr.CodedConcept("111047", "DCM", "Probability of cancer")
    mapping = hd.pm.RealWorldValueMapping(
        "1", "probability of tumour", codes.UCUM.NoUnits, (0.0, 1.0), 1.0, 0.0, quantity_definition=quantity
    )
    made = hd.pm.ParametricMap(
        [image],
        np.nan_to_num(heatmap.probabilities, nan=NOT_LOOKED_AT)[cells],
        contains_recognizable_visual_features=False,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[hd.VOILUTTransformation(window_center=0.5, window_width=1.0)],
        content_label="PROBABILITY",
        **_stated(heatmap, images, image, "map"),
    )
    made.FloatPixelPaddingValue = made.FloatPixelPaddingRangeLimit = NOT_LOOKED_AT
    return made


def _level(heatmap: "Heatmap", images: Sequence["Dataset"]) -> tuple["Dataset", Any]:
    """Return the coarsest level that shows every cell, and the index of the cell that each of its pixels lies in."""
    finest, bounds = images[0], heatmap.slide.bounds_px or (0, 0, 0, 0)
    places = {(*heatmap.slide.size_px, 0, 0), (*bounds[2:], *bounds[:2])}
    size = (finest.TotalPixelMatrixColumns, finest.TotalPixelMatrixRows)
    corner = next((place[2:] for place in places if place[:2] == size), None)
    if corner is None:
        text = f"{heatmap.slide.file}: the DICOM slide has {size[0]} x {size[1]} pixels, so the map is of another"
        raise SlideError(text, "name the folder of the right one with --slides")
    steps = [_spacing(image) / _spacing(finest) for image in images]
    cell = np.asarray(heatmap.cell_level0)
    fitting = [one for one in zip(images, steps, strict=True) if (one[1] <= cell).all()]
    image, step = fitting[-1] if fitting else (finest, steps[0])
    counts = (image.TotalPixelMatrixColumns, image.TotalPixelMatrixRows)
    if counts[0] * counts[1] > _MOST_PIXELS:
        text = f"{heatmap.slide.file}: its coarsest level of use has {counts[0]} x {counts[1]} pixels, too many"
        raise SlideError(text, "make a DICOM slide that has coarser levels too")
    columns, rows = (
        np.minimum((((np.arange(counts[axis]) + 0.5) * step[axis] + corner[axis]) / cell[axis]).astype(int), most - 1)
        for axis, most in enumerate(heatmap.shape[::-1])
    )
    return image, np.ix_(rows, columns)


def _spacing(image: "Dataset") -> NDArray[np.float64]:
    """Return width and height of a pixel in mm; the standard states the distance between rows first."""
    down, across = image.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    return np.asarray([across, down], np.float64)


def _segments(heatmap: "Heatmap", parameters: dict[str, str]) -> list[Any]:
    import highdicom as hd  # noqa: PLC0415  only where objects are made
    from pydicom.sr.codedict import codes  # noqa: PLC0415  the same

    model = heatmap.model
    algorithm = hd.AlgorithmIdentificationSequence(
        name=str(model.get("name", "unknown"))[:_LONGEST],
        family=codes.DCM.ArtificialIntelligence,
        version=str(model.get("version", "unknown"))[:_LONGEST],
        source="wsiseg",
        parameters={"sha256": str(model.get("sha256", "unknown")), **parameters},
    )
    unknown = hd.sr.CodedConcept("261665006", "SCT", "Unknown")
    said = (
        ("Tumour", codes.SCT.MorphologicallyAbnormalStructure, codes.SCT.Neoplasm, TUMOR),
        ("Unknown: unlike the tissue of training", codes.SCT.Tissue, unknown, _GREY),
    )
    return [
        hd.seg.SegmentDescription(
            number,
            label,
            category,
            kind,
            hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm,
            display_color=hd.color.CIELabColor.from_rgb(*color),
        )
        for number, (label, category, kind, color) in enumerate(said, 1)
    ]


def _stated(heatmap: "Heatmap", images: Sequence["Dataset"], image: "Dataset", kind: str) -> dict[str, Any]:
    """Return what every object states: what it was made of and by, and what tells it from others."""
    from pydicom.uid import generate_uid  # noqa: PLC0415  only where objects are made

    digest = hashlib.sha256(heatmap.probabilities.tobytes() + heatmap.unknown.tobytes()).hexdigest()
    stated = json.dumps([kind, digest, heatmap.threshold, heatmap.model, heatmap.run, heatmap.version], sort_keys=True)
    series, instance = (
        generate_uid(entropy_srcs=[what, str(image.SOPInstanceUID), stated]) for what in ("series", "instance")
    )
    name, version = (str(heatmap.model.get(key, "")) for key in ("name", "version"))
    return {
        "tile_pixel_array": True,
        "further_source_images": [one for one in images if one is not image],
        "series_instance_uid": series,
        "series_number": 1,
        "sop_instance_uid": instance,
        "instance_number": 1,
        "manufacturer": "wsiseg",
        "manufacturer_model_name": "wsiseg",
        "software_versions": [f"wsiseg {heatmap.version}", f"{name} {version}".strip()[:_LONGEST]],
        "device_serial_number": str(heatmap.model.get("sha256", "unknown"))[:_LONGEST],
        "series_description": f"wsiseg tumour {kind}. {RESEARCH}"[:_LONGEST],
        "content_description": RESEARCH,
    }


def dicomize(path: Path, folder: Path) -> None:
    """Make a DICOM slide of another in a new folder, without its label, overview and what is confidential.

    Raises:
        SlideError: wsidicomizer cannot read it.
        WsisegError: wsidicomizer is not installed.
        MemoryError: There is not enough memory.
    """
    try:
        from wsidicomizer import WsiDicomizer  # noqa: PLC0415  only where slides are made
    except ModuleNotFoundError as error:
        text = f"--dicomize needs {error.name}, which is not installed"
        raise WsisegError(text, "pip install 'wsiseg[dicom]'") from error
    kinds = ("label", "overview", "thumbnail", "confidential")
    folder.mkdir()
    try:
        WsiDicomizer.convert(path, folder, **{f"include_{kind}": False for kind in kinds})
    except MemoryError:
        raise
    except Exception as error:  # whatever its readers raise
        text = f"{path.name}: wsidicomizer cannot convert it: {error}"
        raise SlideError(text, "convert it with another program, and name its folder with --slides") from error
