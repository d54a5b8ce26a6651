"""What a file is, by its first bytes and its name, and how to convert what cannot be read.

Files of many slide formats begin like a plain TIFF or JPEG and hold a preview there. So what calls itself by the name
of such a format is never read as a plain image.
"""

from pathlib import Path
from typing import NamedTuple

from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from wsiseg.run.errors import NotASlideError, SlideError

CONVERT = "convert it to a pyramidal TIFF with JPEG tiles, as vips, bfconvert and QuPath write it"
GET_AGAIN = "the file is broken or incomplete: get it again"

_PLAIN = frozenset([".tif", ".tiff", ".png", ".jpg", ".jpeg"])
_TIFF_BASED = frozenset([".svs", ".scn", ".bif"])
_OTHERS = frozenset([".ndpi", ".vms", ".vmu", ".mrxs", ".svslide", ".czi", ".dcm", ".dicom"])
SLIDE_SUFFIXES = _PLAIN | _TIFF_BASED | _OTHERS
"""Names that promise a slide: a file with one of these that cannot be read has failed, wherever it was found."""

_VIPS = "convert it: vips tiffsave FILE slide.tiff --tile --pyramid --compression jpeg"
_BIOFORMATS = "convert it: bfconvert -tilex 512 -tiley 512 FILE slide.ome.tif, or export it from QuPath as OME-TIFF"
_GREY = "it lists the files of a fluorescence slide, one a channel, and wsiseg needs H&E"


class Format(NamedTuple):
    """A format that cannot be read.

    Attributes:
        name: Maker and name.
        advice: What to do with a file of it.
    """

    name: str
    advice: str


def _export(program: str) -> str:
    return f"export it from {program} as SVS, DICOM or pyramidal TIFF"


