"""Change a backbone for export: fixed padding in place of computed padding, and a finer output stride.

An output stride of 16 is had without training anew: where the map is halved for the last time it is not, and every
layer behind that looks twice as far apart (Chen et al., arXiv:1412.7062). At every second position the map is then
what it was before; networks that weigh channels by global averages differ a little.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.network.network import TileClassifier
from wsiseg.network.stage import probed
from wsiseg.run.errors import UsageError

_PROBE_PX = 224


class PaddedConvolution(nn.Module):
    """A convolution behind zero padding that is known beforehand, which may differ on opposite sides."""

    def __init__(self, layer: nn.Conv2d, before: Sequence[int], after: Sequence[int]) -> None:
        super().__init__()
        self.weight, self.bias, self.groups = layer.weight, layer.bias, layer.groups
        self.before, self.after = before, after
        self.stride, self.dilation = layer.stride, layer.dilation

    def forward(self, image: Tensor) -> Tensor:
        """Pad [n, c, h, w] and convolve it."""
        padding = self.before[1], self.after[1], self.before[0], self.after[0]
        # The value is named, as ONNX Runtime makes padding a part of the convolution only where it is.
        padded = functional.pad(image, padding, value=0.0)
        return functional.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class EdgePooling(nn.Module):
    """A pooling of stride 1 that repeats the last row and column, so that the size stays."""

    def __init__(self, pooling: nn.AvgPool2d | nn.MaxPool2d) -> None:
        super().__init__()
        self.is_average = isinstance(pooling, nn.AvgPool2d)
        self.side = pooling.kernel_size if isinstance(pooling.kernel_size, int) else pooling.kernel_size[0]

    def forward(self, image: Tensor) -> Tensor:
        """Pool [n, c, h, w] to the same size."""
        padded = functional.pad(image, (0, self.side - 1) * 2, mode="replicate")
        pool = functional.avg_pool2d if self.is_average else functional.max_pool2d
        return pool(padded, self.side, 1)


def exportable(classifier: TileClassifier, output_stride: int) -> TileClassifier:
    """Copy a classifier in eval mode with fixed padding, right for images whose sides are multiples of 32 pixels.

    Its feature map has a cell for every `output_stride` input pixels.

    Raises:
        UsageError: The network has another output stride and cannot be given this one.
    """
    copied = copy.deepcopy(classifier)
    _fix_padding(copied.backbone)
    found = native_stride(copied)
    if found == 2 * output_stride:
        _dilate(copied)
        found = native_stride(copied)
    if found != output_stride:
        shown = "none" if found is None else f"{found:g}"
        raise UsageError(
            f"this network cannot give an output stride of {output_stride}; its own is {shown}",
            "leave out --output-stride" if found is not None else "choose another network",
        )
    return copied


@torch.no_grad()
def native_stride(classifier: TileClassifier) -> int | None:
    """Return the input pixels per cell of a network's map, or None if that is not one whole number for all sizes."""
    strides, window = set(), classifier.window_px
    for side in (_PROBE_PX, 2 * _PROBE_PX) if window is None else (window,):
        rows: int = classifier.backbone(torch.zeros(1, 3, side, side)).shape[2]
        strides.add(side // rows if side % rows == 0 else None)
    return strides.pop() if len(strides) == 1 else None


def _fix_padding(network: nn.Module) -> None:
    """Replace convolutions that compute their padding from the image by ones that know it."""
    for parent, name, layer in _layers(network):
        if isinstance(layer, nn.Conv2d) and type(layer) is not nn.Conv2d:
            setattr(parent, name, _padded(layer))


def _padded(layer: nn.Module) -> PaddedConvolution:
    """Return a convolution with padding that is known, right for sides that are multiples of its stride.

    For these, `same` padding of TensorFlow is max(reach - stride, 0) in all, the smaller half of it in front.
    """
    if isinstance(layer, PaddedConvolution):
        return layer
    if type(layer) is nn.Conv2d and not isinstance(layer.padding, str):
        return PaddedConvolution(layer, layer.padding, layer.padding)
    if not isinstance(layer, nn.Conv2d) or type(layer).__name__ != "Conv2dSame":
        raise UsageError(f"layers of type {type(layer).__name__} cannot be exported", "choose another network")
    reach = [(kernel - 1) * gap + 1 for kernel, gap in zip(layer.kernel_size, layer.dilation, strict=True)]
    total = [max(size - stride, 0) for size, stride in zip(reach, layer.stride, strict=True)]
    before = [size // 2 for size in total]
    return PaddedConvolution(layer, before, [size - first for size, first in zip(total, before, strict=True)])


def _layers(network: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """List all layers with their parents and names, before any is replaced."""
    return [(parent, name, layer) for parent in network.modules() for name, layer in parent.named_children()]


def _dilate(classifier: TileClassifier) -> None:
    """Keep the last halving of the map from happening and look twice as far apart behind it."""
    sizes = _sizes(classifier)
    last = min(before for before, after in sizes.values() if after < before)
    smallest = min(after for _, after in sizes.values())
    for parent, name, layer in _layers(classifier.backbone):
        before, after = sizes.get(layer, (0, 0))
        if before == smallest or (before == last and after == smallest):
            setattr(parent, name, _unstrided(layer) if before == last else _wider(layer))


def _sizes(classifier: TileClassifier) -> dict[nn.Module, tuple[int, int]]:
    """Return the rows before and behind every layer that may change them."""
    kinds = (nn.Conv2d, PaddedConvolution, nn.AvgPool2d, nn.MaxPool2d)
    shapes = {layer: both for layer, both in probed(classifier).items() if isinstance(layer, kinds)}
    return {layer: (read[2], given[2]) for layer, (read, given) in shapes.items() if min(read[2], given[2]) > 1}


def _unstrided(layer: nn.Module) -> nn.Module:
    """Return a layer of stride 1 that computes the same at every second position."""
    if isinstance(layer, (nn.Conv2d, PaddedConvolution)):
        padded = _padded(layer)
        padded.stride = (1, 1)
        padded.after = [kernel - 1 - pad for kernel, pad in zip(padded.weight.shape[2:], padded.before, strict=True)]
        return padded
    if isinstance(layer, (nn.AvgPool2d, nn.MaxPool2d)) and layer.padding in {0, (0, 0)}:
        return EdgePooling(layer)
    raise UsageError(f"a network that ends in {type(layer).__name__} cannot be given a finer output stride")


def _wider(layer: nn.Module) -> nn.Module:
    """Return a layer that looks twice as far apart."""
    if not isinstance(layer, (nn.Conv2d, PaddedConvolution)):
        raise UsageError("a network that pools behind its last halving cannot be given a finer output stride")
    padded = _padded(layer)
    padded.before, padded.after = ([2 * size for size in sizes] for sizes in (padded.before, padded.after))
    padded.dilation = (2 * padded.dilation[0], 2 * padded.dilation[1])
    return padded
