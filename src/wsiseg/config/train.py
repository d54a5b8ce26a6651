"""The settings of `wsiseg train`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config, Gone, read_toml

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
        "balance": Gone("c0 and c1 weigh slides without and with tumour"),
        "compile": Gone("leave it out: that it pays off was never measured"),
        "guard": Gone("leave slides whose label you doubt out of the cohort"),
        "loss": Gone("a tile costs its cross-entropy"),
        "optimizer": Gone("Adam always moves the weights"),
        "parts": Gone("context takes one random part of each crop"),
        "tensorboard": Gone("metrics.csv grows with every epoch, and report.html draws it"),
        "test-views": Gone("wsiseg predict averages turned copies of a tile with views"),
        "threads": Gone("tiles are read by as many threads as there are cores"),
        "top": Gone(_TUNE),
        "tune-lr": Gone(_TUNE),
        "tune-epochs": Gone(_TUNE),
    }
    cohort: Annotated[Path, ARGUMENT]
    """The cohort CSV that `wsiseg tile` wrote beside its tile stores."""
    out: Path
    """Folder of the run."""
    alpha: float = Field(default=0.2, gt=0, le=1)
    """Least share of tumour in the tissue of a tumour slide, where the cohort states none."""
    beta: float = Field(default=0.2, ge=0, le=1)
    """Least share of normal tissue in a tumour slide, where the cohort states none."""
    classes: Annotated[tuple[ClassName, ...], IN_FILE] = Field(default=("tumor",), min_length=1, max_length=16)
    """What is learned: each class from its own columns of the cohort, by a logit of its own."""
    percent_error: Annotated[float, IN_FILE] = Field(default=10.0, ge=0, le=100)
    """Points by which a percentage in the column `tumor_percent` of the cohort may be wrong."""
    grid: bool = False
    """Train the 15 configurations of alpha and beta in steps of 0.2."""
    supervised: bool = False
    """Train on the tiles' true labels from `truth` too, as the upper bound of a grid; without one, instead."""
    truth: Path | None = None
    """Folder of outlines or masks named after the slides, for pixelwise measures and the threshold."""
    arch: str = "resnet50"
    """A torchvision classifier, `timm:NAME`, or `timm:hf-hub:OWNER/MODEL`; a transformer takes tiles of one size."""
    init: str = "imagenet"
    """`imagenet`, or of a network of a hub `hub`, the weights that it comes with, whether that is said or not; `none`;
    or a file: a state dict, or a checkpoint of wsiseg, whose head is used too."""
    freeze: bool = False
    """Compute the features once and train the head alone."""
    features: Path | None = None
    """Folder of stored features of the slides, of TRIDENT, CLAM, STAMP, slide2vec or `wsiseg predict`, to train a head
    on; no pixels are read."""
    teacher: tuple[str, ...] = ()
    """Model files or folders of tumour maps, whose averaged probabilities of tiles are learned in place of labels,
    which slides need not have; of one with the label 0 that is learned."""
    tile: Annotated[int | None, IN_FILE] = Field(default=None, ge=16, le=4096)
    """Side of the tiles of `features` in pixels of `mpp`, where their files do not say it."""
    mpp: Annotated[float | None, IN_FILE] = Field(default=None, gt=0, le=100)
    """Micrometers per pixel of the tiles of `features`, where their files do not say it."""
    views: Annotated[int, IN_FILE] = Field(default=1, ge=1, le=64)
    """Copies of each training tile whose features are computed with `freeze`; all but the first are augmented, and they
    alone are crops where `context` is given."""
    epochs: int = Field(default=20, ge=1)
    """Times that every training slide is visited, or all its tiles where each has a label of its own."""
    bag: int = Field(default=150, ge=1)
    """Tiles drawn from a slide at a time."""
    max_tiles: Annotated[int, IN_FILE] = Field(default=2000, ge=1)
    """Tiles of a slide that are used at most, the same ones in every run, spread evenly over its tissue."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Tiles held with their gradients at a time; all of a bag where it is not given."""
    accumulate: Annotated[int, IN_FILE] = Field(default=1, ge=1)
    """Slides whose risks are averaged in one step, in each process."""
    pairs: Annotated[bool, IN_FILE] = False
    """Visit slides with and without tumour of the same site in pairs, the rarer ones again; else each slide once."""
    c0: Annotated[float, IN_FILE] = Field(default=1.0, ge=0)
    """Weight of slides without tumour in the risk."""
    c1: Annotated[float, IN_FILE] = Field(default=1.0, ge=0)
    """Weight of slides with tumour in the risk."""
    lr: float = Field(default=1e-4, gt=0)
    """Learning rate."""
    schedule: Annotated[Schedule, IN_FILE] = "constant"
    """`constant`, or `cosine`: the learning rate falls to zero over all epochs."""
    warm_up: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, lt=1)
    """Share of all steps over which the learning rate rises from zero, so that the first steps, whose sizes Adam cannot
    know yet, leave the starting weights what they are."""
    weight_decay: Annotated[float, IN_FILE] = Field(default=0.0, ge=0)
    """Share by which weights shrink per step and learning rate, apart from the gradients."""
    colors: Annotated[Colors, IN_FILE] = "auto"
    """Mean and deviation that tiles are standardised with: measured on the training set (`cohort`), or those that the
    starting weights were made with (`weights`); `auto` is `weights` with `freeze`, else `cohort`."""
    stain_jitter: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, lt=1)
    """Largest random change of the hematoxylin and eosin amounts of a training tile."""
    size_jitter: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, le=0.5)
    """Largest random change of the size in which a bag of training tiles is shown."""
    context: Annotated[int | None, IN_FILE] = Field(default=None, ge=32, le=4096)
    """Side in pixels of the crops around tiles that the network sees; the logit is pooled over a tile-sized part."""
    train_last: Annotated[int | None, IN_FILE] = Field(default=None, ge=0)
    """Train only so many of the last blocks of the backbone, and the head; all where it is not given."""
    batch_norm: Annotated[BatchNorm, IN_FILE] = "train"
    """`frozen` keeps the batch-norm statistics of the starting weights."""
    average: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights that is validated and kept in their place; 0 for none."""
    precision: Annotated[Precision, IN_FILE] = "auto"
    """`bfloat16` computes most of the network in half the bits; `auto` does so on GPUs that are made for it."""
    validation_tiles: Annotated[int, IN_FILE] = Field(default=600, ge=1)
    """Tiles of a slide that are scored at most: of validation slides in every epoch, at the end of test slides too."""
    seed: int = Field(default=0, ge=0)
    """Seed of everything random."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, or any device that PyTorch names."""
    save_minutes: Annotated[float, IN_FILE] = Field(default=10.0, gt=0)
    """Minutes between two savings of `last.pt` within an epoch."""
    dask: Annotated[str | None, IN_FILE] = None
    """Address of a Dask scheduler, or `local:N`, whose workers compute the features of `freeze`, a slide a task, and
    train a `grid`, a configuration a task; all of them see the folders of the cohort and the run."""
    resume: bool = False
    """Insist on going on from `last.pt`: other settings are an error. Without one the run begins."""
    overwrite: bool = False
    """Replace a run that is there."""

    @classmethod
    def of_run(cls, path: Path) -> Self:
        """Read the `config.toml` of a run; settings that an earlier version had are left out.

        Raises:
            UsageError: The file is missing, is not TOML, or holds names or values that do not fit.
        """
        values = {name: value for name, value in read_toml(path).items() if name.replace("_", "-") not in cls.gone}
        return cls.checked(**values)

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
# percentages through the shares.
FREE = frozenset({"cohort", "features", "out", "resume", "overwrite", "device", "epochs", "save_minutes", "precision"})
FREE |= {"max_tiles", "percent_error", "dask"}
# What means nothing to a head on frozen features besides.
FREE_WITH_FREEZE = frozenset({"train_last", "batch_norm"})
# The defaults of settings that are gone, which the state of an earlier version may hold.
GONE_DEFAULTS: Mapping[str, object] = {
    "balance": False, "guard": 0.0, "loss": "cross-entropy", "parts": 1, "test_views": 1, "optimizer": "adam",
}  # fmt: skip
