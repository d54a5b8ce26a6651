"""The settings of `wsiseg predict`, and of `wsiseg view` and `wsiseg convert`, which take what it wrote."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config, Devices, Gone, MapKind, Shard, Share, Shown, run_name

LOCAL = ("localhost", "127.0.0.1", "::1")
"""Names of this machine, to which http is safe."""
Form = Literal["dicom-seg", "dicom-map", "ome-tiff", "ngff-0.5", "spatialdata", "csv"]


class PredictConfig(Config):
    """Settings of `wsiseg predict`."""

    gone: ClassVar[Mapping[str, Gone]] = {
        "combine": Gone("the probabilities of several models are averaged"),
        "keep-members": Gone("map the slides with one model at a time, each into its own --out", is_flag=True),
        "stride": Gone("use --map dense, which averages all tiles over a cell at a fifth of the cost"),
    }

    inputs: Annotated[tuple[str, ...], Shown("argument", "INPUT...")]
    """Slides, folders, globs, a cohort CSV, s3://, gs:// or https:// addresses of slides, DICOM series as
    dicomweb://HOST/PATH/studies/UID/series/UID, or `-` to read paths from standard input, one per line or
    NUL-terminated."""
    model: tuple[str, ...] = ("default",)
    """Model file, or a folder of files that export wrote, of which the fastest on this machine is used. Give it several
    times to average models. `default` comes with wsiseg."""
    views: Annotated[int, IN_FILE] = Field(default=1, ge=1, le=8)
    """Number of turned and mirrored views of each image whose probabilities are averaged; 1 uses the image alone."""
    out: Path = Path("wsiseg-out")
    """Output folder."""
    slide_mpp: float | None = Field(default=None, gt=0)
    """Micrometers per level-0 pixel of the slides; overrides what the files say."""
    device: Annotated[Devices, Shown(metavar="DEVICE[,DEVICE...]")] = "auto"
    """Device to compute on: cpu, cuda, coreml, directml or openvino, with a number if there are several (cuda:1), or
    auto for the fastest with this model. Several devices, such as cuda:0,cuda:1, share the slides, one process each."""
    jobs: int = Field(default=1, ge=1)
    """Processes per device; they share the slides and the cores."""
    tissue: str = "auto"
    """Where the tissue is: `auto` (found by colour), `none` (everywhere), a mask image, an outline file, or a folder of
    masks or outline files named after the slides."""
    min_tissue: Annotated[Share, IN_FILE] = 0.5
    """Smallest share of tissue in a cell that is mapped."""
    roi: str | None = None
    """Map only inside these regions: an outline file, a mask image, or a folder of them named after the slides."""
    exclude: str | None = None
    """Leave these regions out: an outline file, a mask image, or a folder of them named after the slides."""
    features: Path | None = None
    """Map from the stored features in this folder instead of from pixels; `--model` is then the model file of a head.
    Slides are opened only for their size, pixel size and picture."""
    write_features: bool = False
    """Map by tiles and also write the features of every tile, as `<slide>.h5`."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability at or above which a cell is tumour; by default the model's own threshold."""
    map: MapKind = "auto"
    """`dense` (one value per output cell of the network), `tile` (one value per tile), or `auto`: the kind stated in
    the model file."""
    shard: Shard | None = None
    """`I/N`: process only part I of N of the slides, with I from 1 to N."""
    merge: bool = False
    """Map nothing; merge finished runs. The inputs are run folders, for example of shards. Writes one `run.json`,
    report and table for all of them, and brings their files into `--out`; with a single folder, that folder itself."""
    dask: str | None = None
    """Address of a Dask scheduler, or `local:N` to start N worker processes on this machine."""
    dry_run: bool = False
    """List the slides, which of them are up to date, and how long the others will take; write nothing."""
    csv: bool = False
    """Also write the cells of each map as CSV."""
    cells: bool = False
    """Also write the cells of each map as QuPath detections with the measurement p(tumor), in
    SLIDE.cells.geojson.gz."""
    cache: Annotated[Path | None, IN_FILE] = None
    """Folder for downloaded slides; by default `.slides` in the output folder."""
    cache_gb: Annotated[float, IN_FILE] = Field(default=100.0, gt=0)
    """Largest size of `cache` in gigabytes; the slides requested longest ago are deleted first."""
    ngff: Literal["0.4", "0.5"] = "0.4"
    """OME-NGFF version of the heatmap."""
    max_bad_tiles: Annotated[Share, IN_FILE] = 0.01
    """Largest share of the tissue cells that may be unreadable; beyond it the slide fails."""
    read_timeout: Annotated[float, IN_FILE] = Field(default=300.0, gt=0)
    """Seconds without an answer from the disk after which a slide is given up as failed."""
    overwrite: bool = False
    """Redo slides that are already done."""

    @property
    def cache_place(self) -> tuple[Path, float]:
        """Where slides that are fetched lie, and how many bytes they may take."""
        return self.cache or self.out / ".slides", self.cache_gb * 1e9

    @property
    def run_name(self) -> str:
        """Name of the file that says what became of every slide."""
        return run_name(self.shard)

    @property
    def report(self) -> Path:
        """The page of the run."""
        return self.out / f"{self.run_name.replace('run', 'report', 1).removesuffix('.json')}.html"

    @property
    def devices(self) -> tuple[str, ...]:
        """Where each of the processes that share the slides computes."""
        return tuple(self.device.split(",")) * self.jobs

    @model_validator(mode="before")
    @classmethod
    def _merged_in_place(cls, values: dict[str, Any]) -> dict[str, Any]:
        is_one = bool(values.get("merge")) and len(values.get("inputs", ())) == 1
        return {"out": values["inputs"][0], **values} if is_one else values

    @model_validator(mode="after")
    def _settings_fit(self) -> Self:
        if self.write_features and (self.features or len(self.model) > 1 or self.views > 1 or self.map == "dense"):
            raise ValueError("write-features is for one model that maps by tiles: leave out features, views and dense")
        if self.merge and (self.shard or self.dry_run):
            raise ValueError("merge joins what shards wrote: leave out shard and dry-run")
        if self.features and self.tissue != "auto":
            raise ValueError("the tiles of features were chosen when they were computed: leave out tissue")
        if self.dask is not None and len(self.devices) > 1:
            raise ValueError("dask has processes of its own: leave out jobs, and name one device")
        return self


