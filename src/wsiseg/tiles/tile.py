"""Find the tissue of slides and the tiles that cover it."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.settings import run_name
from wsiseg.config.tile import TileConfig
from wsiseg.mathematics.grid import Grid
from wsiseg.pages import pictures as report
from wsiseg.run.cluster import READING, on_cluster
from wsiseg.run.errors import SlideError, UsageError, WsisegError, counted
from wsiseg.run.memory import start_zarr
from wsiseg.run.outputs import locked, write_text, written_whole
from wsiseg.run.record import Progress, Run, RunFile, SlideRecord, Status, now, slides_of
from wsiseg.run.version import __version__
from wsiseg.slides.address import bare
from wsiseg.slides.cache import Cache
from wsiseg.slides.cohort import Cohort, CohortSlide, in_shard
from wsiseg.slides.slide import Slide
from wsiseg.tiles.packed import encoded, save_packed
from wsiseg.tiles.page import tile_page
from wsiseg.tiles.store import Tiles, TileStore, store_path
from wsiseg.tiles.tissue import TissueMask
from wsiseg.tiles.tissue_choice import TissueChoice

COHORT = "cohort.csv"
_TILES_AT_ONCE = 64  # read before they are written
_NO_PART = {"inputs", "out", "jobs", "dask", "overwrite", "cache", "cache_gb"}  # of what tiles depend on
_LEAST_TISSUE = 1e-6  # a tile without any tissue is never kept


def tile(config: TileConfig, progress: Progress | None = None) -> Run:
    """Write a tile store and a picture for every slide, and the cohort that training reads.

    Returns:
        What became of every slide. One that fails does not stop the others.

    Raises:
        UsageError: The inputs name nothing, the cohort is wrong, or a tissue mask belongs to no slide.
        DownloadError: A server of slides does not let us in.
        OutputError: Nothing can be written to `config.out`.
    """
    progress = progress or Progress()
    every = Cohort.from_inputs(config.inputs, sys.stdin if "-" in config.inputs else ())
    tissue = TissueChoice.of(config.tissue, [slide.slide for slide in every.slides if not slide.skipped])
    chosen = (slide for slide in every.slides if in_shard(slide.slide, config.shard))
    cohort = Cohort(tuple(slide.in_cache(config.cache_place[0]) for slide in chosen))
    if any(slide.address for slide in cohort.slides):
        from wsiseg.slides.remote import check  # noqa: PLC0415  loads the HTTP client

        check(cohort.slides)
        if not config.pixels:
            progress.note("train cannot download slides: to train on these, add --pixels")
    progress.begin(len(cohort.slides))
    start_zarr()
    settings = config.model_dump(mode="json", exclude=_NO_PART)
    run = Run(command="tile", version=__version__, started=now(), settings=settings)
    with RunFile(config.out / run_name(config.shard), run) as file:
        for record in _records(cohort, tissue, config, progress):
            file.add(record)
            progress.done(record)
        _write_cohort(cohort, file.run, config)
        run = file.finish()
    _write_page(config.out)
    return run


def _write_page(out: Path) -> None:
    """Write the page of all slides in a folder, those of earlier runs among them."""
    rows = dict[str, CohortSlide]()
    with suppress(UsageError):  # there is none where no slide has tiles
        rows = {slide.slide: slide for slide in Cohort.read(out / COHORT).slides}
    write_text(out / "report.html", tile_page(out.resolve().name, slides_of(out), rows))


def _write_cohort(cohort: Cohort, run: Run, config: TileConfig) -> None:
    """Add the slides that have tiles to the table that training and prediction read.

    Rows of earlier runs stay while their tiles do, wherever their slides are, so that a cohort can be tiled in parts.
    """
    usable = {record.slide for record in run.slides if record.status in {"ok", "up_to_date"} and record.tiles}
    slides = [replace(one, mpp=one.mpp or config.slide_mpp) for one in cohort.slides if one.slide in usable]
    path, here, rows = config.out / COHORT, {one.slide for one in cohort.slides}, tuple[CohortSlide, ...]()
    with locked(path.with_name(f".{COHORT}.lock")):
        with suppress(UsageError):
            rows = Cohort.read(path).slides
        kept = [row for row in rows if row.slide not in here and store_path(config.out, row.slide).exists()]
        if not (kept or slides):
            return
        if not any(slide.split for slide in slides):  # the splits that an earlier run chose stay
            splits = {row.case: row.split for row in rows if row.split}
            Cohort((*(replace(row, split=None) for row in kept), *slides)).with_splits(splits).write(path)
        else:
            Cohort((*kept, *slides)).write(path)


@dataclass(frozen=True)
class _Task:
    """A slide and what to do with it."""

    row: CohortSlide
    store: Path  # where its tiles are written, and its picture
    picture: Path
    tissue: TissueChoice  # how its tissue is found
    config: TileConfig
    progress: Progress
    threads: int  # how many read it at the same time
    stop: threading.Event  # set when the run is interrupted

    @property
    def settings(self) -> dict[str, Any]:
        """What a store depends on besides the slide; the same settings give the same store."""
        names = {"tile", "mpp", "stride", "min_tissue", "pixels", "max_bad_tiles"}
        return {**self.config.model_dump(mode="json", include=names), "tissue": self.tissue.settings(self.row.slide)}


def _task(
    row: CohortSlide, tissue: TissueChoice, config: TileConfig, progress: Progress, threads: int, stop: threading.Event
) -> _Task:
    store, picture = store_path(config.out, row.slide), config.out / f"{row.slide}.png"
    return _Task(row, store, picture, tissue, config, progress, threads, stop)


def _on_worker(rows: Sequence[CohortSlide], tissue: TissueChoice, config: TileConfig) -> Iterator[SlideRecord]:
    for row in rows:
        yield _tile_or_say_why(_task(row, tissue, config, Progress(), config.jobs, threading.Event()))


def _records(cohort: Cohort, tissue: TissueChoice, config: TileConfig, progress: Progress) -> Iterator[SlideRecord]:
    """Tile slides on a cluster, or here.

    Here it is `jobs` slides at a time; where there are fewer slides than jobs, more threads read each of them.
    """
    if config.dask is not None:
        yield from on_cluster(config.dask, partial(_on_worker, tissue=tissue, config=config), cohort.slides, READING)
        return
    stop, slides = threading.Event(), max(1, min(config.jobs, len(cohort.slides)))
    tasks = [_task(row, tissue, config, progress, config.jobs // slides, stop) for row in cohort.slides]
    with ThreadPoolExecutor(slides, "slide") as pool:
        futures: list[Future[SlideRecord]] = [pool.submit(_tile_or_say_why, task) for task in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


def _tile_or_say_why(task: _Task) -> SlideRecord:
    began = time.monotonic()
    try:
        record = _tile_slide(task)
    except (WsisegError, OSError, MemoryError) as error:
        record = SlideRecord.of_error(task.row.slide, task.row.path, error, must_be_slide=task.row.must_be_slide)
    elsewhere = {"address": bare(task.row.address)} if task.row.address else {}
    return record.model_copy(update={"seconds": round(time.monotonic() - began, 3), **elsewhere})


def _tile_slide(task: _Task) -> SlideRecord:
    import zarr  # noqa: PLC0415  heavy: only where a store is written

    config, known, source = task.config, None, _source(task)
    if not config.overwrite:
        with suppress(WsisegError):
            known = TileStore(task.store).tiles
    if known is not None and source and known.settings.get("source") == source and not _changed_settings(known, task):
        return _record(task, known, "up_to_date")
    with _opened(task) as slide:
        if known is not None:
            changed = _what_changed(known, slide, task)
            if changed is None:
                return _record(task, known, "up_to_date")
            task.progress.note(f"{task.row.slide}: done again, {changed}")
        tissue, thumbnail = task.tissue.find(
            task.row.slide, slide, threads=task.threads, most_unreadable=config.max_bad_tiles
        )
        tiles = _placed(slide, tissue, task)
        task.progress.slide(task.row.slide, len(tiles))
        with written_whole(task.store) as partial:
            group = zarr.create_group(str(partial))
            if config.pixels:
                readable = np.ones(len(tiles), np.bool_)
                save_packed(group, _encoded_tiles(slide, tiles, readable, task))
                tiles = tiles.only(readable)
            replace(tiles, settings={**tiles.settings, "source": source} if source else tiles.settings).save(group)
            task.picture.unlink(missing_ok=True)  # after an interruption it must not stand beside another store
        title = f"{slide.path.name}: {tissue.area_mm2:.2f} mm2 of tissue, {counted(len(tiles), 'tile')}"
        report.tissue_picture(task.picture, thumbnail, tissue.mask, title)
        return _record(task, tiles, "ok")


def _source(task: _Task) -> str:
    """Return what tells a slide that lies elsewhere from others, its pixel size too; empty where nothing can."""
    if not task.row.address:
        return ""
    from wsiseg.slides.remote import asked  # noqa: PLC0415  loads the HTTP client

    size, version = asked(task.row)
    mpp = task.row.mpp or task.config.slide_mpp
    return f"{bare(task.row.address)} {size} {version} {mpp}" if version else ""


@contextmanager
def _opened(task: _Task) -> Iterator[Slide]:
    """Open a slide, fetched first where it lies elsewhere, and kept for it."""
    with Cache(*task.config.cache_place) as cache:
        if task.row.address:
            from wsiseg.run.connection import USUAL  # noqa: PLC0415  loads the HTTP client
            from wsiseg.slides.remote import fetch  # noqa: PLC0415  the same

            cache.keep(task.row.path.parent, USUAL.room_s)
            fetch(task.row, cache, task.progress)
        with task.row.open(task.config.slide_mpp) as slide:
            yield slide


def _placed(slide: Slide, tissue: TissueMask, task: _Task) -> Tiles:
    """Return the tiles that hold enough tissue, those that reach beyond the slide among them."""
    config = task.config
    grid = Grid(slide.size_px, slide.mpp, config.tile, config.stride or config.tile, config.mpp)
    share = tissue.share(grid)
    cells = np.argwhere(share >= max(config.min_tissue, _LEAST_TISSUE))
    corners, sides = grid.corners(cells), np.asarray(grid.tile_level0)
    inside = np.clip(np.asarray(grid.size_px) - corners, 0, sides) / sides
    return Tiles(
        slide=slide.facts,
        corners=corners,
        tissue_share=share[cells[:, 0], cells[:, 1]],
        inside_share=inside.prod(1).astype(np.float32),
        tile_px=grid.tile_px,
        stride_px=grid.stride_px,
        mpp=grid.tile_mpp,
        tissue_mm2=tissue.area_mm2,
        warnings=(*slide.warnings, *tissue.warnings, *slide.coarseness(grid.tile_mpp)),
        settings=task.settings,
    )


def _what_changed(known: Tiles, slide: Slide, task: _Task) -> str | None:
    """Name what differs from what the tiles of an earlier run were made of; None where nothing does."""
    return slide.facts.difference(known.slide) if known.slide != slide.facts else _changed_settings(known, task)


def _changed_settings(known: Tiles, task: _Task) -> str | None:
    changed = [name.replace("_", "-") for name, value in task.settings.items() if known.settings.get(name) != value]
    if changed:
        return f"{' and '.join(changed)} changed"
    return None if task.picture.exists() else "its picture is gone"


def _record(task: _Task, tiles: Tiles, status: Status) -> SlideRecord:
    return SlideRecord(
        slide=task.row.slide,
        path=str(task.row.path),
        status=status if len(tiles) else "no_tissue",
        outputs={"tiles": str(task.store), "picture": str(task.picture)},
        mpp=tiles.slide.mpp,
        mpp_source=tiles.slide.mpp_source,
        mpp_raw=tiles.slide.mpp_raw,
        tissue_mm2=round(tiles.tissue_mm2, 6),
        tiles=len(tiles),
        bad_tiles=tiles.bad_tiles,
        warnings=(*task.row.doubts, *tiles.warnings),
    )


def _encoded_tiles(slide: Slide, tiles: Tiles, readable: NDArray[np.bool_], task: _Task) -> Iterator[bytes]:
    """Read and compress the tiles in order, a few at a time, and mark those that cannot be read."""

    def one(corner: NDArray[np.int32]) -> bytes | None:
        if task.stop.is_set():
            raise CancelledError  # the run was interrupted
        try:
            return encoded(slide.read(int(corner[0]), int(corner[1]), (tiles.tile_px, tiles.tile_px), tiles.mpp))
        except SlideError:
            return None

    most = task.config.max_bad_tiles * len(tiles)
    with ThreadPoolExecutor(task.threads, "reader") as pool:
        for begin in range(0, len(tiles), _TILES_AT_ONCE):
            files = list(pool.map(one, tiles.corners[begin : begin + _TILES_AT_ONCE]))
            readable[begin : begin + len(files)] = [file is not None for file in files]
            bad = int((~readable).sum())
            if bad > most:
                text = f"{slide.path.name}: at least {bad} of {len(tiles)} tissue tiles cannot be read"
                raise SlideError(text, "get the slide again, or allow more with max-bad-tiles in the --config file")
            yield from (file for file in files if file is not None)
            task.progress.advance(task.row.slide, len(files))
