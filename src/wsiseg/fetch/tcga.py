"""Slides of The Cancer Genome Atlas with their labels: from the GDC, its public copy at Amazon, or a mirror."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import httpx
from pydantic import BaseModel, ConfigDict

from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.fetch.batch import Batch, Outcome, Wanted, Watcher
from wsiseg.fetch.connection import open_client
from wsiseg.fetch.gdc import S3, SITE, Gdc, s3_url
from wsiseg.fetch.http import Checksum, Remote, is_complete, measure_speed
from wsiseg.fetch.manifest import Entry, read_manifest, write_manifest
from wsiseg.fetch.paper import paper_entries
from wsiseg.fetch.patience import Patience
from wsiseg.fetch.tcga_choice import Choice, TcgaSlide, choose_from_manifest, choose_listed, disagreement, resolve
from wsiseg.run.errors import DownloadError, UsageError
from wsiseg.slides import barcode
from wsiseg.slides.cohort import Cohort, CohortSlide
from wsiseg.slides.split import by_case


class TcgaResult(BaseModel):
    """What `fetch tcga` did, or with a dry run would do; sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True)

    dry_run: bool
    slides: int
    cases: int
    labels: dict[str, int]
    sample_types: dict[str, int]
    sites: dict[str, dict[str, int]]
    splits: dict[str, dict[str, int]]
    bytes: int
    bytes_to_fetch: int
    bytes_per_second: float | None = None
    seconds: float | None = None
    fetched: int = 0
    up_to_date: int = 0
    failed: tuple[dict[str, str], ...] = ()
    left_out: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    disagreements: tuple[str, ...] = ()
    outputs: dict[str, str] = {}

    @property
    def exit_code(self) -> int:
        """0 where everything that was wanted is there, else 6."""
        return DownloadError.exit_code if self.failed else 0


def fetch_tcga(config: FetchTcgaConfig, watcher: Watcher | None = None, patience: Patience | None = None) -> TcgaResult:
    """Fetch TCGA slides with a cohort table of their labels and splits.

    Args:
        config: The settings.
        watcher: Is told how it goes.
        patience: How often and how long to try.

    Returns:
        What there is now, and what failed.

    Raises:
        UsageError: The manifest or an earlier cohort cannot be used, or a sample type is unknown.
        DownloadError: The GDC cannot be asked.
        OutputError: There is no room, or the results cannot be written.
    """
    watcher, patience = watcher or Watcher(), patience or Patience()
    folder = _Folder(config.out, config.seed)
    with open_client(patience) as client:
        gdc = Gdc(client, config.mirror or SITE, patience)
        choice = _choose(config, client, gdc, patience, watcher)
        wanted = [_wanted(config, gdc, slide.entry) for slide in choice.slides]
        moved = _Moved(config, gdc)
        if config.dry_run:
            speed = None if config.manifest else _speed(client, wanted, moved, patience, watcher)
            return _result(config, choice, folder, wanted, speed=speed)
        batch = Batch(client, patience, config.jobs, watcher, moved, by_size=not config.verify)
        outcomes: list[Outcome] = []
        try:
            outcomes = batch.fetch(wanted)
        finally:
            outputs = folder.write(choice.slides, _missing(choice, wanted)) if choice.slides else {}
        return _result(config, choice, folder, wanted, outcomes, outputs=outputs)


