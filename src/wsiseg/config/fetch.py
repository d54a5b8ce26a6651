"""The settings of the `wsiseg fetch` commands."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config, Gone, Shard, Shown

Source = Literal["gdc", "s3", "auto"]
Strategy = Literal["tissue", "diagnostic"]
PcamSplit = Literal["train", "valid", "test", "all"]


class _SeveralFilesConfig(Config):
    """What the sources of many files share."""

    jobs: int = Field(default=4, ge=1, le=32)
    """Files that are fetched at the same time."""


class FetchDemoConfig(Config):
    """Settings of `wsiseg fetch demo`."""

    out: Path = Path()
    """Folder for the slide."""
    mirror: Annotated[str | None, Shown(variables=("WSISEG_MIRROR_DEMO",))] = None
    """Address of a mirror, in place of the OpenSlide site."""


class FetchExampleConfig(Config):
    """Settings of `wsiseg fetch example`."""

    out: Path = Path("example")
    """Folder for the slides, their table and their truth."""


class FetchTcgaConfig(_SeveralFilesConfig):
    """Settings of `wsiseg fetch tcga`."""

    gone: ClassVar = {
        "take-replaced": Gone("name such slides with barcode, and leave the manifest out", is_flag=True),
        "sample-type": Gone("give a manifest of the slides that you want"),
    }

    out: Path = Path("tcga")
    """Folder for the slides and their tables."""
    mirror: Annotated[str | None, Shown("file", variables=("WSISEG_MIRROR_GDC",))] = None
    """Address of a mirror, in place of the GDC."""
    site: tuple[str, ...] = ()
    """Primary sites, as `Breast`, `Kidney` or `Bronchus and lung`; all where none is given."""
    project: tuple[str, ...] = ()
    """Projects, as `TCGA-BRCA`; all where none is given."""
    strategy: Strategy = "tissue"
    """`tissue` is flash-frozen, `diagnostic` is formalin-fixed and has no normal slides."""
    barcode: tuple[str, ...] = ()
    """Cases, samples or slides by their barcodes or the beginning of them; all where none is given."""
    manifest: Path | None = None
    """A GDC manifest, however old, in place of the lists of the GDC."""
    paper: bool = False
    """Fetch the cohort of Lerousseau et al. 2020."""
    limit: int | None = Field(default=None, ge=1)
    """Slides to choose, balanced over sites and labels."""
    seed: Annotated[int, IN_FILE] = Field(default=0, ge=0)
    """Seed of that choice and of the split."""
    shard: Shard | None = None
    """`I/N`: only part I of N of these slides, counted from 1; rows of the others stay in the table, wherever their
    files are now."""
    source: Source = "gdc"
    """`gdc`, `s3` (the public copy at Amazon), or `auto`: the GDC first."""
    s3_mirror: Annotated[str | None, Shown("file", variables=("WSISEG_MIRROR_S3",))] = None
    """Address of a mirror of the public copy at Amazon."""
    paper_mirror: Annotated[str | None, Shown("file", variables=("WSISEG_MIRROR_PAPER",))] = None
    """Address of a mirror of the paper's repository, for `paper`."""
    verify: Annotated[bool, IN_FILE] = False
    """Hash the files that are there already rather than believe their size."""
    dry_run: bool = False
    """Only say what would be fetched."""

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.manifest and self.project:
            raise ValueError("a manifest does not name projects: give site or barcode beside it")
        if self.paper and (self.project or self.strategy != "tissue"):
            raise ValueError("the paper's cohort has tissue slides alone, and projects do not choose from it")
        return self


class FetchPcamConfig(_SeveralFilesConfig):
    """Settings of `wsiseg fetch pcam`."""

    out: Path = Path("pcam")
    """Folder for the files."""
    mirror: Annotated[str | None, Shown(variables=("WSISEG_MIRROR_PCAM",))] = None
    """Address of a mirror, in place of Zenodo."""
    split: PcamSplit = "test"
    """`train`, `valid`, `test` or `all`."""


class FetchTumorMapsConfig(_SeveralFilesConfig):
    """Settings of `wsiseg fetch tumor-maps`."""

    gone: ClassVar = {"thresholded": Gone("the maps of zeros and ones are where the others exceed 0.3", is_flag=True)}

    out: Path = Path("tumor-maps")
    """Folder for the maps."""
    mirror: Annotated[str | None, Shown(variables=("WSISEG_MIRROR_PAPER",))] = None
    """Address of a mirror, in place of the paper's repository."""
    maps: Path | None = None
    """Folder of the published PNG files, in place of fetching them."""
    manifest: Path | None = None
    """A GDC manifest with the names of the slides whose maps are wanted; the paper's own where it is not given."""
    slides: Path | None = None
    """Folder of the slides, from which the maps take their scale."""
    limit: int | None = Field(default=None, ge=1)
    """The first so many maps only."""
    overwrite: bool = False
    """Convert again what is already there."""


class FetchModelConfig(Config):
    """Settings of `wsiseg fetch model`."""

    name: Annotated[str | None, ARGUMENT] = None
    """Name of a model in the WSInfer zoo."""
    out: Path | None = None
    """Model file to write; without it only the cache is filled."""
    show_list: Annotated[bool, Shown(name="--list")] = False
    """Show names, tissues and licences."""
    cache: Path | None = None
    """Folder that keeps what was fetched; the user's cache where it is not given."""
    positive_class: str | None = None
    """Class whose probability is given, where none is called tumor."""
    overwrite: bool = False
    """Replace a model file that is there."""
    mirror: Annotated[str | None, Shown(variables=("WSISEG_MIRROR_MODELS", "HF_ENDPOINT"))] = None
    """Address of a mirror of Hugging Face."""
    jobs: Annotated[int, IN_FILE] = Field(default=4, ge=1, le=32)
    """Files that are fetched at the same time."""
