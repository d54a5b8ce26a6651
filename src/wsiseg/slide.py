"""Whole-slide images: the only module that knows OpenSlide.

All coordinates are level-0 pixels of OpenSlide's own frame (for MRXS and its like that includes the empty surround;
`SlideFacts.bounds_px` says where the scan lies in it).
"""

import hashlib
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.errors import NotASlideError, PixelSizeError, SlideError
from wsiseg.pixel_size import PixelSize, pixel_size

if TYPE_CHECKING:
    from openslide import AbstractSlide
    from PIL.Image import Image

SLIDE_SUFFIXES = frozenset(
    ".svs .tif .tiff .ndpi .vms .vmu .scn .mrxs .svslide .bif .czi .dcm .dicom .png .jpg .jpeg".split(),
)
"""Names that promise a slide: a file with one of these that cannot be read has failed, any other is skipped."""

_PLAIN_IMAGES = {"PNG", "JPEG", "TIFF"}
_MOST_PLAIN_PIXELS = 400_000_000  # a plain image is held in memory: 1.2 GB
_BLOCK_PX = 2048  # side of what is read at once for a thumbnail
_SAME_LEVEL = 0.01  # a level this close to the resolution asked for is used as it is
_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True)
class SlideFacts:
    """What a result says of the slide that it came from.

    Attributes:
        file: File name, without its folder.
        fingerprint: Changes whenever the slide's pixels do.
        size_px: Width and height at level 0.
        mpp: Micrometers per level-0 pixel along x and y.
        mpp_source: Where the pixel size was found, as `user`, `openslide.mpp-x` or `openslide.objective-power`.
        mpp_raw: Every statement on the pixel size that the file makes.
        bounds_px: x, y, width, height of the scan within level 0 where the file says so.
        vendor: OpenSlide's name of the format.
        icc_present: True if the slide carries a colour profile. It is never applied.
    """

    file: str
    fingerprint: str
    size_px: tuple[int, int]
    mpp: tuple[float, float]
    mpp_source: str
    mpp_raw: dict[str, str]
    bounds_px: tuple[int, int, int, int] | None
    vendor: str
    icc_present: bool

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> Self:
        """Rebuild the facts from JSON, where tuples are lists."""
        names = ("size_px", "mpp", "bounds_px")
        tuples = {name: tuple(stored[name]) for name in names if stored[name] is not None}
        return cls(**{**{name: stored[name] for name in cls.__dataclass_fields__}, **tuples})


