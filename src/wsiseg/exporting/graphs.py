"""Networks with the input and outputs of a model file, as PyTorch has them.

They take uint8 images [n, height, width, 3] and normalise them. A dense one returns the tile's probability, which is
the sigmoid of the mean of the map's logits as it was trained, and a map in which each cell is the probability of the
tile around it. Where the tissue of training is known, it also returns how far its input lies from that.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from wsiseg.mathematics.grid import tile_window
from wsiseg.network.known_tissue import KnownTissue
from wsiseg.network.network import TileClassifier
from wsiseg.network.texture import Stage, described, textures, tissue_weights, weighted


class TextureLoss(NamedTuple):
    """What tiles lose for a texture unlike that of the tumour of training.

    Attributes:
        layer: The layer of the network whose textures count.
        tumor: The textures of the tumour of training.
        penalty: Logits that a tile loses per `tumor.tile_limit` by which it lies beyond that limit.
    """

    layer: str
    tumor: KnownTissue
    penalty: float


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


class Penalty(nn.Module):
    """The logits that tiles lose for their texture."""

    def __init__(self, texture: TextureLoss) -> None:
        super().__init__()
        self.distance = Distance(texture.tumor)
        self.limit, self.penalty = texture.tumor.tile_limit, texture.penalty

    def forward(self, described: Tensor) -> Tensor:
        """Return the logits [...] that tiles with textures [..., 2 * channels] lose."""
        return self.penalty * torch.relu(self.distance(described) / self.limit - 1)


class DenseGraph(nn.Module):
    """A tile classifier with its probability and its map.

    Args:
        classifier: From `dilation.exportable`.
        cells: Side of a tile in cells of the map.
        trained_step: Every so many cells, along both axes, make up the map that the network was trained with; their
            mean is the tile's logit, also where the map has been made finer.
        known: The tissue of training, whose distance is a third output.
        texture: What tiles lose for their texture.
        stage_step: Side of a cell of the map in cells of the stage whose textures it heeds.
    """

    scale: Tensor
    offset: Tensor
    window: Tensor

    def __init__(
        self,
        classifier: TileClassifier,
        cells: int,
        trained_step: int = 1,
        known: KnownTissue | None = None,
        texture: TextureLoss | None = None,
        stage_step: int = 2,
    ) -> None:
        super().__init__()
        self.distance = None if known is None else Distance(known)
        self.texture_penalty = None if texture is None else Penalty(texture)
        self.trained_step, self.stage_step = trained_step, stage_step
        self.backbone, self.head = classifier.backbone, classifier.head
        self.stage = None if texture is None else Stage(self.backbone, texture.layer)
        self.register_buffer("scale", (1 / (255 * classifier.std))[:, None, None, None])
        self.register_buffer("offset", -classifier.mean / classifier.std)
        line = torch.from_numpy(tile_window(cells))
        self.register_buffer("window", torch.outer(line, line)[None, None])

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the probability [n] and the map [n, rows, columns] of uint8 images [n, height, width, 3].

        Where the tissue of training is known, the distance [n] of the images from it comes third.
        """
        features = self.features(image)
        logits = functional.conv2d(features, self.head.weight[:, :, None, None], self.head.bias)
        # At the borders only cells that exist count.
        weight = self._summed(torch.ones_like(logits))
        tiles, whole = self._summed(logits) / weight, self._trained(logits).mean((1, 2, 3))
        if self.texture_penalty is not None and self.stage is not None:
            weights = tissue_weights(image)
            cells = functional.avg_pool2d(weighted(self.stage.map, weights), self.stage_step)
            tiles = tiles - self.texture_penalty(described(self._around(cells)))[:, None]
            whole = whole - self.texture_penalty(textures(self.stage.map, weights))
        answers = torch.sigmoid(whole), torch.sigmoid(tiles).squeeze(1)
        return answers if self.distance is None else (*answers, self.distance(self._trained(features).mean((2, 3))))

    def _around(self, cells: Tensor) -> Tensor:
        """Average cells [n, channels, rows, columns] over the surroundings of each: [n, rows, columns, channels]."""
        side = self.window.shape[-1]
        around = functional.avg_pool2d(cells, side, 1, side // 2, count_include_pad=False)
        return around.permute(0, 2, 3, 1)

    def _summed(self, cells: Tensor) -> Tensor:
        """Sum up cells [n, 1, rows, columns] over the tile-sized surroundings of each."""
        return functional.conv2d(cells, self.window, padding=self.window.shape[-1] // 2)

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
