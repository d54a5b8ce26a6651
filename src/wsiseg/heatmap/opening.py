"""Predictions to be judged, heatmaps of wsiseg or the paper's published maps, and the slides that they are of."""

import contextlib
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from wsiseg.annotations import masks
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.slides.slide import ASSUMED, Slide, SlideFacts

_HEATMAP, _PUBLISHED = ".ome.zarr", ".png"


def prediction_files(place: Path) -> dict[str, Path]:
    """List the predictions of a folder by slide: heatmaps or, where it holds none, published maps; or a single one.

    Raises:
        UsageError: There is nothing of the kind.
    """
    for suffix in (_HEATMAP, _PUBLISHED):
        paths = [place] if place.name.endswith(suffix) else sorted(place.glob("*" + suffix))
        if paths and place.exists():
            return {path.name.removesuffix(suffix).removesuffix(".svs"): path for path in paths}
    raise UsageError(f"{place}: no heatmaps there", "give the folder that wsiseg predict wrote")


def open_prediction(path: Path, slide: Path | None = None, mpp: float | None = None) -> Heatmap:
    """Open a heatmap or, with the arguments of `published_heatmap`, a published map.

    Raises:
        ZeroedMapError: It is the published map of a normal slide.
        WsisegError: It cannot be read.
    """
    heatmap = published_heatmap(path, slide, mpp) if path.name.endswith(_PUBLISHED) else Heatmap.open(path)
    if heatmap.model.get("zeroed_by_hand"):
        raise masks.ZeroedMapError(
            f"{path.name}: a map of normal tissue that was set to zero by hand is not a prediction"
        )
    return heatmap


def published_heatmap(path: Path, slide: Path | None = None, mpp: float | None = None) -> Heatmap:
    """Read a published map, a PNG file that is named after the slide's file.

    Its scale comes from the `slide` where that is at hand, whose um per level-0 pixel can be given, or is the 448
    pixels that it is known to have. Its `model` says `zeroed_by_hand` where it is that of a normal slide.

    Raises:
        WsisegError: It is not such a map, or that of another slide.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise WsisegError(f"{path.name}: cannot be read: {error}", "get the map again") from error
    if not masks.is_published_map(pixels):
        raise WsisegError(f"{path.name}: neither a heatmap nor a published map", "give what wsiseg predict wrote")
    values = masks.probabilities(pixels)
    rows, columns = values.shape
    if slide is not None and slide.is_file():
        with Slide(slide, mpp=mpp) as opened:
            facts = opened.facts
    else:  # what the map says of its slide
        size, file = (columns * masks.STEP_PX, rows * masks.STEP_PX), path.name.removesuffix(_PUBLISHED)
        facts = SlideFacts(file, "", size, (0.5, 0.5), ASSUMED, {}, None, "aperio", icc_present=False)
    step, other = masks.whole_slide_step(path.name, facts, (columns, rows))
    if step != other:
        raise WsisegError(f"{path.name}: is the map of another slide than {facts.file}", "check the names")
    model = {
        "name": "Lerousseau et al. 2020",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "zeroed_by_hand": masks.is_zeroed(path.name, values),
    }
    return Heatmap(values, step * facts.mpp[0], facts, threshold=masks.THRESHOLD, model=model)


def slide_of(facts: SlideFacts, path: Path) -> Slide | None:
    """Open the slide that a map is of; None where it is not there, or is another one of this name."""
    with contextlib.suppress(WsisegError, OSError):
        slide = Slide(path, mpp=facts.mpp[0])
        if slide.size_px == facts.size_px:
            return slide
        slide.close()
    return None


def kept_picture(folder: Path, slide: str) -> Path:
    """Return where predict keeps the small picture of a slide, a JPEG of what is shown of it."""
    return folder / ".thumbnails" / f"{slide}.jpg"


def kept_image(path: Path, least_px: int = 0) -> Image.Image | None:
    """Read that picture; None where there is none, or its longer side is of fewer than so many pixels."""
    with contextlib.suppress(OSError, Image.DecompressionBombError), Image.open(path, formats=["JPEG"]) as image:
        return image.convert("RGB") if max(image.size) >= least_px else None
    return None