_NAMED = {
    _export("Philips IMS") + ", or convert it with isyntax2raw and raw2ometiff": "isyntax Philips iSyntax",
    _export("Philips IMS"): "i2syntax Philips iSyntax",
    _BIOFORMATS + " (with its folder of .ets files beside it)": "vsi Olympus VSI",
    "name the .vsi file that it belongs to, converted with bfconvert": "ets Olympus VSI (part of a slide)",
    _export("K-Viewer"): "kfb/kfbf KFBio KFB",
    _export("Sqray's viewer"): "sdpc Sqray SDPC, dyqx Sqray DYQX",
    _export("UNIC's viewer"): "tmap UNIC TMAP",
    _export("Motic's viewer"): "mds Motic MDS, mdsx Motic MDSX",
    _export("PreciPoint's viewer"): "vmic PreciPoint VMIC",
    _export("its scanner's viewer"): "tron InteMedic TRON, ole OLE compound",
    _BIOFORMATS: "lif Leica LIF, lof Leica LOF, xlef Leica XLEF, zvi Zeiss ZVI, lsm Zeiss LSM, czi Zeiss CZI, "
    "nd2 Nikon ND2, oir Olympus OIR, oib Olympus OIB, oif Olympus OIF, stk MetaMorph STK, ims Imaris, "
    "qptiff Akoya QPTIFF, jxr/wdp/hdp JPEG XR",
    f"{_GREY}: name a .ndpi file of H&E": "ndpis Hamamatsu NDPIS",
    f"{_GREY}: name a .svs file of H&E": "afi Aperio AFI",
    _VIPS: "jp2/j2k/j2c/jpc/jpf/jpx JPEG 2000, bmp/dib BMP, webp WebP, gif GIF, heic/heif/hif HEIF, avif AVIF, "
    "jxl JPEG XL",
    CONVERT: "psd Photoshop",
    "name the slide itself": "pdf PDF",
    "name the slide itself, or export it as pyramidal TIFF": "h5/hdf5/hdf/h5ad HDF5",
    "save the table as 'CSV UTF-8' and name that": "xlsx/xls/ods Excel",
    "unpack it and name what is in it": "zip ZIP, gz gzip",
    "a page was saved in place of the slide: get it again, signed in": "html/htm HTML",
    GET_AGAIN: "svslide Sakura SVSLIDE",
}
_UNREADABLE = {
    suffix: Format(one.partition(" ")[2], advice)
    for advice, listed in _NAMED.items()
    for one in listed.split(", ")
    for suffix in one.partition(" ")[0].split("/")
}
_PLAIN_MAGIC = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    **dict.fromkeys([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"], "TIFF"),
}
_MAGIC: dict[str, tuple[int, tuple[bytes, ...]]] = {
    "jp2": (0, (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")),
    "bmp": (0, (b"BM",)),
    "webp": (8, (b"WEBP",)),
    "gif": (0, (b"GIF8",)),
    "heic": (4, (b"ftypheic", b"ftypheix", b"ftypmif1")),
    "avif": (4, (b"ftypavif",)),
    "jxl": (0, (b"\xff\x0a", b"\0\0\0\x0cJXL ")),
    "jxr": (0, (b"II\xbc\x01",)),
    "psd": (0, (b"8BPS",)),
    "pdf": (0, (b"%PDF-",)),
    "h5": (0, (b"\x89HDF\r\n",)),
    "zip": (0, (b"PK\3\4",)),
    "gz": (0, (b"\x1f\x8b",)),
    "ole": (0, (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",)),
    "czi": (0, (b"ZISRAWFILE",)),
    "svslide": (0, (b"SQLite format 3\0",)),
    "ets": (0, (b"SIS\0",)),
    "nd2": (0, (b"\xda\xce\xbe\x0a",)),
    "kfb": (0, (b"KFB",)),
    "ndpis": (0, (b"[NanoZoomer Digital Pathology Image Set]",)),
}
_TEXT_MAGIC = ((b"dpufsimport", "isyntax"), (b"<!doctype html", "html"), (b"<html", "html"), (b"<imagelist", "afi"))
_HEAD_BYTES = 1024


def plain_kind(path: Path) -> str:
    """Return PNG, JPEG or TIFF, whatever the file is called; empty where its first bytes are of none."""
    head = _head(path)
    return next((kind for magic, kind in _PLAIN_MAGIC.items() if head.startswith(magic)), "")


def plain_image(path: Path) -> ImageFile:
    """Open a PNG, JPEG or TIFF without decoding it, whatever its name and size.

    Not by Pillow's own way to open files, which warns of and refuses large images.

    Raises:
        ValueError: Its first bytes are of none.
        Exception: It is broken; Pillow raises almost anything.
    """
    readers: dict[str, type[ImageFile]] = {"JPEG": JpegImageFile, "PNG": PngImageFile, "TIFF": TiffImageFile}
    kind = plain_kind(path)
    if not kind:
        raise ValueError("neither PNG, JPEG nor TIFF")
    return readers[kind](path)


def unreadable(path: Path) -> Format | None:
    """Return the format of a file that cannot be read: the one it is named after, else the one it begins like."""
    suffix = path.suffix.lower().removeprefix(".")
    if f".{suffix}" not in SLIDE_SUFFIXES and (named := _UNREADABLE.get(suffix)) is not None:
        return named
    head = _head(path)
    begins = (kind for kind, (at, magic) in _MAGIC.items() if head.startswith(magic, at))
    holds = (kind for text, kind in _TEXT_MAGIC if text in head.lower())
    found = next(begins, None) or next(holds, None)
    return None if found is None else _UNREADABLE[found]


def may_be_plain(path: Path) -> bool:
    """Tell whether a file's name allows that it is read as a plain image."""
    suffix = path.suffix.lower()
    return suffix in _PLAIN or not (suffix in SLIDE_SUFFIXES or suffix.removeprefix(".") in _UNREADABLE)


def may_be_generic(path: Path) -> bool:
    """Tell whether a file's name allows that it is read as a tiled TIFF of no maker."""
    return may_be_plain(path) or path.suffix.lower() in _TIFF_BASED | {".qptiff"}


def refusal(path: Path) -> SlideError:
    """Return the error that says why a file that OpenSlide does not know cannot be read."""
    suffix, kind, other = path.suffix.lower(), plain_kind(path), unreadable(path)
    if suffix == ".mrxs" and not (path.with_suffix("") / "Slidedat.ini").is_file():
        text = f"{path.name}: a MIRAX slide without its data: {path.stem}/Slidedat.ini is missing beside it"
        return SlideError(text, f"copy the folder {path.stem} too; the file alone holds a preview")
    if other is not None:
        is_promised = suffix in SLIDE_SUFFIXES
        text = f"{path.name}: {other.name} files cannot be read" + (", whatever the name says" if is_promised else "")
        return (SlideError if is_promised else NotASlideError)(text, other.advice)
    if suffix not in SLIDE_SUFFIXES:
        return NotASlideError(f"{path.name}: not a slide")
    if kind and not may_be_plain(path):
        text = f"{path.name}: holds a {kind} image, not the slide that its name promises: broken, or only a preview"
        return SlideError(text, "get the file again; if it is the image that you mean, give it the image's suffix")
    text = f"{path.name}: not a slide, whatever its name says: nothing in it that can be read"
    return SlideError(text, f"get the file again, or {CONVERT}")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES)
