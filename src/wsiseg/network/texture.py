"""The texture of tiles as a network sees it: mean and deviation of the output of one of its middle stages.

The last features tell tumour from normal tissue of the kinds that training showed. Of other kinds they may say
anything: a network that was never shown muscle has no reason to call it normal. Middle stages describe texture more
plainly, and whether that is the texture of the tumour of training can be asked of any tissue.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.network.network import TileClassifier

STRIDE_PX = 16
"""Input pixels per cell of the stage."""

_PROBE_PX = 224
_LEAST_VARIANCE = 1e-6
_GLASS, _MOST_GLASS, _LEAST_WEIGHT = 220, 0.5, 1e-4  # of red, green and blue the least; of a cell; so none divides by 0


@torch.no_grad()
def texture_layer(classifier: TileClassifier) -> str | None:
    """Name the first stage of a network that has a cell for every 16 pixels; None where there is no such stage.

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
    """The last output of a layer of a network; a context manager that lets go of the layer at its end.

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
        """The last output of the layer, [n, channels, rows, columns]."""
        if self._given is None:
            raise RuntimeError("the network has not been asked yet")
        return self._given


def tissue_weights(images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Tell tissue from glass: a tile at the edge of tissue has the texture of what tissue is in it.

    Args:
        images: uint8 [n, height, width, 3].
        size: Rows and columns of the stage; those of whole cells of 16 pixels where it is not given.

    Returns:
        float32 [n, 1, rows, columns], the weights of the cells: 1, and next to nothing where most of a cell is glass.
    """
    glass = (images.permute(0, 3, 1, 2).float().amin(1, keepdim=True) >= _GLASS).float()
    share = functional.avg_pool2d(glass, STRIDE_PX) if size is None else functional.adaptive_avg_pool2d(glass, size)
    return (share <= _MOST_GLASS).float() + _LEAST_WEIGHT


def weighted(stage: Tensor, weights: Tensor) -> Tensor:
    """Return what is to be averaged, [n, 2 * channels + 1, rows, columns], of a map [n, channels, rows, columns]."""
    heavy = stage * weights
    return torch.cat([heavy, stage * heavy, weights], 1)


def described(averages: Tensor) -> Tensor:
    """Return means and deviations [..., 2 * channels] of averages [..., 2 * channels + 1] of `weighted`."""
    mean, squares = (averages[..., :-1] / averages[..., -1:]).chunk(2, -1)
    return torch.cat([mean, (torch.relu(squares - mean * mean) + _LEAST_VARIANCE).sqrt()], -1)


def textures(stage: Tensor, weights: Tensor) -> Tensor:
    """Return the textures [n, 2 * channels] of whole maps [n, channels, rows, columns] with weights of their cells."""
    return described(weighted(stage, weights).mean((2, 3)))
