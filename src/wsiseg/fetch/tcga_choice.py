"""Which slides of the TCGA are wanted, by the lists of the GDC or by a manifest, and where each lies now."""

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.fetch import paper
from wsiseg.fetch.gdc import Gdc, slide_filter
from wsiseg.fetch.gdc_answers import GdcSlide
from wsiseg.fetch.http import download
from wsiseg.fetch.manifest import Entry, read_manifest
from wsiseg.fetch.patience import Patience
from wsiseg.fetch.tcga_slides import TcgaSlide, balanced, chosen, of_entry, sample_codes, site_name
from wsiseg.run.errors import DownloadError, UsageError, WsisegError

_CASE_LETTERS = len("TCGA-BH-A0B7")


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
                self.slides.append(of_entry(entry, gdc))
            except UsageError as error:
                self.left_out.append(error)

    def choose(self, config: FetchTcgaConfig) -> None:
        """Keep the slides that the settings name."""
        sites = {site_name(word) for word in config.site}
        self.slides = chosen(self.slides, sites, sample_codes(config.sample_type), config.barcode)
        if config.limit is not None:
            self.slides = balanced(self.slides, config.limit, config.seed)


def choose_listed(config: FetchTcgaConfig, gdc: Gdc) -> Choice:
    """Choose from what the GDC lists.

    Raises:
        DownloadError: The GDC does not answer.
        UsageError: A sample type is unknown.
    """
    sample_codes(config.sample_type)  # a slip of the pen shows before the network is asked
    sites = {site_name(word) for word in config.site}
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
            choice.failed[entry.name] = DownloadError(text, "take that with --take-replaced")
    choice.slides = slides


def _resolved(slide: TcgaSlide, gdc: GdcSlide) -> TcgaSlide:
    return TcgaSlide(gdc.entry, slide.label, slide.site or gdc.site, gdc)


def paper_entries(client: httpx.Client, mirror: str | None, patience: Patience) -> list[Entry]:
    """Fetch the manifest of the paper.

    Raises:
        DownloadError: It cannot be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.tsv"
        download(client, paper.manifest_file(mirror), path, patience)
        return read_manifest(path)
