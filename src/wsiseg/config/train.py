"""The settings of `wsiseg train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config, Gone

Schedule = Literal["constant", "cosine"]
Colors = Literal["auto", "cohort", "weights"]
BatchNorm = Literal["train", "frozen"]
Precision = Literal["auto", "float32", "bfloat16"]
ClassName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9 _-]{0,49}$")]
FEATURES = "features:"
"""What the architecture of a head on stored features begins with; their number follows."""

_TAKEN = {"normal", "tissue", "background", "unknown"}  # what maps call cells that are of no class
_TAKEN_NAMES = "normal, tissue, background and unknown"
_TUNE = "fine-tune a configuration in a run of its own, with init set to its best.pt, and lr and epochs as you like"


class TrainConfig(Config):
    """Settings of `wsiseg train`; the defaults are those of Lerousseau et al. 2020."""

    gone: ClassVar[Mapping[str, Gone]] = {
        "balance": Gone("use c0 and c1, the weights of slides without and with tumour"),
        "compile": Gone("leave it out; it was never measured to pay off"),
        "guard": Gone("leave slides whose label you doubt out of the cohort"),
        "loss": Gone("the loss of a tile is always its cross-entropy"),
        "optimizer": Gone("the optimizer is always Adam"),
        "parts": Gone("context takes one random part of each crop"),
        "tensorboard": Gone("metrics.csv grows with every epoch, and report.html draws it"),
        "test-views": Gone("use views of wsiseg predict, which averages turned copies of a tile"),
        "threads": Gone("tiles are read by as many threads as there are cores"),
        "top": Gone(_TUNE),
        "tune-lr": Gone(_TUNE),
        "tune-epochs": Gone(_TUNE),
    }
    cohort: Annotated[Path, ARGUMENT]
    """Cohort CSV that `wsiseg tile` wrote beside its tile stores."""
    out: Path
    """Output folder of the run."""
    alpha: float = Field(default=0.2, gt=0, le=1)
    """Least share of tumour in the tissue of a tumour slide, for slides where the cohort states no percentage."""
    beta: float = Field(default=0.2, ge=0, le=1)
    """Least share of normal tissue in a tumour slide, for slides where the cohort states no percentage."""
    classes: Annotated[tuple[ClassName, ...], IN_FILE] = Field(default=("tumor",), min_length=1, max_length=16)
    """Classes to learn, each from its own columns of the cohort and with its own logit."""
    percent_error: Annotated[float, IN_FILE] = Field(default=10.0, ge=0, le=100)
    """By how many percentage points a `tumor_percent` in the cohort may be wrong."""
    grid: bool = False
    """Train the 15 configurations of alpha and beta in steps of 0.2."""
    supervised: bool = False
    """With `--grid`, also train on the true labels of tiles from `--truth`, as an upper bound; without `--grid`, train
    on them instead of the slide labels."""
    truth: Path | None = None
    """Ground truth for pixel measures and for the threshold: a folder of outlines or masks named after the slides."""
    arch: str = "resnet50"
    """Network: a torchvision classifier, `timm:NAME`, or `timm:hf-hub:OWNER/MODEL`."""
    init: str = "imagenet"
    """Starting weights: `imagenet`; `none` for random weights; a file (a state dict, or a checkpoint of wsiseg, whose
    head is used too, but not with `--freeze`); or `hub`, the weights that come with a network of a hub (for such a
    network, `imagenet` means the same)."""
    freeze: bool = False
    """Freeze the network: compute the features of every tile once and train only the head."""
    features: Path | None = None
    """Train a head on stored features instead of on pixels: a folder of features that TRIDENT, CLAM, STAMP, slide2vec
    or `wsiseg predict` wrote."""
    teacher: tuple[str, ...] = ()
    """Learn the probabilities that a model gives to tiles instead of slide labels: a model file, or a folder of tumour
    maps; give it several times to average teachers. Slides need no label; a slide with the label 0 is still learned as
    free of tumour."""
    tile: Annotated[int | None, IN_FILE] = Field(default=None, ge=16, le=4096)
    """Side of the tiles of `--features`, in pixels at the resolution of `mpp`, if their files do not state it."""
    mpp: Annotated[float | None, IN_FILE] = Field(default=None, gt=0, le=100)
    """Resolution of the tiles of `--features` in micrometers per pixel, if their files do not state it."""
    views: Annotated[int, IN_FILE] = Field(default=1, ge=1, le=64)
    """Number of copies of each training tile whose features are computed with `--freeze`. The first copy is the tile
    itself; the others are augmented and, with `context`, cropped."""
    epochs: int = Field(default=20, ge=1)
    """Number of passes over the training slides; with `--supervised` or `--teacher`, over all of their tiles."""
    bag: int = Field(default=150, ge=1)
    """Number of tiles drawn from a slide at a time."""
    max_tiles: Annotated[int, IN_FILE] = Field(default=2000, ge=1)
    """Largest number of tiles used of a slide; they are spread evenly over its tissue and the same in every run."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Number of tiles held in memory with their gradients at a time; by default the whole bag."""
    accumulate: Annotated[int, IN_FILE] = Field(default=1, ge=1)
    """Number of slides whose risks are averaged in one step, in each process."""
    pairs: Annotated[bool, IN_FILE] = False
    """Visit a slide with tumour and one without, of the same site, in turn, repeating the rarer kind; otherwise each
    slide is visited once per epoch."""
    c0: Annotated[float, IN_FILE] = Field(default=1.0, ge=0)
    """Weight of slides without tumour in the risk."""
    c1: Annotated[float, IN_FILE] = Field(default=1.0, ge=0)
    """Weight of slides with tumour in the risk."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate."""
    schedule: Annotated[Schedule, IN_FILE] = "constant"
    """`constant`, or `cosine`: the learning rate falls to zero over all epochs."""
    warm_up: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from zero, so that the first steps of Adam, which are
    poorly scaled, do not spoil the starting weights."""
    weight_decay: Annotated[float, IN_FILE] = Field(default=0.0, ge=0)
    """Decoupled weight decay, as in AdamW."""
    colors: Annotated[Colors, IN_FILE] = "auto"
    """Mean and deviation used to standardise tiles: `cohort` (measured on the training tiles), `weights` (those that
    the starting weights were made with), or `auto`: `weights` with `--freeze`, otherwise `cohort`."""
    stain_jitter: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, lt=1)
    """Largest random change of the amounts of hematoxylin and eosin in a training tile, as a share."""
    size_jitter: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, le=0.5)
    """Largest random change of the size at which a bag of training tiles is shown, as a share."""
    context: Annotated[int | None, IN_FILE] = Field(default=None, ge=32, le=4096)
    """Side in pixels of the crops around tiles that the network sees; the logit is pooled over a tile-sized part."""
    train_last: Annotated[int | None, IN_FILE] = Field(default=None, ge=0)
    """Train only this many of the last blocks of the backbone, and the head; by default all blocks."""
    batch_norm: Annotated[BatchNorm, IN_FILE] = "train"
    """`train`, or `frozen`: keep the batch-norm statistics of the starting weights."""
    average: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, which is validated and saved instead of the weights; 0
    turns it off."""
    precision: Annotated[Precision, IN_FILE] = "auto"
    """`float32`; `bfloat16`, which computes most of the network in half the bits; or `auto`: bfloat16 on GPUs made for
    it, otherwise float32."""
    validation_tiles: Annotated[int, IN_FILE] = Field(default=600, ge=1)
    """Largest number of tiles scored of a slide: of validation slides after every epoch, of test slides at the end."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    device: str = "auto"
    """Device to compute on: `auto`, `cpu`, `cuda`, or any device name of PyTorch."""
    save_minutes: Annotated[float, IN_FILE] = Field(default=10.0, gt=0)
    """Minutes between two saves of `last.pt` within an epoch."""
    dask: Annotated[str | None, IN_FILE] = None
    """Address of a Dask scheduler, or `local:N` to start N worker processes on this machine. They compute the features
    of `--freeze`, one slide per task, and train the configurations of `--grid`, one per task. All of them must see the
    folders of the cohort and the run."""
    resume: bool = False
    """Continue from `last.pt`, and stop with an error if settings differ; if there is no `last.pt`, start from the
    beginning."""
    overwrite: bool = False
    """Replace an existing run."""

    @model_validator(mode="before")
    @classmethod
    def _features_stay(cls, values: Any) -> Any:  # noqa: ANN401  fields by name
        if not isinstance(values, dict) or values.get("features") is None:
            return values
        if not str(values.get("arch", FEATURES)).startswith(FEATURES):
            raise ValueError("features come without their network: leave out arch")
        return {"arch": FEATURES, **values, "freeze": True}

    @model_validator(mode="after")
    def _fits(self) -> Self:
        plain = [name.casefold() for name in self.classes]
        for is_wrong, sentence in (
            (self.alpha + self.beta > 1 + 1e-9, f"alpha {self.alpha:g} and beta {self.beta:g} together exceed 1"),
            (len(set(plain)) < len(plain) or _TAKEN & set(plain), f"classes must differ, also from {_TAKEN_NAMES}"),
            (len(plain) > 1 and (self.grid or self.teacher), "grid and teacher are for one class: train each alone"),
            (self.supervised and self.truth is None, "supervised needs the tiles' true labels: give truth"),
            (
                self.size_jitter and (self.context is not None or self.freeze),
                "size-jitter is for whole tiles that are drawn anew: leave out context and freeze",
            ),
            (
                self.features is None and (self.tile is not None or self.mpp is not None),
                "tile and mpp are for features; tile stores say them themselves",
            ),
            (
                self.features is not None and (self.views > 1 or self.context is not None or self.stain_jitter),
                "stored features cannot be augmented: leave out views, context and stain-jitter",
            ),
            (
                self.features is not None and (self.init not in {"imagenet", "none"} or self.colors == "cohort"),
                "stored features come without their network and colours: leave out init and colors",
            ),
            (
                self.stain_jitter and self.freeze and self.views == 1,
                "stain-jitter changes further copies of frozen tiles alone: give views too, or leave out freeze",
            ),
            (self.c0 == 0 and self.c1 == 0, "with c0 and c1 0 nothing is learned"),
            (
                self.teacher and (self.grid or self.supervised or self.features is not None),
                "a teacher says what is learned: leave out grid, supervised and features",
            ),
            (
                self.dask is not None and not (self.grid or (self.freeze and self.features is None)),
                "dask shares the features of freeze and the configurations of a grid; torchrun shares one training",
            ),
            ((self.tile is None) != (self.mpp is None), "give tile and mpp together"),
            (self.views > 1 and not self.freeze, "views are for freeze; without it every visit changes tiles anew"),
        ):
            if is_wrong:
                raise ValueError(sentence)
        return self


# What a run may change when it goes on. The cap on tiles counts through the tiles that it leaves, the error of
# percentages through the shares, teachers through what they are.
FREE = frozenset({"cohort", "features", "out", "resume", "overwrite", "device", "epochs", "save_minutes", "precision"})
FREE |= {"max_tiles", "percent_error", "dask", "teacher"}
# What means nothing to a head on frozen features besides.
FREE_WITH_FREEZE = frozenset({"train_last", "batch_norm"})
# The defaults of settings that are gone, which the state of an earlier version may hold.
GONE_DEFAULTS: Mapping[str, object] = {
    "balance": False, "guard": 0.0, "loss": "cross-entropy", "parts": 1, "test_views": 1, "optimizer": "adam",
}  # fmt: skip
