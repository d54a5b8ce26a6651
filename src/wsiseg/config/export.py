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
    """Name of the model; made from the network's name where it is not given."""
    version: str = Field(default="1", min_length=1, max_length=200)
    """Version of the model."""
    licence: str = "not stated"
    """Terms under which the model may be used."""
    intended_use: str | None = None
    """What it is for; of a run, research on the organs that it was trained on where it is not given."""
    citation: str = ""
    """How to cite it."""
    data: str | None = None
    """A sentence on the data that it was trained on."""
    limits: tuple[str, ...] = ()
    """Sentences on what the model cannot do, after those that follow from the run."""
    figures: Path | None = None
    """`metrics.json` of an evaluation; a relative path starts from the folder of the card's file."""

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


_UNKNOWN = "tissue unlike that of training is told by predict as unknown, its probability stays"
_IN_CARD = {"name": "name", "model-version": "version", "licence": "licence"}
_IN_CARD |= {"data": "data", "limit": "limits", "figures": "figures"}


class ExportConfig(Config):
    """Settings of `wsiseg export`."""

    gone: ClassVar = {
        **dict.fromkeys(("texture-penalty", "unknown-penalty"), Gone(_UNKNOWN)),
        **{option: Gone(f"put it into the file of --card, as {name} = ...") for option, name in _IN_CARD.items()},
    }

    out: Path
    """The model file to write; its model card is written beside it, with the ending `.md`."""
    run: Annotated[Path | None, ARGUMENT] = None
    """Folder of a training run, or one of its checkpoints."""
    from_torch: Path | None = None
    """In place of `run`: a state dict, as `torch.save` or safetensors write it."""
    from_wsinfer: Path | None = None
    """In place of `run`: folder of a WSInfer model."""
    arch: str | None = None
    """The network of `from_torch`: a torchvision classifier, or `timm:NAME`."""
    positive_class: str | None = None
    """Name of the class whose probability is given, where there are more than two."""
    tile: int | None = Field(default=None, ge=32, le=4096)
    """Side of a tile in pixels; for `from_torch`, 224 where it is not given."""
    mpp: float | None = Field(default=None, gt=0, le=100)
    """Micrometers per pixel; for `from_torch`, 0.5 where it is not given."""
    precision: str = Field(default="fp32", pattern="^(fp32|fp16|int8)(,(fp32|fp16|int8))*$")
    """Numbers that it computes with: `fp32`, `fp16` for GPUs, `int8` for CPUs. Several, as `fp16,int8`, make OUT a
    folder with a file for each, of which predict takes the one that is fastest on its machine."""
    output_stride: Literal[16, 32] | None = None
    """Input pixels per cell of the dense map; the network's own, nearly always 32, where it is not given."""
    threshold: Annotated[float | None, IN_FILE] = Field(default=None, gt=0, lt=1)
    """Probability from which a cell is tumour; that of the training where it is not given."""
    known_limit: Annotated[float | None, IN_FILE] = Field(default=None, gt=0)
    """Distance from the tissue of training beyond which tissue is unknown; measured on tiles where it is not given."""
    head: bool = False
    """Write the head alone, for `wsiseg predict --features`; a run on stored features has nothing else."""
    map: Annotated[MapOfModel | None, IN_FILE] = None
    """The kind of map that predict makes with this model unless it is told otherwise; dense where the model can."""
    calibration: Path | None = None
    """Folder of images, or cohort CSV beside tile stores, to calibrate and compare with in place of the run's tiles."""
    allow_loss: bool = False
    """Write the file even if it does not follow the network closely enough."""
    card: Annotated[CardFacts | None, Shown(metavar="FILE.toml")] = None
    """TOML file of what a person says of the model: name, version, licence, data, limits, figures, intended use."""
    overwrite: bool = False
    """Replace a file that is there."""

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
