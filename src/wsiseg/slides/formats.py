"""What a file is, by its first bytes and its name, and how to convert what cannot be read.

Files of many slide formats begin like a plain TIFF or JPEG and hold a preview there. So what calls itself by the name
of such a format is never read as a plain image.
"""

import re
from pathlib import Path

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
ONE_FILE = _PLAIN | _TIFF_BASED | {".ndpi", ".svslide", ".czi"}
"""Names of slides that have nothing beside them."""
SLIDE_SUFFIXES = _PLAIN | _TIFF_BASED | _OTHERS
"""Names that promise a slide: a file with one of these that cannot be read has failed, wherever it was found."""

_VIPS = "convert it: vips tiffsave FILE slide.tiff --tile --pyramid --compression jpeg"
_BIOFORMATS = "convert it: bfconvert -tilex 512 -tiley 512 FILE slide.ome.tif, or export it from QuPath as OME-TIFF"
_GREY = "it lists the files of a fluorescence slide, one a channel, and wsiseg needs H&E"


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
    suffix: (one.partition(" ")[2], advice)
    for advice, listed in _NAMED.items()
    for one in listed.split(", ")
    for suffix in one.partition(" ")[0].split("/")
}
"""By suffix, in small letters: maker and name of a format that cannot be read, and what to do with a file of it."""
_READERS: dict[str, type[ImageFile]] = {"JPEG": JpegImageFile, "PNG": PngImageFile, "TIFF": TiffImageFile}
_MAGIC = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "jp2": rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    "bmp": rb"BM",
    "webp": rb".{8}WEBP",
    "gif": rb"GIF8",
    "heic": rb".{4}ftyp(heic|heix|mif1)",
    "avif": rb".{4}ftypavif",
    "jxl": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "jxr": rb"II\xbc\x01",
    "psd": rb"8BPS",
    "pdf": rb"%PDF-",
    "h5": rb"\x89HDF\r\n",
    "zip": rb"PK\x03\x04",
    "gz": rb"\x1f\x8b",
    "ole": rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "czi": rb"ZISRAWFILE",
    "svslide": rb"SQLite format 3\0",
    "ets": rb"SIS\0",
    "nd2": rb"\xda\xce\xbe\x0a",
    "kfb": rb"KFB",
    "ndpis": rb"\[NanoZoomer Digital Pathology Image Set\]",
    "isyntax": rb"(?i:.*dpufsimport)",
    "html": rb"(?i:.*(<!doctype html|<html))",
    "afi": rb"(?i:.*<imagelist)",
}
"""What files begin with: plain images, and formats by their suffix."""
_HEAD_BYTES = 1024


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return next((kind for kind, begin in _MAGIC.items() if re.match(begin, head, re.DOTALL)), "")


def plain_kind(path: Path) -> str:
    """Return PNG, JPEG or TIFF, whatever the file is called; empty where its first bytes are of none."""
    kind = _kind(path)
    return kind if kind in _READERS else ""


def plain_image(path: Path) -> ImageFile:
    """Open a PNG, JPEG or TIFF without decoding it, whatever its name and size.

    Not by Pillow's own way to open files, which warns of and refuses large images.

    Raises:
        ValueError: Its first bytes are of none.
        Exception: It is broken; Pillow raises almost anything.
    """
    kind = plain_kind(path)
    if not kind:
        raise ValueError("neither PNG, JPEG nor TIFF")
    return _READERS[kind](path)


def _unreadable(path: Path) -> tuple[str, str] | None:
    """Return the format of a file that cannot be read: the one it is named after, else the one it begins like."""
    suffix = path.suffix.lower()
    named = None if suffix in SLIDE_SUFFIXES else _UNREADABLE.get(suffix.removeprefix("."))
    return named or _UNREADABLE.get(_kind(path))


def may_be_plain(path: Path) -> bool:
    """Tell whether a file's name allows that it is read as a plain image."""
    suffix = path.suffix.lower()
    return suffix in _PLAIN or not (suffix in SLIDE_SUFFIXES or suffix.removeprefix(".") in _UNREADABLE)


def may_be_generic(path: Path) -> bool:
    """Tell whether a file's name allows that it is read as a tiled TIFF of no maker."""
    return may_be_plain(path) or path.suffix.lower() in _TIFF_BASED | {".qptiff"}


def refusal(path: Path) -> SlideError:
    """Return the error that says why a file that OpenSlide does not know cannot be read."""
    suffix, kind, other = path.suffix.lower(), plain_kind(path), _unreadable(path)
    if suffix == ".mrxs" and not (path.with_suffix("") / "Slidedat.ini").is_file():
        text = f"{path.name}: a MIRAX slide without its data: {path.stem}/Slidedat.ini is missing beside it"
        return SlideError(text, f"copy the folder {path.stem} too; the file alone holds a preview")
    if other is not None:
        is_promised = suffix in SLIDE_SUFFIXES
        text = f"{path.name}: {other[0]} files cannot be read" + (", whatever the name says" if is_promised else "")
        return (SlideError if is_promised else NotASlideError)(text, other[1])
    if suffix not in SLIDE_SUFFIXES:
        return NotASlideError(f"{path.name}: not a slide")
    if kind and not may_be_plain(path):
        text = f"{path.name}: holds a {kind} image, not the slide that its name promises: broken, or only a preview"
        return SlideError(text, "get the file again; if it is the image that you mean, give it the image's suffix")
    text = f"{path.name}: not a slide, whatever its name says: nothing in it that can be read"
    return SlideError(text, f"get the file again, or {CONVERT}")
