"""The settings of every command: frozen, checked as they are made, written to and read from TOML.

Every field says what it means and its unit. A field's default is the default of the option of the same name.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wsiseg.run.errors import UsageError

Share = Annotated[float, Field(ge=0, le=1)]
Device = Literal["auto", "cpu", "cuda", "coreml", "directml", "openvino"]
MapKind = Literal["auto", "dense", "tile"]
Combination = Literal["mean", "max", "min", "vote"]


class Config(BaseModel):
    """Base of all settings; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def checked(cls, **values: Any) -> Self:  # noqa: ANN401  whatever the fields take
        """Make the settings; a person reads one line per wrong field.

        Raises:
            UsageError: A value does not fit its field.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            lines = [_sentence(problem) for problem in error.errors()]
            raise UsageError("; ".join(lines)) from error

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read settings that `to_toml` wrote.

        Raises:
            UsageError: The file is missing, is no TOML, or holds names or values that do not fit.
        """
        return cls.checked(**read_toml(path))

    def to_toml(self) -> str:
        """Give the settings as TOML; a field that is None is left out."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


class TileConfig(Config):
    """Settings of `wsiseg tile`."""

    inputs: tuple[str, ...]
    """Slides, folders, globs, a cohort CSV, or `-` for one path per line on standard input."""
    out: Path
    """Folder for the tile stores."""
    tile: int = Field(default=224, ge=16, le=4096)
    """Side of a tile in pixels of `mpp`."""
    mpp: float = Field(default=0.5, gt=0, le=100)
    """Micrometers per tile pixel."""
    stride: int | None = Field(default=None, ge=1)
    """Distance of neighbouring tiles in pixels of `mpp`; a tile's side where it is not given."""
    slide_mpp: float | None = Field(default=None, gt=0)
    """Micrometers per level-0 pixel of the slides, in place of what the files say."""
    tissue: str = "auto"
    """`auto`, `none` (everything is tissue), a mask image, a GeoJSON file, or a folder of either."""
    min_tissue: Share = 0.5
    """Least share of tissue in a tile that is kept."""
    pixels: bool = False
    """Store the tiles themselves too."""
    max_bad_tiles: Share = 0.01
    """Largest share of tissue tiles that may be unreadable."""
    jobs: int = Field(default=1, ge=1)
    """Slides that are read at the same time."""
    overwrite: bool = False
    """Redo what is already there."""

    @model_validator(mode="after")
    def _stride_fits(self) -> Self:
        if self.stride is not None and self.stride > self.tile:
            raise ValueError(f"a stride of {self.stride} leaves gaps between tiles of {self.tile}")
        return self


class PredictConfig(Config):
    """Settings of `wsiseg predict`."""

    inputs: tuple[str, ...]
    """Slides, folders, globs, a cohort CSV, or `-` for one path per line on standard input."""
    model: tuple[str, ...] = ("default",)
    """Model files; several are combined. `default` is the bundled one."""
    combine: Combination = "mean"
    """How several models are combined; `vote` is the share of them at or above their own thresholds."""
    keep_members: bool = False
    """Write each of several models' own map too."""
    views: int = Field(default=1, ge=1, le=8)
    """Views of each image, turned and mirrored, whose probabilities are averaged."""
    out: Path = Path("wsiseg-out")
    """Folder for the maps."""
    slide_mpp: float | None = Field(default=None, gt=0)
    """Micrometers per level-0 pixel of the slides, in place of what the files say."""
    device: Device = "auto"
    """What computes."""
    tissue: str = "auto"
    """`auto`, `none` (everything is tissue), a mask image, a GeoJSON file, or a folder of either."""
    min_tissue: Share = 0.5
    """Least share of tissue in a cell that is looked at."""
    roi: str | None = None
    """Outlines (GeoJSON) or a mask of the only parts to look at, or a folder of them named after the slides."""
    exclude: str | None = None
    """Outlines or a mask of parts not to look at, or a folder of them named after the slides."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability from which a cell is tumour; the model's own where it is not given."""
    map: MapKind = "auto"
    """`dense` (one value per output cell), `tile` (one per tile), or the model's better one."""
    stride: int | None = Field(default=None, ge=1)
    """Distance of tiles in the model's pixels, for `tile` maps of overlapping tiles; a tile's side if not given."""
    shard: str | None = Field(default=None, pattern=r"^[1-9]\d*/[1-9]\d*$")
    """`I/N`: only the slides of part I of N, counted from 1."""
    dask: str | None = None
    """Address of a Dask scheduler, or `local:N` for N processes here."""
    csv: bool = False
    """Write the cells as CSV too."""
    ngff: Literal["0.4", "0.5"] = "0.4"
    """Version of the heatmap's format."""
    max_bad_tiles: Share = 0.01
    """Largest share of tissue cells that may be unreadable."""
    read_timeout: float = Field(default=300.0, gt=0)
    """Seconds after which a slide is given up because reading from it hangs."""
    overwrite: bool = False
    """Redo what is already there."""

    @model_validator(mode="after")
    def _shard_exists(self) -> Self:
        if self.shard is not None and int(self.shard.split("/")[0]) > int(self.shard.split("/")[1]):
            raise ValueError(f"there is no shard {self.shard}")
        return self


class EvaluateConfig(Config):
    """Settings of `wsiseg evaluate`."""

    predictions: tuple[Path, ...] = ()
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
    tumor_class: tuple[str, ...] = ()
    """Classes of outlines, or values of masks, that mean tumour; the usual names where none is given."""
    negative_class: tuple[str, ...] = ()
    """Further classes that cut holes into tumour."""
    truth_origin: Literal["auto", "slide", "bounds"] = "auto"
    """Where coordinates begin on slides with bounds; `auto`: GeoJSON's at the bounds (QuPath), others at level 0."""
    truth_mpp: float | None = Field(default=None, gt=0)
    """Micrometers per pixel of masks; where it is not given, a mask covers its slide."""
    froc: bool = False
    """Measure the detection of single lesions as in CAMELYON too."""
    fail_under: tuple[str, ...] = ()
    """Least values, as `auc=0.8` or `site.breast.auc=0.7`."""
    baseline: Path | None = None
    """A `metrics.json` to compare with."""
    max_drop: tuple[str, ...] = ()
    """How far measures may fall below the baseline, as `auc=0.01`."""
    junit: Path | None = None
    """JUnit XML file to write."""
    resamples: int = Field(default=1000, ge=0)
    """Resamples of the cases for the 95 % intervals; 0 for none."""
    seed: int = Field(default=0, ge=0)
    """Seed of the resamples."""
    pcam: Path | None = None
    """Folder of the PatchCamelyon files."""
    model: Path | None = None
    """Model file for PatchCamelyon."""
    device: Device = "auto"
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


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UsageError: It is missing or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as settings: {error}") from error


def _sentence(problem: Any) -> str:  # noqa: ANN401  pydantic's ErrorDetails, a TypedDict of a private module
    where = ".".join(str(part) for part in problem["loc"]).replace("_", "-")
    what = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{where}: no such setting"
    return f"{where}: {what} (got {problem['input']!r})" if where else what
