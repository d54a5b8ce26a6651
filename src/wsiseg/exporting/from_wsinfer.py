"""Export models in the format of WSInfer: a folder with `config.json` and weights."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from wsiseg.exporting.onnx_graph import TileGraph
from wsiseg.exporting.origin import Origin, class_index, of_tiles
from wsiseg.model_file.model_card import first_problem
from wsiseg.network.network import TIMM, whole
from wsiseg.network.weights import read_state_dict
from wsiseg.run.errors import UsageError, WsisegError

_TORCHSCRIPT = ("torchscript_model.pt", "torchscript_model.pth")
_SAFETENSORS = "*.safetensors"
_MOST_CONFIG_BYTES = 2**20
_ONE = 2**22  # Pillow computes with whole multiples of its inverse
_ORDER = ("Resize", "ToTensor", "Normalize")
_Positive = Annotated[float, Field(gt=0)]


def _one_side(size: Any) -> Any:  # noqa: ANN401  any JSON value
    """Return the side of a square; of any other list, the list, which is refused."""
    return size[0] if isinstance(size, list) and len(set(size)) == 1 else size


class Arguments(BaseModel):
    """Arguments of Resize and of Normalize; other arguments are passed over."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    size: Annotated[int, BeforeValidator(_one_side), Field(ge=16, le=4096)] | None = None
    interpolation: Literal["bilinear", 2] = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[_Positive, _Positive, _Positive] = (1.0, 1.0, 1.0)


class Transform(BaseModel):
    """One step of what is done to a tile before the network sees it, as torchvision names it."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    name: Literal["Resize", "ToTensor", "Normalize"]
    arguments: Arguments | None = None


class WsinferConfig(BaseModel):
    """The content of `config.json`, specification 1.0; keys that are not known are passed over."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    architecture: str = "unknown"
    num_classes: int = Field(ge=1, le=1000)
    patch_size_pixels: int = Field(ge=16, le=4096)
    spacing_um_px: float = Field(gt=0, le=100)
    class_names: tuple[str, ...]
    transform: tuple[Transform, ...]

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        names = [step.name for step in self.transform]
        if names != sorted(set(names), key=_ORDER.index) or "ToTensor" not in names:
            raise ValueError(f"transforms {', '.join(names)} are not known in this order")
        if "Resize" in names and self.arguments("Resize").size is None:
            raise ValueError("Resize needs a size")
        return self

    def arguments(self, name: str) -> Arguments:
        """Return the arguments of a transform, or what they are where it is not there."""
        return next((step.arguments for step in self.transform if step.name == name and step.arguments), Arguments())


class Prepare(nn.Module):
    """What is done to a tile before the network sees it: resized as Pillow does, scaled to 0..1, normalised.

    `tile_px` and `resized_px` are sides; mean and deviation are those of red, green and blue, in 0..1.
    """

    is_resized: Final[bool]
    weights: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, tile_px: int, resized_px: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.is_resized = resized_px != tile_px
        self.register_buffer("weights", torch.from_numpy(_resampling(tile_px, resized_px)))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32)[:, None, None])

    def forward(self, image: Tensor) -> Tensor:
        """Turn uint8 [n, tile, tile, 3] into float32 [n, 3, side, side]."""
        pixels = image.permute(0, 3, 1, 2)
        if self.is_resized:
            # Pillow resizes rows, then columns, and rounds to whole numbers after each.
            wide = _rounded(pixels.double() @ self.weights)
            pixels = _rounded(self.weights.T @ wide)
        return (pixels.float() / 255 - self.mean) / self.std


