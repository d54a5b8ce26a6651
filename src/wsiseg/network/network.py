"""The tile classifier and its dense head: build it, or load that of a checkpoint.

A backbone turns tiles into a map of features; one linear layer gives a logit. Applied to the average of the map it is
the tile's logit, applied at every position it is the dense map, and the average of that map is the tile's logit again.
Of a transformer the patch tokens are the map; class and register tokens are left out, whatever its own pooling is.
"""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from wsiseg.config.train import FEATURES
from wsiseg.network.checkpoint import SCHEMA, Checkpoint
from wsiseg.network.tokens import TokenMap, of_tokens
from wsiseg.network.weights import (
    CONFIG,
    HUB,
    OFFLINE,
    Note,
    downloaded,
    from_hub,
    hub_file,
    is_offline,
    packaged,
    put,
    read_state_dict,
    read_torch,
)
from wsiseg.run.errors import DownloadError, UsageError, WsisegError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TIMM = "timm:"
LICENCE, ENCODER = "weights_licence", "encoder"
"""What `Checkpoint.trained_on` calls the terms of the weights that training began with, and who made features."""

# What a torchvision classifier does after its last feature map.
_AFTER_FEATURES = ("avgpool", "dropout", "flatten", "fc", "classifier", "head", "heads", "AuxLogits", "aux1", "aux2")
_PROBE_PX = 224
# These two warn unless they are told how to begin.
_QUIET = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}


