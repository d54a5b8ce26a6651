"""Export plain state dicts of networks that others trained, the paper's own among them."""

from pathlib import Path

import torch
from torch import nn

from wsiseg.exporting.from_wsinfer import Prepare
from wsiseg.exporting.onnx_graph import TileGraph
from wsiseg.exporting.origin import Origin, class_index, of_classifier, of_tiles
from wsiseg.network.network import IMAGENET_MEAN, IMAGENET_STD, TIMM, TileClassifier, build, whole
from wsiseg.network.weights import StateDict, read_state_dict
from wsiseg.run.errors import UsageError

PAPER_MEAN, PAPER_STD = (0.6387467, 0.51136744, 0.6061169), (0.31200314, 0.3260718, 0.30386254)
"""What the paper's own code standardises tiles with."""

Color = tuple[float, ...]
_PAPER = "instance_model."
_WRAPPERS = ("module.", "_orig_mod.")
_BINARY = ("normal", "tumor")
_SAME = 1e-4  # of logits, for two orders of the same sums


def from_state_dict(
    path: Path, arch: str, positive: str | None, size: tuple[int, float], output_stride: int | None
) -> Origin:
    """Make an origin of a plain state dict, or of a checkpoint of the paper's own code.

    `positive` names the class that counts as tumour: of one or two outputs the last is `tumor`, of more they are called
    `class 0` and so on. `size` is the side of a tile in pixels, and micrometers per pixel.

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
    classifier = _as_classifier(network, arch, size[0], index, mean, std)
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
    network: nn.Module, arch: str, tile_px: int, index: int, mean: Color, std: Color
) -> TileClassifier | None:
    """Return the same network with a linear head over its map, or None if its head is anything else."""
    head = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    classifier = build(arch, "none", tile_px=tile_px).eval()
    if (
        classifier.window_px is not None
        or head.in_features != classifier.head.in_features
        or head.out_features > len(_BINARY)
    ):
        return None
    own = network.state_dict()
    classifier.backbone.load_state_dict({key: own[key] for key in classifier.backbone.state_dict()})
    # The softmax of two classes is the sigmoid of the difference of their logits.
    signs = torch.tensor([1.0] if head.out_features == 1 else [1.0 if place == index else -1.0 for place in (0, 1)])
    classifier.head.load_state_dict({"weight": (signs @ head.weight)[None], "bias": (signs @ head.bias)[None]})
    classifier.mean.copy_(torch.tensor(mean))
    classifier.std.copy_(torch.tensor(std))
    images = torch.randint(0, 256, (2, 224, 224, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    found, wanted = classifier(images)[:, 0], network(classifier.normalised(images)) @ signs
    return classifier if torch.allclose(found, wanted, rtol=_SAME, atol=_SAME) else None
