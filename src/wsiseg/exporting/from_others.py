"""Export plain state dicts of networks that others trained, the paper's own among them."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from wsiseg.exporting.from_wsinfer import Prepare
from wsiseg.exporting.onnx_graph import TileGraph
from wsiseg.exporting.origin import Origin, class_index, of_classifier, of_tiles
from wsiseg.network.network import IMAGENET_MEAN, IMAGENET_STD, TIMM, TileClassifier, build, whole
from wsiseg.network.weights import StateDict, read_state_dict
from wsiseg.run.errors import UsageError

PAPER_MEAN, PAPER_STD = (0.6387467, 0.51136744, 0.6061169), (0.31200314, 0.3260718, 0.30386254)
"""What the paper's own code standardises tiles with."""

_PAPER = "instance_model."
_WRAPPERS = ("module.", "_orig_mod.")
_BINARY = ("normal", "tumor")
_SAME = 1e-4  # of logits, for two orders of the same sums


def from_state_dict(
    path: Path,
    arch: str,
    positive: str | None,
    size: tuple[int, float],
    output_stride: int | None,
) -> Origin:
    """Make an origin of a plain state dict, or of a checkpoint of the paper's own code.

    Args:
        path: What `torch.save` or safetensors wrote.
        arch: The network: a torchvision classifier, or `timm:NAME`.
        positive: The class that counts as tumour: of one or two outputs the last is `tumor`, of more they are called
            `class 0` and so on.
        size: Side of a tile in pixels, and micrometers per pixel.
        output_stride: Input pixels per cell of the map; the network's own where it is not given.

    Raises:
        UsageError: The tensors do not fit the network, or the class is not known.
    """
    tensors, is_paper = _plain_names(read_state_dict(path))
    classes = _count_classes(path, tensors)
    names = _BINARY if classes <= len(_BINARY) else tuple(f"class {number}" for number in range(classes))
    index = class_index(path, names, positive)
    network = whole(arch, num_classes=classes).eval()
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"{path}: does not fit {arch}: {reason}", "check --arch") from error
    mean, std = (PAPER_MEAN, PAPER_STD) if is_paper else (IMAGENET_MEAN, IMAGENET_STD)
    facts = {
        "name": f"{arch.removeprefix(TIMM)} of {path.name}",
        "architecture": arch,
        "tile_px": size[0],
        "mpp": size[1],
        "classes": names,
        "positive_class": names[index],
        "limits": ("Nothing is known of its training; measure it on slides of your own.",),
    }
    classifier = _as_classifier(network, arch, index, (mean, std))
    if classifier is not None:
        return of_classifier(classifier, facts, output_stride)
    prepare = Prepare(size[0], size[0], mean, std)
    return of_tiles(TileGraph(network, prepare, classes, index), facts, output_stride)


def _plain_names(tensors: StateDict) -> tuple[StateDict, bool]:
    """Strip what wrappers put before names, and tell whether the paper's was among them."""
    is_paper = False
    for prefix in (*_WRAPPERS, _PAPER):
        inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if inside:
            # What stands beside the network, as the weights of a loss, is not part of it.
            tensors, is_paper = inside, is_paper or prefix == _PAPER
    return tensors, is_paper


def _count_classes(path: Path, tensors: StateDict) -> int:
    """Count the rows of the last layer."""
    matrices = [value for value in tensors.values() if value.dim() == 2]  # noqa: PLR2004  linear layers
    if not matrices:
        raise UsageError(f"{path}: holds no classifier: no linear layer", "export needs a whole trained classifier")
    return len(matrices[-1])


@torch.no_grad()
def _as_classifier(
    network: nn.Module, arch: str, index: int, standard: tuple[tuple[float, ...], tuple[float, ...]]
) -> TileClassifier | None:
    """Return the same network with a linear head over its map, or None if its head is anything else."""
    heads = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    classifier = build(arch, "none").eval()
    if not heads or heads[-1].in_features != classifier.head.in_features or heads[-1].out_features > len(_BINARY):
        return None
    own = network.state_dict()
    classifier.backbone.load_state_dict({key: own[key] for key in classifier.backbone.state_dict()})
    head, other = heads[-1], 1 - index
    weight, bias = (
        head.weight[[-1 if head.out_features == 1 else index]],
        head.bias[[0 if len(head.bias) == 1 else index]],
    )
    if head.out_features == len(_BINARY):
        # The softmax of two classes is the sigmoid of the difference of their logits.
        weight, bias = weight - head.weight[[other]], bias - head.bias[[other]]
    classifier.head.load_state_dict({"weight": weight, "bias": bias})
    classifier.mean.copy_(torch.tensor(standard[0]))
    classifier.std.copy_(torch.tensor(standard[1]))
    return classifier if _agree(classifier, _logit(network, index)) else None


def _logit(network: nn.Module, index: int) -> Callable[[Tensor], Tensor]:
    def logit(images: Tensor) -> Tensor:
        logits: Tensor = network(images)
        return logits[:, 0] if logits.shape[1] == 1 else logits[:, index] - logits[:, 1 - index]

    return logit


def _agree(classifier: TileClassifier, expected: Callable[[Tensor], Tensor]) -> bool:
    """Check that a classifier gives the logits of the network that it was made of."""
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, wanted = classifier(images), expected(classifier.normalised(images))
    return bool(torch.allclose(found, wanted, rtol=_SAME, atol=_SAME))