class _Folder:
    """The tables in a folder of slides; what an earlier run wrote there is kept and added to."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._seed = folder, seed
        self._cohort, self._manifest = folder / "cohort.csv", folder / "manifest.tsv"
        self._rows = Cohort.read(self._cohort).slides if self._cohort.exists() else ()
        self._entries = read_manifest(self._manifest) if self._manifest.exists() else []

    def splits(self, slides: Sequence[TcgaSlide]) -> list[str]:
        """Assign slides to train, val or test by case; cases of earlier runs stay where they are."""
        known = {row.case: row.split for row in self._rows if row.split}
        strata = [slide.stratum for slide in slides]
        return by_case([slide.case for slide in slides], strata, self._seed, known=known)

    def write(self, slides: Sequence[TcgaSlide], missing: Sequence[Entry]) -> dict[str, str]:
        """Write what there is of the slides that were wanted, and what is missing; return the paths of the tables."""
        gone = {entry.name for entry in missing}
        rows = {row.slide: row for row in self._rows if row.path.exists()}
        for slide, split in zip(slides, self.splits(slides), strict=True):
            if slide.entry.name not in gone:
                rows.setdefault(slide.name, self._row(slide, split))
        entries = {entry.name: entry for entry in [*self._entries, *(slide.entry for slide in slides)]}
        write_manifest(self._manifest, entries.values())
        outputs = {"manifest": str(self._manifest)}
        if rows:
            Cohort(tuple(rows.values())).write(self._cohort)
            outputs["cohort"] = str(self._cohort)
        still = self._folder / "missing.tsv"
        still.unlink(missing_ok=True)
        if missing:
            write_manifest(still, missing)
            outputs["missing"] = str(still)
        return outputs

    def _row(self, slide: TcgaSlide, split: str) -> CohortSlide:
        extra = {"project": slide.gdc.project, **slide.gdc.measures} if slide.gdc else {}
        path = self._folder / slide.entry.name
        return CohortSlide(slide.name, path, slide.case, slide.label, split, slide.site, extra=extra)


class _Moved:
    """Finds a file that has left its place once more, by its name."""

    def __init__(self, config: FetchTcgaConfig, gdc: Gdc) -> None:
        self._config, self._gdc = config, gdc

    def __call__(self, wanted: Wanted) -> Wanted | None:
        for found in self._gdc.by_name([wanted.path.name]).get(wanted.path.name, []):
            remote = _wanted(self._config, self._gdc, found.entry)
            if remote.remote.checksum == wanted.remote.checksum and remote != wanted:
                return remote
        return None


def _choose(
    config: FetchTcgaConfig,
    client: httpx.Client,
    gdc: Gdc,
    patience: Patience,
    watcher: Watcher,
) -> Choice:
    if config.manifest is None and not config.paper:
        choice = choose_listed(config, gdc)
    else:
        entries = read_manifest(config.manifest) if config.manifest else None
        choice = choose_from_manifest(
            config, entries or paper_entries(client, config.paper_mirror, patience, config.out)
        )
        if not config.dry_run:
            _resolve(config, choice, gdc, watcher)
    if not choice.slides and not choice.failed:
        raise UsageError("no slides fit", "check site, project, sample-type, barcode and strategy")
    for text in filter(None, map(disagreement, choice.slides)):
        watcher.note(f"warning: {text}")
    return choice


def _resolve(config: FetchTcgaConfig, choice: Choice, gdc: Gdc, watcher: Watcher) -> None:
    try:
        resolve(choice, gdc, take_replaced=config.take_replaced)
    except DownloadError as error:
        if config.source == "gdc":
            raise
        watcher.note(f"warning: {error.message}; taking the files from the ids of the manifest")


def _wanted(config: FetchTcgaConfig, gdc: Gdc, entry: Entry) -> Wanted:
    places = {"gdc": gdc.url(entry), "s3": s3_url(config.s3_mirror or S3, entry)}
    urls = tuple(places.values()) if config.source == "auto" else (places[config.source],)
    return Wanted(Remote(entry.name, urls, entry.size, Checksum("md5", entry.md5)), config.out / entry.name)


def _speed(
    client: httpx.Client,
    wanted: Sequence[Wanted],
    moved: _Moved,
    patience: Patience,
    watcher: Watcher,
) -> float | None:
    """Measure the speed on the largest file; None where that fails, as an estimate is no reason to fail."""
    if not wanted:
        return None
    largest = max(wanted, key=lambda item: item.remote.size or 0)
    try:
        return measure_speed(client, (moved(largest) or largest).remote.urls[0], patience)
    except DownloadError as error:
        watcher.note(f"the speed is unknown: {error.message}")
        return None


def _missing(choice: Choice, wanted: Sequence[Wanted]) -> list[Entry]:
    """List the files that are not there; the right size is enough, as nothing wrong gets a final name."""
    there = {item.path.name for item in wanted if is_complete(item.remote, item.path, by_size=True)}
    return [slide.entry for slide in choice.slides if slide.entry.name not in there]


def _result(
    config: FetchTcgaConfig,
    choice: Choice,
    folder: _Folder,
    wanted: Sequence[Wanted],
    outcomes: Sequence[Outcome] = (),
    *,
    speed: float | None = None,
    outputs: dict[str, str] | None = None,
) -> TcgaResult:
    slides = choice.slides
    to_fetch = sum(entry.size for entry in _missing(choice, wanted))
    failed = choice.failed | {one.name: one.error for one in outcomes if one.error is not None}
    statuses = Counter(outcome.status for outcome in outcomes)
    every = _counted(slides)
    return TcgaResult(
        dry_run=config.dry_run,
        slides=len(slides),
        cases=every["cases"],
        labels={label: every[label] for label in ("tumor", "normal")},
        sample_types=dict(sorted(Counter(barcode.sample_code(slide.entry.name) for slide in slides).items())),
        sites=_grouped(slides, [slide.site or "unknown" for slide in slides]),
        splits=_grouped(slides, folder.splits(slides)),
        bytes=every["bytes"],
        bytes_to_fetch=to_fetch,
        bytes_per_second=speed,
        seconds=to_fetch / speed if speed else None,
        fetched=statuses["fetched"],
        up_to_date=statuses["up_to_date"],
        failed=tuple({"file": name, "message": one.message, "hint": one.hint} for name, one in failed.items()),
        left_out=tuple(error.message for error in choice.left_out),
        replaced=tuple(choice.replaced),
        disagreements=tuple(filter(None, map(disagreement, slides))),
        outputs=outputs or {},
    )


def _grouped(slides: Sequence[TcgaSlide], groups: Sequence[str]) -> dict[str, dict[str, int]]:
    return {
        group: _counted([slide for slide, its in zip(slides, groups, strict=True) if its == group])
        for group in sorted(set(groups))
    }


def _counted(slides: Sequence[TcgaSlide]) -> dict[str, int]:
    tumor = sum(slide.label for slide in slides)
    return {
        "slides": len(slides),
        "cases": len({slide.case for slide in slides}),
        "tumor": tumor,
        "normal": len(slides) - tumor,
        "bytes": sum(slide.entry.size for slide in slides),
    }
