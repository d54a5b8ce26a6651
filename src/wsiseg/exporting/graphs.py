"""Networks with the input and outputs of a model file, as PyTorch has them.

They take uint8 images [n, height, width, 3] and normalise them. A dense one returns the tile's probability, which is
the sigmoid of the mean of the map's logits as it was trained, and a map in which each cell is the probability of the
tile around it. Where the tissue of training is known, it also returns how far its input and those tiles lie from that.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.network.known_tissue import KnownTissue
from wsiseg.network.network import TileClassifier


class Distance(nn.Module):
    """How far features lie from known tissue; see `KnownTissue.distances`."""

    mean: Tensor
    scale: Tensor
    axes: Tensor
    gains: Tensor

    def __init__(self, known: KnownTissue) -> None:
        super().__init__()
        for name in ("mean", "scale", "gains"):
            self.register_buffer(name, torch.from_numpy(getattr(known, name)))
        self.register_buffer("axes", torch.from_numpy(known.axes.T.copy()))
        self.gain_of_rest = known.gain_of_rest

    def forward(self, features: Tensor) -> Tensor:
        """Return the distances [...] of features [..., channels]."""
        inside = (features - self.mean) * self.scale
        along = inside @ self.axes
        distances: Tensor = (along**2 * self.gains).sum(-1) + (inside**2).sum(-1) * self.gain_of_rest
        return distances


class DenseGraph(nn.Module):
    """A tile classifier with its probability and its map.

    Args:
        classifier: From `dilation.exportable`.
        cells: Side of a tile in cells of the map.
        trained_step: Every so many cells, along both axes, make up the map that the network was trained with; their
            mean is the tile's logit, also where the map has been made finer.
        known: The tissue of training, the distances from which are two further outputs.
    """

    scale: Tensor
    offset: Tensor

    def __init__(
        self, classifier: TileClassifier, cells: int, trained_step: int = 1, known: KnownTissue | None = None
    ) -> None:
        super().__init__()
        self.distance = None if known is None else Distance(known)
        self.cells, self.trained_step = cells, trained_step
        self.backbone, self.head = classifier.backbone, classifier.head
        self.register_buffer("scale", (1 / (255 * classifier.std))[:, None, None, None])
        self.register_buffer("offset", -classifier.mean / classifier.std)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the probability [n] and the map [n, rows, columns] of uint8 images [n, height, width, 3].

        Where the tissue of training is known, the distances of the images [n] and of the tile around each cell
        [n, rows, columns] follow.
        """
        features = self.features(image)
        logits = functional.conv2d(features, self.head.weight[:, :, None, None], self.head.bias)
        whole = self._trained(logits).mean((1, 2, 3))
        answers = torch.sigmoid(whole), torch.sigmoid(self._around(logits)).squeeze(1)
        if self.distance is None:
            return answers
        around = self._around(features).permute(0, 2, 3, 1)
        return *answers, self.distance(self._trained(features).mean((2, 3))), self.distance(around)

    def _around(self, cells: Tensor) -> Tensor:
        """Average cells [n, channels, rows, columns] over the tile around each, as far as they exist there."""
        return self._summed(cells) / self._summed(torch.ones_like(cells[:, :1]))

    def _summed(self, cells: Tensor) -> Tensor:
        """Sum up cells over the tile around each with the weights of `tile_window`, divided by their number.

        Two poolings give the outermost cells of an even number half the weight.
        """
        pooled = functional.avg_pool2d(cells, self.cells, 1, self.cells // 2)
        return pooled if self.cells % 2 else functional.avg_pool2d(pooled, 2, 1)

    def features(self, image: Tensor) -> Tensor:
        """Return the features [n, channels, rows, columns] of uint8 images [n, height, width, 3]."""
        pixels = image.permute(0, 3, 1, 2).float()
        # As a convolution: a product with three numbers, one for each color, takes runtimes longer than a layer.
        features: Tensor = self.backbone(functional.conv2d(pixels, self.scale, self.offset, groups=len(self.scale)))
        return features

    def _trained(self, cells: Tensor) -> Tensor:
        """Pick the cells that the network was trained with."""
        return cells[:, :, :: self.trained_step, :: self.trained_step] if self.trained_step > 1 else cells


class TileGraph(nn.Module):
    """Any classifier of tiles of one size, with the probability of one of its classes.

    Args:
        network: What `prepare` gives -> logits [n, classes] or [n].
        prepare: uint8 [n, tile, tile, 3] -> what `network` takes.
        logits: How many of them it gives per tile.
        positive: Number of the class; with a single logit there is none to choose.
    """

    # Constants, so that TorchScript makes no branches of them.
    logits: Final[int]
    positive: Final[int]

    def __init__(self, network: nn.Module, prepare: nn.Module, logits: int = 1, positive: int = 0) -> None:
        super().__init__()
        self.network, self.prepare = network, prepare
        self.logits, self.positive = logits, positive

    def forward(self, image: Tensor) -> Tensor:
        """Return the probability [n] of uint8 images [n, tile, tile, 3]."""
        logits = self.network(self.prepare(image)).reshape(image.shape[0], self.logits)
        if self.logits == 1:
            return torch.sigmoid(logits[:, 0])
        return torch.softmax(logits, 1)[:, self.positive]
