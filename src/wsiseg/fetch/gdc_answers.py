"""What the GDC answers about slide files, checked before anything is made of it."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from wsiseg.fetch.manifest import Entry
from wsiseg.fetch.names import name_problem, shown
from wsiseg.run.errors import DownloadError, UsageError
from wsiseg.slides import barcode

MEASURES = (
    "percent_tumor_cells",
    "percent_tumor_nuclei",
    "percent_necrosis",
    "percent_normal_cells",
    "percent_stromal_cells",
)
"""What pathologists noted of a slide, in percent; they become columns of the cohort."""

Uuid = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]
Md5 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{32}$")]
Percent = Annotated[float, Field(allow_inf_nan=False)]


class Answer(BaseModel):
    """Base of what the GDC answers; what was not asked for is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Section(Answer):
    """A section of tissue, with what pathologists noted of it."""

    submitter_id: str = ""
    section_location: str | None = None
    percent_tumor_cells: Percent | None = None
    percent_tumor_nuclei: Percent | None = None
    percent_necrosis: Percent | None = None
    percent_normal_cells: Percent | None = None
    percent_stromal_cells: Percent | None = None


class Portion(Answer):
    """A portion of a sample."""

    slides: tuple[Section, ...] = ()


class Sample(Answer):
    """A sample of a case; `tissue_type` takes the place of `sample_type` since data release 39."""

    submitter_id: str = ""
    sample_type: str | None = None
    tissue_type: str | None = None
    portions: tuple[Portion, ...] = ()

    @property
    def kind(self) -> str:
        """What the GDC calls it."""
        known = self.tissue_type if self.tissue_type in {"Tumor", "Normal"} else self.sample_type
        return known or ""

    @property
    def label(self) -> int | None:
        """1 for tumour, 0 for normal tissue, None where the GDC does not say."""
        kind = self.kind.lower()
        if "normal" in kind:
            return 0
        return 1 if any(word in kind for word in ("tumor", "cancer", "primary", "metasta")) else None


class Project(Answer):
    """A project such as TCGA-BRCA."""

    project_id: str = ""


class Case(Answer):
    """A patient."""

    submitter_id: str = ""
    primary_site: str = ""
    project: Project = Project()
    samples: tuple[Sample, ...] = ()


class File(Answer):
    """A file, as in the `hits` of an answer of `/files`."""

    file_id: Uuid
    file_name: str
    md5sum: Md5
    file_size: int = Field(ge=0)
    access: str = "open"
    cases: tuple[Case, ...] = ()


class Pagination(Answer):
    """How many there are in all."""

    total: int = Field(ge=0)


class Files(Answer):
    """A page of files."""

    hits: tuple[dict[str, Any], ...]
    pagination: Pagination


class FilesAnswer(Answer):
    """The answer of `/files`."""

    data: Files


@dataclass(frozen=True)
class GdcSlide:
    """A slide file at the GDC.

    Attributes:
        entry: Its id now, name, md5 and size.
        site: The case's primary site.
        project: As TCGA-BRCA.
        kind: What the GDC calls the sample.
        label: What follows from that: 1, 0 or None.
        measures: What pathologists noted, by the names of `MEASURES`, and `section_location`.
    """

    entry: Entry
    site: str = ""
    project: str = ""
    kind: str = ""
    label: int | None = None
    measures: dict[str, str] = field(default_factory=dict)


def gdc_slide(hit: dict[str, Any]) -> GdcSlide:
    """Make a slide of one of the `hits` of an answer.

    A case can have several samples, and a slide can hang on none of them: they are joined by their barcodes.

    Raises:
        DownloadError: The hit has another shape, a name that is refused, or is not open to all.
    """
    try:
        file = File.model_validate(hit)
    except ValidationError as error:
        what = ", ".join(".".join(str(part) for part in problem["loc"]) for problem in error.errors())
        raise DownloadError(f"{shown(str(hit.get('file_name')))}: the GDC describes it wrongly: {what}") from error
    problem = name_problem(file.file_name) or ("" if file.file_name.endswith(".svs") else "it is no SVS slide")
    if problem:
        raise DownloadError(f"{shown(file.file_name)}: a file name that is refused: {problem}")
    if file.access != "open":
        raise DownloadError(f"{file.file_name}: is not open to all", "wsiseg fetches open slides only")
    entry = Entry(file.file_id.lower(), file.file_name, file.md5sum.lower(), file.file_size)
    try:
        return _joined(entry, file.cases)
    except UsageError as error:
        raise DownloadError(f"{file.file_name}: {error.message}") from error


def _joined(entry: Entry, cases: tuple[Case, ...]) -> GdcSlide:
    name = entry.name
    case = next((case for case in cases if case.submitter_id == barcode.case(name)), Case())
    sample = next((sample for sample in case.samples if sample.submitter_id == barcode.sample(name)), Sample())
    sections = [section for portion in sample.portions for section in portion.slides]
    section = next((section for section in sections if section.submitter_id == barcode.slide(name)), Section())
    noted = section.model_dump(exclude={"submitter_id"}, exclude_none=True)
    measures = {key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in noted.items()}
    return GdcSlide(entry, case.primary_site, case.project.project_id, sample.kind, sample.label, measures)
