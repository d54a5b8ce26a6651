"""The tumour maps that Lerousseau et al. 2020 published, as heatmaps of wsiseg."""

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from wsiseg.config.fetch import FetchTumorMapsConfig
from wsiseg.fetch import paper
from wsiseg.fetch.batch import Outcome, fetch_all
from wsiseg.fetch.manifest import read_manifest
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.opening import published_heatmap
from wsiseg.run.connection import USUAL, GoneError, Patience, open_client
from wsiseg.run.download import Wanted
from wsiseg.run.errors import DownloadError, PixelSizeError, UsageError, WsisegError
from wsiseg.run.outputs import write_text
from wsiseg.run.record import Failure, Progress
from wsiseg.run.version import __version__
from wsiseg.slides.slide import ASSUMED

LICENSE = "AGPL-3.0-only"
_NOTE = """\
The maps in this folder were published by M. Lerousseau et al., "Weakly supervised multiple instance learning
histopathological tumor segmentation", MICCAI 2020, at https://github.com/MarvinLer/tcga_segmentation, under the GNU
Affero General Public License, version 3. wsiseg has converted them;
they are not part of wsiseg and not under its licence.

The maps of normal slides were set to zero by hand, so they say nothing about false alarms.
"""
_MOST_BYTES = 4 << 20
_UNKNOWN = "unknown"


class TumorMapsResult(BaseModel, frozen=True):
    """What became of the maps."""

    maps: int  # that are there as heatmaps
    converted: int  # of them by this run
    scaled: int  # that took their scale from their slides; the others are in pixels
    zeroed: int  # that were set to zero by hand
    unpublished: tuple[str, ...]  # slides for which there is no map
    failed: tuple[Failure, ...]
    warnings: tuple[str, ...]
    license: str = LICENSE
    out: str
    exit_code: int


def fetch_tumor_maps(
    config: FetchTumorMapsConfig, progress: Progress | None = None, patience: Patience = USUAL
) -> TumorMapsResult:
    """Fetch published maps, or take those of a folder, and write them as `<slide>.ome.zarr`.

    A map takes its scale from its slide where that is in `config.slides`; the others are written in pixels.

    Raises:
        UsageError: A folder or the manifest cannot be used.
        DownloadError: The paper's manifest cannot be had, or the network settings cannot be used.
        OutputError: The heatmaps cannot be written.
    """
    outcomes = _pictures(config, progress or Progress(), patience)
    write_text(config.out / "LICENSE.txt", _NOTE)
    slides = {path.name: path for path in sorted(config.slides.rglob("*.svs"))} if config.slides else {}
    heatmaps: list[Heatmap] = []
    problems: list[WsisegError] = []
    unpublished: list[str] = []
    warnings: list[str] = []
    converted = 0
    for one in outcomes:
        try:
            heatmap = _heatmap(one, slides.get(one.path.stem), warnings)
        except GoneError:
            unpublished.append(one.path.stem)
        except WsisegError as error:
            problems.append(error)
        else:
            heatmaps.append(heatmap)
            converted += _save(config, heatmap)
    if unpublished and not heatmaps:
        problems.append(DownloadError("none of the maps is there", "check --mirror"))
    return TumorMapsResult(
        maps=len(heatmaps),
        converted=converted,
        scaled=sum(_scale(heatmap) != _UNKNOWN for heatmap in heatmaps),
        zeroed=sum(bool(heatmap.model["zeroed_by_hand"]) for heatmap in heatmaps),
        unpublished=tuple(unpublished),
        failed=tuple(map(Failure.of, problems)),
        warnings=tuple(warnings),
        out=str(config.out),
        exit_code=max((error.exit_code for error in problems), default=0),
    )


def _heatmap(outcome: Outcome, slide: Path | None, warnings: list[str]) -> Heatmap:
    if outcome.error is not None:
        raise outcome.error
    picture = outcome.path
    try:
        heatmap = published_heatmap(picture, slide)
    except PixelSizeError as error:
        warnings.append(f"{error.message}: its map is written in pixels")
        heatmap = published_heatmap(picture)
    origin = {"license": LICENSE, "source": "https://github.com/MarvinLer/tcga_segmentation"}
    run = {"converted_from": picture.name, "scale": _scale(heatmap)}
    return replace(heatmap, model=heatmap.model | origin, run=run, version=__version__)


def _save(config: FetchTumorMapsConfig, heatmap: Heatmap) -> bool:
    """Write a heatmap, unless the same one is there; tell whether it was written."""
    path = config.out / f"{Path(heatmap.slide.file).stem}.ome.zarr"
    if path.exists() and not config.overwrite:
        there = Heatmap.open(path)
        if (there.model, there.slide, there.version) == (heatmap.model, heatmap.slide, heatmap.version):
            return False
    heatmap.save(path)
    return True


def _scale(heatmap: Heatmap) -> str:
    return _UNKNOWN if heatmap.slide.mpp_source == ASSUMED else "from the slide"


def _pictures(config: FetchTumorMapsConfig, progress: Progress, patience: Patience) -> list[Outcome]:
    if config.maps is not None:
        found = sorted(config.maps.glob("*.svs.png"))[: config.limit]
        if not found:
            raise UsageError(f"{config.maps}: no published maps there", "their names end in .svs.png")
        return [Outcome(path, "up_to_date") for path in found]
    with open_client(patience) as client:
        given = read_manifest(config.manifest) if config.manifest else None
        entries = given or paper.paper_entries(client, config.mirror, config.out)
        base, folder = paper.maps_url(config.mirror), config.out / "png"
        names = sorted(f"{entry.name}.png" for entry in entries)[: config.limit]
        wanted = [Wanted(folder / name, (f"{base}/{name}",), most=_MOST_BYTES) for name in names]
        return fetch_all(client, wanted, config.jobs, progress)
