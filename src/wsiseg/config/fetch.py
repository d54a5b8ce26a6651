"""The settings of the `wsiseg fetch` commands."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import Config

Source = Literal["gdc", "s3", "auto"]
Strategy = Literal["tissue", "diagnostic"]
PcamSplit = Literal["train", "valid", "test", "all"]


class FetchConfig(Config):
    """What all sources share."""

    out: Path = Path()
    """Folder for what is fetched."""
    mirror: str | None = None
    """Address of a mirror, in place of the source's own."""
    jobs: int = Field(default=4, ge=1, le=32)
    """Files that are fetched at the same time."""


class FetchDemoConfig(FetchConfig):
    """Settings of `wsiseg fetch demo`."""


class FetchTcgaConfig(FetchConfig):
    """Settings of `wsiseg fetch tcga`."""

    site: tuple[str, ...] = ()
    """Primary sites, as `Breast`, `Kidney` or `Bronchus and lung`; all where none is given."""
    project: tuple[str, ...] = ()
    """Projects, as `TCGA-BRCA`; all where none is given."""
    strategy: Strategy = "tissue"
    """`tissue` is flash-frozen, `diagnostic` is formalin-fixed and has no normal slides."""
    sample_type: tuple[str, ...] = ()
    """`tumor`, `normal`, or two-digit codes of sample types; all that have a label where none is given."""
    barcode: tuple[str, ...] = ()
    """Cases, samples or slides by their barcodes or the beginning of them; all where none is given."""
    manifest: Path | None = None
    """A GDC manifest, however old, in place of the lists of the GDC."""
    paper: bool = False
    """Fetch the cohort of Lerousseau et al. 2020."""
    limit: int | None = Field(default=None, ge=1)
    """Slides to choose, balanced over sites and labels."""
    seed: int = Field(default=0, ge=0)
    """Seed of that choice and of the split."""
    source: Source = "gdc"
    """`gdc`, `s3` (the public copy at Amazon), or `auto`: the GDC first."""
    s3_mirror: str | None = None
    """Address of a mirror of the public copy at Amazon."""
    paper_mirror: str | None = None
    """Address of a mirror of the paper's repository, for `paper`."""
    take_replaced: bool = False
    """Take slides whose content the GDC has replaced since the manifest was made."""
    verify: bool = False
    """Hash the files that are there already rather than believe their size."""
    dry_run: bool = False
    """Only say what would be fetched."""

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if self.manifest and self.project:
            raise ValueError("a manifest does not tell projects: give --site or --barcode beside --manifest")
        if self.paper and (self.project or self.strategy != "tissue"):
            raise ValueError("the paper's cohort is one of tissue slides and not chosen by project")
        return self


class FetchPcamConfig(FetchConfig):
    """Settings of `wsiseg fetch pcam`."""

    split: PcamSplit = "test"
    """`train`, `valid`, `test` or `all`."""


class FetchTumorMapsConfig(FetchConfig):
    """Settings of `wsiseg fetch tumor-maps`."""

    maps: Path | None = None
    """Folder of the published PNG files, in place of fetching them."""
    manifest: Path | None = None
    """A GDC manifest with the names of the slides whose maps are wanted; the paper's own where it is not given."""
    slides: Path | None = None
    """Folder of the slides, from which the maps take their scale."""
    thresholded: bool = False
    """The maps of zeros and ones, in place of the probabilities."""
    limit: int | None = Field(default=None, ge=1)
    """The first so many maps only."""
    overwrite: bool = False
    """Convert again what is already there."""


class FetchModelConfig(Config):
    """Settings of `wsiseg fetch model`."""

    name: str
    """Name of the model in the WSInfer zoo."""
    cache: Path
    """Folder that keeps what was fetched."""
    mirror: str | None = None
    """Address of a mirror of Hugging Face."""
    jobs: int = Field(default=4, ge=1, le=32)
    """Files that are fetched at the same time."""