def from_wsinfer(folder: Path, positive: str | None, output_stride: int | None) -> Origin:
    """Make an origin of a folder in the format of WSInfer.

    TorchScript is a program: read it only from those whom you would let run one. `positive` names the class that counts
    as tumour, where none is called tumor; an output stride must not be given, as such a model has no map.

    Raises:
        UsageError: The configuration or the weights are missing or wrong, or the class is not known.
    """
    config = _config(folder / "config.json")
    colors = config.arguments("Normalize")
    side = config.arguments("Resize").size or config.patch_size_pixels
    network, prepare = _network(folder, config).eval(), Prepare(config.patch_size_pixels, side, colors.mean, colors.std)
    names, outputs = config.class_names, _count_outputs(folder, network, prepare, config.patch_size_pixels)
    if not len(names) == config.num_classes == outputs:
        raise UsageError(
            f"{folder}: the classes are not known: the network has {outputs} outputs, num_classes is "
            f"{config.num_classes} and class_names are {', '.join(names) or 'none'}",
            "correct config.json",
        )
    index = class_index(folder, names, positive)
    facts = {
        "name": folder.resolve().name,
        "architecture": config.architecture,
        "tile_px": config.patch_size_pixels,
        "mpp": config.spacing_um_px,
        # The card needs two classes; a single one has an unnamed other.
        "classes": names if len(names) > 1 else (f"not {names[0]}", *names),
        "positive_class": names[index],
        "limits": ("Converted from a WSInfer model: see its own page for its data, figures and terms.",),
    }
    return of_tiles(TileGraph(network, prepare, config.num_classes, index), facts, output_stride)


def _config(path: Path) -> WsinferConfig:
    try:
        text = path.read_bytes()[: _MOST_CONFIG_BYTES + 1]
        return WsinferConfig.model_validate_json(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}", "name a folder of a WSInfer model") from error
    except ValidationError as error:
        raise UsageError(f"{path}: not a WSInfer configuration: {first_problem(error)}") from error


def _network(folder: Path, config: WsinferConfig) -> nn.Module:
    scripts = [folder / name for name in _TORCHSCRIPT if (folder / name).is_file()][:1]
    found = scripts or sorted(folder.glob(_SAFETENSORS))
    if len(found) != 1:
        raise UsageError(f"{folder}: holds no weights", f"needs {_TORCHSCRIPT[0]} or one {_SAFETENSORS} file")
    try:
        with warnings.catch_warnings():
            # The format is given by others; that PyTorch calls it old changes nothing.
            warnings.filterwarnings("ignore", "`torch.jit")
            return torch.jit.load(found[0], map_location="cpu") if scripts else _from_timm(found[0], config)
    except (WsisegError, RuntimeError, ValueError, OSError) as error:
        what = "TorchScript" if scripts else f"weights of {config.architecture}"
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{found[0]}: cannot be read as {what}: {reason}") from error


def _from_timm(weights: Path, config: WsinferConfig) -> nn.Module:
    network = whole(f"{TIMM}{config.architecture}", num_classes=config.num_classes)
    network.load_state_dict(read_state_dict(weights))
    return network


@torch.no_grad()
def _count_outputs(folder: Path, network: nn.Module, prepare: Prepare, tile_px: int) -> int:
    try:
        logits = network(prepare(torch.zeros(2, tile_px, tile_px, 3, dtype=torch.uint8)))
    except (RuntimeError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise UsageError(f"{folder}: the network does not take tiles of {tile_px} px: {reason}") from error
    if not isinstance(logits, Tensor) or len(logits) != 2:  # noqa: PLR2004  as many as were given
        raise UsageError(f"{folder}: the network does not give one row of logits per tile")
    return logits.reshape(2, -1).shape[1]


def _rounded(sums: Tensor) -> Tensor:
    return torch.clamp(torch.floor(sums + 0.5), 0, 255)


def _resampling(before: int, after: int) -> NDArray[np.float64]:
    """Return the weights [before, after] with which Pillow resizes a row of 8-bit pixels.

    They are whole multiples of 1 / `_ONE`, as Pillow's are: their sums are exact in float64, whatever the order.
    """
    scale = before / after
    centers, pixels = (np.arange(after) + 0.5) * scale, np.arange(before)[:, None] + 0.5
    triangle = np.maximum(1 - np.abs(pixels - centers) / max(scale, 1.0), 0)
    return np.asarray(np.floor(triangle / triangle.sum(0) * _ONE + 0.5) / _ONE)