class Slide:
    """A whole-slide image, open for reading; close it or use it in a `with` block.

    Reading is thread-safe. An OpenSlide handle is dead after its first error, so a failed read opens the file anew and
    tries once more before it raises.

    Args:
        path: A slide, one file of a DICOM series, or a plain PNG, JPEG or TIFF image.
        mpp: Micrometers per level-0 pixel, in place of what the file says.

    Raises:
        NotASlideError: The file is no slide.
        PixelSizeError: No pixel size is known, or the one found cannot be true.
        SlideError: The file is broken.
    """

    def __init__(self, path: Path | str, *, mpp: float | None = None) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._handle, self._generation = _open(self.path), 0
        try:
            self.properties = dict(self._handle.properties)
            self.size_px: tuple[int, int] = self._handle.dimensions
            self._levels: tuple[tuple[int, int], ...] = tuple(self._handle.level_dimensions)
            self.pixel_size: PixelSize = pixel_size(self.path.name, self.properties, user=mpp)
        except BaseException:
            self._handle.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free the file."""
        self._handle.close()

    @property
    def mpp(self) -> tuple[float, float]:
        """Micrometers per level-0 pixel along x and y."""
        return self.pixel_size.mpp

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd about the slide's pixel size."""
        return self.pixel_size.warnings

    @property
    def level_sizes_px(self) -> tuple[tuple[int, int], ...]:
        """Width and height of every level, finest first."""
        return self._levels

    @property
    def bounds_px(self) -> tuple[int, int, int, int] | None:
        """x, y, width, height of the scan within level 0, where the file says so."""
        names = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
        if not all(name in self.properties for name in names):
            return None
        x, y, width, height = (int(self.properties[name]) for name in names)
        return x, y, width, height

    @property
    def facts(self) -> SlideFacts:
        """What a result says of this slide."""
        return SlideFacts(
            file=self.path.name,
            fingerprint=self._fingerprint(),
            size_px=self.size_px,
            mpp=self.mpp,
            mpp_source=self.pixel_size.source,
            mpp_raw=self.pixel_size.raw,
            bounds_px=self.bounds_px,
            vendor=self.properties.get("openslide.vendor", "image"),
            icc_present="openslide.icc-size" in self.properties,
        )

    def _fingerprint(self) -> str:
        """Give OpenSlide's quick hash, or for plain images the hash of the whole file."""
        known = self.properties.get("openslide.quickhash-1")
        if known:
            return known
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def upsampling(self, mpp: float) -> float:
        """How many times coarser level 0 is than `mpp`; 1 or less where the slide is fine enough."""
        return max(self.mpp) / mpp

    def read(self, x: float, y: float, size: tuple[int, int], mpp: float) -> NDArray[np.uint8]:
        """Read a region at a resolution, from the nearest level that is no coarser.

        A level within 1 % of `mpp` is used as it is; otherwise pixels are averaged by area, or interpolated linearly
        where the slide is coarser than `mpp`. Beyond the slide everything is background.

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
        scale = (mpp / self.mpp[0], mpp / self.mpp[1])
        level = self._level_for(scale)
        down = self._downsample(level)
        ratio = (scale[0] / down[0], scale[1] / down[1])
        if all(abs(value - 1) <= _SAME_LEVEL for value in ratio):
            return np.asarray(self._region(level, (round(x), round(y)), size))
        margin = 1  # interpolation at the edge sees the neighbour
        begin = [int(np.floor(at / step)) - margin for at, step in zip((x, y), down, strict=True)]
        mean = float(self._handle.level_downsamples[level])
        origin = (int(np.floor(begin[0] * mean)), int(np.floor(begin[1] * mean)))
        left, top = (at / step - at0 / mean for at, step, at0 in zip((x, y), down, origin, strict=True))
        width, height = size[0] * ratio[0], size[1] * ratio[1]
        source = (int(np.ceil(left + width)) + margin, int(np.ceil(top + height)) + margin)
        region = self._region(level, origin, source)
        return np.asarray(region.resize(size, _filter(ratio), box=(left, top, left + width, top + height)))

    def thumbnail(self, mpp: float) -> NDArray[np.uint8]:
        """Read the whole slide at a low resolution, in blocks: memory does not depend on the levels that exist.

        Args:
            mpp: Micrometers per pixel of the result.

        Returns:
            uint8[rows, columns, 3], RGB; its sides are those of the slide, rounded to whole pixels.
        """
        from PIL import Image  # noqa: PLC0415  heavy: only where pixels are touched

        scale = (mpp / self.mpp[0], mpp / self.mpp[1])
        level = self._level_for(scale)
        down = self._downsample(level)
        factor = max(1, int(min(scale[0] / down[0], scale[1] / down[1]) + _SAME_LEVEL))
        small = self._reduced(level, factor)
        size = [max(1, round(px / step)) for px, step in zip(self.size_px, scale, strict=True)]
        covered = (self._levels[level][0] / factor, self._levels[level][1] / factor)
        box = (0.0, 0.0, min(covered[0], small.shape[1]), min(covered[1], small.shape[0]))
        picture = Image.fromarray(small).resize((size[0], size[1]), Image.Resampling.BILINEAR, box=box)
        return np.asarray(picture)

    def _reduced(self, level: int, factor: int) -> NDArray[np.uint8]:
        """Average blocks of `factor` x `factor` pixels of a level."""
        width, height = self._levels[level]
        out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
        block = max(1, _BLOCK_PX // factor)
        mean = float(self._handle.level_downsamples[level])
        for row in range(0, out.shape[0], block):
            for column in range(0, out.shape[1], block):
                begin = (column * factor, row * factor)
                size = (min(block * factor, width - begin[0]), min(block * factor, height - begin[1]))
                corner = (round(begin[0] * mean), round(begin[1] * mean))
                part = np.asarray(self._region(level, corner, size).reduce(factor))
                out[row : row + part.shape[0], column : column + part.shape[1]] = part
        return out

    def _downsample(self, level: int) -> tuple[float, float]:
        width, height = self._levels[level]
        return self.size_px[0] / width, self.size_px[1] / height

    def _level_for(self, scale: tuple[float, float]) -> int:
        """Pick the coarsest level that is at least as fine as `scale` level-0 pixels per pixel."""
        fine = [
            level
            for level in range(len(self._levels))
            if max(d / s for d, s in zip(self._downsample(level), scale, strict=True)) <= 1 + _SAME_LEVEL
        ]
        return fine[-1] if fine else 0

    def _region(self, level: int, corner: tuple[int, int], size: tuple[int, int]) -> "Image":
        handle, generation = self._handle, self._generation
        try:
            return _flattened(handle, corner, level, size)
        except SlideError:
            return _flattened(self._reopened(generation), corner, level, size)

    def _reopened(self, generation: int) -> "AbstractSlide":
        """Open the file anew, once for all threads that met the same dead handle."""
        with self._lock:
            if self._generation == generation:
                self._handle, self._generation = _open(self.path), generation + 1
            return self._handle


def _filter(ratio: tuple[float, float]) -> Any:  # noqa: ANN401  Pillow's enumeration
    """Choose how to resample: exact averages for whole factors, a smooth area filter otherwise, linear upwards."""
    from PIL import Image  # noqa: PLC0415  heavy: only where pixels are touched

    if min(ratio) < 1:
        return Image.Resampling.BILINEAR
    whole = all(abs(value - round(value)) <= _SAME_LEVEL for value in ratio)
    return Image.Resampling.BOX if whole else Image.Resampling.HAMMING


def _flattened(handle: "AbstractSlide", corner: tuple[int, int], level: int, size: tuple[int, int]) -> "Image":
    """Read RGBA and lay it on the slide's background: parts that were not scanned are transparent."""
    from openslide import OpenSlideError  # noqa: PLC0415  heavy: only where a slide is read
    from PIL import Image  # noqa: PLC0415  heavy: only where pixels are touched

    try:
        region = handle.read_region(corner, level, size)
    except (OpenSlideError, OSError, SyntaxError) as error:
        raise SlideError(
            f"region of {size[0]}x{size[1]} at {corner} of level {level} cannot be read: {error}"
        ) from error
    if region.getchannel("A").getextrema()[0] == 255:  # noqa: PLR2004  opaque throughout
        return region.convert("RGB")
    color = "#" + handle.properties.get("openslide.background-color", "FFFFFF")
    flat = Image.new("RGB", region.size, color)
    flat.paste(region, mask=region)
    return flat