class ViewConfig(Config):
    """Settings of `wsiseg view`."""

    folder: Annotated[Path, ARGUMENT] = Path("wsiseg-out")
    """Folder that predict wrote."""
    slides: Path | None = None
    """Folder of the slides, if they are no longer where predict read them."""
    truth: Path | None = None
    """Also show the ground truth: a folder of outlines or masks named after the slides."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port on this machine; 0 takes a free one."""


class ConvertConfig(Config):
    """Settings of `wsiseg convert`."""

    folder: Annotated[Path, ARGUMENT] = Path("wsiseg-out")
    """Folder that predict wrote."""
    to: Annotated[tuple[Form, ...], Shown(metavar="FORM")] = Field(min_length=1)
    """Format to write; give it several times for several: dicom-seg (two DICOM Segmentations, one binary and one
    fractional with the probability), dicom-map (a DICOM Parametric Map), ome-tiff, ngff-0.5, spatialdata, or csv (one
    row per cell)."""
    out: Path | None = None
    """Output folder; by default the folder of the maps."""
    slide: tuple[str, ...] = ()
    """Name of a slide to convert; give it several times for several. By default all slides are converted."""
    slides: Path | None = None
    """Folder of the slides, if they are no longer where predict read them."""
    store: str | None = None
    """Also store the DICOM objects, and the slides that --dicomize made, in an archive: the address of its DICOMweb
    service, such as https://pacs.example/dicom-web. The login is read from WSISEG_DICOMWEB_USER and
    WSISEG_DICOMWEB_PASSWORD, from WSISEG_DICOMWEB_TOKEN, or from ~/.netrc."""
    dicomize: bool = False
    """First make a DICOM slide, without label and overview image, of each slide that is not DICOM; DICOM objects need
    one to refer to."""

    @model_validator(mode="after")
    def _can_be_stored(self) -> Self:
        if self.store is not None:
            address = urlsplit(self.store)
            is_safe = address.scheme == "https" or (address.scheme == "http" and address.hostname in LOCAL)
            if not is_safe or not address.hostname or "@" in address.netloc:
                raise ValueError(
                    "store is the address of a service, https://HOST/PATH (http on this machine), no login"
                )
            if not any(form.startswith("dicom") for form in self.to):
                raise ValueError("store takes DICOM objects: add dicom-seg or dicom-map to what is written")
        return self
