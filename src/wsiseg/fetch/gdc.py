"""The Genomic Data Commons: which slides there are, and where each lies now.

API: https://docs.gdc.cancer.gov/API/Users_Guide. Long queries are POSTs, and every list is sorted, as unsorted pages
repeat some rows and miss others. What it answers is checked before anything is made of it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AliasPath, BaseModel, Field, ValidationError

from wsiseg.fetch.manifest import Entry, entry_problem
from wsiseg.run.connection import Client, shown, shown_url
from wsiseg.run.errors import DownloadError, UsageError
from wsiseg.slides import barcode

SITE = "https://api.gdc.cancer.gov"
S3 = "https://tcga-2-open.s3.amazonaws.com"
"""The public copy at Amazon; files lie there under the ids that they have now."""

_OPEN_SLIDES = {
    "cases.project.program.name": ["TCGA"],
    "data_type": ["Slide Image"],
    "data_format": ["SVS"],
    "access": ["open"],
}
_NOT_KNOWN = {"not reported", "unknown"}
_PAGE = 1000
_NAMES_AT_ONCE = 500
_MOST_FILES = 500_000
_PASSES = 3
_ALL = 100  # percent
_ALIKE_POINTS = 10  # percentages of two sections that differ by no more say the same

Percentages = tuple[float | None, float | None, float | None]
_Percent = Annotated[float | None, Field(allow_inf_nan=False)]


class _Section(BaseModel):
    """A section of tissue, with what pathologists noted of it in percent; that becomes columns of the cohort."""

    submitter_id: str = ""
    section_location: str | None = None
    percent_tumor_cells: _Percent = None
    percent_tumor_nuclei: _Percent = None
    percent_necrosis: _Percent = None
    percent_normal_cells: _Percent = None
    percent_stromal_cells: _Percent = None


class _Portion(BaseModel):
    slides: tuple[_Section, ...] = ()


class _Sample(BaseModel):
    """A sample of a case; `tissue_type` takes the place of `sample_type` since data release 39."""

    submitter_id: str = ""
    sample_type: str | None = None
    tissue_type: str | None = None
    portions: tuple[_Portion, ...] = ()


class _Case(BaseModel):
    submitter_id: str = ""
    primary_site: str = ""
    project: str = Field("", validation_alias=AliasPath("project", "project_id"))
    samples: tuple[_Sample, ...] = ()


class _File(BaseModel):
    """What is looked at of a file besides its entry."""

    access: str = "open"
    cases: tuple[_Case, ...] = ()


class _Page(BaseModel):
    hits: tuple[dict[str, Any], ...] = Field(validation_alias=AliasPath("data", "hits"))
    total: int = Field(validation_alias=AliasPath("data", "pagination", "total"), ge=0)


_FIELDS = (
    *("file_id", "file_name", "md5sum", "file_size", "access", "cases.submitter_id", "cases.primary_site"),
    *("cases.project.project_id", "cases.samples.submitter_id", "cases.samples.sample_type"),
    *("cases.samples.tissue_type", *(f"cases.samples.portions.slides.{name}" for name in _Section.model_fields)),
)


@dataclass(frozen=True)
class TcgaSlide:
    """A slide of the TCGA; a text that nobody gave is empty."""

    entry: Entry
    site: str = ""  # the organ
    kind: str = ""  # what the GDC calls the sample
    extra: dict[str, str] = field(default_factory=dict)  # columns of the cohort: project and what pathologists noted
    percentages: Percentages = (None, None, None)  # of tumour, as `table.PERCENTAGES`

    @property
    def name(self) -> str:
        """The id in the cohort: the file's name without its suffix."""
        return self.entry.name.rpartition(".")[0]

    @property
    def case(self) -> str:
        """The patient."""
        return barcode.part(self.entry.name, "case")

    @property
    def label(self) -> int:
        """1 for tumour, 0 for normal, by the barcode."""
        return barcode.label(self.entry.name)

    @property
    def stratum(self) -> str:
        """What is shared out alike."""
        return f"{self.site}/{self.label}"

    @property
    def disagreement(self) -> str:
        """How the GDC contradicts the label by the barcode; empty where it does not."""
        is_tumor = any(word in self.kind.lower() for word in ("tumor", "cancer", "primary", "metasta"))
        said = 0 if "normal" in self.kind.lower() else 1 if is_tumor else self.label
        if said == self.label:
            return ""
        word = "tumour" if self.label else "normal"
        return f"{self.name}: {word} by its barcode, {self.kind!r} by the GDC; the barcode counts"


