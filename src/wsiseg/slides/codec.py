"""How a slide's pixels are compressed, as its file says."""

import warnings
from pathlib import Path

from wsiseg.slides.dicom import dicom_file

_TIFF_COMPRESSION = 259
_TIFF = {
    1: "none",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    33003: "JPEG 2000 (YCbCr)",
    33005: "JPEG 2000 (RGB)",
    34712: "JPEG 2000",
    50000: "zstd",
    50001: "WebP",
}
_DICOM = {
    "1.2.840.10008.1.2": "none",
    "1.2.840.10008.1.2.1": "none",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000, lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
}


def codec(path: Path) -> str:
    """Name the compression of a slide's finest level; `unknown` where its format is neither TIFF, DICOM, PNG nor JPEG.

    Args:
        path: A slide that could be opened.
    """
    found = dicom_file(path)
    if found is not None:
        return _DICOM.get(found.transfer_syntax, found.transfer_syntax)
    try:
        return _of_image(path)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError):
        return "unknown"


def _of_image(path: Path) -> str:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2  # noqa: PLC0415  heavy: only where a slide is examined

    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tags that do not matter here
        head = file.read(8)
        if head.startswith(b"\x89PNG"):
            return "PNG"
        if head.startswith(b"\xff\xd8"):
            return "JPEG"
        is_big = head[2:4] in {b"\x2b\0", b"\0\x2b"}
        directory = ImageFileDirectory_v2(head + file.read(8) if is_big else head)
        file.seek(directory.next)
        directory.load(file)
    code = int(directory[_TIFF_COMPRESSION])
    return _TIFF.get(code, f"TIFF compression {code}")
