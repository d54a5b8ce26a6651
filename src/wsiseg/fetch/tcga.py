"""Slides of The Cancer Genome Atlas with their labels: from the GDC, its public copy at Amazon, or a mirror."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.fetch import paper
from wsiseg.fetch.batch import Outcome, fetch_all
from wsiseg.fetch.gdc import S3, SITE, Gdc, TcgaSlide
from wsiseg.fetch.manifest import Entry, read_manifest, write_manifest
from wsiseg.run.connection import USUAL, Patience, open_client
from wsiseg.run.download import Checksum, Wanted
from wsiseg.run.errors import DownloadError, UsageError, WsisegError
from wsiseg.run.record import Progress
from wsiseg.slides import barcode
from wsiseg.slides.cohort import Cohort, CohortSlide, in_shard
from wsiseg.slides.split import by_case

_CASE_LETTERS = len("TCGA-BH-A0B7")
_STRATEGIES = {"tissue": "Tissue Slide", "diagnostic": "Diagnostic Slide"}
_SITES = {"lung": "Bronchus and lung", "liver": "Liver and intrahepatic bile ducts"}


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
        UsageError: The manifest or an earlier cohort cannot be used, or no slide fits.
        DownloadError: The GDC cannot be asked.
        OutputError: There is no room, or the results cannot be written.
    """
    progress = progress or Progress()
    folder = _Folder(config.out, config.seed, keeps_rows=config.shard is not None)
    outcomes: list[Outcome] = []
    outputs: dict[str, str] = {}
    with open_client(patience) as client:
        gdc = Gdc(client, (config.mirror or SITE).rstrip("/"))
        choice = _choose(config, gdc, progress)
        splits = folder.splits(choice.slides)  # of all shards, so that no case crosses them
        choice.slides = [slide for slide in choice.slides if in_shard(slide.name, config.shard)]
        wanted = [_wanted(config, gdc, slide.entry) for slide in choice.slides]
        if not config.dry_run:
            try:
                outcomes = fetch_all(client, wanted, config.jobs, progress, by_size=not config.verify)
            finally:
                outputs = folder.write(choice.slides, splits, _missing(choice, wanted)) if choice.slides else {}
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
        **_chosen(choice.slides, [splits[slide.name] for slide in choice.slides]),
    )


@dataclass
class _Choice:
    """The slides that are wanted."""

    slides: list[TcgaSlide] = field(default_factory=list)  # by name
    left_out: list[str] = field(default_factory=list)  # why others are not among them: their names tell no label
    failed: dict[str, WsisegError] = field(default_factory=dict)  # what cannot be had, by file name


def _choose(config: FetchTcgaConfig, gdc: Gdc, progress: Progress) -> _Choice:
    """Choose from what the GDC lists, or from a manifest: then without any network where nothing is to be fetched."""
    if config.manifest is None and not config.paper:
        choice = _listed(config, gdc)
    else:
        given = read_manifest(config.manifest) if config.manifest else None
        entries = given or paper.paper_entries(gdc.client, config.paper_mirror, config.out)
        choice = _fitting(config, (TcgaSlide(entry, paper.site(entry.name)) for entry in entries))
        try:
            if not config.dry_run:
                _resolve(choice, gdc)
        except DownloadError as error:
            if config.source == "gdc":
                raise
            progress.note(f"warning: {error.message}; taking the files from the ids of the manifest")
    if not choice.slides and not choice.failed:
        raise UsageError("no slides fit", "check site, project, barcode and strategy")
    for text in filter(None, (slide.disagreement for slide in choice.slides)):
        progress.note(f"warning: {text}")
    return choice


def _listed(config: FetchTcgaConfig, gdc: Gdc) -> _Choice:
    cases = {text[:_CASE_LETTERS].upper() for text in config.barcode}
    listed, refused = gdc.open_slides(
        {
            "experimental_strategy": [_STRATEGIES[config.strategy]],
            "cases.primary_site": sorted(map(_site_name, config.site)),
            "cases.project.project_id": sorted(config.project),
            "cases.submitter_id": sorted(cases) if all(len(case) == _CASE_LETTERS for case in cases) else [],
        }
    )
    choice = _fitting(config, {slide.entry.name.casefold(): slide for slide in listed}.values())
    choice.failed = {error.message.partition(":")[0]: error for error in refused}
    return choice


