"""Take a slide to an archive and back: DICOM by wsidicomizer, maps, STOW-RS, QIDO-RS and WADO-RS, with Orthanc.

    python benchmarks/dicom_round_trip.py [SLIDE]

Prints a line of JSON: how many pixels of the slide differ after the journey, how far the values in the objects are
from the map, how far marks in the corners are from their places, and the seconds of each step. Needs `wsiseg[dicom]`,
Orthanc and its DICOMweb plug-in, and `tests` on the path of Python.

Without a slide one is made that has the sizes of OpenSlide's CMU-1 at all levels (46000 x 32914, 11500 x 8228,
2875 x 2057: downsamples of 4.0001 and 16.0005) and an Aperio's form; its tissue is that of CMU-1-Small-Region, repeated
over an ellipse, and a mark lies in each corner.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import simplejpeg
import tifffile
from dicomweb_client import DICOMwebClient
from numpy.typing import NDArray
from PIL import Image
from pydicom.encaps import generate_frames
from scipy import ndimage

from making.archives import LOGIN, Archive, orthanc
from making.models import write_color_filter_model
from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.slides.dicom import hashed
from wsiseg.slides.slide import Slide

Shown = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]  # values, and the level-0 y and x of the middles of its pixels
Sizes = tuple[tuple[int, int], ...]
SIZES: Sizes = ((46000, 32914), (11500, 8228), (2875, 2057))
MPP = 0.499
_TILE, _REPEATS = 256, (11, 8)  # tiles of tissue down and across
_MARK, _AWAY, _MARK_COLOR = 5, 2, (150, 60, 120)  # tiles: side of a mark, and its distance from both edges
_ELLIPSE = 0.35  # square of its radius, where 1 reaches the edges
_DICOM_SERIES = "0020000E"


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--tissue", type=Path, default=Path("../shared/data/slides/CMU-1-Small-Region.svs"))
    args = parser.parse_args()
    os.environ.update(WSISEG_DICOMWEB_USER=LOGIN[0], WSISEG_DICOMWEB_PASSWORD=LOGIN[1])
    with TemporaryDirectory() as name:
        folder = Path(name)
        slide = args.slide or write_stand_in(folder / "stand-in.svs", args.tissue)
        (folder / "archive").mkdir()
        with orthanc(folder / "archive") as archive:
            print(json.dumps(journey(slide, folder, archive, None if args.slide else SIZES)))


def journey(slide: Path, folder: Path, archive: Archive, marked: Sizes | None = None) -> dict[str, Any]:
    """Take every step and compare what arrives with what left; `marked` has the sizes of a stand-in."""
    model = write_color_filter_model(folder / "model.onnx")
    predicting = ["--model", str(model), "--out"]
    seconds = {"predict": command("predict", str(slide), *predicting, str(folder / "maps"))}
    objects = ["--to", "dicom-seg", "--to", "dicom-map", "--dicomize", "--out", str(folder / "objects")]
    seconds["convert and store"] = command("convert", str(folder / "maps"), *objects, "--store", archive.root)
    made = folder / "objects" / f"{slide.stem}.dicom"
    ids = pydicom.dcmread(next(made.glob("*.dcm")), stop_before_pixels=True)
    address = f"dicomweb://{archive.host}/dicom-web/studies/{ids.StudyInstanceUID}/series/{ids.SeriesInstanceUID}"
    seconds["predict from the archive"] = command("predict", address, *predicting, str(folder / "again"))
    name = hashed(ids.SeriesInstanceUID)
    cache, _ = PredictConfig.checked(inputs=(address,), out=folder / "again").cache_place
    heatmap, again = (
        Heatmap.open(folder / "maps" / f"{slide.stem}.ome.zarr"),
        Heatmap.open(folder / "again" / f"{name}.ome.zarr"),
    )
    began = time.monotonic()
    fetched = [*found(archive, ids.StudyInstanceUID, ids.SeriesInstanceUID)]
    seconds["objects back"] = round(time.monotonic() - began, 1)
    return {
        "slide": {"name": slide.name, "bytes": slide.stat().st_size},
        "pixels": compared(slide, next((cache / name).glob("*.dcm"))),
        "cells": int(heatmap.tissue.sum()),
        "cells that differ between both maps": int(
            (np.nan_to_num(heatmap.probabilities, nan=-1) != np.nan_to_num(again.probabilities, nan=-1)).sum()
        ),
        "objects": [measured(one, heatmap, marked) for one in fetched],
        "objects that differ from what was stored": differing(fetched, folder / "objects"),
        "seconds": seconds,
    }


def command(*words: str) -> float:
    """Run wsiseg and return the seconds that it took."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "wsiseg", *words], check=True, stdout=sys.stderr)
    return round(time.monotonic() - began, 1)


