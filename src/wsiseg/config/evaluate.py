"""The settings of `wsiseg evaluate`."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import IN_FILE, Config, Device, Gone, Shown

PcamScale = Literal["native", "doubled"]


class EvaluateConfig(Config):
    """Settings of `wsiseg evaluate`."""

    gone: ClassVar = {
        "baseline": Gone("give the least value itself, as --fail-under auc=0.79"),
        "max-drop": Gone("give the least or largest value itself, with --fail-under or --fail-over"),
    }

    predictions: Annotated[tuple[Path, ...], Shown("argument", "PREDICTIONS...")] = ()
    """Folders of heatmaps that `wsiseg predict` wrote, or of the paper's published maps; further ones are compared with
    the first."""
    truth: Path | None = None
    """Folder of outlines, masks or heatmaps named after the slides."""
    cohort: Path | None = None
    """Cohort CSV with case, label, split and site; percentages in it are compared with those of the maps."""
    out: Path | None = None
    """Folder for `metrics.json`, `slides.csv`, `report.html` and the plots."""
    split: str | None = None
    """The split that is evaluated; `test` where the cohort has one."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability from which a cell is tumour; the best on the validation split, or the model's, where not given."""
    roi: Path | None = None
    """Outlines or a mask of the only parts that count, or a folder of them named after the slides."""
    ignore_class: tuple[str, ...] = ()
    """Further classes of outlines, or values of masks, that are left out of all measures, as `Ignore*` is."""
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
    """Least values of measures where higher is better, as `auc=0.8` or `site.breast.auc=0.7`."""
    fail_over: tuple[str, ...] = ()
    """Largest values of measures where lower is better, as `brier=0.2`."""
    allow_missing: bool = False
    """Let slides of the evaluated split have no map; else each of them fails."""
    junit: Path | None = None
    """JUnit XML file to write."""
    resamples: Annotated[int, IN_FILE] = Field(default=1000, ge=0)
    """Resamples of the cases for the 95 % intervals; 0 for none."""
    seed: Annotated[int, IN_FILE] = Field(default=0, ge=0)
    """Seed of the resamples."""
    pcam: Path | None = None
    """Folder of the PatchCamelyon files."""
    model: Path | None = None
    """Model file for PatchCamelyon; `default` and `node` come with wsiseg."""
    pcam_scale: Annotated[PcamScale | None, IN_FILE] = None
    """How the model sees patches of PatchCamelyon: `native`, or `doubled` and padded with zeros, as in the paper; what
    is nearer to its um/px where it is not given."""
    views: Annotated[int, IN_FILE] = Field(default=1, ge=1, le=8)
    """Views of each patch of PatchCamelyon, turned and mirrored, whose probabilities are averaged, as predict does."""
    device: Annotated[Device, IN_FILE] = "auto"
    """What computes, for PatchCamelyon."""
    grid: Path | None = None
    """Folder that `wsiseg train --grid` wrote, to draw the paper's table and figure from."""

    @model_validator(mode="after")
    def _one_task(self) -> Self:
        if sum(bool(task) for task in (self.predictions, self.pcam, self.grid)) != 1:
            raise ValueError("give either predictions, --pcam or --grid")
        for given, needed, sentence in (
            (self.predictions, self.truth or self.cohort, "predictions need --truth, or --cohort with percentages"),
            (len(self.predictions) > 1 or self.froc, self.truth, "further predictions and froc need --truth"),
            (self.predictions and self.split, self.cohort, "--split needs --cohort, which names the slides of a split"),
            (self.pcam, self.model, "--pcam needs --model"),
            (self.grid, self.out, "--grid needs --out"),
        ):
            if given and not needed:
                raise ValueError(sentence)
        task, used = ("--pcam", _OF_PCAM) if self.pcam else ("--grid", _OF_GRID) if self.grid else ("maps", _OF_MAPS)
        for name in sorted(self.model_fields_set - used):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name.replace('_', '-')} means nothing when evaluating {task}")
        return self


_OF_MAPS = frozenset(EvaluateConfig.model_fields) - {"pcam", "model", "pcam_scale", "views", "grid"}
_OF_GRID = frozenset({"grid", "out"})
_OF_PCAM = frozenset({"pcam", "model", "device", "out", "split", "threshold", "fail_under", "fail_over"})
_OF_PCAM |= {"junit", "resamples", "seed", "pcam_scale", "views"}
