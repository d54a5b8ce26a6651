"""Slides of The Cancer Genome Atlas with their labels: from the GDC, its public copy at Amazon, or a mirror."""

from collections import Counter
from collections.abc import Sequence

import httpx
from pydantic import BaseModel, ConfigDict

from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.fetch.batch import Batch, Outcome, Silent, Wanted, Watcher
from wsiseg.fetch.connection import open_client
from wsiseg.fetch.gdc import S3, SITE, Gdc, s3_url
from wsiseg.fetch.http import Remote, is_complete, measure_speed
from wsiseg.fetch.manifest import Entry, read_manifest
from wsiseg.fetch.part import Checksum
from wsiseg.fetch.patience import Patience
from wsiseg.fetch.tcga_choice import Choice, choose_from_manifest, choose_listed, paper_entries, resolve
from wsiseg.fetch.tcga_record import Record
from wsiseg.fetch.tcga_slides import TcgaSlide, disagreement
from wsiseg.run.errors import DownloadError, UsageError, WsisegError
from wsiseg.slides import barcode


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
    watcher, patience = watcher or Silent(), patience or Patience()
    record = Record(config.out, config.seed)
    with open_client(patience) as client:
        gdc = Gdc(client, config.mirror or SITE, patience)
        choice = _choose(config, client, gdc, patience, watcher)
        wanted = [_wanted(config, gdc, slide.entry) for slide in choice.slides]
        moved = _Moved(config, gdc)
        if config.dry_run:
            speed = None if config.manifest else _speed(client, wanted, moved, patience, watcher)
            return _result(config, choice, record, wanted, speed=speed)
        batch = Batch(client, patience, config.jobs, watcher, moved, by_size=not config.verify)
        outcomes: list[Outcome] = []
        try:
            outcomes = batch.fetch(wanted)
        finally:
            outputs = record.write(choice.slides, _missing(choice, wanted)) if choice.slides else {}
        return _result(config, choice, record, wanted, outcomes, outputs=outputs)


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
        choice = choose_from_manifest(config, entries or paper_entries(client, config.paper_mirror, patience))
        if not config.dry_run:
            _resolve(config, choice, gdc, watcher)
    if not choice.slides and not choice.failed:
        raise UsageError("no slides fit", "check --site, --project, --sample-type, --barcode and --strategy")
    for slide in choice.slides:
        if disagreement(slide):
            watcher.note(f"warning: {disagreement(slide)}")
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
        place = moved(largest) or largest
        return measure_speed(client, place.remote.urls[0], patience)
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
    record: Record,
    wanted: Sequence[Wanted],
    outcomes: Sequence[Outcome] = (),
    *,
    speed: float | None = None,
    outputs: dict[str, str] | None = None,
) -> TcgaResult:
    slides = choice.slides
    to_fetch = sum(item.remote.size or 0 for item in wanted if not is_complete(item.remote, item.path, by_size=True))
    failed = choice.failed | {one.name: one.error for one in outcomes if one.error is not None}
    splits = record.splits(slides)
    statuses = Counter(outcome.status for outcome in outcomes)
    return TcgaResult(
        dry_run=config.dry_run,
        slides=len(slides),
        cases=len({slide.case for slide in slides}),
        labels=_labels(slides),
        sample_types=dict(sorted(Counter(barcode.sample_code(slide.entry.name) for slide in slides).items())),
        sites=_grouped(slides, [slide.site or "unknown" for slide in slides]),
        splits=_grouped(slides, splits),
        bytes=sum(slide.entry.size for slide in slides),
        bytes_to_fetch=to_fetch,
        bytes_per_second=speed,
        seconds=to_fetch / speed if speed else None,
        fetched=statuses["fetched"],
        up_to_date=statuses["up_to_date"],
        failed=tuple(_problem(name, error) for name, error in failed.items()),
        left_out=tuple(error.message for error in choice.left_out),
        replaced=tuple(choice.replaced),
        disagreements=tuple(text for text in map(disagreement, slides) if text),
        outputs=outputs or {},
    )


def _labels(slides: Sequence[TcgaSlide]) -> dict[str, int]:
    tumor = sum(slide.label for slide in slides)
    return {"tumor": tumor, "normal": len(slides) - tumor}


def _grouped(slides: Sequence[TcgaSlide], groups: Sequence[str]) -> dict[str, dict[str, int]]:
    """Count slides, cases, labels and bytes by group."""
    members: dict[str, list[TcgaSlide]] = {}
    for slide, group in sorted(zip(slides, groups, strict=True), key=lambda pair: pair[1]):
        members.setdefault(group, []).append(slide)
    return {
        group: {
            "slides": len(some),
            "cases": len({slide.case for slide in some}),
            **_labels(some),
            "bytes": sum(slide.entry.size for slide in some),
        }
        for group, some in members.items()
    }


def _problem(name: str, error: WsisegError) -> dict[str, str]:
    return {"file": name, "message": error.message, "hint": error.hint}
