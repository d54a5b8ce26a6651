"""The tumour maps that Lerousseau et al. 2020 published, as heatmaps of wsiseg."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict

from wsiseg.config.fetch import FetchTumorMapsConfig
from wsiseg.fetch import paper
from wsiseg.fetch.batch import Batch, Outcome, Silent, Wanted, Watcher
from wsiseg.fetch.connection import GoneError, open_client
from wsiseg.fetch.http import Remote
from wsiseg.fetch.manifest import read_manifest
from wsiseg.fetch.names import safe_name
from wsiseg.fetch.patience import Patience
from wsiseg.fetch.tcga_choice import paper_entries
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.opening import published_heatmap
from wsiseg.run.errors import DownloadError, PixelSizeError, UsageError, WsisegError
from wsiseg.run.outputs import write_text
from wsiseg.run.version import __version__
from wsiseg.slides.slide import ASSUMED

LICENSE = "AGPL-3.0-only"
_NOTE = """\
The maps in this folder were published by M. Lerousseau et al., "Weakly supervised multiple instance learning
histopathological tumor segmentation", MICCAI 2020, at https://github.com/MarvinLer/tcga_segmentation, under the GNU
Affero General Public License, version 3. wsiseg has converted them; they are no part of wsiseg nor under its licence.

The maps of normal slides were set to zero by hand, so they say nothing about false alarms.
"""
_MOST_BYTES = 4 << 20
_SUFFIX = ".png"
_UNKNOWN = "unknown"


class TumorMapsResult(BaseModel):
    """What became of the maps.

    `maps` are there as heatmaps, `converted` of them by this run; `scaled` took their scale from their slides, the
    others are in pixels; `zeroed` were set to zero by hand; `unpublished` names slides for which there is no map.
    """

    model_config = ConfigDict(frozen=True)

    maps: int
    converted: int
    scaled: int
    zeroed: int
    unpublished: tuple[str, ...] = ()
    failed: tuple[dict[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    license: str = LICENSE
    out: str
    exit_code: int = 0


def fetch_tumor_maps(
    config: FetchTumorMapsConfig,
    watcher: Watcher | None = None,
    patience: Patience | None = None,
) -> TumorMapsResult:
    """Fetch published maps, or take those of a folder, and write them as `<slide>.ome.zarr`.

    A map takes its scale from its slide where that is in `config.slides`; the others are written in pixels.

    Args:
        config: The settings.
        watcher: Is told how it goes.
        patience: How often and how long to try.

    Returns:
        What became of the maps.

    Raises:
        UsageError: A folder or the manifest cannot be used.
        DownloadError: The paper's manifest cannot be had, or the network settings cannot be used.
        OutputError: The heatmaps cannot be written.
    """
    watcher = watcher or Silent()
    if config.maps is not None:
        outcomes, pictures = [], _local(config.maps)[: config.limit]
    else:
        outcomes = _fetched(config, watcher, patience or Patience())
        pictures = [one.path for one in outcomes if one.error is None]
    write_text(config.out / "LICENSE.txt", _NOTE)
    slides = {path.name: path for path in sorted(config.slides.rglob("*.svs"))} if config.slides else {}
    tally = _Tally(config)
    for picture in pictures:
        tally.convert(picture, slides.get(picture.name.removesuffix(_SUFFIX)))
    return tally.result(outcomes)


class _Tally:
    """Converts maps and counts what became of them."""

    def __init__(self, config: FetchTumorMapsConfig) -> None:
        self._config = config
        self._heatmaps: list[Heatmap] = []
        self._converted = 0
        self._failed: list[WsisegError] = []
        self._warnings: list[str] = []

    def convert(self, picture: Path, slide: Path | None) -> None:
        """Write a map as a heatmap, unless it is there."""
        try:
            heatmap = self._heatmap(picture, slide)
        except WsisegError as error:
            self._failed.append(error)
            return
        path = self._config.out / f"{Path(heatmap.slide.file).stem}.ome.zarr"
        self._heatmaps.append(heatmap)
        if self._config.overwrite or not _is_current(path, heatmap):
            heatmap.save(path)
            self._converted += 1

    def _heatmap(self, picture: Path, slide: Path | None) -> Heatmap:
        try:
            heatmap = published_heatmap(picture, slide)
        except PixelSizeError as error:
            self._warnings.append(f"{error.message}: its map is written in pixels")
            heatmap = published_heatmap(picture)
        origin = {"license": LICENSE, "source": "https://github.com/MarvinLer/tcga_segmentation"}
        run = {"converted_from": picture.name, "scale": _scale(heatmap)}
        return replace(heatmap, model=heatmap.model | origin, run=run, version=__version__)

    def result(self, outcomes: Sequence[Outcome]) -> TumorMapsResult:
        """Say what became of the maps, of which `outcomes` tells how they arrived."""
        gone = [one.name.removesuffix(_SUFFIX) for one in outcomes if isinstance(one.error, GoneError)]
        lost = [one.error for one in outcomes if one.error is not None and not isinstance(one.error, GoneError)]
        nothing = DownloadError("none of the maps is there", "check --mirror") if gone and not self._heatmaps else None
        failed = [*lost, *([nothing] if nothing else []), *self._failed]
        return TumorMapsResult(
            maps=len(self._heatmaps),
            converted=self._converted,
            scaled=sum(_scale(heatmap) != _UNKNOWN for heatmap in self._heatmaps),
            zeroed=sum(bool(heatmap.model["zeroed_by_hand"]) for heatmap in self._heatmaps),
            unpublished=tuple(gone),
            failed=tuple({"type": type(one).__name__, "message": one.message, "hint": one.hint} for one in failed),
            warnings=tuple(self._warnings),
            out=str(self._config.out),
            exit_code=max((error.exit_code for error in failed), default=0),
        )


def _scale(heatmap: Heatmap) -> str:
    return _UNKNOWN if heatmap.slide.mpp_source == ASSUMED else "from the slide"


def _is_current(path: Path, heatmap: Heatmap) -> bool:
    if not path.exists():
        return False
    there = Heatmap.open(path)
    return (there.model, there.slide, there.version) == (heatmap.model, heatmap.slide, heatmap.version)


def _local(folder: Path) -> list[Path]:
    """List the maps of a folder.

    Raises:
        UsageError: There are none.
    """
    pictures = sorted(folder.glob(f"*.svs{_SUFFIX}"))
    if not pictures:
        raise UsageError(f"{folder}: no published maps there", f"their names end in .svs{_SUFFIX}")
    return pictures


def _fetched(config: FetchTumorMapsConfig, watcher: Watcher, patience: Patience) -> list[Outcome]:
    with open_client(patience) as client:
        names = _names(config, client, patience)[: config.limit]
        wanted = [_wanted(config, name) for name in names]
        return Batch(client, patience, config.jobs, watcher).fetch(wanted)


def _names(config: FetchTumorMapsConfig, client: httpx.Client, patience: Patience) -> list[str]:
    entries = read_manifest(config.manifest) if config.manifest else paper_entries(client, config.mirror, patience)
    return sorted(entry.name for entry in entries)


def _wanted(config: FetchTumorMapsConfig, name: str) -> Wanted:
    url = paper.map_url(config.mirror, name, thresholded=config.thresholded)
    path = config.out / "png" / safe_name(f"{name}{_SUFFIX}")
    return Wanted(Remote(path.name, (url,), most=_MOST_BYTES), path)
