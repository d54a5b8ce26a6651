"""Slides of The Cancer Genome Atlas with their labels: from the GDC, its public copy at Amazon, or a mirror."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.fetch.batch import Outcome, fetch_all
from wsiseg.fetch.connection import USUAL, Patience, open_client
from wsiseg.fetch.gdc import S3, SITE, Gdc, TcgaSlide
from wsiseg.fetch.http import Checksum, Wanted
from wsiseg.fetch.manifest import Entry, read_manifest, write_manifest
from wsiseg.fetch.tcga_choice import Choice, choose
from wsiseg.run.errors import DownloadError
from wsiseg.run.record import Progress
from wsiseg.slides import barcode
from wsiseg.slides.cohort import Cohort, CohortSlide
from wsiseg.slides.split import by_case


class TcgaResult(BaseModel, frozen=True):
    """What `fetch tcga` did, or with a dry run would do; sizes in bytes."""

    dry_run: bool
    slides: int
    cases: int
    labels: dict[str, int]
    sample_types: dict[str, int]
    sites: dict[str, dict[str, int]]
    splits: dict[str, dict[str, int]]
    bytes: int
    bytes_to_fetch: int
    fetched: int
    up_to_date: int
    failed: tuple[dict[str, str], ...]
    left_out: tuple[str, ...]
    disagreements: tuple[str, ...]
    outputs: dict[str, str]

    @property
    def exit_code(self) -> int:
        """0 where everything that was wanted is there, else 6."""
        return DownloadError.exit_code if self.failed else 0


def fetch_tcga(config: FetchTcgaConfig, progress: Progress | None = None, patience: Patience = USUAL) -> TcgaResult:
    """Fetch TCGA slides with a cohort table of their labels and splits; return what there is now, and what failed.

    Raises:
        UsageError: The manifest or an earlier cohort cannot be used, or a sample type is unknown.
        DownloadError: The GDC cannot be asked.
        OutputError: There is no room, or the results cannot be written.
    """
    progress = progress or Progress()
    folder = _Folder(config.out, config.seed)
    outcomes: list[Outcome] = []
    outputs: dict[str, str] = {}
    with open_client(patience) as client:
        gdc = Gdc(client, (config.mirror or SITE).rstrip("/"))
        choice = choose(config, client, gdc, progress)
        wanted = [_wanted(config, gdc, slide.entry) for slide in choice.slides]
        if not config.dry_run:
            try:
                outcomes = fetch_all(client, wanted, config.jobs, progress, by_size=not config.verify)
            finally:
                outputs = folder.write(choice.slides, _missing(choice, wanted)) if choice.slides else {}
    statuses = Counter(outcome.status for outcome in outcomes)
    failed = choice.failed | {one.path.name: one.error for one in outcomes if one.error is not None}
    return TcgaResult(
        dry_run=config.dry_run,
        bytes_to_fetch=sum(entry.size for entry in _missing(choice, wanted)),
        fetched=statuses["ok"],
        up_to_date=statuses["up_to_date"],
        failed=tuple({"file": name, "message": one.message, "hint": one.hint} for name, one in failed.items()),
        left_out=tuple(choice.left_out),
        outputs=outputs,
        **_chosen(choice.slides, folder.splits(choice.slides)),
    )


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
        gone = set(missing)
        rows = {row.slide: row for row in self._rows if row.path.exists()}
        for slide, split in zip(slides, self.splits(slides), strict=True):
            if slide.entry not in gone:
                path = self._folder / slide.entry.name
                row = CohortSlide(slide.name, path, slide.case, slide.label, split, slide.site, extra=slide.extra)
                rows.setdefault(slide.name, row)
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


def _wanted(config: FetchTcgaConfig, gdc: Gdc, entry: Entry) -> Wanted:
    copy = (config.s3_mirror or S3).rstrip("/")
    places = {"gdc": f"{gdc.base}/data/{entry.id}", "s3": f"{copy}/{entry.id}/{entry.name}"}
    urls = tuple(places.values()) if config.source == "auto" else (places[config.source],)
    return Wanted(config.out / entry.name, urls, entry.size, Checksum("md5", entry.md5))


def _missing(choice: Choice, wanted: Sequence[Wanted]) -> list[Entry]:
    """List the files that are not there; the right size is enough, as nothing wrong gets a final name."""
    slides = zip(choice.slides, wanted, strict=True)
    return [slide.entry for slide, one in slides if not one.is_complete(by_size=True)]


def _chosen(slides: Sequence[TcgaSlide], splits: Sequence[str]) -> dict[str, Any]:
    every = _counted(slides)
    return {
        **{name: every[name] for name in ("slides", "cases", "bytes")},
        "labels": {label: every[label] for label in ("tumor", "normal")},
        "sample_types": dict(sorted(Counter(barcode.sample_code(slide.entry.name) for slide in slides).items())),
        "sites": _grouped(slides, [slide.site or "unknown" for slide in slides]),
        "splits": _grouped(slides, splits),
        "disagreements": tuple(filter(None, (slide.disagreement for slide in slides))),
    }


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
