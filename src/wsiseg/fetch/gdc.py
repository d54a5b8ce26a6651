"""The Genomic Data Commons: which slides there are, and where each lies now.

API: https://docs.gdc.cancer.gov/API/Users_Guide. Long queries are POSTs, and every list is sorted, as unsorted pages
repeat some rows and miss others. What it answers is checked before anything is made of it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import httpx
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wsiseg.fetch.connection import name_problem, read_json, shown, shown_url
from wsiseg.fetch.manifest import Entry
from wsiseg.fetch.patience import Patience
from wsiseg.run.errors import DownloadError, UsageError
from wsiseg.slides import barcode

SITE = "https://api.gdc.cancer.gov"
S3 = "https://tcga-2-open.s3.amazonaws.com"
"""The public copy at Amazon; files lie there under the ids that they have now."""

_STRATEGIES = {"tissue": "Tissue Slide", "diagnostic": "Diagnostic Slide"}
_NOT_KNOWN = {"not reported", "unknown"}
_PAGE = 1000
_NAMES_AT_ONCE = 500
_MOST_FILES = 500_000
_PASSES = 3

Filter = dict[str, Any]
_Percent = Annotated[float | None, Field(allow_inf_nan=False)]


class _Answer(BaseModel):
    """What the GDC answers; what was not asked for is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _Section(_Answer):
    """A section of tissue, with what pathologists noted of it in percent; that becomes columns of the cohort."""

    submitter_id: str = ""
    section_location: str | None = None
    percent_tumor_cells: _Percent = None
    percent_tumor_nuclei: _Percent = None
    percent_necrosis: _Percent = None
    percent_normal_cells: _Percent = None
    percent_stromal_cells: _Percent = None


class _Portion(_Answer):
    slides: tuple[_Section, ...] = ()


class _Sample(_Answer):
    """A sample of a case; `tissue_type` takes the place of `sample_type` since data release 39."""

    submitter_id: str = ""
    sample_type: str | None = None
    tissue_type: str | None = None
    portions: tuple[_Portion, ...] = ()

    @property
    def kind(self) -> str:
        known = self.tissue_type if self.tissue_type in {"Tumor", "Normal"} else self.sample_type
        return known or ""

    @property
    def label(self) -> int | None:
        kind = self.kind.lower()
        if "normal" in kind:
            return 0
        return 1 if any(word in kind for word in ("tumor", "cancer", "primary", "metasta")) else None


class _Project(_Answer):
    project_id: str = ""


class _Case(_Answer):
    submitter_id: str = ""
    primary_site: str = ""
    project: _Project = _Project()
    samples: tuple[_Sample, ...] = ()


class _File(_Answer):
    """A file, as in the `hits` of an answer of `/files`."""

    file_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
    file_name: str
    md5sum: Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")]
    file_size: int = Field(ge=0)
    access: str = "open"
    cases: tuple[_Case, ...] = ()


class _Pagination(_Answer):
    total: int = Field(ge=0)


class _Page(_Answer):
    hits: tuple[dict[str, Any], ...]
    pagination: _Pagination


class _PageAnswer(_Answer):
    data: _Page


_FIELDS = (
    *("file_id", "file_name", "md5sum", "file_size", "access", "cases.submitter_id", "cases.primary_site"),
    *("cases.project.project_id", "cases.samples.submitter_id", "cases.samples.sample_type"),
    *("cases.samples.tissue_type", *(f"cases.samples.portions.slides.{name}" for name in _Section.model_fields)),
)


@dataclass(frozen=True)
class GdcSlide:
    """A slide file at the GDC.

    Attributes:
        entry: Its id now, name, md5 and size.
        site: The case's primary site; empty where the GDC does not know it.
        project: As TCGA-BRCA.
        kind: What the GDC calls the sample.
        label: What follows from that: 1 for tumour, 0 for normal tissue, None where it does not say.
        measures: `section_location`, and what pathologists noted, as `percent_tumor_cells`.
    """

    entry: Entry
    site: str = ""
    project: str = ""
    kind: str = ""
    label: int | None = None
    measures: dict[str, str] = field(default_factory=dict)


