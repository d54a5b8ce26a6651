"""Find the tissue of slides and the tiles that cover it."""

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg import report
from wsiseg.cohort import Cohort, CohortSlide
from wsiseg.config import TileConfig
from wsiseg.errors import NotASlideError, SlideError, WsisegError
from wsiseg.grid import Grid
from wsiseg.outputs import written_whole
from wsiseg.run import Failure, Progress, Run, RunFile, Silent, SlideRecord, now
from wsiseg.slide import Slide, SlideFacts
from wsiseg.tiles import Tiles, TileStore, encoded, save_pixels, store_path
from wsiseg.tissue import TissueMask, find_tissue

COHORT = "cohort.csv"


def tile(config: TileConfig, progress: Progress | None = None) -> Run:
    """Write a tile store and a picture for every slide, and the cohort that training reads.

    Args:
        config: What to do.
        progress: Who watches.

    Returns:
        What became of every slide. One that fails does not stop the others.

    Raises:
        UsageError: The inputs name nothing, or the cohort is wrong.
        OutputError: Nothing can be written to `config.out`.
    """
    progress = progress or Silent()
    cohort = Cohort.from_inputs(config.inputs, sys.stdin if "-" in config.inputs else ())
    progress.begin(len(cohort.slides))
    settings = config.model_dump(mode="json", exclude={"inputs", "out", "jobs", "overwrite"})
    run = Run(command="tile", version=_version(), started=now(), settings=settings)
    with RunFile(config.out / "run.json", run) as file, ThreadPoolExecutor(config.jobs) as pool:
        for record in pool.map(lambda slide: _tile_or_say_why(slide, config, progress), cohort.slides):
            file.add(record)
            progress.done(record)
        _write_cohort(cohort, file.run, config.out)
        return file.finish()


def _version() -> str:
    from wsiseg import __version__  # noqa: PLC0415  the package imports this module

    return __version__


def _write_cohort(cohort: Cohort, run: Run, out: Path) -> None:
    """Write the slides that have tiles, as the table that training and prediction read."""
    usable = {record.slide for record in run.slides if record.status in {"ok", "up_to_date"}}
    slides = tuple(slide for slide in cohort.slides if slide.slide in usable)
    if slides:
        Cohort(slides).write(out / COHORT)


def _tile_or_say_why(slide: CohortSlide, config: TileConfig, progress: Progress) -> SlideRecord:
    began = time.monotonic()
    try:
        record = _tile_slide(slide, config, progress)
    except NotASlideError as error:
        record = SlideRecord(slide=slide.slide, path=str(slide.path), status="skipped", error=Failure.of(error))
    except WsisegError as error:
        record = SlideRecord(slide=slide.slide, path=str(slide.path), status="failed", error=Failure.of(error))
    return record.model_copy(update={"seconds": round(time.monotonic() - began, 3)})


def _tile_slide(cohort_slide: CohortSlide, config: TileConfig, progress: Progress) -> SlideRecord:
    store, picture = store_path(config.out, cohort_slide.slide), config.out / f"{cohort_slide.slide}.png"
    with Slide(cohort_slide.path, mpp=cohort_slide.mpp or config.slide_mpp) as slide:
        known = _up_to_date(store, slide.facts, config)
        if known is not None and picture.exists():
            return _record(cohort_slide, known, store, picture, (), status="up_to_date")
        tissue, thumbnail = _tissue(slide, config)
        tiles = _place(slide, tissue, config)
        progress.slide(cohort_slide.slide, len(tiles))
        with written_whole(store) as partial:
            _write(partial, slide, tiles, config, progress, cohort_slide.slide)
        report.tissue_picture(
            picture, thumbnail, tissue.mask, f"{slide.path.name}: {tissue.area_mm2:.2f} mm2 of tissue"
        )
        warnings = (*slide.warnings, *tissue.warnings, *_upsampling(slide, config.mpp))
        return _record(cohort_slide, tiles, store, picture, warnings, status="ok" if len(tiles) else "no_tissue")


