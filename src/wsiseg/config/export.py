"""The settings of `wsiseg export`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config

Precision = Literal["fp32", "fp16", "int8"]
MapOfModel = Literal["dense", "tile"]


class ExportConfig(Config):
    """Settings of `wsiseg export`."""

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
    precision: Precision = "fp32"
    """Numbers that it computes with: `fp32`, `fp16` for GPUs, `int8` for CPUs."""
    output_stride: Literal[16, 32] | None = None
    """Input pixels per cell of the dense map; the network's own, nearly always 32, where it is not given."""
    unknown_penalty: float = Field(default=0.0, ge=0, le=100)
    """Logits that tiles lose for being unlike the training tiles; 0 leaves them."""
    texture_penalty: Annotated[float, IN_FILE] = Field(default=0.0, ge=0, le=100)
    """Logits that tiles lose for textures unlike those of the tumour of training; 0 leaves them."""
    threshold: Annotated[float | None, IN_FILE] = Field(default=None, gt=0, lt=1)
    """Probability from which a cell is tumour; that of the training where it is not given."""
    map: MapOfModel = "tile"
    """The kind of map that predict makes with this model unless it is told otherwise."""
    calibration: Path | None = None
    """Folder of images, or cohort CSV beside tile stores, to calibrate and compare with in place of the run's tiles."""
    allow_loss: bool = False
    """Write the file even if it does not follow the network closely enough."""
    name: str | None = Field(default=None, min_length=1, max_length=200)
    """Name of the model; made from the network's name where it is not given."""
    model_version: str = Field(default="1", min_length=1, max_length=200)
    """Version of the model."""
    licence: str = "not stated"
    """Terms under which the model may be used."""
    data: str | None = None
    """A sentence on the data that it was trained on."""
    limit: tuple[str, ...] = ()
    """Sentences on what the model cannot do, for the model card, after those that follow from the run."""
    figures: Path | None = None
    """`metrics.json` of an evaluation, for the model card."""
    overwrite: bool = False
    """Replace a file that is there."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.out.suffix.lower() == ".md":
            raise ValueError("out is the model file; its model card is written beside it, with the ending .md")
        sources = [source for source in (self.run, self.from_torch, self.from_wsinfer) if source is not None]
        if len(sources) != 1:
            raise ValueError("give one of a run, from-torch and from-wsinfer")
        for name in ("unknown-penalty", "texture-penalty"):
            if getattr(self, name.replace("-", "_")) and self.run is None:
                raise ValueError(f"{name} is for runs of wsiseg, which measured the tiles that they know")
        if self.from_torch is not None and self.arch is None:
            raise ValueError("from-torch needs arch, the name of its network")
        if self.from_torch is None and (self.arch or self.tile or self.mpp):
            raise ValueError("arch, tile and mpp are for from-torch; other models say them themselves")
        return self

    @property
    def source(self) -> Path:
        """What is exported."""
        return next(path for path in (self.run, self.from_torch, self.from_wsinfer) if path is not None)