def found(archive: Archive, study: str, slide: str) -> Iterator[pydicom.Dataset]:
    """Search a study (QIDO-RS) for what is not the slide, and fetch it (WADO-RS)."""
    client = DICOMwebClient(archive.root)
    client._session.auth = LOGIN  # noqa: SLF001  it offers no other way to a login without a header
    for series in client.search_for_series(study):
        uid = series[_DICOM_SERIES]["Value"][0]
        if uid != slide:
            yield from client.retrieve_series(study, uid)


def differing(fetched: list[pydicom.Dataset], stored: Path) -> int:
    """Count the objects whose pixels are not those of the files that were stored."""
    files = {str(one.SOPInstanceUID): one for one in map(pydicom.dcmread, stored.glob("*.dcm"))}
    same = [pixels(one) == pixels(files[str(one.SOPInstanceUID)]) for one in fetched]
    return len(files) - sum(same)


def pixels(made: pydicom.Dataset) -> bytes:
    """Return the pixels as they are stored."""
    found: bytes = made["FloatPixelData" if "FloatPixelData" in made else "PixelData"].value
    return found


def compared(before: Path, after: Path) -> list[dict[str, int]]:
    """Count the pixels of each level, and those that differ, frame by frame.

    OpenSlide itself does not show all pixels of a level as they are: where its downsample is no whole number it draws
    what lies beyond the first 4096 pixels of a read between pixels.
    """
    levels = []
    images = sorted(map(pydicom.dcmread, after.parent.glob("*.dcm")), key=lambda one: -one.TotalPixelMatrixColumns)
    with Slide(before) as slide:
        for level, image in enumerate(images):
            (width, height), across = slide.level_sizes_px[level], -(-image.TotalPixelMatrixColumns // image.Columns)
            differ = 0
            for number, frame in enumerate(generate_frames(image.PixelData, number_of_frames=image.NumberOfFrames)):
                top, left = number // across * image.Rows, number % across * image.Columns
                size = min(image.Columns, width - left), min(image.Rows, height - top)
                shown = simplejpeg.decode_jpeg(frame)[: size[1], : size[0]]
                differ += int((slide.read_level(level, (left, top), size) != shown).any(2).sum())
            levels.append({"pixels": width * height, "differ": differ})
    return levels


def measured(made: pydicom.Dataset, heatmap: Heatmap, marked: Sizes | None) -> dict[str, Any]:
    """Compare an object with the map: the value of each pixel with that of the cell at its centre, and the marks."""
    kind = str(made.get("SegmentationType", "PARAMETRIC_MAP"))
    if made.Modality == "SEG":
        read = hd.seg.Segmentation.from_dataset(made)
        options = {"rescale_fractional": False} if kind == "FRACTIONAL" else {}
        matrix = read.get_total_pixel_matrix(**options)[..., 0] / (255 if options else 1)
    else:
        read = hd.pm.ParametricMap.from_dataset(made)
        matrix = read.get_total_pixel_matrix(apply_real_world_transform=False)
    origin = made.TotalPixelMatrixOriginSequence[0]
    down, across = made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing
    # From what the object alone says: where on the slide, in level-0 pixels, the centre of each of its pixels lies.
    y, x = (
        (np.arange(count) + 0.5) * 1000 * step / mpp
        for count, step, mpp in zip(matrix.shape, (down, across), heatmap.slide.mpp[::-1], strict=True)
    )
    cell = heatmap.cell_level0[0]
    rows, columns = (
        np.minimum((at / cell).astype(int), most - 1) for at, most in zip((y, x), heatmap.shape, strict=True)
    )
    values = (
        heatmap.tumor if kind == "BINARY" else np.nan_to_num(heatmap.probabilities, nan=-1 if kind[0] == "P" else 0)
    )
    away = np.abs(matrix - values[np.ix_(rows, columns)])
    ends = [
        max(abs(x[i] / cell - columns[i] - 0.5), abs(y[j] / cell - rows[j] - 0.5)) for i in (0, -1) for j in (0, -1)
    ]
    figures = {
        "kind": kind,
        "matrix": list(matrix.shape[::-1]),
        "origin_mm": [float(origin.XOffsetInSlideCoordinateSystem), float(origin.YOffsetInSlideCoordinateSystem)],
        "most that a value is off, in 1/255": round(float(away.max()) * 255, 3),
        "corner pixels, in cells from the middle of the cell that they show": [round(float(one), 3) for one in ends],
    }
    if marked:
        middles = [(np.arange(count) + 0.5) * cell for count in heatmap.shape]
        of_map = marks((values, *middles), marked)
        off = np.abs(marks((matrix, y, x), marked) - of_map).max(1) / cell
        figures["marks, in cells from those of the map"] = off.round(3).tolist()
        figures["marks of the map, in cells from where they were drawn"] = (
            (np.abs(of_map - drawn(marked)).max(1) / cell).round(3).tolist()
        )
    return figures


def marks(shown: Shown, sizes: Sizes) -> NDArray[np.float64]:
    """Return the middle of the mark in each corner as level-0 y and x."""
    values, y, x = shown
    near = _MARK * _TILE / 2 + _AWAY * _TILE
    found = []
    for at in drawn(sizes):
        window = np.flatnonzero(np.abs(y - at[0]) < near), np.flatnonzero(np.abs(x - at[1]) < near)
        middle = ndimage.center_of_mass(values[np.ix_(*window)].clip(0))
        found.append([np.interp(middle[n], np.arange(len(window[n])), (y, x)[n][window[n]]) for n in (0, 1)])
    return np.asarray(found)


def drawn(sizes: Sizes) -> NDArray[np.float64]:
    """Return where the middles of the marks were drawn, as level-0 y and x."""
    near = (_AWAY + _MARK / 2) * _TILE
    width, height = (size // _TILE * _TILE for size in sizes[0])
    return np.asarray([(y, x) for x in (near, width - near) for y in (near, height - near)])


def write_stand_in(path: Path, source: Path, sizes: Sizes = SIZES) -> Path:
    """Write a slide of these sizes in the form of an Aperio, of the tissue of a smaller one."""
    with Slide(source) as small:
        tissue = small.read_level(0, (0, 0), (_REPEATS[1] * _TILE, _REPEATS[0] * _TILE))
    down, across = (-(-size // _TILE) for size in sizes[0][::-1])
    y, x = np.ogrid[-1 : 1 : down * 1j, -1 : 1 : across * 1j]
    kinds = (x**2 + y**2 < _ELLIPSE).astype(np.uint8)  # 0 glass, 1 tissue, 2 mark
    whole = slice(_AWAY, _AWAY + _MARK), slice(-1 - _AWAY - _MARK, -1 - _AWAY)
    for rows in whole:
        for columns in whole:
            kinds[rows, columns] = 2
    said = f"Aperio Image Library v10.0.51\r\n{sizes[0][0]}x{sizes[0][1]} ({_TILE}x{_TILE})"
    with tifffile.TiffWriter(path, bigtiff=True) as tiff:
        for level, (width, height) in enumerate(sizes):
            scale = "" if not level else f" -> {width}x{height}"
            text = f"{said}{scale} JPEG/RGB Q=85|AppMag = 20|MPP = {MPP}"
            tiles = level_tiles(tissue, kinds, sizes[0], sizes[level])
            tiff.write(
                tiles,
                shape=(height, width, 3),
                dtype=np.uint8,
                tile=(_TILE, _TILE),
                compression="jpeg",
                photometric="ycbcr",
                subsampling=(2, 2),
                description=text,
                metadata=None,
                subfiletype=0,
            )
            if not level:
                thumbnail = np.full((732, 1024, 3), 240, np.uint8)
                tiff.write(thumbnail, description=f"{said} -> 1024x732 - ", metadata=None, rowsperstrip=16)
    return path


def level_tiles(
    tissue: NDArray[np.uint8], kinds: NDArray[np.uint8], finest: tuple[int, int], size: tuple[int, int]
) -> Iterator[bytes]:
    """Yield the encoded tiles of a level; each pixel shows what lies at its centre."""
    width, height = size
    steps = finest[0] / width, finest[1] / height
    shrink = round(steps[0])
    small = np.asarray(Image.fromarray(tissue).reduce(shrink))
    known: dict[Any, bytes] = {}
    for top in range(0, height, _TILE):
        rows = ((np.arange(top, top + _TILE) + 0.5) * steps[1]).astype(int)
        for left in range(0, width, _TILE):
            columns = ((np.arange(left, left + _TILE) + 0.5) * steps[0]).astype(int)
            here = kinds[
                np.ix_(
                    *(np.minimum(at // _TILE, most - 1) for at, most in zip((rows, columns), kinds.shape, strict=True))
                )
            ]
            places = rows // shrink % len(small), columns // shrink % small.shape[1]
            key = here.tobytes(), places[0].tobytes(), places[1].tobytes()
            if not here.any():
                key = (b"glass",)
            if key not in known:
                pixels = np.choose(here[..., None], (np.uint8(240), small[np.ix_(*places)], np.uint8(_MARK_COLOR)))
                tile = np.ascontiguousarray(pixels.astype(np.uint8))
                known[key] = simplejpeg.encode_jpeg(tile, quality=85, colorsubsampling="420")
            yield known[key]


if __name__ == "__main__":
    main()
