"""An early stage of a network, and the mean and deviation of its channels: what tissue looks like to it.

What is foreign shows in early stages: late features say what training asked of them, and may say anything of tissue,
stain or imaging that no label ever spoke of.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from wsiseg.network.network import TileClassifier

STRIDE_PX = 8
"""Input pixels per position of the stage."""

_PROBE_PX = 224
_LEAST_VARIANCE = 1e-6


@torch.no_grad()
def probed(classifier: TileClassifier) -> dict[nn.Module, tuple[torch.Size, torch.Size]]:
    """Return the shapes that the layers of a network in eval mode read and give for a tile, as they come.

    The tile has 224 pixels where the network takes any. What is not a single tensor has the empty shape.
    """
    shapes: dict[nn.Module, tuple[torch.Size, torch.Size]] = {}

    def note(layer: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        read, given = (one.shape if isinstance(one, Tensor) else torch.Size() for one in ((*inputs, None)[0], output))
        shapes[layer] = read, given

    hooks = [layer.register_forward_hook(note) for layer in classifier.backbone.modules()]
    side = classifier.window_px or _PROBE_PX
    classifier.backbone(torch.zeros(1, 3, side, side, device=classifier.head.weight.device))
    for hook in hooks:
        hook.remove()
    return shapes


def stage_layer(classifier: TileClassifier) -> str | None:
    """Name the last stage of a network in eval mode that has a position for every 8 pixels, if there is one.

    Transformers have none: they take no crops around tiles, which the tissue of training is measured on.
    """
    if classifier.window_px is not None:
        return None
    names = {layer: name for name, layer in classifier.backbone.named_modules()}
    sides = (_PROBE_PX // STRIDE_PX,) * 2
    fitting = [names[layer] for layer, (_, given) in probed(classifier).items() if names[layer] and given[2:] == sides]
    # Outer ones are whole stages.
    return min(reversed(fitting), key=lambda name: name.count("."), default=None)


class Reached(Exception):  # noqa: N818  no error: the network need not compute what comes behind
    """A stage has its output."""


class Stage(AbstractContextManager["Stage"]):
    """The last output of a layer of a backbone; a context manager that lets go of the layer at its end.

    Where it `ends` there, `Reached` is raised behind the layer.

    Attributes:
        map: The output, [n, channels, rows, columns], once the network was asked.
    """

    map: Tensor

    def __init__(self, backbone: nn.Module, layer: str, *, ends: bool = False) -> None:
        self._ends = ends
        self._handle = backbone.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.map = output
        if self._ends:
            raise Reached

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def squared(stage: Tensor) -> Tensor:
    """Return what is to be averaged, [n, 2 * channels, rows, columns], of a stage [n, channels, rows, columns]."""
    return torch.cat([stage, stage * stage], 1)


def summary(stage: Tensor) -> Tensor:
    """Return means and deviations [n, 2 * channels] of the channels of a stage [n, channels, rows, columns]."""
    # As of `squared`, which need not be laid side by side for it: that would take four times as long.
    return described(torch.cat([stage.mean((2, 3)), (stage * stage).mean((2, 3))], 1))


def described(averages: Tensor) -> Tensor:
    """Return means and deviations [..., 2 * channels] of averages [..., 2 * channels] of `squared`."""
    mean, squares = averages.chunk(2, -1)
    return torch.cat([mean, (torch.relu(squares - mean * mean) + _LEAST_VARIANCE).sqrt()], -1)
