"""The Genomic Data Commons: which slides there are, and where each lies now.

API: https://docs.gdc.cancer.gov/API/Users_Guide. Long queries are POSTs, and every list is sorted, as unsorted pages
repeat some rows and miss others.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import httpx
from pydantic import ValidationError

from wsiseg.fetch.connection import read_json
from wsiseg.fetch.gdc_answers import MEASURES, Files, FilesAnswer, GdcSlide, gdc_slide
from wsiseg.fetch.manifest import Entry
from wsiseg.fetch.names import shown_url
from wsiseg.fetch.patience import Patience
from wsiseg.run.errors import DownloadError

SITE = "https://api.gdc.cancer.gov"
S3 = "https://tcga-2-open.s3.amazonaws.com"
"""The public copy at Amazon; files lie there under the ids that they have now."""

_SLIDE = "cases.samples.portions.slides"
_FIELDS = (
    *("file_id", "file_name", "md5sum", "file_size", "access", "cases.submitter_id", "cases.primary_site"),
    *("cases.project.project_id", "cases.samples.submitter_id", "cases.samples.sample_type"),
    *("cases.samples.tissue_type", f"{_SLIDE}.submitter_id", f"{_SLIDE}.section_location"),
    *(f"{_SLIDE}.{name}" for name in MEASURES),
)
_STRATEGIES = {"tissue": "Tissue Slide", "diagnostic": "Diagnostic Slide"}
_PAGE = 1000
_NAMES_AT_ONCE = 500
_MOST_FILES = 500_000
_PASSES = 3

Filter = dict[str, Any]


def slide_filter(
    strategy: str,
    sites: Collection[str] = (),
    projects: Collection[str] = (),
    cases: Collection[str] = (),
) -> Filter:
    """Give the filter for open TCGA slides.

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
                slides.append(gdc_slide(hit))
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
        """Give the address of a file's content."""
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

    def _pages(self, wanted: Filter) -> Iterator[Files]:
        start = 0
        while start < _MOST_FILES:
            page = self._page(wanted, start)
            yield page
            start += len(page.hits)
            if not page.hits or start >= page.pagination.total:
                return
        raise DownloadError(f"{shown_url(self.base)}: lists files without end")

    def _page(self, wanted: Filter, start: int) -> Files:
        url = f"{self.base}/files"
        query = {"filters": wanted, "fields": ",".join(_FIELDS), "sort": "file_id:asc", "format": "JSON"}
        answer = read_json(self._client, url, self._patience, body={**query, "size": _PAGE, "from": start})
        try:
            return FilesAnswer.model_validate(answer).data
        except ValidationError as error:
            raise DownloadError(f"{shown_url(url)}: answers with something else than a list of files") from error


def s3_url(base: str, entry: Entry) -> str:
    """Give the address of a file's content in the public copy at Amazon."""
    return f"{base.rstrip('/')}/{entry.id}/{entry.name}"


def _in(name: str, values: Sequence[str]) -> Filter:
    return {"op": "in", "content": {"field": name, "value": list(values)}}