class Gdc:
    """The GDC or a mirror of it.

    Args:
        client: Of `open_client`.
        base: Address of the API.
        patience: How often and how long to try.
    """

    def __init__(self, client: httpx.Client, base: str, patience: Patience) -> None:
        self._client, self.base, self._patience = client, base.rstrip("/"), patience

    def slides(self, wanted: Filter) -> tuple[list[GdcSlide], list[DownloadError]]:
        """List slides.

        Returns:
            The slides by name, and what was refused and why.

        Raises:
            DownloadError: The list cannot be had, or not all of it.
        """
        slides, refused = [], []
        for hit in self._hits(wanted):
            try:
                slides.append(_slide(hit))
            except DownloadError as error:
                refused.append(error)
        return sorted(slides, key=lambda slide: (slide.entry.name, slide.entry.id)), refused

    def by_name(self, names: Sequence[str]) -> dict[str, list[GdcSlide]]:
        """Look up what now bears these file names: ids change, names do not.

        Returns:
            For each name that is known the files that bear it.

        Raises:
            DownloadError: The GDC does not answer.
        """
        found: dict[str, list[GdcSlide]] = {}
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = list(names[start : start + _NAMES_AT_ONCE])
            for slide in self.slides(_in("file_name", some))[0]:
                if slide.entry.name in some:
                    found.setdefault(slide.entry.name, []).append(slide)
        return found

    def url(self, entry: Entry) -> str:
        """Return the address of a file's content."""
        return f"{self.base}/data/{entry.id}"

    def _hits(self, wanted: Filter) -> list[dict[str, Any]]:
        """Read all pages, once more where rows are missing."""
        found: dict[str, dict[str, Any]] = {}
        total = 0
        for _ in range(_PASSES):
            for page in self._pages(wanted):
                total = page.pagination.total
                found |= {str(hit.get("file_id")): hit for hit in page.hits}
            if len(found) >= total:
                return list(found.values())
        raise DownloadError(f"{shown_url(self.base)}: lists {total} files but gives {len(found)}", "run it again later")

    def _pages(self, wanted: Filter) -> Iterator[_Page]:
        url, start = f"{self.base}/files", 0
        query = {"filters": wanted, "fields": ",".join(_FIELDS), "sort": "file_id:asc", "format": "JSON", "size": _PAGE}
        while start < _MOST_FILES:
            answer = read_json(self._client, url, self._patience, body={**query, "from": start})
            try:
                page = _PageAnswer.model_validate(answer).data
            except ValidationError as error:
                raise DownloadError(f"{shown_url(url)}: answers with something else than a list of files") from error
            yield page
            start += len(page.hits)
            if not page.hits or start >= page.pagination.total:
                return
        raise DownloadError(f"{shown_url(self.base)}: lists files without end")


def slide_filter(
    strategy: str,
    sites: Collection[str] = (),
    projects: Collection[str] = (),
    cases: Collection[str] = (),
) -> Filter:
    """Return the filter for open TCGA slides.

    Args:
        strategy: `tissue` (flash-frozen) or `diagnostic` (formalin-fixed).
        sites: Primary sites; all where none is given.
        projects: As TCGA-BRCA; all where none is given.
        cases: As TCGA-BH-A0B7; all where none is given.
    """
    wanted = {
        "cases.project.program.name": ["TCGA"],
        "data_type": ["Slide Image"],
        "data_format": ["SVS"],
        "access": ["open"],
        "experimental_strategy": [_STRATEGIES[strategy]],
        "cases.primary_site": sorted(sites),
        "cases.project.project_id": sorted(projects),
        "cases.submitter_id": sorted(cases),
    }
    return {"op": "and", "content": [_in(name, values) for name, values in wanted.items() if values]}


def s3_url(base: str, entry: Entry) -> str:
    """Return the address of a file's content in the public copy at Amazon."""
    return f"{base.rstrip('/')}/{entry.id}/{entry.name}"


def _in(name: str, values: Sequence[str]) -> Filter:
    return {"op": "in", "content": {"field": name, "value": list(values)}}


def _slide(hit: dict[str, Any]) -> GdcSlide:
    """Make a slide of one of the `hits` of an answer.

    Raises:
        DownloadError: The hit has another shape, a name that is refused, or is not open to all.
    """
    try:
        file = _File.model_validate(hit)
    except ValidationError as error:
        what = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
        raise DownloadError(f"{shown(str(hit.get('file_name')))}: the GDC describes it wrongly: {what}") from error
    problem = name_problem(file.file_name) or ("" if file.file_name.endswith(".svs") else "it is not an SVS slide")
    if problem:
        raise DownloadError(f"{shown(file.file_name)}: a file name that is refused: {problem}")
    if file.access != "open":
        raise DownloadError(f"{file.file_name}: is not open to all", "wsiseg fetches open slides only")
    entry = Entry(file.file_id.lower(), file.file_name, file.md5sum.lower(), file.file_size)
    try:
        return _joined(entry, file.cases)
    except UsageError as error:
        raise DownloadError(f"{file.file_name}: {error.message}") from error


def _joined(entry: Entry, cases: tuple[_Case, ...]) -> GdcSlide:
    """Join a file with its case, sample and section by their barcodes: a case can have several, or none of the file."""
    name = entry.name
    case = next((case for case in cases if case.submitter_id == barcode.case(name)), _Case())
    sample = next((sample for sample in case.samples if sample.submitter_id == barcode.sample(name)), _Sample())
    sections = [section for portion in sample.portions for section in portion.slides]
    section = next((section for section in sections if section.submitter_id == barcode.slide(name)), _Section())
    noted = section.model_dump(exclude={"submitter_id"}, exclude_none=True)
    measures = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in noted.items()}
    site = "" if case.primary_site.lower() in _NOT_KNOWN else case.primary_site
    return GdcSlide(entry, site, case.project.project_id, sample.kind, sample.label, measures)