def _record(  # noqa: PLR0913  one argument for each thing to record
    slide: CohortSlide,
    tiles: Tiles,
    store: Path,
    picture: Path,
    warnings: tuple[str, ...],
    *,
    status: Any,  # noqa: ANN401  pydantic checks it
) -> SlideRecord:
    return SlideRecord(
        slide=slide.slide,
        path=str(slide.path),
        status=status,
        outputs={"tiles": str(store), "picture": str(picture)},
        mpp=tiles.slide.mpp,
        mpp_source=tiles.slide.mpp_source,
        tissue_mm2=round(tiles.tissue_mm2, 6),
        tiles=len(tiles),
        warnings=warnings,
    )


def _upsampling(slide: Slide, mpp: float) -> tuple[str, ...]:
    """Say where a slide is much coarser than what is asked of it."""
    times = slide.upsampling(mpp)
    if times <= 1.5:  # noqa: PLR2004  beyond it detail is missing that the model has seen in training
        return ()
    return (f"its pixels of {max(slide.mpp):g} um are {times:.1f} times coarser than {mpp:g} um",)


def _settings(config: TileConfig) -> dict[str, Any]:
    """Give what a store depends on besides the slide; the same settings give the same store."""
    names = {"tile", "mpp", "stride", "tissue", "min_tissue", "pixels", "max_bad_tiles"}
    return config.model_dump(mode="json", include=names)


def _up_to_date(store: Path, slide: SlideFacts, config: TileConfig) -> Tiles | None:
    """Give the tiles in a store that was made from the same slide with the same settings."""
    if config.overwrite or not store.is_dir():
        return None
    try:
        tiles = TileStore(store).tiles
    except WsisegError:
        return None
    same = tiles.slide == slide and tiles.settings == _settings(config)
    return tiles if same else None


def _tissue(slide: Slide, config: TileConfig) -> tuple[TissueMask, NDArray[np.uint8]]:
    tissue, thumbnail = find_tissue(slide)
    if config.tissue == "none":
        return replace(tissue, mask=np.ones_like(tissue.mask), source="none"), thumbnail
    return tissue, thumbnail


def _place(slide: Slide, tissue: TissueMask, config: TileConfig) -> Tiles:
    """Choose the tiles that hold enough tissue."""
    grid = Grid(slide.size_px, slide.mpp, config.tile, config.stride or config.tile, config.mpp)
    share = tissue.share(grid)
    cells = np.argwhere(share >= max(config.min_tissue, 1e-6))
    corners = grid.corners(cells)
    return Tiles(
        slide=slide.facts,
        corners=corners,
        tissue_share=share[cells[:, 0], cells[:, 1]],
        inside_share=_inside(corners, grid),
        tile_px=grid.tile_px,
        stride_px=grid.stride_px,
        mpp=grid.tile_mpp,
        tissue_mm2=tissue.area_mm2,
        settings=_settings(config),
    )


def _inside(corners: NDArray[np.int32], grid: Grid) -> NDArray[np.float32]:
    """Give the share of each tile that lies on the slide."""
    sides = np.asarray(grid.tile_level0)
    covered = np.clip(np.asarray(grid.size_px) - corners, 0, sides) / sides
    share: NDArray[np.float32] = covered.prod(1).astype(np.float32)
    return share


def _write(partial: Path, slide: Slide, tiles: Tiles, config: TileConfig, progress: Progress, name: str) -> None:  # noqa: PLR0913, PLR0917  a private step
    import zarr  # noqa: PLC0415  heavy: only where a store is written

    group = zarr.create_group(str(partial))
    if config.pixels:
        save_pixels(group, _encoded_tiles(slide, tiles, progress, name))
    tiles.save(group)


def _encoded_tiles(slide: Slide, tiles: Tiles, progress: Progress, name: str) -> Iterator[bytes]:
    """Read and compress the tiles in order, a few at a time."""

    def one(corner: NDArray[np.int32]) -> bytes:
        x, y = (int(value) for value in corner)
        return encoded(slide.read(x, y, (tiles.tile_px, tiles.tile_px), tiles.mpp))

    at_once = 256
    with ThreadPoolExecutor(2) as pool:
        for begin in range(0, len(tiles), at_once):
            yield from pool.map(one, tiles.corners[begin : begin + at_once])
            progress.advance(name, min(at_once, len(tiles) - begin))


__all__ = ["COHORT", "SlideError", "tile"]
