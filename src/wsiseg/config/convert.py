"""The settings of `wsiseg convert`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from wsiseg.config.settings import ARGUMENT, Config, Shown

Form = Literal["dicom-seg", "dicom-map", "ome-tiff", "ngff-0.5", "csv"]


class ConvertConfig(Config):
    """Settings of `wsiseg convert`."""

    folder: Annotated[Path, ARGUMENT] = Path("wsiseg-out")
    """The folder that predict wrote."""
    to: Annotated[tuple[Form, ...], Shown(metavar="FORM")] = Field(min_length=1)
    """What to write, several times for several: dicom-seg (two DICOM Segmentations: binary, and fractional with the
    probability), dicom-map (a DICOM Parametric Map), ome-tiff, ngff-0.5, or csv (a row a cell)."""
    out: Path | None = None
    """Folder for what is written; the folder of the maps where it is not given."""
    slide: tuple[str, ...] = ()
    """Names of the only slides to convert; all where none is given."""
    slides: Path | None = None
    """Folder that the slides lie in now, where they are not where predict read them."""
    dicomize: bool = False
    """Make a DICOM slide, without its label and overview, of a slide that is none, as DICOM objects need one."""
