"""DICOM slides: which files of a folder belong together, and which are not slides.

A slide is a series of VL Whole Slide Microscopy instances, one file for each resolution (or part of one), beside which
lie labels, overviews, thumbnails, segmentations and annotations. Only the beginning of each file is read here; pixels
are OpenSlide's. Source: DICOM PS3.5 (encoding), PS3.3 C.8.12.4 (image type of whole-slide images), PS3.10 (files).
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from wsiseg.run.errors import NotASlideError, SlideError

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_KINDS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "label map segmentation",
    "1.2.840.10008.5.1.4.1.1.91.1": "set of annotations",
    "1.2.840.10008.1.3.10": "directory of DICOM files",
}
_IMPLICIT = "1.2.840.10008.1.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_CODECS = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000, lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}
_NOT_SLIDES = ("LABEL", "OVERVIEW", "THUMBNAIL")

_CLASS, _TRANSFER_SYNTAX = (0x0002, 0x0002), (0x0002, 0x0010)
_IMAGE_TYPE, _INSTANCE, _SERIES = (0x0008, 0x0008), (0x0008, 0x0018), (0x0020, 0x000E)
_META_GROUP = 0x0002
_WANTED = frozenset([_CLASS, _TRANSFER_SYNTAX, _IMAGE_TYPE, _INSTANCE, _SERIES])
_LONG_FORMS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_ITEM_END, _SEQUENCE_END = (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
_MOST_TEXT_BYTES = 1024
_MOST_ELEMENTS = 100_000

_Tag = tuple[int, int]


@dataclass(frozen=True)
class DicomFile:
    """One DICOM file.

    Attributes:
        path: Where it lies.
        series: SeriesInstanceUID, empty where it is not known.
        instance: SOPInstanceUID, the same in two copies of one image.
        kind: What it is where it is not a slide, as `thumbnail`; empty for an image of a slide.
        transfer_syntax: UID of how its pixels are encoded.
    """

    path: Path
    series: str
    instance: str
    kind: str
    transfer_syntax: str = ""

    @property
    def codec(self) -> str:
        """How its pixels are compressed."""
        return _CODECS.get(self.transfer_syntax, self.transfer_syntax)

    def refusal(self) -> NotASlideError:
        """Return the error that says why the file is not a slide."""
        return NotASlideError(f"{self.path.name}: not a slide but a DICOM {self.kind}")


def dicom_file(path: Path) -> DicomFile | None:
    """Read what a DICOM file says of itself; None if it is not one."""
    try:
        with path.open("rb") as file:
            if file.read(132)[128:] != b"DICM":
                return None
            values = _values(file)
    except (OSError, struct.error, ValueError):
        values = {}
    return DicomFile(
        path, values.get(_SERIES, ""), values.get(_INSTANCE, ""), _kind(values), values.get(_TRANSFER_SYNTAX, "")
    )


def _kind(values: dict[_Tag, str]) -> str:
    """Name what is not a slide; a file too broken to say what it is passes for one: it shall fail, not be skipped."""
    found = values.get(_CLASS, "")
    if found in {_WHOLE_SLIDE, ""}:
        types = values.get(_IMAGE_TYPE, "").split("\\")
        return next((word.lower() for word in _NOT_SLIDES if word in types), "")
    return _KINDS.get(found, f"object of class {found}")


def by_series(files: Iterable[DicomFile]) -> list[list[DicomFile]]:
    """Gather the images of slides by their series, in the order in which each series first occurs."""
    found: dict[tuple[Path, str], list[DicomFile]] = {}
    for file in files:
        if not file.kind:
            # OpenSlide looks for a series in one folder only.
            found.setdefault((file.path.parent, file.series or file.path.name), []).append(file)
    return list(found.values())


def series_file(folder: Path) -> Path:
    """Return a file of the only slide in a folder.

    Raises:
        SlideError: The folder holds no DICOM slide, or several.
    """
    files = [file for path in sorted(folder.iterdir()) if path.is_file() and (file := dicom_file(path)) is not None]
    series = by_series(files)
    if not series:
        raise SlideError(f"{folder}: a folder without a DICOM slide", "name a slide")
    if len(series) > 1:
        raise SlideError(f"{folder}: holds {len(series)} DICOM slides", "name a file of one of them")
    return series[0][0].path


def _values(file: BinaryIO) -> dict[_Tag, str]:
    """Read the texts that tell files apart, from behind the preamble to the series, on the outermost level."""
    values: dict[_Tag, str] = {}
    depth = 0
    for _ in range(_MOST_ELEMENTS):
        head = file.read(4)
        if not (head or depth):
            return values
        tag: _Tag = struct.unpack("<HH", head)
        syntax = "" if tag[0] == _META_GROUP else values.get(_TRANSFER_SYNTAX)
        if syntax == _DEFLATED:
            return values
        length = _length(file, is_implicit=syntax == _IMPLICIT or tag[0] == _ITEM_END[0])
        if tag in {_ITEM_END, _SEQUENCE_END}:
            depth -= 1
        elif length == _UNDEFINED:  # a sequence, or an item of one
            depth += 1
        elif tag in _WANTED and not depth and length <= _MOST_TEXT_BYTES:
            values[tag] = file.read(length).decode("ascii", "replace").strip(" \0")
        else:
            file.seek(length, 1)
        if not depth and _SERIES <= tag < _ITEM_END:
            return values
    raise ValueError("elements without an end")


def _length(file: BinaryIO, *, is_implicit: bool) -> int:
    """Read the length of an element's value, and what kind it is where that is stated before."""
    if is_implicit:
        return int.from_bytes(file.read(4), "little")
    form, length = struct.unpack("<2sH", file.read(4))
    return int.from_bytes(file.read(4), "little") if form in _LONG_FORMS else int(length)
