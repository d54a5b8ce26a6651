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
    """Number of parallel downloads."""


class FetchDemoConfig(Config):
    """Settings of `wsiseg fetch demo`."""

    out: Path = Path()
    """Output folder."""
    mirror: Annotated[str | None, Shown(variables=("WSISEG_MIRROR_DEMO",))] = None
    """Address of a mirror to use instead of the OpenSlide site."""


class FetchExampleConfig(Config):
    """Settings of `wsiseg fetch example`."""

    out: Path = Path("example")
    """Output folder for the slides, the cohort table and the ground truth."""


class FetchTcgaConfig(_SeveralFilesConfig):
    """Settings of `wsiseg fetch tcga`."""

    gone: ClassVar = {
        "take-replaced": Gone("name such slides with barcode, and leave the manifest out", is_flag=True),
        "sample-type": Gone("give a manifest of the slides that you want"),
    }

    out: Path = Path("tcga")
    """Output folder for the slides and tables."""
    mirror: Annotated[str | None, Shown("file", variables=("WSISEG_MIRROR_GDC",))] = None
    """Address of a mirror to use instead of the GDC."""
    site: tuple[str, ...] = ()
    """Primary site, such as `Breast`, `Kidney` or `Bronchus and lung`; give it several times for several. By default
    all."""
    project: tuple[str, ...] = ()
    """Project, such as `TCGA-BRCA`; give it several times for several. By default all."""
    strategy: Strategy = "tissue"
    """`tissue`: flash-frozen sections; `diagnostic`: formalin-fixed sections, none of them normal."""
    barcode: tuple[str, ...] = ()
    """Barcode of a case, sample or slide, or the beginning of one; give it several times for several. By default
    all."""
    manifest: Path | None = None
    """Choose from this GDC manifest, however old, instead of from all slides of the GDC."""
    paper: bool = False
    """Choose from the slides of Lerousseau et al. 2020."""
    limit: int | None = Field(default=None, ge=1)
    """Number of slides to choose, balanced over sites and labels."""
    seed: Annotated[int, IN_FILE] = Field(default=0, ge=0)
    """Seed of the choice and of the split."""
    shard: Shard | None = None
    """`I/N`: fetch only part I of N of the chosen slides, with I from 1 to N. Rows of other parts stay in the table,
    even if their slides have been deleted."""
    source: Source = "gdc"
    """Where to download from: `gdc`, `s3` (the public copy at Amazon), or `auto`: the GDC, then the copy."""
    s3_mirror: Annotated[str | None, Shown("file", variables=("WSISEG_MIRROR_S3",))] = None
    """Address of a mirror to use instead of the public copy at Amazon."""
    paper_mirror: Annotated[str | None, Shown("file", variables=("WSISEG_MIRROR_PAPER",))] = None
    """Address of a mirror to use instead of the paper's repository, for `--paper`."""
    verify: Annotated[bool, IN_FILE] = False
    """Check the hashes of files that are already there, not only their sizes."""
    dry_run: bool = False
    """Only show what would be fetched."""

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
    """Output folder."""
    mirror: Annotated[str | None, Shown(variables=("WSISEG_MIRROR_PCAM",))] = None
    """Address of a mirror to use instead of Zenodo."""
    split: PcamSplit = "test"
    """Split to download."""


class FetchTumorMapsConfig(_SeveralFilesConfig):
    """Settings of `wsiseg fetch tumor-maps`."""

    gone: ClassVar = {"thresholded": Gone("the thresholded maps are 1 where the others exceed 0.3", is_flag=True)}

    out: Path = Path("tumor-maps")
    """Output folder for the maps."""
    mirror: Annotated[str | None, Shown(variables=("WSISEG_MIRROR_PAPER",))] = None
    """Address of a mirror to use instead of the paper's repository."""
    maps: Path | None = None
    """Folder of published PNG maps that you already have, to convert instead of downloading them."""
    manifest: Path | None = None
    """GDC manifest with the slides whose maps you want; by default the paper's own."""
    slides: Path | None = None
    """Folder of the slides, from which the maps take their pixel size."""
    limit: int | None = Field(default=None, ge=1)
    """Only the first so many maps."""
    overwrite: bool = False
    """Convert maps again that are already there."""


class FetchModelConfig(Config):
    """Settings of `wsiseg fetch model`."""

    name: Annotated[str | None, ARGUMENT] = None
    """Name of a model in the WSInfer zoo."""
    out: Path | None = None
    """Model file to write; without it the model is only downloaded into the cache."""
    show_list: Annotated[bool, Shown(name="--list")] = False
    """List the models with their tissues and licences."""
    cache: Path | None = None
    """Folder for downloads; by default the user's cache folder."""
    positive_class: str | None = None
    """Class whose probability the model file gives; needed if no class is called tumor."""
    overwrite: bool = False
    """Replace an existing model file."""
    mirror: Annotated[str | None, Shown(variables=("WSISEG_MIRROR_MODELS", "HF_ENDPOINT"))] = None
    """Address of a mirror to use instead of Hugging Face."""
    jobs: Annotated[int, IN_FILE] = Field(default=4, ge=1, le=32)
    """Number of parallel downloads."""
