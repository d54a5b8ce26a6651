"""The settings of `wsiseg evaluate`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import IN_FILE, Config, Device, Shown


class EvaluateConfig(Config):
    """Settings of `wsiseg evaluate`."""

    predictions: Annotated[tuple[Path, ...], Shown("argument", "PREDICTIONS...")] = ()
    """Folders of heatmaps that `wsiseg predict` wrote, or of the paper's published maps; further ones are compared with
    the first."""
    truth: Path | None = None
    """Folder of outlines, masks or heatmaps named after the slides."""
    cohort: Path | None = None
    """Cohort CSV with case, label, split and site."""
    out: Path | None = None
    """Folder for `metrics.json`, `slides.csv`, `report.html` and the plots."""
    split: str | None = None
    """The split that is evaluated; `test` where the cohort has one."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability from which a cell is tumour; the best on the validation split, or the model's, where not given."""
    tumor_class: Annotated[tuple[str, ...], IN_FILE] = ()
    """Classes of outlines, or values of masks, that mean tumour; the usual names where none is given."""
    negative_class: Annotated[tuple[str, ...], IN_FILE] = ()
    """Further classes that cut holes into tumour."""
    truth_origin: Annotated[Literal["auto", "slide", "bounds"], IN_FILE] = "auto"
    """Where coordinates begin on slides with bounds; `auto`: GeoJSON's at the bounds (QuPath), others at level 0."""
    truth_mpp: Annotated[float | None, IN_FILE] = Field(default=None, gt=0)
    """Micrometers per pixel of masks; where it is not given, a mask covers its slide."""
    froc: Annotated[bool, IN_FILE] = False
    """Measure the detection of single lesions as in CAMELYON too."""
    fail_under: tuple[str, ...] = ()
    """Least values, as `auc=0.8` or `site.breast.auc=0.7`."""
    baseline: Annotated[Path | None, IN_FILE] = None
    """A `metrics.json` to compare with."""
    max_drop: Annotated[tuple[str, ...], IN_FILE] = ()
    """How far measures may fall below the baseline, as `auc=0.01`."""
    junit: Path | None = None
    """JUnit XML file to write."""
    resamples: Annotated[int, IN_FILE] = Field(default=1000, ge=0)
    """Resamples of the cases for the 95 % intervals; 0 for none."""
    seed: Annotated[int, IN_FILE] = Field(default=0, ge=0)
    """Seed of the resamples."""
    pcam: Path | None = None
    """Folder of the PatchCamelyon files."""
    model: Path | None = None
    """Model file for PatchCamelyon."""
    device: Annotated[Device, IN_FILE] = "auto"
    """What computes, for PatchCamelyon."""
    grid: Path | None = None
    """Folder that `wsiseg train --grid` wrote, to draw the paper's table and figure from."""

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        if sum(bool(task) for task in (self.predictions, self.pcam, self.grid)) != 1:
            raise ValueError("give either predictions, --pcam or --grid")
        for given, needed, name in (
            (self.predictions, self.truth, "predictions need --truth"),
            (self.pcam, self.model, "--pcam needs --model"),
            (self.grid, self.out, "--grid needs --out"),
            (self.max_drop, self.baseline, "--max-drop needs --baseline"),
        ):
            if given and not needed:
                raise ValueError(name)
        return self