class TileClassifier(nn.Module):
    """A logit a class for tiles, and for every position of their feature map.

    The backbone makes features [n, channels, rows, columns] of images [n, 3, height, width], which are standardised by
    the mean and deviation of red, green and blue, in 0..1.
    """

    mean: Tensor
    std: Tensor
    licence = ""
    """Terms of the weights that the backbone began with, as far as they are known."""
    encoder = ""
    """Of a head alone, what made the stored features, as far as they say it."""

    def __init__(
        self, backbone: nn.Module, channels: int, mean: Sequence[float], std: Sequence[float], classes: int = 1
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(channels, classes)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))

    @property
    def window_px(self) -> int | None:
        """Side of the only images that it takes; None where it takes any."""
        return self.backbone.tile_px if isinstance(self.backbone, TokenMap) else None

    def normalised(self, images: Tensor) -> Tensor:
        """Turn uint8 [n, height, width, 3] into float32 [n, 3, height, width] of mean 0 and deviation 1."""
        # As a view: the values stay channels-last in memory, which convolutions are fastest with.
        scaled = (images.to(torch.float32) / 255.0 - self.mean) / self.std
        return scaled.permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits [n, classes] of uint8 images [n, height, width, 3]."""
        logits: Tensor = self.head(self.backbone(self.normalised(images)).mean((2, 3)))
        return logits

    def logit_map(self, images: Tensor) -> Tensor:
        """Return the logits [n, classes, rows, columns] at every position of the feature map.

        Their mean is the tile's logit.
        """
        features = self.backbone(self.normalised(images))
        logits: Tensor = self.head(features.permute(0, 2, 3, 1))
        return logits.permute(0, 3, 1, 2)


def load_classifier(checkpoint: Checkpoint) -> TileClassifier:
    """Build the network of a checkpoint, ready to predict; a WsisegError says that its tensors do not fit it."""
    classes = tuple(one.name for one in checkpoint.classes)
    classifier = build(checkpoint.arch, "none", tile_px=checkpoint.tile_px, classes=classes)
    classifier.licence, classifier.encoder = (checkpoint.trained_on.get(name, "") for name in (LICENCE, ENCODER))
    try:
        classifier.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise WsisegError(f"checkpoint: its tensors do not fit {checkpoint.arch}: {error}") from error
    return classifier.eval()


def build(
    arch: str,
    init: str,
    note: Note = lambda _: None,
    *,
    tile_px: int = _PROBE_PX,
    classes: Sequence[str] = ("tumor",),
) -> TileClassifier:
    """Make a tile classifier of torchvision, or `timm:NAME`.

    `init` is `imagenet` or, of a network of a hub, `hub`, the weights that it comes with; `none`; or a file: a state
    dict, or a checkpoint of wsiseg, which is used whole, but for the head of other `classes`. `note` is told about
    tensors of the file that do not fit. A transformer takes nothing but tiles of side `tile_px`. Of `features:N`, a
    head on so many stored features, there is nothing but the head.

    Raises:
        UsageError: There is no such classifier or file, it has no feature map, or the file or the tiles do not fit it.
        DownloadError: The ImageNet weights are not here and cannot be downloaded.
        WsisegError: The file cannot be read.
    """
    if arch.startswith(FEATURES):
        channels = int(arch.removeprefix(FEATURES))
        return TileClassifier(nn.Identity(), channels, IMAGENET_MEAN, IMAGENET_STD, len(classes))
    if init == "hub":
        if not arch.startswith(f"{TIMM}{HUB}"):
            advice = f"name one as {TIMM}{HUB}OWNER/MODEL, or give --init imagenet, none or a file"
            raise UsageError(f"{arch}: is not a network of a hub, which --init hub needs", advice)
        init = "imagenet"
    if init not in ("imagenet", "none") and not Path(init).is_file():
        raise UsageError(f"{init}: no such file of weights", "give --init imagenet, hub, none, or a file")
    checkpoint = _starting_checkpoint(init)
    if checkpoint is not None:
        if checkpoint.arch != arch:
            raise UsageError(f"{init}: is a checkpoint of {checkpoint.arch}, not of {arch}", "check --arch")
        classifier = load_classifier(checkpoint).train()
        if tuple(one.name for one in checkpoint.classes) != tuple(classes):
            note(f"{init}: its head has other classes and starts from random weights")
            classifier.head = nn.Linear(classifier.head.in_features, len(classes))
        return classifier
    make = _from_timm if arch.startswith(TIMM) else _from_torchvision
    trunk, mean, std, licence = make(arch.removeprefix(TIMM), init, note)
    if hasattr(trunk, "patch_embed") and hasattr(trunk, "set_input_size"):
        trunk = of_tokens(trunk, arch, tile_px, note)
    classifier = TileClassifier(trunk, _channels(trunk, arch, tile_px), mean, std, len(classes))
    classifier.licence = licence
    return classifier


def _starting_checkpoint(init: str) -> Checkpoint | None:
    """Return the checkpoint that training is to start from, where it is one and not just tensors."""
    if init in ("imagenet", "none") or init.endswith(".safetensors"):
        return None
    content = read_torch(Path(init))
    return Checkpoint.load(Path(init)) if isinstance(content, dict) and content.get("schema") == SCHEMA else None


def whole(arch: str, **settings: Any) -> nn.Module:  # noqa: ANN401  whatever the family takes
    """Make a classifier of torchvision, or `timm:NAME`, with a head of its own.

    Raises:
        UsageError: There is no such classifier.
    """
    name = arch.removeprefix(TIMM)
    network: nn.Module
    if name != arch:
        import timm  # noqa: PLC0415  heavy: only where this family is built

        if name.startswith(HUB):
            name = f"local-dir:{hub_file(name, CONFIG).parent}"
        elif not timm.is_model(name):
            raise UsageError(f"{arch}: no such classifier", f"see timm.list_models(), or name a {TIMM}{HUB}OWNER/MODEL")
        try:
            network = timm.create_model(name, **settings)
        except (RuntimeError, TypeError, KeyError, ValueError) as error:
            if settings.get("pretrained"):
                raise
            raise UsageError(f"{arch}: timm cannot make it: {error}", "use stored features of it") from error
    else:
        from torchvision import models  # noqa: PLC0415  heavy: only where this family is built

        if name not in models.list_models(module=models):
            raise UsageError(f"{name}: no such classifier", "name one of torchvision.models, or timm:NAME")
        network = models.get_model(name, weights=None, **_QUIET.get(name, {}), **settings)
    return network


_Trunk = tuple[nn.Module, Sequence[float], Sequence[float], str]


def _from_torchvision(name: str, init: str, note: Note) -> _Trunk:
    from torchvision import models  # noqa: PLC0415  heavy: only where this family is built

    network = whole(name)
    if init == "imagenet":
        weights = next(iter(models.get_model_weights(name)))  # the oldest, which is IMAGENET1K_V1 but for few
        path = downloaded(weights.url, Path(torch.hub.get_dir()) / "checkpoints")
        put(read_state_dict(path), network, str(path), note)
    elif init != "none":
        put(read_state_dict(Path(init)), network, init, note)
    children = OrderedDict((key, child) for key, child in network.named_children() if key not in _AFTER_FEATURES)
    if name.startswith("densenet"):
        children["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(children), IMAGENET_MEAN, IMAGENET_STD, ""


def _from_timm(name: str, init: str, note: Note) -> _Trunk:
    network: Any = whole(f"{TIMM}{name}")
    known = network.pretrained_cfg
    file, licence = _own_weights(name, known.get("license")) if init == "imagenet" else (Path(init), "")
    if file is None:
        network = _pretrained(name)
    elif init != "none":
        put(read_state_dict(file), network, str(file), note)
    network.reset_classifier(0, "")
    return network, tuple(known["mean"]), tuple(known["std"]), licence


def _own_weights(name: str, licence: str | None) -> tuple[Path | None, str]:
    """Return the file of the weights that a network comes with, None where timm gets them, and their licence."""
    file, stated = from_hub(name) if name.startswith(HUB) else (packaged(name), "")
    return file, stated or licence or ""


def _pretrained(name: str) -> nn.Module:
    advice = f"give a file of its weights with --init FILE; https://huggingface.co/timm/{name} has them"
    if is_offline():
        raise DownloadError(f"{TIMM}{name}: {OFFLINE} forbids the download of its weights", advice)
    try:
        return whole(f"{TIMM}{name}", pretrained=True)
    except (OSError, RuntimeError) as error:
        raise DownloadError(f"{TIMM}{name}: its weights cannot be downloaded: {error}", advice) from error


@torch.no_grad()
def _channels(trunk: nn.Module, arch: str, tile_px: int) -> int:
    """Count the features of a trunk, and thereby check that it has a map of them."""
    side = tile_px if isinstance(trunk, TokenMap) else _PROBE_PX
    try:
        probe = trunk.eval()(torch.zeros(1, 3, side, side))
    except (RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
        raise UsageError(f"{arch}: has no feature map of its tiles", "choose a ResNet or the like") from error
    trunk.train()
    if not isinstance(probe, Tensor) or probe.dim() != 4 or probe.shape[2] != probe.shape[3]:  # noqa: PLR2004  n, c, h, w
        raise UsageError(f"{arch}: gives no map of features", "choose a ResNet or the like")
    return probe.shape[1]
