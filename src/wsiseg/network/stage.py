"""An early stage of a network, and the mean and deviation of its channels: what tissue looks like to it.

What is foreign shows in early stages: late features say what training asked of them, and may say anything of tissue,
stain or imaging that no label ever spoke of.
"""

from typing import Self

import torch
from torch import Tensor, nn

from wsiseg.network.network import TileClassifier

STRIDE_PX = 8
"""Input pixels per position of the stage."""

_PROBE_PX = 224
_LEAST_VARIANCE = 1e-6


@torch.no_grad()
def stage_layer(classifier: TileClassifier) -> str | None:
    """Name the last stage of a network in eval mode that has a position for every 8 pixels, if there is one."""
    fitting: list[str] = []
    sides = (_PROBE_PX // STRIDE_PX,) * 2

    def note(name: str, output: object) -> None:
        if isinstance(output, Tensor) and output.shape[2:] == sides:
            fitting.append(name)

    named = [(name, module) for name, module in classifier.backbone.named_modules() if name]
    handles = [one.register_forward_hook(lambda _m, _i, output, name=name: note(name, output)) for name, one in named]
    classifier.feature_map(torch.zeros(1, 3, _PROBE_PX, _PROBE_PX, device=classifier.head.weight.device))
    for handle in handles:
        handle.remove()
    # Outer ones are whole stages.
    return min(reversed(fitting), key=lambda name: name.count("."), default=None)


class Reached(Exception):  # noqa: N818  no error: the network need not compute what comes behind
    """A stage has its output."""


class Stage:
    """The last output of a layer of a backbone; a context manager that lets go of the layer at its end.

    Where it `ends` there, `Reached` is raised behind the layer.
    """

    def __init__(self, backbone: nn.Module, layer: str, *, ends: bool = False) -> None:
        self._output: Tensor | None = None
        self._ends = ends
        self._handle = backbone.get_submodule(layer).register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self._output = output
        if self._ends:
            raise Reached

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    @property
    def map(self) -> Tensor:
        """The last output of the layer, [n, channels, rows, columns]."""
        if self._output is None:
            raise RuntimeError("the network has not been asked yet")
        return self._output


def squared(stage: Tensor) -> Tensor:
    """Return what is to be averaged, [n, 2 * channels, rows, columns], of a stage [n, channels, rows, columns]."""
    return torch.cat([stage, stage * stage], 1)


def described(averages: Tensor) -> Tensor:
    """Return means and deviations [..., 2 * channels] of averages [..., 2 * channels] of `squared`."""
    mean, squares = averages.chunk(2, -1)
    return torch.cat([mean, (torch.relu(squares - mean * mean) + _LEAST_VARIANCE).sqrt()], -1)
