"""DICOM slides: which files of a folder belong together, and which are not slides.

A slide is a series of VL Whole Slide Microscopy instances, one file for each resolution (or part of one), beside which
lie labels, overviews, thumbnails, segmentations and annotations. Only the beginning of each file is read here; pixels
are OpenSlide's. Source: DICOM PS3.5 (encoding), PS3.3 C.8.12.4 (image type of whole-slide images), PS3.10 (files).
"""

import hashlib
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from wsiseg.run.errors import NotASlideError, SlideError

ADDRESS = "dicomweb://"
"""What an address of slides in an archive begins with."""

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_KINDS = {
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "label map segmentation",
    "1.2.840.10008.5.1.4.1.1.91.1": "set of annotations",
    "1.2.840.10008.1.3.10": "directory of DICOM files",
}
NOT_SLIDES = ("LABEL", "OVERVIEW", "THUMBNAIL")
_IMPLICIT, _DEFLATED = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1.99"
# Tags as one number of 32 bits, the group in the upper half.
_CLASS, _TRANSFER_SYNTAX, _IMAGE_TYPE, _SERIES = 0x0002_0002, 0x0002_0010, 0x0008_0008, 0x0020_000E
_ITEM_GROUP, _ITEM_END, _SEQUENCE_END = 0xFFFE, 0xFFFE_E00D, 0xFFFE_E0DD
_LONG_FORMS = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_MOST_TEXT_BYTES = 1024
_MOST_ELEMENTS = 100_000


class DicomFile(NamedTuple):
    """One DICOM file."""

    path: Path  # where it lies
    series: str  # SeriesInstanceUID, empty where it is not known
    kind: str  # what it is where it is not a slide, as `thumbnail`; empty for an image of a slide
    is_resampled: bool = False  # it says that it is made of a finer level

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
    return DicomFile(path, values.get(_SERIES, ""), _kind(values), "RESAMPLED" in values.get(_IMAGE_TYPE, ""))


def _kind(values: dict[int, str]) -> str:
    """Name what is not a slide; a file too broken to say what it is passes for one: it shall fail, not be skipped."""
    found = values.get(_CLASS, "")
    if found in {_WHOLE_SLIDE, ""}:
        types = values.get(_IMAGE_TYPE, "").split("\\")
        return next((word.lower() for word in NOT_SLIDES if word in types), "")
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


def hashed(uid: str) -> str:
    """Return a name for an identifier that does not lead to a patient."""
    return hashlib.sha256(uid.encode()).hexdigest()[:16]


def _values(file: BinaryIO) -> dict[int, str]:
    """Read the texts that tell files apart, from behind the preamble to the series, on the outermost level."""
    values: dict[int, str] = {}
    depth = 0
    for _ in range(_MOST_ELEMENTS):
        head = file.read(4)
        if not (head or depth):
            return values
        group, element = struct.unpack("<HH", head)
        tag = group << 16 | element
        syntax = "" if group == _CLASS >> 16 else values.get(_TRANSFER_SYNTAX)
        if syntax == _DEFLATED:
            return values
        length = _length(file, is_implicit=syntax == _IMPLICIT or group == _ITEM_GROUP)
        if tag in {_ITEM_END, _SEQUENCE_END}:
            depth -= 1
        elif length == _UNDEFINED:  # a sequence, or an item of one
            depth += 1
        elif tag in {_CLASS, _TRANSFER_SYNTAX, _IMAGE_TYPE, _SERIES} and not depth and length <= _MOST_TEXT_BYTES:
            values[tag] = file.read(length).decode("ascii", "replace").strip(" \0")
        else:
            file.seek(length, 1)
        if not depth and _SERIES <= tag < _ITEM_END:
            return values
    raise ValueError("elements without an end")


def _length(file: BinaryIO, *, is_implicit: bool) -> int:
    """Read the length of an element's value, and what kind it is where that is stated before."""
    if not is_implicit:
        form, length = struct.unpack("<2sH", file.read(4))
        if form not in _LONG_FORMS:
            return int(length)
    return int.from_bytes(file.read(4), "little")
