"""Which slides of the TCGA are wanted, by the lists of the GDC or by a manifest, and where each lies now."""

import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.fetch import paper
from wsiseg.fetch.gdc import Gdc, GdcSlide, slide_filter
from wsiseg.fetch.manifest import Entry
from wsiseg.run.errors import DownloadError, UsageError, WsisegError
from wsiseg.slides import barcode

_CASE_LETTERS = len("TCGA-BH-A0B7")
_SITES = {"lung": "Bronchus and lung", "liver": "Liver and intrahepatic bile ducts"}
_CODES = {
    "tumor": {f"{code:02}" for code in range(1, 10)},
    "normal": {f"{code:02}" for code in range(10, 15)},
    "primary tumor": {"01"},
    "recurrent tumor": {"02"},
    "additional - new primary": {"05"},
    "metastatic": {"06"},
    "additional metastatic": {"07"},
    "solid tissue normal": {"11"},
}


@dataclass(frozen=True)
class TcgaSlide:
    """A slide of the TCGA.

    Attributes:
        entry: Its file.
        label: 1 for tumour, 0 for normal, by the barcode.
        site: The organ, or empty where nobody says.
        gdc: What the GDC says of it, where it was asked.
    """

    entry: Entry
    label: int
    site: str
    gdc: GdcSlide | None = None

    @property
    def name(self) -> str:
        """The id in the cohort: the file's name without its suffix."""
        return self.entry.name.rpartition(".")[0]

    @property
    def case(self) -> str:
        """The patient."""
        return barcode.case(self.entry.name)

    @property
    def stratum(self) -> str:
        """What is shared out alike."""
        return f"{self.site}/{self.label}"


@dataclass
class Choice:
    """The slides that are wanted.

    Attributes:
        slides: The slides, by name.
        left_out: Why others are not among them: their names tell no label.
        failed: What is wanted and cannot be had, by file name.
        replaced: Files whose content is another than the manifest says, and that are taken nevertheless.
    """

    slides: list[TcgaSlide] = field(default_factory=list)
    left_out: list[WsisegError] = field(default_factory=list)
    failed: dict[str, WsisegError] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)

    def add(self, found: Iterable[tuple[Entry, GdcSlide | None]]) -> None:
        """Add slides, or leave them out where their names tell no label."""
        for entry, gdc in found:
            try:
                label = barcode.label(entry.name)
            except UsageError as error:
                self.left_out.append(error)
            else:
                site = gdc.site if gdc else paper.site(entry.name)
                self.slides.append(TcgaSlide(entry, label, site, gdc))

    def choose(self, config: FetchTcgaConfig) -> None:
        """Keep the slides that the settings name; a setting without values keeps all."""
        sites, codes = {_site_name(word) for word in config.site}, _sample_codes(config.sample_type)
        starts = tuple(text.upper() for text in config.barcode)
        self.slides = [
            slide
            for slide in self.slides
            if (not sites or slide.site in sites)
            and (not codes or barcode.sample_code(slide.entry.name) in codes)
            and (not starts or slide.entry.name.upper().startswith(starts))
        ]
        if config.limit is not None:
            self.slides = _balanced(self.slides, config.limit, config.seed)


def choose_listed(config: FetchTcgaConfig, gdc: Gdc) -> Choice:
    """Choose from what the GDC lists.

    Raises:
        DownloadError: The GDC does not answer.
        UsageError: A sample type is unknown.
    """
    _sample_codes(config.sample_type)  # a slip of the pen shows before the network is asked
    sites = {_site_name(word) for word in config.site}
    cases = {text[:_CASE_LETTERS].upper() for text in config.barcode}
    whole = cases if all(len(case) == _CASE_LETTERS for case in cases) else ()
    listed, refused = gdc.slides(slide_filter(config.strategy, sites, config.project, whole))
    choice = Choice(failed={error.message.partition(":")[0]: error for error in refused})
    unique = {slide.entry.name.casefold(): slide for slide in listed}
    choice.add((slide.entry, slide) for slide in unique.values())
    choice.choose(config)
    return choice


def choose_from_manifest(config: FetchTcgaConfig, entries: Sequence[Entry]) -> Choice:
    """Choose from a manifest, without any network.

    Raises:
        UsageError: A sample type is unknown.
    """
    choice = Choice()
    choice.add((entry, None) for entry in entries)
    choice.choose(config)
    return choice


def resolve(choice: Choice, gdc: Gdc, *, take_replaced: bool) -> None:
    """Find where the slides of a manifest lie now: most ids of slides changed in 2021, names did not.

    A file of the same name counts if md5 and size are those of the manifest. One that the GDC has replaced is taken
    only with `take_replaced`. What the GDC does not know by name is tried at its old id.

    Raises:
        DownloadError: The GDC does not answer.
    """
    known = gdc.by_name([slide.entry.name for slide in choice.slides])
    slides = []
    for slide in choice.slides:
        entry, found = slide.entry, known.get(slide.entry.name, [])
        same = [one for one in found if (one.entry.md5, one.entry.size) == (entry.md5, entry.size)]
        if same or not found:
            slides.append(_resolved(slide, same[0]) if same else slide)
        elif take_replaced:
            choice.replaced.append(entry.name)
            slides.append(_resolved(slide, found[0]))
        else:
            text = f"{entry.name}: the GDC has replaced it by other content (md5 {found[0].entry.md5})"
            choice.failed[entry.name] = DownloadError(
                text, "take that with take-replaced = true in a file for --config"
            )
    choice.slides = slides


def _resolved(slide: TcgaSlide, gdc: GdcSlide) -> TcgaSlide:
    return TcgaSlide(gdc.entry, slide.label, slide.site or gdc.site, gdc)


def _site_name(word: str) -> str:
    """Return the GDC's name of a primary site, as `Bronchus and lung` for `lung`."""
    return _SITES.get(word.lower(), word.capitalize())


def _sample_codes(words: Iterable[str]) -> set[str]:
    """Return the two-digit codes of sample types that are named by a word, by the GDC's name or by a code."""
    codes: set[str] = set()
    for word in words:
        known = {word} if re.fullmatch("[0-9]{2}", word) else _CODES.get(word.lower())
        if known is None:
            raise UsageError(f"{word}: no such sample type", f"give one of {', '.join(_CODES)}, or a two-digit code")
        codes |= known
    return codes


def _balanced(slides: Sequence[TcgaSlide], limit: int, seed: int) -> list[TcgaSlide]:
    """Choose slides in turn from every site and label; a larger choice contains the smaller one."""
    strata: dict[str, list[TcgaSlide]] = {}
    for slide in sorted(slides, key=lambda slide: hashlib.sha256(f"{seed}:{slide.name}".encode()).digest()):
        strata.setdefault(slide.stratum, []).append(slide)
    turns = itertools.zip_longest(*(strata[stratum] for stratum in sorted(strata)))
    in_turn = (slide for turn in turns for slide in turn if slide is not None)
    return sorted(itertools.islice(in_turn, limit), key=lambda slide: slide.name)


def disagreement(slide: TcgaSlide) -> str:
    """Say how the GDC contradicts the label by the barcode; empty where it does not."""
    if slide.gdc is None or slide.gdc.label in {None, slide.label}:
        return ""
    word = "tumour" if slide.label else "normal"
    return f"{slide.name}: {word} by its barcode, {slide.gdc.kind!r} by the GDC; the barcode counts"
