"""Opening slides and reading regions of them: the only module that knows OpenSlide."""

import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.run.errors import NotASlideError, SlideError, without_identifiers
from wsiseg.run.machine import within_memory
from wsiseg.slides import formats, tiff
from wsiseg.slides.dicom import dicom_file, series_file
from wsiseg.slides.formats import CONVERT, GET_AGAIN
from wsiseg.slides.jpeg_tiles import Cutout, JpegTiles
from wsiseg.slides.time_limit import TimeLimit

if TYPE_CHECKING:
    from openslide import AbstractSlide

_EIGHT_BITS = frozenset(["P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
LONGEST_READ_S = 300.0
"""Seconds after which reading is given up, where nothing else is said."""

_MOST_PLAIN_PIXELS = 400_000_000  # a plain image is held in memory: 1.2 GB
_CACHE_BYTES = 64 * 2**20
_GENERIC = "generic-tiff"
_PLAIN_GRIDS = frozenset([_GENERIC, "aperio"])  # tiles neither overlap nor are shifted
_NO_TIFF_TILES = frozenset(["dicom", "hamamatsu", "mirax", "zeiss"])  # what OpenSlide reads of these lies elsewhere
_OPAQUE = 255
_UNKNOWN_CODING = ("nsupported", "Attribute ")
_PROCESS = threading.Lock()


def _slide_path(path: Path) -> Path:
    """Return the file to open for a path that may be the folder of one DICOM series."""
    if path.is_dir():
        return series_file(path)
    if not path.exists():
        raise SlideError(f"{path}: no such file", "check the path")
    if path.is_fifo():  # opening it would wait for somebody who writes to it
        raise NotASlideError(f"{path.name}: a pipe, which cannot be read here and there", "save it as a file first")
    found = dicom_file(path)
    if found is not None and found.kind:
        raise found.refusal()
    return path


class SlideFile:
    """An open file of a slide. Reading is thread-safe.

    An OpenSlide handle is dead after its first error, for all threads that share it. So a read that fails is tried
    once more with a handle of its own, which then takes the place of the dead one.

    Args:
        path: The file, or the folder of one DICOM series.
        longest_s: Seconds that opening, and every reading, may take.

    Raises:
        NotASlideError: It is not a slide, and its name does not say that it is one.
        SlideError: It should be one but cannot be opened.
        StalledError: Its disk or network does not answer.
    """

    def __init__(self, path: Path, longest_s: float = LONGEST_READ_S) -> None:
        self._mending, self._looking = threading.Lock(), threading.Lock()
        self._tiles: dict[int, JpegTiles | None] = {}
        self._limit = TimeLimit(path.name, longest_s)
        try:
            self.path = self._limit.call(lambda: _slide_path(path))
            self._handle = self._limit.call(lambda: _open(self.path))
            self.properties = self._limit.call(self._properties)
        except BaseException:
            self._limit.close()  # a folder of files that cannot be opened leaves no threads
            raise
        self.level_sizes_px: tuple[tuple[int, int], ...] = tuple(self._handle.level_dimensions)
        self.level_downsamples: tuple[float, ...] = tuple(self._handle.level_downsamples)

    def _properties(self) -> dict[str, str]:
        if not self._handle.properties and formats.plain_kind(self.path) == "TIFF":
            with _PROCESS:
                return tiff.properties(self.path)
        found: dict[str, str] = {}
        for name in self._handle.properties:
            # OpenSlide does not find names again that are not text in a damaged file.
            with suppress(KeyError):
                found[name] = self._handle.properties[name]
        return found

    def close(self) -> None:
        """Free the file, unless a thread that hangs is still in it."""
        if not self._limit.is_stalled:
            self._handle.close()
        self._limit.close()

    def read(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read a region of so many pixels (width, height) as uint8[height, width, 3]; else as `fill`."""
        out = np.empty((size[1], size[0], 3), np.uint8)
        self.fill([(corner, out)], level)
        return out

    def fill(self, regions: Sequence[tuple[tuple[int, int], NDArray[np.uint8]]], level: int) -> None:
        """Read regions in RGB; parts that were not scanned get the slide's background colour.

        Args:
            regions: Level-0 x, y of the corner, and uint8[height, width, 3] to be filled with pixels of the level.
            level: Number of the level.

        Raises:
            SlideError: A region cannot be decoded, not even by a handle that is not dead.
            StalledError: The disk or network that the file lies on does not answer.
        """
        tiles, down = self._jpeg_tiles(level), self.level_downsamples[level]
        if tiles is not None:
            places = [Cutout(round(x / down), round(y / down), out) for (x, y), out in regions]
            with suppress(OSError, ValueError):  # OpenSlide says what is wrong, or can do it after all
                self._limit.call(lambda: tiles.fill(places))
                return
        self._limit.call(lambda: self._paint(regions, level))

    def _paint(self, regions: Sequence[tuple[tuple[int, int], NDArray[np.uint8]]], level: int) -> None:
        for corner, out in regions:
            out[:] = np.asarray(self._region(corner, level, (out.shape[1], out.shape[0])))

    def _jpeg_tiles(self, level: int) -> JpegTiles | None:
        """Return the tiles of a level that can be had without OpenSlide; None where there are none."""
        with self._looking:
            if level not in self._tiles:
                self._tiles[level] = self._limit.call(lambda: self._same_tiles(level))
            return self._tiles[level]

    @cached_property
    def _jpeg_pages(self) -> list[tiff.JpegPage]:
        """The images of the file whose tiles can be had without OpenSlide."""
        with _PROCESS:
            return tiff.jpeg_pages(self.path) if self.properties.get("openslide.vendor") in _PLAIN_GRIDS else []

    def _same_tiles(self, level: int) -> JpegTiles | None:
        """Look for the tiles of a level, and whether they show what OpenSlide shows."""
        color = self.properties.get("openslide.background-color", "FFFFFF")
        fitting = (page for page in self._jpeg_pages if page.size_px == self.level_sizes_px[level])
        found = next((JpegTiles(self.path, page, bytes.fromhex(color)) for page in fitting), None)
        name, down = self.path.name, self.level_downsamples[level]
        with suppress(SlideError):
            if found and found.are_as(lambda *at: np.asarray(_read(self._handle, name, at[0], level, at[1])), down):
                return found
        return None

    def _region(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        with suppress(SlideError):
            return _read(self._handle, self.path.name, corner, level, size)
        with self._mending:
            fresh = _open(self.path)
            region = _read(fresh, self.path.name, corner, level, size)
            self._handle = fresh  # the dead one, as a fresh one that fails, is freed when no thread is in it any more
            return region


def _open(path: Path) -> "AbstractSlide":
    """Open a file with OpenSlide, or as a plain image where OpenSlide knows nothing of it."""
    import openslide  # noqa: PLC0415  heavy: only where a slide is read

    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return _open_image(path)
    except openslide.OpenSlideError as error:
        reason = without_identifiers(str(error).replace(f"Reading {path}: ", ""))
        raise SlideError(f"{path.name}: cannot be opened: {reason}", _advice(reason)) from error
    vendor = slide.properties.get("openslide.vendor", "")
    # What OpenSlide opens, but would read wrongly, or not without ending the process.
    if vendor == _GENERIC and not formats.may_be_generic(path):
        raise formats.refusal(path)
    if vendor not in _NO_TIFF_TILES:
        with _PROCESS:
            tiff.refuse_unfit(path, is_generic=vendor == _GENERIC)
    slide.set_cache(openslide.OpenSlideCache(within_memory(_CACHE_BYTES)))
    return slide


def _read(
    handle: "AbstractSlide", name: str, corner: tuple[int, int], level: int, size: tuple[int, int]
) -> Image.Image:
    from openslide import OpenSlideError  # noqa: PLC0415  heavy: only where a slide is read

    try:
        region = handle.read_region(corner, level, size)
    except (OpenSlideError, OSError, SyntaxError) as error:
        reason = without_identifiers(str(error))
        text = f"{name}: the {size[0]}x{size[1]} pixels at {corner} of level {level} cannot be read: {reason}"
        raise SlideError(text, _advice(reason)) from error
    if region.getchannel("A").getextrema()[0] == _OPAQUE:
        return region.convert("RGB")
    flat = Image.new("RGB", region.size, "#" + handle.properties.get("openslide.background-color", "FFFFFF"))
    flat.paste(region, mask=region)
    return flat


def _advice(reason: str) -> str:
    """Tell a sound file in a coding that cannot be read from a broken one."""
    return CONVERT if any(word in reason for word in _UNKNOWN_CODING) else GET_AGAIN


def _open_image(path: Path) -> "AbstractSlide":
    import openslide  # noqa: PLC0415  heavy: only where a slide is read

    with _alone_and_quiet(), _plain_image(path) as image:
        if image.width * image.height > _MOST_PLAIN_PIXELS:
            raise SlideError(
                f"{path.name}: {image.width}x{image.height} pixels are too many for a plain image", CONVERT
            )
        if image.mode not in _EIGHT_BITS:
            what = f"a plain image in mode {image.mode}, not in colour of 8 bits a sample"
            raise SlideError(f"{path.name}: {what}", CONVERT)
        try:
            image.load()
            return openslide.ImageSlide(image.convert("RGBA" if image.has_transparency_data else "RGB"))
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises almost anything at a broken file
            text = f"{path.name}: unknown to OpenSlide, and as a plain image it cannot be decoded: {error}"
            raise SlideError(text, f"get the file again, or {CONVERT}") from error


def _plain_image(path: Path) -> Image.Image:
    try:
        if formats.plain_kind(path) == "TIFF":
            tiff.refuse_unfit(path, is_generic=True)
        if formats.may_be_plain(path):
            return formats.plain_image(path)
    except PermissionError as error:
        raise SlideError(f"{path.name}: may not be read", "check the permissions of the file") from error
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, OverflowError, struct.error):
        pass
    raise formats.refusal(path)


@contextmanager
def _alone_and_quiet() -> Iterator[None]:
    """Let one thread at a time decode, without a word of libtiff and libjpeg on standard error, nor a warning."""
    with _PROCESS, warnings.catch_warnings(action="ignore"), Path(os.devnull).open("wb") as nothing:
        try:
            kept = os.dup(2)
        except OSError:  # nobody reads standard error
            yield
            return
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
