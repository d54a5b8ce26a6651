"""The settings of `wsiseg export`."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config, Gone, Shown, read_toml
from wsiseg.run.errors import UsageError

MapOfModel = Literal["dense", "tile"]


class CardFacts(Config):
    """What a person says of a model, for its card: the content of the file of `--card`."""

    name: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the model; by default made from the name of the network."""
    version: str = Field(default="1", min_length=1, max_length=200)
    """Version of the model."""
    licence: str = "not stated"
    """Terms under which the model may be used."""
    intended_use: str | None = None
    """What the model is for; by default research on the organs that it was trained on."""
    citation: str = ""
    """How to cite it."""
    data: str | None = None
    """A sentence on the training data."""
    limits: tuple[str, ...] = ()
    """Sentences on what the model cannot do; they are added to those that follow from the run."""
    figures: Path | None = None
    """`metrics.json` of an evaluation; a relative path starts from the folder of the card file."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the file of `--card`.

        Raises:
            UsageError: It is missing, is not TOML, or holds names or values that do not fit.
        """
        values = read_toml(path)
        try:
            facts = cls.checked(**values)
        except UsageError as error:
            raise UsageError(f"{path}: {error.message}") from error
        return facts.model_copy(update={"figures": facts.figures and path.parent / facts.figures})


_UNKNOWN = "predict marks tissue unlike that of training as unknown and keeps its probability"
_IN_CARD = {"name": "name", "model-version": "version", "licence": "licence"}
_IN_CARD |= {"data": "data", "limit": "limits", "figures": "figures"}


class ExportConfig(Config):
    """Settings of `wsiseg export`."""

    gone: ClassVar = {
        **dict.fromkeys(("texture-penalty", "unknown-penalty"), Gone(_UNKNOWN)),
        **{option: Gone(f"put it into the --card file, as {name} = ...") for option, name in _IN_CARD.items()},
    }

    out: Path
    """Model file to write; its model card is written beside it, with the suffix `.md`."""
    run: Annotated[Path | None, ARGUMENT] = None
    """Folder of a training run, or one of its checkpoints."""
    from_torch: Path | None = None
    """Export a state dict instead of a run: a file written by `torch.save` or safetensors."""
    from_wsinfer: Path | None = None
    """Export a WSInfer model instead of a run: its folder."""
    arch: str | None = None
    """Network of `--from-torch`: a torchvision classifier, or `timm:NAME`."""
    positive_class: str | None = None
    """Name of the class whose probability the model file gives; needed if no class is called tumor."""
    tile: int | None = Field(default=None, ge=32, le=4096)
    """Side of a tile in pixels, for `--from-torch`; by default 224."""
    mpp: float | None = Field(default=None, gt=0, le=100)
    """Resolution of the tiles in micrometers per pixel, for `--from-torch`; by default 0.5."""
    precision: str = Field(default="fp32", pattern="^(fp32|fp16|int8)(,(fp32|fp16|int8))*$")
    """Number format of the network: `fp32`; `fp16` for GPUs; `int8` for CPUs. Several, such as `fp16,int8`, make OUT a
    folder with one file for each; predict uses the one that is fastest on its machine."""
    output_stride: Literal[16, 32] | None = None
    """Input pixels per cell of the dense map; by default the network's own, nearly always 32."""
    threshold: Annotated[float | None, IN_FILE] = Field(default=None, gt=0, lt=1)
    """Probability at or above which a cell is tumour; by default the threshold of the training run."""
    known_limit: Annotated[float | None, IN_FILE] = Field(default=None, gt=0)
    """Distance from the training tissue beyond which tissue is unknown; by default measured on tiles."""
    head: bool = False
    """Write only the head, for `wsiseg predict --features`. A run on stored features has nothing else."""
    map: Annotated[MapOfModel | None, IN_FILE] = None
    """Kind of map that `predict --map auto` makes with this model; by default dense if the network can."""
    calibration: Path | None = None
    """Folder of images, or cohort CSV beside tile stores, to calibrate and check the file with, instead of the run's
    tiles."""
    allow_loss: bool = False
    """Write the file even if it does not follow the network closely enough."""
    card: Annotated[CardFacts | None, Shown(metavar="FILE.toml")] = None
    """TOML file with what the run does not know of the model: name, version, licence, data, limits, figures, intended
    use, citation."""
    overwrite: bool = False
    """Replace an existing model file."""

    @field_validator("card", mode="before")
    @classmethod
    def _read_card(cls, value: Any) -> Any:  # noqa: ANN401  a path, a table of TOML, or facts
        if isinstance(value, dict):
            return CardFacts.checked(**value)
        return CardFacts.read(Path(value)) if isinstance(value, (str, Path)) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.out.name:
            raise ValueError("out is the model file, not a folder")
        if self.out.suffix.lower() == ".md":
            raise ValueError("out is the model file; its model card is written beside it, with the ending .md")
        sources = [source for source in (self.run, self.from_torch, self.from_wsinfer) if source is not None]
        if len(sources) != 1:
            raise ValueError("give one of a run, from-torch and from-wsinfer")
        if self.from_torch is not None and self.arch is None:
            raise ValueError("from-torch needs arch, the name of its network")
        if self.head and (self.run is None or self.precision != "fp32" or self.output_stride or self.map == "dense"):
            raise ValueError("head is for a run, without precision, output-stride and dense maps")
        if self.from_torch is None and (self.arch or self.tile or self.mpp):
            raise ValueError("arch, tile and mpp are for from-torch; other models say them themselves")
        return self

    @property
    def source(self) -> Path:
        """What is exported."""
        return next(path for path in (self.run, self.from_torch, self.from_wsinfer) if path is not None)
