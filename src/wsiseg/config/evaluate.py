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
    """Folders of heatmaps that `wsiseg predict` wrote, or of the paper's published maps. Further folders are compared
    with the first."""
    truth: Path | None = None
    """Ground truth: a folder of outlines, masks or heatmaps named after the slides."""
    cohort: Path | None = None
    """Cohort CSV with case, label, split and site; percentages of tumour in it are compared with those of the maps."""
    out: Path | None = None
    """Output folder for `metrics.json`, `slides.csv`, `report.html` and the plots."""
    split: str | None = None
    """Split to evaluate; by default `test` if the cohort has one, otherwise all slides."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability at or above which a cell is tumour; by default the best on the validation split, or else the model's
    own."""
    roi: Path | None = None
    """Measure only inside these regions: an outline file, a mask image, or a folder of them named after the slides."""
    ignore_class: tuple[str, ...] = ()
    """Class of outlines, or value of masks, to leave out of all measures, in addition to `Ignore*`; give it several
    times for several."""
    tumor_class: Annotated[tuple[str, ...], IN_FILE] = ()
    """Classes of outlines, or values of masks, that mean tumour; by default the usual names."""
    negative_class: Annotated[tuple[str, ...], IN_FILE] = ()
    """Further classes of outlines that cut holes into tumour."""
    truth_origin: Annotated[Literal["auto", "slide", "bounds"], IN_FILE] = "auto"
    """Where coordinates start on slides whose scan is only a part of level 0: `slide` (the corner of level 0), `bounds`
    (the corner of the scan), or `auto`: the scan for GeoJSON, as QuPath writes it, and level 0 for all other files."""
    truth_mpp: Annotated[float | None, IN_FILE] = Field(default=None, gt=0)
    """Micrometers per pixel of the masks; by default each mask covers its whole slide."""
    froc: Annotated[bool, IN_FILE] = False
    """Also measure how well single lesions are detected, as in CAMELYON16."""
    fail_under: tuple[str, ...] = ()
    """Gate: exit with code 3 if a measure is below a value, such as `auc=0.8` or `site.breast.auc=0.7`. Give it several
    times for several gates."""
    fail_over: tuple[str, ...] = ()
    """Gate for measures where lower is better: exit with code 3 if a measure is above a value, such as `brier=0.2`."""
    allow_missing: bool = False
    """Accept slides of the evaluated split that have no map; otherwise each of them fails."""
    junit: Path | None = None
    """Also write the result as a JUnit XML file."""
    resamples: Annotated[int, IN_FILE] = Field(default=1000, ge=0)
    """Number of bootstrap resamples for the 95 % intervals; 0 for no intervals."""
    seed: Annotated[int, IN_FILE] = Field(default=0, ge=0)
    """Seed of the resamples."""
    pcam: Path | None = None
    """Evaluate on PatchCamelyon instead: the folder of its files."""
    model: Path | None = None
    """Model file to evaluate on PatchCamelyon; `default` comes with wsiseg."""
    pcam_scale: Annotated[PcamScale | None, IN_FILE] = None
    """How the model sees PatchCamelyon patches: `native`, or `doubled` and padded with zeros as in the paper; by
    default the one nearer to the resolution of the model."""
    views: Annotated[int, IN_FILE] = Field(default=1, ge=1, le=8)
    """Number of turned and mirrored views of each PatchCamelyon patch whose probabilities are averaged, as in
    predict."""
    device: Annotated[Device, IN_FILE] = "auto"
    """Device to compute on, for PatchCamelyon: auto, cpu, cuda, coreml, directml or openvino."""
    grid: Path | None = None
    """Draw the paper's table and figure instead: the folder that `wsiseg train --grid` wrote."""

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
                raise ValueError(f"{name.replace('_', '-')} does not apply when evaluating {task}")
        return self


_OF_MAPS = frozenset(EvaluateConfig.model_fields) - {"pcam", "model", "pcam_scale", "views", "grid"}
_OF_GRID = frozenset({"grid", "out"})
_OF_PCAM = frozenset({"pcam", "model", "device", "out", "split", "threshold", "fail_under", "fail_over"})
_OF_PCAM |= {"junit", "resamples", "seed", "pcam_scale", "views"}
