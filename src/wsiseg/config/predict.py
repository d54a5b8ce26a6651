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
    """Slides, folders, globs, a cohort CSV, `-` for one path per line on standard input, slides that lie elsewhere as
    s3://, gs:// or https:// addresses, or series of an archive as dicomweb://HOST/PATH/studies/UID/series/UID."""
    model: tuple[str, ...] = ("default",)
    """Model files; several are averaged. Of a folder that export wrote the file that is fastest here is taken.
    `default` and `node` come with wsiseg."""
    views: Annotated[int, IN_FILE] = Field(default=1, ge=1, le=8)
    """Views of each image, turned and mirrored, whose probabilities are averaged."""
    out: Path = Path("wsiseg-out")
    """Folder for the maps."""
    slide_mpp: float | None = Field(default=None, gt=0)
    """Micrometers per level-0 pixel of the slides, in place of what the files say."""
    device: Annotated[Devices, Shown(metavar="DEVICE[,DEVICE...]")] = "auto"
    """What computes: cpu, cuda, coreml, directml, openvino, with a number as cuda:1 where there are several of them, or
    auto for the fastest with this model. Several, as cuda:0,cuda:1, share the slides, a process for each."""
    jobs: int = Field(default=1, ge=1)
    """Processes for each device that share the slides and the cores."""
    tissue: str = "auto"
    """`auto`, `none` (everything is tissue), a mask image, a GeoJSON file, or a folder of either."""
    min_tissue: Annotated[Share, IN_FILE] = 0.5
    """Least share of tissue in a cell that is looked at."""
    roi: str | None = None
    """Outlines (GeoJSON) or a mask of the only parts to look at, or a folder of them named after the slides."""
    exclude: str | None = None
    """Outlines or a mask of parts not to look at, or a folder of them named after the slides."""
    features: Path | None = None
    """Folder of stored features of the slides' tiles, to map from these alone, with the file of a head as the model; no
    pixels are read but for the picture."""
    write_features: bool = False
    """Map by tiles, and store the features of every tile too, as `<slide>.h5`."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Probability from which a cell is tumour; the model's own where it is not given."""
    map: MapKind = "auto"
    """`dense` (one value per output cell), `tile` (one per tile), or the model's better one."""
    shard: Shard | None = None
    """`I/N`: only the slides of part I of N, counted from 1."""
    merge: bool = False
    """Map nothing: the inputs are folders of runs, as of shards; write one `run.json`, page and table of all of them,
    and bring their files to `out`, which is the folder itself where it is one."""
    dask: str | None = None
    """Address of a Dask scheduler, or `local:N` for N processes here."""
    dry_run: bool = False
    """Say which slides there are, what is up to date and how long the others take, and write nothing."""
    csv: bool = False
    """Write the cells as CSV too."""
    cells: bool = False
    """Write the cells too as detections for QuPath with the measurement p(tumor), as SLIDE.cells.geojson.gz."""
    cache: Annotated[Path | None, IN_FILE] = None
    """Folder for slides that are fetched; `.slides` in that of the maps where it is not given."""
    cache_gb: Annotated[float, IN_FILE] = Field(default=100.0, gt=0)
    """Gigabytes that it may hold; the slides that were asked for longest ago leave it first."""
    ngff: Literal["0.4", "0.5"] = "0.4"
    """Version of the heatmap's format."""
    max_bad_tiles: Annotated[Share, IN_FILE] = 0.01
    """Largest share of tissue cells that may be unreadable."""
    read_timeout: Annotated[float, IN_FILE] = Field(default=300.0, gt=0)
    """Seconds after which a slide is given up because reading from it hangs."""
    overwrite: bool = False
    """Redo what is already there."""

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
    """The folder that predict wrote."""
    slides: Path | None = None
    """Folder that the slides lie in now, where they are not where predict read them."""
    truth: Path | None = None
    """Folder of outlines or masks to show too, named after the slides."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port of this machine; 0 for any that is free."""


class ConvertConfig(Config):
    """Settings of `wsiseg convert`."""

    folder: Annotated[Path, ARGUMENT] = Path("wsiseg-out")
    """The folder that predict wrote."""
    to: Annotated[tuple[Form, ...], Shown(metavar="FORM")] = Field(min_length=1)
    """What to write, several times for several: dicom-seg (two DICOM Segmentations: binary, and fractional with the
    probability), dicom-map (a DICOM Parametric Map), ome-tiff, ngff-0.5, spatialdata, or csv (a row a cell)."""
    out: Path | None = None
    """Folder for what is written; the folder of the maps where it is not given."""
    slide: tuple[str, ...] = ()
    """Names of the only slides to convert; all where none is given."""
    slides: Path | None = None
    """Folder that the slides lie in now, where they are not where predict read them."""
    store: str | None = None
    """Address of the DICOMweb service of an archive, as https://pacs.example/dicom-web, to store the DICOM objects in,
    after the slides that --dicomize made. The login stands in WSISEG_DICOMWEB_USER and WSISEG_DICOMWEB_PASSWORD, in
    WSISEG_DICOMWEB_TOKEN, or in ~/.netrc."""
    dicomize: bool = False
    """Make a DICOM slide, without its label and overview, of a slide that is none, as DICOM objects need one."""

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
