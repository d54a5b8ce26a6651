"""Ways to look at a tile classifier: densely, at a part of a larger crop, from several sides."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.network.network import TileClassifier


class MapView(nn.Module):
    """The logits [n, rows, columns] at every position of tiles; for losses on dense maps."""

    def __init__(self, classifier: TileClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        """Give the logit map of uint8 images [n, height, width, 3]."""
        return self.classifier.logit_map(images)


class PartView(nn.Module):
    """The logits of tile-sized parts of crops: random ones [n * count] in training, else the middle ones [n].

    The part is pooled from the map of the whole crop, so that what lies around it is seen, as in a dense prediction,
    where a tile cut out would end in zero padding.

    Args:
        classifier: What is looked at.
        tile_px: Side of a part in pixels.
        count: Parts of a crop in training, crop by crop; 0 for the middle one there too.
    """

    def __init__(self, classifier: TileClassifier, tile_px: int, count: int = 1) -> None:
        super().__init__()
        self.classifier = classifier
        self.tile_px = tile_px
        self.count = count

    def forward(self, crops: Tensor) -> Tensor:
        """Give the logits of uint8 crops [n, side, side, 3], whose side exceeds the tile's."""
        logits = self.classifier.logit_map(crops)
        cells = max(1, round(self.tile_px * logits.shape[1] / crops.shape[1]))
        pooled = functional.avg_pool2d(logits[:, None], cells, stride=1)[:, 0]
        parts = pooled.shape[1]
        if not self.training or not self.count:
            return pooled[:, parts // 2, parts // 2]
        row, column = torch.randint(parts, (2, len(crops) * self.count)).to(logits.device)
        crop = torch.arange(len(crops), device=logits.device).repeat_interleave(self.count)
        return pooled[crop, row, column]


class SidesView(nn.Module):
    """The mean logit of a tile as it lies, turned and flipped.

    Args:
        network: What is looked at; logits [n] of images [n, height, width, 3].
        count: How many of the eight ways to lay a tile, 1 to 8.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        super().__init__()
        self.network = network
        self.count = count

    def forward(self, images: Tensor) -> Tensor:
        """Give the logits of uint8 images [n, side, side, 3]."""
        total = torch.zeros((), device=images.device)
        for side in range(self.count):
            turned = torch.rot90(images, side % 4, (1, 2))
            total = total + self.network(turned.flip(2) if side >= 4 else turned)  # noqa: PLR2004  four turns, then flipped
        return total / self.count
