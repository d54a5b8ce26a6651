"""The texture of tiles as a network sees it: mean and deviation of what one of its middle stages gives.

The last features tell tumour from normal tissue of the kinds that training showed. Of other kinds they may say
anything: a network that was never shown muscle has no reason to call it normal. Middle stages describe texture more
plainly, and whether that is the texture of the tumour of training can be asked of any tissue.
"""

from typing import Self

import torch
from torch import Tensor, nn

from wsiseg.network import TileClassifier

STRIDE_PX = 16
"""Input pixels per cell of the stage."""

_PROBE_PX = 224
_LEAST_VARIANCE = 1e-6


@torch.no_grad()
def texture_layer(classifier: TileClassifier) -> str | None:
    """Name the first stage of a network that gives a cell for every 16 pixels; None where there is no such stage.

    Args:
        classifier: In eval mode.
    """
    given: dict[str, tuple[int, ...]] = {}

    def noted(name: str) -> "torch.utils.hooks.RemovableHandle":
        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            given.setdefault(name, tuple(output.shape))

        return classifier.backbone.get_submodule(name).register_forward_hook(note)

    stages = [name for name, module in classifier.backbone.named_modules() if name and type(module) is nn.Sequential]
    handles = [noted(name) for name in stages]
    try:
        classifier.feature_map(torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=classifier.head.weight.device))
    finally:
        for handle in handles:
            handle.remove()
    side = _PROBE_PX // STRIDE_PX
    fitting = [name for name, shape in given.items() if shape[2:] == (side, side)]
    return min(fitting, key=lambda name: name.count("."), default=None)


class Stage:
    """Keeps what a layer of a network gave last. A context that lets go of the layer in the end.

    Args:
        backbone: Of a `TileClassifier`.
        layer: From `texture_layer`.
    """

    def __init__(self, backbone: nn.Module, layer: str) -> None:
        self._given: Tensor | None = None
        self._handle = backbone.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._given = output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    @property
    def map(self) -> Tensor:
        """What the layer gave last, [n, channels, rows, columns]."""
        if self._given is None:
            raise RuntimeError("the network has not been asked yet")
        return self._given


def with_squares(stage: Tensor) -> Tensor:
    """Give a map [n, channels, rows, columns] and its squares, [n, 2 * channels, rows, columns], to be averaged."""
    return torch.cat([stage, stage * stage], 1)


def described(averages: Tensor) -> Tensor:
    """Give means and deviations [..., 2 * channels] of averages [..., 2 * channels] of `with_squares`."""
    mean, squares = averages.chunk(2, -1)
    return torch.cat([mean, (torch.relu(squares - mean * mean) + _LEAST_VARIANCE).sqrt()], -1)


def textures(stage: Tensor) -> Tensor:
    """Give the textures [n, 2 * channels] of whole maps [n, channels, rows, columns]."""
    return described(with_squares(stage).mean((2, 3)))