def _open(path: Path) -> "AbstractSlide":
    """Open a file with OpenSlide, or as a plain image where OpenSlide knows nothing of it."""
    import openslide  # noqa: PLC0415  heavy: only where a slide is read

    if not path.exists():
        raise SlideError(f"{path}: no such file", "check the path")
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        return _open_image(path)
    except openslide.OpenSlideError as error:
        raise SlideError(
            f"{path.name}: cannot be opened: {error}", "the file is broken or incomplete: get it again"
        ) from error
    slide.set_cache(openslide.OpenSlideCache(_CACHE_BYTES))
    return slide


def _open_image(path: Path) -> "AbstractSlide":
    """Open a plain image, held in memory."""
    import openslide  # noqa: PLC0415  heavy: only where a slide is read
    from PIL import Image, UnidentifiedImageError  # noqa: PLC0415  heavy: only where pixels are touched

    advice = "get the file again or convert it to a pyramidal TIFF"
    try:
        image = Image.open(path)
    except Image.DecompressionBombError as error:
        raise SlideError(f"{path.name}: too large for a plain image: {error}", advice) from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        if path.suffix.lower() in SLIDE_SUFFIXES:
            raise SlideError(f"{path.name}: no slide format that can be read", advice) from error
        raise NotASlideError(f"{path.name}: not a slide") from error
    if image.format not in _PLAIN_IMAGES:
        raise NotASlideError(f"{path.name}: not a slide but a {image.format} image")
    if image.width * image.height > _MOST_PLAIN_PIXELS:
        raise SlideError(f"{path.name}: {image.width}x{image.height} pixels are too many for a plain image", advice)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise SlideError(f"{path.name}: broken image: {error}", advice) from error
    return openslide.ImageSlide(image.convert("RGB"))


__all__ = ["SLIDE_SUFFIXES", "NotASlideError", "PixelSizeError", "Slide", "SlideError", "SlideFacts"]
