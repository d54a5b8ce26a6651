"""What a result says of the slide that it came from."""

from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class SlideFacts:
    """What a result says of the slide that it came from.

    Attributes:
        file: File name, without its folder.
        fingerprint: Tells this slide from others and from an incomplete copy of it.
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
