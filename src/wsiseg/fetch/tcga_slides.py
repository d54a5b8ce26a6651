"""TCGA slides to choose from: what is known of each, which of them are wanted, and which few stand for all."""

import hashlib
import itertools
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from wsiseg.fetch import paper
from wsiseg.fetch.gdc_answers import GdcSlide
from wsiseg.fetch.manifest import Entry
from wsiseg.run.errors import UsageError
from wsiseg.slides import barcode

_DIGITS = 2
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


def of_entry(entry: Entry, gdc: GdcSlide | None = None) -> TcgaSlide:
    """Make a slide of a row of a manifest, by its name and what the GDC says of it.

    Raises:
        UsageError: The name is no barcode, or tells no label.
    """
    label = barcode.label(entry.name)
    return TcgaSlide(entry, label, gdc.site if gdc else paper.site(entry.name), gdc)


def site_name(word: str) -> str:
    """Give the GDC's name of a primary site, as `Bronchus and lung` for `lung`."""
    return _SITES.get(word.lower(), word.capitalize())


def sample_codes(words: Collection[str]) -> set[str]:
    """Give the codes of sample types.

    Args:
        words: `tumor`, `normal`, codes of two digits, or the GDC's names of sample types.

    Raises:
        UsageError: A word is none of these.
    """
    codes: set[str] = set()
    for word in words:
        known = {word} if word.isdigit() and len(word) == _DIGITS else _CODES.get(word.lower())
        if known is None:
            raise UsageError(
                f"--sample-type {word}: no such sample type", f"give one of {', '.join(_CODES)}, or a code"
            )
        codes |= known
    return codes


def chosen(
    slides: Iterable[TcgaSlide],
    sites: Collection[str] = (),
    codes: Collection[str] = (),
    barcodes: Collection[str] = (),
) -> list[TcgaSlide]:
    """Give the slides of some sites, sample types and barcodes; whatever is empty chooses all."""
    starts = tuple(text.upper() for text in barcodes)
    return [
        slide
        for slide in slides
        if (not sites or slide.site in sites)
        and (not codes or barcode.sample_code(slide.entry.name) in codes)
        and (not starts or slide.entry.name.upper().startswith(starts))
    ]


def balanced(slides: Sequence[TcgaSlide], limit: int, seed: int) -> list[TcgaSlide]:
    """Choose slides in turn from every site and label; a larger choice contains the smaller one.

    Args:
        slides: To choose from.
        limit: How many.
        seed: Draws another choice.
    """
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
