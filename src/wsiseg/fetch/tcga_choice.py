"""Which slides of the TCGA are wanted, by the lists of the GDC or by a manifest, and where each lies now."""

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.fetch import paper
from wsiseg.fetch.connection import Client
from wsiseg.fetch.gdc import Gdc, TcgaSlide
from wsiseg.fetch.manifest import read_manifest
from wsiseg.run.errors import DownloadError, UsageError, WsisegError
from wsiseg.run.record import Progress
from wsiseg.slides import barcode

_CASE_LETTERS = len("TCGA-BH-A0B7")
_STRATEGIES = {"tissue": "Tissue Slide", "diagnostic": "Diagnostic Slide"}
_SITES = {"lung": "Bronchus and lung", "liver": "Liver and intrahepatic bile ducts"}


@dataclass
class Choice:
    """The slides that are wanted."""

    slides: list[TcgaSlide] = field(default_factory=list)  # by name
    left_out: list[str] = field(default_factory=list)  # why others are not among them: their names tell no label
    failed: dict[str, WsisegError] = field(default_factory=dict)  # what cannot be had, by file name


def choose(config: FetchTcgaConfig, client: Client, gdc: Gdc, progress: Progress) -> Choice:
    """Choose from what the GDC lists, or from a manifest: then without any network where nothing is to be fetched.

    Raises:
        DownloadError: The GDC does not answer.
        UsageError: The manifest cannot be used, or no slide is left.
    """
    if config.manifest is None and not config.paper:
        choice = _listed(config, gdc)
    else:
        given = read_manifest(config.manifest) if config.manifest else None
        entries = given or paper.paper_entries(client, config.paper_mirror, config.out)
        choice = _chosen(config, (TcgaSlide(entry, paper.site(entry.name)) for entry in entries))
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


def _listed(config: FetchTcgaConfig, gdc: Gdc) -> Choice:
    cases = {text[:_CASE_LETTERS].upper() for text in config.barcode}
    listed, refused = gdc.open_slides(
        {
            "experimental_strategy": [_STRATEGIES[config.strategy]],
            "cases.primary_site": sorted(map(_site_name, config.site)),
            "cases.project.project_id": sorted(config.project),
            "cases.submitter_id": sorted(cases) if all(len(case) == _CASE_LETTERS for case in cases) else [],
        }
    )
    choice = _chosen(config, {slide.entry.name.casefold(): slide for slide in listed}.values())
    choice.failed = {error.message.partition(":")[0]: error for error in refused}
    return choice


def _chosen(config: FetchTcgaConfig, found: Iterable[TcgaSlide]) -> Choice:
    """Keep the slides that have a label and that the settings name; a setting without values keeps all."""
    sites, starts = set(map(_site_name, config.site)), tuple(text.upper() for text in config.barcode)
    choice = Choice()
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


def _resolve(choice: Choice, gdc: Gdc) -> None:
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
