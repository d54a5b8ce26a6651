"""Slides for tests, written from arrays."""

from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

GLASS = 242


def stained_picture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Give an ellipse of made H&E stain on glass, uint8[height, width, 3]; it covers about a third."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    is_tissue = ((x / width - 0.5) / 0.33) ** 2 + ((y / height - 0.5) / 0.33) ** 2 < 1
    coarse = rng.integers(0, 40, (height // 8 + 2, width // 8 + 2)).repeat(8, 0).repeat(8, 1)[:height, :width]
    tissue = np.stack([200 - coarse, 120 - coarse, 170 - coarse // 2], -1)
    return np.where(is_tissue[..., None], tissue, GLASS).astype(np.uint8)


def write_slide(  # noqa: PLR0913  each says one thing about the slide
    path: Path,
    picture: NDArray[np.uint8] | None = None,
    *,
    size: tuple[int, int] = (1024, 768),
    levels: Sequence[tuple[int, int]] = (),
    mpp: float | tuple[float, float] | None = 0.5,
    compression: str | None = None,
    tile: int = 256,
    frame: tuple[int, int, int, int] | None = None,
    aperio: str | None = None,
) -> Path:
    """Write a tiled, pyramidal TIFF that OpenSlide opens.

    Args:
        path: The file to write; its folder is made.
        picture: Level 0, uint8[height, width, 3]; a `stained_picture` of `size` where it is not given.
        size: Width and height of the made picture.
        levels: Width and height of the further levels, finest first; any downsample, whole or not.
        mpp: Micrometers per level-0 pixel, in the TIFF tags; None writes none.
        compression: `jpeg` (quality 90), or None for exact pixels.
        tile: Side of the TIFF's tiles.
        frame: x, y of the picture in, and width, height of, an otherwise empty level 0: a Leica SCN with bounds.
        aperio: Text of an Aperio header behind its first words, as `AppMag = 20|MPP = 0.499`.
    """
    picture = stained_picture(*size) if picture is None else picture
    pictures = [picture, *(_shrunk(picture, level) for level in levels)]
    steps = (mpp, mpp) if isinstance(mpp, float | int) else mpp
    description = None if aperio is None else f"Aperio Image Library v1\r\n1x1|{aperio}"
    if frame is not None:
        description = _leica_xml([(level.shape[1], level.shape[0]) for level in pictures], frame)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=frame is not None) as tiff:
        for number, level in enumerate(pictures):
            down = (picture.shape[1] / level.shape[1], picture.shape[0] / level.shape[0])
            tiff.write(
                level,
                tile=(tile, tile),
                photometric="rgb",
                compression=compression,
                compressionargs={"level": 90} if compression == "jpeg" else None,
                resolution=(1, 1) if steps is None else (1e4 / steps[0] / down[0], 1e4 / steps[1] / down[1]),
                resolutionunit="NONE" if steps is None else "CENTIMETER",
                subfiletype=int(number > 0),
                description=description if number == 0 or aperio else None,
                metadata=None,
            )
            if number == 0 and aperio:  # Aperio's second page is its thumbnail
                tiff.write(_shrunk(picture, (64, 48)), photometric="rgb", description=description, metadata=None)
    return path


def _shrunk(picture: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def _leica_xml(levels: Sequence[tuple[int, int]], frame: tuple[int, int, int, int]) -> str:
    nm = 500
    x, y, width, height = (value * nm for value in frame)
    pages = "".join(f'<dimension sizeX="{w}" sizeY="{h}" r="{n}" ifd="{n}"/>' for n, (w, h) in enumerate(levels))
    w, h = levels[0]
    light = "<illuminationSettings><illuminationSource>brightfield</illuminationSource></illuminationSettings>"
    objective = "<objectiveSettings><objective>20</objective></objectiveSettings>"
    return (
        f"<scn xmlns={quoteattr('http://www.leica-microsystems.com/scn/2010/10/01')}>"
        f'<collection name="c" sizeX="{width}" sizeY="{height}"><image name="i">'
        f'<device model="m" version="1"/><pixels sizeX="{w}" sizeY="{h}">{pages}</pixels>'
        f'<view sizeX="{w * nm}" sizeY="{h * nm}" offsetX="{x}" offsetY="{y}" spacingZ="0"/>'
        f"<scanSettings>{objective}{light}</scanSettings></image></collection></scn>"
    )
