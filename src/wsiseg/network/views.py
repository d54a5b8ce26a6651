"""Ways to look at a tile classifier while it is trained: densely, or at a part of a larger crop."""

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
        """Return the logit map of uint8 images [n, height, width, 3]."""
        return self.classifier.logit_map(images)


class PartView(nn.Module):
    """The logits [n] of a tile-sized part of each crop: a random one in training, else the middle one.

    The part is pooled from the map of the whole crop, so that what lies around it is seen, as in a dense prediction,
    where a tile cut out would end in zero padding.

    Args:
        classifier: What is looked at.
        tile_px: Side of a part in pixels.
        is_random: Take a random part in training; the middle one where not.
    """

    def __init__(self, classifier: TileClassifier, tile_px: int, *, is_random: bool = True) -> None:
        super().__init__()
        self.classifier = classifier
        self.tile_px = tile_px
        self.is_random = is_random

    def forward(self, crops: Tensor) -> Tensor:
        """Return the logits of uint8 crops [n, side, side, 3], whose side exceeds the tile's."""
        logits = self.classifier.logit_map(crops)
        cells = max(1, round(self.tile_px * logits.shape[1] / crops.shape[1]))
        pooled = functional.avg_pool2d(logits[:, None], cells, stride=1)[:, 0]
        parts = pooled.shape[1]
        if not (self.training and self.is_random):
            return pooled[:, parts // 2, parts // 2]
        row, column = torch.randint(parts, (2, len(crops))).to(logits.device)
        return pooled[torch.arange(len(crops), device=logits.device), row, column]
