"""One step of training: the risk of a bag and its gradients."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsiseg.bags import Bag
from wsiseg.mil import LEFT_OUT, NORMAL, Loss, cross_entropy, proxy_labels


@dataclass(frozen=True)
class Risk:
    """What a step minimises; see `mil.risk`.

    Attributes:
        alpha: Least share of tumour in a tumour slide.
        beta: Least share of normal tissue in a tumour slide.
        weights: c0 and c1.
        loss: What a tile costs.
        micro_batch: Tiles held with their gradients at a time; None for all of a bag.
    """

    alpha: float
    beta: float
    weights: tuple[float, float] = (1.0, 1.0)
    loss: Loss = cross_entropy
    micro_batch: int | None = None

    def backward(self, network: nn.Module, bag: Bag, device: torch.device, shuffle: torch.Generator) -> float:
        """Add the gradients of a bag's risk to those of `network`.

        Without `micro_batch` one pass ranks and trains. With it the tiles are ranked without gradients, a micro-batch
        at a time, then those with a proxy label are trained, in random order so that each micro-batch mixes both
        classes; batch-norm statistics move with the first pass alone, which has seen every tile.

        Returns:
            The bag's risk.
        """
        scale = self.weights[bag.slide.label] * bag.weight
        size = self.micro_batch or len(bag.tiles)
        if size >= len(bag.tiles):
            logits = network(bag.tiles.to(device))
            labels = proxy_labels(logits, bag.slide.label, self.alpha, self.beta)
            kept = labels != LEFT_OUT
            risk = self.loss(logits[kept], labels[kept].to(logits.dtype)).mean()
            (scale * risk).backward()
            return float(risk.detach()) * self.weights[bag.slide.label]
        labels = self._labels(network, bag, device, size)
        kept = torch.nonzero(labels != LEFT_OUT).flatten()
        kept = kept[torch.randperm(len(kept), generator=shuffle)]
        total = 0.0
        with _statistics_held(network, when=bag.slide.label != NORMAL):
            for chosen in kept.split(size):
                logits = network(bag.tiles[chosen].to(device))
                part = self.loss(logits, labels[chosen].to(device, logits.dtype)).sum() / len(kept)
                (scale * part).backward()
                total += float(part.detach())
        return total * self.weights[bag.slide.label]

    @torch.no_grad()
    def _labels(self, network: nn.Module, bag: Bag, device: torch.device, size: int) -> Tensor:
        """Rank the tiles of a tumour slide by a pass without gradients; other slides need none."""
        if bag.slide.label == NORMAL:
            return torch.full((len(bag.tiles),), NORMAL, dtype=torch.int8)
        logits = torch.cat([network(part.to(device)).float().cpu() for part in bag.tiles.split(size)])
        return proxy_labels(logits, bag.slide.label, self.alpha, self.beta)


@contextmanager
def _statistics_held(network: nn.Module, *, when: bool) -> Iterator[None]:
    """Keep the running statistics of batch-norm layers as they are, while they normalise by their batch."""
    layers = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001  the base that torch names in its documents
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers if when else ():
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
