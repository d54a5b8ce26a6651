"""A whole-slide image, read at any resolution.

All coordinates are level-0 pixels of OpenSlide's own frame (for MRXS and its like that includes the empty surround;
`SlideFacts.bounds_px` says where the scan lies in it).
"""

import base64
import hashlib
import io
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from html import escape
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.run.errors import PixelSizeError
from wsiseg.slides import pyramid
from wsiseg.slides.pixel_size import PixelSize, pixel_size
from wsiseg.slides.pyramid import MOST_UNREADABLE, Picture
from wsiseg.slides.slide_file import LONGEST_READ_S, SlideFile

_Pair = tuple[float, float]
_NOTEBOOK_PX = 600
_BLOCK_PX = 2048  # side of what is read of a level at once
_SMALLEST_BLOCK_PX = 128  # an unreadable block is divided down to this
_LARGE_RATIO = 8  # from here on a region may be of many more pixels than its picture
_MUCH_COARSER = 1.5  # than what is asked for

ASSUMED = "assumed"
"""The `mpp_source` of a map whose slide is not at hand: its pixels count, its micrometers mean nothing."""


@dataclass(frozen=True)
class SlideFacts:
    """What a result says about the slide that it came from."""

    file: str  # file name, without its folder
    fingerprint: str  # tells this slide from others and from an incomplete copy of it
    size_px: tuple[int, int]  # width and height at level 0
    mpp: tuple[float, float]  # micrometers per level-0 pixel along x and y
    mpp_source: str  # where the pixel size was found, as `user`, `openslide.mpp-x` or `openslide.objective-power`
    mpp_raw: dict[str, str]  # every statement on the pixel size that the file makes
    bounds_px: tuple[int, int, int, int] | None  # x, y, width, height of the scan within level 0 where the file says so
    vendor: str  # OpenSlide's name of the format
    icc_present: bool  # True if the slide carries a colour profile, which is never applied

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Rebuild the facts from JSON, where tuples are lists."""
        values: dict[str, Any] = {name: stored[name] for name in cls.__dataclass_fields__}
        values |= {name: tuple(one) for name, one in values.items() if isinstance(one, list)}
        return cls(**values)

    @property
    def shown_px(self) -> tuple[int, int, int, int]:
        """Return x, y, width, height of what is shown and searched: the bounds of the scan, else all of level 0."""
        x, y, width, height = self.bounds_px or (0, 0, *self.size_px)
        left, top = (min(max(at, 0), size - 1) for at, size in zip((x, y), self.size_px, strict=True))
        right, below = min(max(x + width, left + 1), self.size_px[0]), min(max(y + height, top + 1), self.size_px[1])
        return left, top, right - left, below - top

    def shown_part(self, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """Return the rows and columns of what is shown, in a picture of the whole slide of this shape."""
        x, y, width, height = self.shown_px
        down, across = shape[0] / self.size_px[1], shape[1] / self.size_px[0]
        top, left = int(y * down), int(x * across)
        return np.s_[top : max(top + 1, round((y + height) * down)), left : max(left + 1, round((x + width) * across))]

    def difference(self, known: Self) -> str:
        """Name what differs from what was known of the slide before."""
        if self.fingerprint != known.fingerprint:
            return "the slide changed"
        if self.mpp != known.mpp:
            return f"its pixel size changed from {known.mpp[0]:g} to {self.mpp[0]:g} um"
        return "something else is known of the slide than before"


@lru_cache(maxsize=3)
def _opened(path: str, longest_read_s: float) -> "Slide":
    return Slide(path, mpp=1.0, longest_read_s=longest_read_s)


def fill_from(out: NDArray[np.uint8], path: str, longest_read_s: float, corners: Sequence[_Pair], scale: _Pair) -> None:
    """Read regions as `Slide.fill_scaled` does, of a slide that stays open with the last few, whatever its scale."""
    _opened(path, longest_read_s).fill_scaled(corners, out, scale)


class Slide(AbstractContextManager["Slide"]):
    """A whole-slide image, open for reading; close it or use it in a `with` block.

    Reading is thread-safe. An OpenSlide handle is dead after its first error, so a failed read opens the file anew and
    tries once more before it raises.

    Args:
        path: A slide, a folder that holds one DICOM series or any file of it, or a plain PNG, JPEG or TIFF image.
        mpp: Micrometers per level-0 pixel, in place of what the file says.
        longest_read_s: Seconds after which reading is given up; every method that reads then raises `StalledError`.

    Attributes:
        size_px: Width and height of level 0; `level_sizes_px` has those of every level, finest first.
        properties: What the file says of itself, as OpenSlide names it.
        mpp: Micrometers per level-0 pixel along x and y; `pixel_size` tells where they come from.
        warnings: What is odd about them.

    Raises:
        NotASlideError: The file is not a slide.
        PixelSizeError: No pixel size is known, or the one found cannot be true.
        SlideError: The file is broken.
        StalledError: Its disk or network does not answer.
    """

    def __init__(self, path: Path | str, *, mpp: float | None = None, longest_read_s: float = LONGEST_READ_S) -> None:
        self._file, self.longest_read_s = SlideFile(Path(path), longest_read_s), longest_read_s
        self.path, self.properties = self._file.path, self._file.properties
        self.level_sizes_px = self._file.level_sizes_px
        self.size_px = width, height = self.level_sizes_px[0]
        levels = zip(self.level_sizes_px, self._file.level_downsamples, strict=True)
        self.levels = tuple(pyramid.Level(size, (width / size[0], height / size[1]), down) for size, down in levels)
        self.pixel_size = self._pixel_size(mpp)
        self.mpp, self.warnings = self.pixel_size.mpp, self.pixel_size.warnings

    def _pixel_size(self, user: float | None) -> PixelSize:
        try:
            return pixel_size(self.path.name, self.properties, self.size_px, user=user)
        except PixelSizeError:
            # A file that was cut off often lacks its metadata too; then that is what the user must hear.
            for number, (width, height) in enumerate(self.level_sizes_px):
                self.read_level(number, (width - 1, height - 1), (1, 1))
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the file."""
        self._file.close()

    @property
    def bounds_px(self) -> tuple[int, int, int, int] | None:
        """x, y, width, height of the scan within level 0, where the file says so."""
        found = [self.properties.get(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
        x, y, width, height = (int(text or 0) for text in found)
        return None if None in found else (x, y, width, height)

    @property
    def facts(self) -> SlideFacts:
        """What a result says about this slide."""
        return SlideFacts(
            file=self.path.name,
            fingerprint=self.fingerprint,
            size_px=self.size_px,
            mpp=self.mpp,
            mpp_source=self.pixel_size.source,
            mpp_raw=self.pixel_size.raw,
            bounds_px=self.bounds_px,
            vendor=self.properties.get("openslide.vendor", "image"),
            icc_present="openslide.icc-size" in self.properties,
        )

    @cached_property
    def fingerprint(self) -> str:
        """OpenSlide's quick hash, or for plain images the hash of the whole file, and the size of the file in bytes.

        The quick hash covers the coarsest level and the metadata, so it alone does not notice a file that was cut off.
        """
        known = self.properties.get("openslide.quickhash-1")
        if known is None:
            with self.path.open("rb") as file:
                known = hashlib.file_digest(file, "sha256").hexdigest()
        return f"{known}-{self.path.stat().st_size}"

    def coarseness(self, mpp: float) -> tuple[str, ...]:
        """Say where level 0 is much coarser than `mpp`: then detail is missing that a model has seen in training."""
        sentence = f"its pixels of {max(self.mpp):g} um are {max(self.mpp) / mpp:.1f} times coarser than {mpp:g} um"
        return (sentence,) if max(self.mpp) > _MUCH_COARSER * mpp else ()

    def read(self, x: float, y: float, size: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
        """Read a region at a resolution, from the coarsest level that is no coarser.

        A level within 1 % of `mpp` is used as it is, from the whole pixel nearest to x, y. Otherwise pixels are
        averaged by area (exactly for whole factors, else with a Hamming window of an output pixel's width), or
        interpolated linearly where the slide is coarser than `mpp`. Beyond the slide everything is background.

        Args:
            x: Left edge in level-0 pixels.
            y: Upper edge in level-0 pixels.
            size: Width and height of the result in pixels.
            mpp: Micrometers per pixel of the result.

        Returns:
            uint8[height, width, 3], RGB.

        Raises:
            SlideError: The region cannot be decoded.
        """
        out = np.empty((size[1], size[0], 3), np.uint8)
        self.fill([(x, y)], mpp, out[None])
        return out

    def fill(self, corners: Sequence[_Pair], mpp: float, out: NDArray[np.uint8]) -> None:
        """Read regions as `read` does, into uint8[n, height, width, 3]; those near each other share what is decoded."""
        self.fill_scaled(corners, out, (mpp / self.mpp[0], mpp / self.mpp[1]))

    def fill_scaled(
        self, corners: Sequence[_Pair], out: NDArray[np.uint8], scale: _Pair, *, sees_beyond: bool = True
    ) -> None:
        """Read regions whose pixels are `scale` level-0 pixels wide and high; see `pyramid.window`."""
        number = pyramid.level_for(self.levels, scale)
        level, size = self.levels[number], (out.shape[2], out.shape[1])
        ratio = pyramid.ratio_to(level, scale)
        if pyramid.is_same(ratio):
            self._file.fill([(level.corner(*at), image) for at, image in zip(corners, out, strict=True)], number)
            return
        windows = [pyramid.window(level, at, size, ratio, sees_beyond=sees_beyond) for at in corners]
        if min(ratio) >= _LARGE_RATIO and max(windows[0].size_px) > 3 * _BLOCK_PX and max(size) > 1:
            for at, image in zip(corners, out, strict=True):  # of that many pixels only a block is held at a time
                for block in pyramid.Block(0, 0, *size).divided(max(1, int(_BLOCK_PX / max(ratio)))):
                    corner = at[0] + block.left * scale[0], at[1] + block.top * scale[1]
                    self.fill_scaled([corner], image[None, *block.place], scale, sees_beyond=sees_beyond)
            return
        regions = [np.empty((*window.size_px[::-1], 3), np.uint8) for window in windows]
        self._file.fill([(window.corner, region) for window, region in zip(windows, regions, strict=True)], number)
        for image, region, window in zip(out, regions, windows, strict=True):
            image[:] = pyramid.resized(region, size, ratio, window.box)

    def _repr_html_(self) -> str:
        """Return a small picture of the tissue, as notebooks show it; of labels nothing is ever shown."""
        facts = self.facts
        picture = self.overview(max(facts.shown_px[2:]) * max(self.mpp) / _NOTEBOOK_PX).image
        buffer = io.BytesIO()
        Image.fromarray(picture[facts.shown_part(picture.shape)]).save(buffer, "JPEG", quality=80)
        picture_text = base64.b64encode(buffer.getvalue()).decode()
        size = f"{facts.size_px[0]} x {facts.size_px[1]} px of {self.mpp[0]:.4g} um ({facts.mpp_source})"
        image = f'<img src="data:image/jpeg;base64,{picture_text}" alt="slide">'
        return f"{image}<p>{escape(facts.file)}: {escape(size)}</p>"

    def read_level(self, number: int, pixel: tuple[int, int], size: tuple[int, int]) -> NDArray[np.uint8]:
        """Read pixels as a level holds them, uint8[height, width, 3] in RGB.

        Args:
            number: The level, 0 for the finest.
            pixel: x, y of the corner in pixels of the level.
            size: Width and height.

        Raises:
            SlideError: They cannot be decoded.
        """
        down = self.levels[number].reader_downsample
        return self._file.read((round(pixel[0] * down), round(pixel[1] * down)), number, size)

    def overview(self, mpp: float, *, threads: int = 1, most_unreadable: float = MOST_UNREADABLE) -> Picture:
        """Read the whole slide at a low resolution, in blocks: memory does not depend on the levels that exist.

        Args:
            mpp: Micrometers per pixel of the result.
            threads: How many read at the same time.
            most_unreadable: Largest share of the slide that may be unreadable.

        Returns:
            The slide, its sides rounded to whole pixels or those of a level within 1 % of `mpp`, and where it could not
            be read.

        Raises:
            SlideError: More than that share cannot be read.
        """
        wanted = (mpp / self.mpp[0], mpp / self.mpp[1])
        level = self.levels[pyramid.level_for(self.levels, wanted)]
        size = (max(1, round(self.size_px[0] / wanted[0])), max(1, round(self.size_px[1] / wanted[1])))
        if pyramid.is_same(pyramid.ratio_to(level, wanted)):
            size = level.size_px
        scale = (self.size_px[0] / size[0], self.size_px[1] / size[1])
        ratio = max(pyramid.ratio_to(level, scale))
        sides = max(1, int(_BLOCK_PX / ratio)), max(1, int(_SMALLEST_BLOCK_PX / ratio))

        def read(block: pyramid.Block) -> NDArray[np.uint8]:
            # A sound block must not touch an unreadable neighbour, so it is read without a margin.
            out = np.empty((block.height, block.width, 3), np.uint8)
            self.fill_scaled([(block.left * scale[0], block.top * scale[1])], out[None], scale, sees_beyond=False)
            return out

        return pyramid.filled(size, read, sides, threads, most_unreadable)