def _fitting(config: FetchTcgaConfig, found: Iterable[TcgaSlide]) -> _Choice:
    """Keep the slides that have a label and that the settings name; a setting without values keeps all."""
    sites, starts = set(map(_site_name, config.site)), tuple(text.upper() for text in config.barcode)
    choice = _Choice()
    for slide in found:
        name = slide.entry.name
        try:
            barcode.label(name)
        except UsageError as error:
            choice.left_out.append(error.message)
        else:
            if (not sites or slide.site in sites) and (not starts or name.upper().startswith(starts)):
                choice.slides.append(slide)
    if config.limit is not None:
        choice.slides = _balanced(choice.slides, config.limit, config.seed)
    return choice


def _resolve(choice: _Choice, gdc: Gdc) -> None:
    """Find where the slides of a manifest lie now: most ids of slides changed in 2021, names did not.

    A file of the same name counts if md5 and size are those of the manifest. What the GDC does not know by name is
    tried at its old id.
    """
    known = gdc.by_name([slide.entry.name for slide in choice.slides])
    slides = []
    for slide in choice.slides:
        entry = slide.entry
        found = known.get(entry.name, [slide])
        same = [one for one in found if (one.entry.md5, one.entry.size) == (entry.md5, entry.size)]
        if same:
            slides.append(replace(same[0], site=slide.site or same[0].site))
        else:
            text = f"{entry.name}: the GDC has replaced it by other content (md5 {found[0].entry.md5})"
            advice = "to take that, give the name to --barcode and leave --manifest out"
            choice.failed[entry.name] = DownloadError(text, advice)
    choice.slides = slides


def _site_name(word: str) -> str:
    """Return the GDC's name of a primary site, as `Bronchus and lung` for `lung`."""
    return _SITES.get(word.lower(), word.capitalize())


def _balanced(slides: Sequence[TcgaSlide], limit: int, seed: int) -> list[TcgaSlide]:
    """Choose slides in turn from every site and label; a larger choice contains the smaller one."""
    strata: dict[str, list[TcgaSlide]] = {}
    for slide in sorted(slides, key=lambda slide: hashlib.sha256(f"{seed}:{slide.name}".encode()).digest()):
        strata.setdefault(slide.stratum, []).append(slide)
    turns = itertools.zip_longest(*(strata[stratum] for stratum in sorted(strata)))
    in_turn = (slide for turn in turns for slide in turn if slide is not None)
    return sorted(itertools.islice(in_turn, limit), key=lambda slide: slide.name)


class _Folder:
    """The tables in a folder of slides; what an earlier run wrote there is kept and added to."""

    def __init__(self, folder: Path, seed: int, *, keeps_rows: bool) -> None:
        self._folder, self._seed, self._keeps_rows = folder, seed, keeps_rows
        self._cohort, self._manifest = folder / "cohort.csv", folder / "manifest.tsv"
        self._rows = Cohort.read(self._cohort).slides if self._cohort.exists() else ()
        self._entries = read_manifest(self._manifest) if self._manifest.exists() else []

    def splits(self, slides: Sequence[TcgaSlide]) -> dict[str, str]:
        """Assign slides to train, val or test by case; cases of earlier runs stay where they are."""
        known = {row.case: row.split for row in self._rows if row.split}
        strata = [slide.stratum for slide in slides]
        names = by_case([slide.case for slide in slides], strata, self._seed, known=known)
        return dict(zip((slide.name for slide in slides), names, strict=True))

    def write(self, slides: Sequence[TcgaSlide], splits: Mapping[str, str], missing: Sequence[Entry]) -> dict[str, str]:
        """Write what there is of the slides that were wanted, and what is missing; return the paths of the tables."""
        gone = set(missing)
        rows = {row.slide: row for row in self._rows if self._keeps_rows or row.path.exists()}
        for slide in slides:
            if slide.entry not in gone:
                path = self._folder / slide.entry.name
                percentages = slide.percentages if slide.label else ()
                of_slide = (
                    slide.name,
                    path,
                    slide.case,
                    slide.label,
                    splits[slide.name],
                    slide.site,
                    None,
                    slide.extra,
                )
                rows.setdefault(slide.name, CohortSlide(*of_slide, *percentages))
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


def _missing(choice: _Choice, wanted: Sequence[Wanted]) -> list[Entry]:
    """List the files that are not there; the right size is enough, as nothing wrong gets a final name."""
    slides = zip(choice.slides, wanted, strict=True)
    return [slide.entry for slide, one in slides if not one.is_complete(by_size=True)]


def _chosen(slides: Sequence[TcgaSlide], splits: Sequence[str]) -> dict[str, Any]:
    every = _counted(slides)
    return {
        **{name: every[name] for name in ("slides", "cases", "bytes")},
        "labels": {label: every[label] for label in ("tumor", "normal")},
        "sample_types": dict(sorted(Counter(barcode.part(slide.entry.name, "code") for slide in slides).items())),
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