@dataclass(frozen=True)
class Gdc:
    """The GDC or a mirror of it, whose API has the address `base`."""

    client: Client
    base: str

    def open_slides(self, wanted: Mapping[str, Sequence[str]]) -> tuple[list[TcgaSlide], list[DownloadError]]:
        """List the open slides of the TCGA whose fields have one of some values, and what was refused and why.

        Raises:
            DownloadError: The list cannot be had, or not all of it.
        """
        slides, refused = [], []
        for hit in self._hits({**_OPEN_SLIDES, **wanted}):
            try:
                slides.append(_slide(hit))
            except DownloadError as error:
                refused.append(error)
        return sorted(slides, key=lambda slide: (slide.entry.name, slide.entry.id)), refused

    def by_name(self, names: Sequence[str]) -> dict[str, list[TcgaSlide]]:
        """Look up the files that now bear these names, where there are any: ids change, names do not.

        Raises:
            DownloadError: The GDC does not answer.
        """
        found: dict[str, list[TcgaSlide]] = {}
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = names[start : start + _NAMES_AT_ONCE]
            for slide in self.open_slides({"file_name": some})[0]:
                if slide.entry.name in some:
                    found.setdefault(slide.entry.name, []).append(slide)
        return found

    def _hits(self, wanted: Mapping[str, Sequence[str]]) -> Iterable[dict[str, Any]]:
        """Read all pages, once more where rows are missing."""
        found: dict[str, dict[str, Any]] = {}
        total = 0
        for _ in range(_PASSES):
            for page in self._pages(wanted):
                total = page.total
                found |= {str(hit.get("file_id")): hit for hit in page.hits}
            if len(found) >= total:
                return found.values()
        raise DownloadError(f"{shown_url(self.base)}: lists {total} files but gives {len(found)}", "run it again later")

    def _pages(self, wanted: Mapping[str, Sequence[str]]) -> Iterator[_Page]:
        parts = [{"op": "in", "content": {"field": name, "value": values}} for name, values in wanted.items() if values]
        query = {"filters": {"op": "and", "content": parts}, "fields": ",".join(_FIELDS), "sort": "file_id:asc"}
        start = 0
        while start < _MOST_FILES:
            body = {**query, "format": "JSON", "size": _PAGE, "from": start}
            page = self.client.read(f"{self.base}/files", _Page, body)
            yield page
            start += len(page.hits)
            if not page.hits or start >= page.total:
                return
        raise DownloadError(f"{shown_url(self.base)}: lists files without end")


def _slide(hit: dict[str, Any]) -> TcgaSlide:
    """Make a slide of one of the `hits` of an answer.

    Raises:
        DownloadError: The hit has another shape, a name that is refused, or is not open to all.
    """
    name = shown(str(hit.get("file_name")))
    try:
        entry = Entry(*(hit.get(key) for key in ("file_id", "file_name", "md5sum", "file_size")))  # type: ignore[arg-type]  # checked there
        file = _File.model_validate(hit)
        if file.access != "open":
            raise DownloadError(f"{name}: is not open to all", "wsiseg fetches open slides only")
        return _joined(entry, file.cases)
    except ValidationError as error:
        raise DownloadError(f"{name}: is described wrongly by the GDC: {entry_problem(error)}") from error
    except UsageError as error:
        raise DownloadError(f"{name}: {error.message}") from error


def _joined(entry: Entry, cases: tuple[_Case, ...]) -> TcgaSlide:
    """Join a file with its case, sample and section by their barcodes: a case can have several, or none of the file."""
    name = entry.name
    case = next((case for case in cases if case.submitter_id == barcode.part(name, "case")), _Case())
    sample = next((sample for sample in case.samples if sample.submitter_id == barcode.part(name, "sample")), _Sample())
    own = barcode.part(name, "slide")
    places = [(section, portion) for portion in sample.portions for section in portion.slides]
    section, portion = next((one for one in places if one[0].submitter_id == own), (_Section(), _Portion()))
    noted = section.model_dump(exclude={"submitter_id"}, exclude_none=True)
    extra = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in noted.items()}
    if case.project:
        extra["project"] = case.project
    site = "" if case.primary_site.lower() in _NOT_KNOWN else case.primary_site
    kind = sample.tissue_type if sample.tissue_type in {"Tumor", "Normal"} else sample.sample_type
    return TcgaSlide(entry, site, kind or "", extra, _percentages(section, portion))


def _percentages(own: _Section, portion: _Portion) -> Percentages:
    """Return the percentage of tumour cells, and its range where sections of one piece of tissue differ much.

    Of no tumour at all nothing is said, as the label by the barcode counts; nor of what is no percentage.
    """
    about = own.percent_tumor_cells
    noted = [section.percent_tumor_cells for section in portion.slides]
    known = [percent for percent in noted if percent is not None and 0 <= percent <= _ALL]
    if about not in known or about < 1:
        return None, None, None
    low, high = math.floor(min(known)), max(known)
    return (low, about, high) if high - low > _ALIKE_POINTS else (None, about, None)
