"""One step of training: the risk of a bag and its gradients."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wsiseg.mathematics.mil import LEFT_OUT, NORMAL, Loss, cross_entropy, proxy_labels
from wsiseg.training.bags import Bag
from wsiseg.training.tuning import batch_norms


@dataclass(frozen=True)
class Stepper:
    """How the gradients of a bag's risk are found; see `mil.risk`.

    Attributes:
        alpha: Least share of tumour in a tumour slide.
        beta: Least share of normal tissue in a tumour slide.
        device: Where the network is.
        weights: c0 and c1.
        loss: What a tile costs.
        micro_batch: Tiles held with their gradients at a time; None for all of a bag.
        bfloat16: Compute most of the network in bfloat16.
    """

    alpha: float
    beta: float
    device: torch.device
    weights: tuple[float, float] = (1.0, 1.0)
    loss: Loss = cross_entropy
    micro_batch: int | None = None
    bfloat16: bool = False

    def backward(self, network: nn.Module, bag: Bag, *, is_last: bool = True) -> float:
        """Add the gradients of a bag's risk, times the bag's weight, to those of `network`.

        Without a micro-batch one pass ranks and trains. With it the tiles are ranked without gradients, a micro-batch
        at a time, then those with a label are trained, in random order so that each micro-batch mixes both classes.
        Batch-norm statistics move with the first pass alone: it sees all tiles, as prediction will.

        Args:
            network: In training mode, perhaps joined with those of other processes.
            bag: The tiles of a slide.
            is_last: No further bag belongs to this step, so that processes exchange gradients.

        Returns:
            The risk, weighted by c0 or c1.
        """
        size = self.micro_batch or len(bag.tiles)
        c = self.weights[bag.slide.label]
        if size >= len(bag.tiles):
            with _exchange(network, when=is_last):
                logits = self._logits(network, bag.tiles)
                labels = self._labels(logits, bag).to(self.device)
                kept = labels != LEFT_OUT
                risk = c * self.loss(logits[kept], labels[kept].to(logits.dtype)).mean()
                (bag.weight * risk).backward()
            return float(risk.detach())
        labels, is_ranked = self._ranked(network, bag, size)
        kept = torch.nonzero(labels != LEFT_OUT).flatten()
        parts = kept[torch.randperm(len(kept))].split(size)
        total = 0.0
        with _statistics_held(network, when=is_ranked):
            for part in parts:
                with _exchange(network, when=is_last and part is parts[-1]):
                    logits = self._logits(network, bag.tiles[part])
                    losses = self.loss(logits, labels[part].to(self.device, logits.dtype))
                    risk = c * losses.sum() / len(kept)
                    (bag.weight * risk).backward()
                total += float(risk.detach())
        return total

    def _logits(self, network: nn.Module, tiles: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            logits: Tensor = network(tiles.to(self.device, non_blocking=True))
        return logits.float()

    def _labels(self, logits: Tensor, bag: Bag) -> Tensor:
        """Give the true labels of a bag's tiles where they are known, else proxy labels by the logits' ranks."""
        if bag.labels is not None:
            return bag.labels
        ranks = logits.detach().flatten(1).mean(1) if logits.dim() > 1 else logits.detach()
        return proxy_labels(ranks.cpu(), bag.slide.label, self.alpha, self.beta)

    @torch.no_grad()
    def _ranked(self, network: nn.Module, bag: Bag, size: int) -> tuple[Tensor, bool]:
        """Label a bag's tiles, by a pass without gradients only where their ranks count; tell whether it was made."""
        if bag.labels is not None:
            return bag.labels, False
        if bag.slide.label == NORMAL:
            return torch.full((len(bag.tiles),), NORMAL, dtype=torch.int8), False
        logits = torch.cat([self._logits(network, part).cpu() for part in bag.tiles.split(size)])
        return self._labels(logits, bag), True


def _exchange(network: nn.Module, *, when: bool) -> AbstractContextManager[None]:
    """Let processes exchange gradients in this pass, or save it up for a later one."""
    if when or not isinstance(network, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


@contextmanager
def _statistics_held(network: nn.Module, *, when: bool) -> Iterator[None]:
    """Keep the running statistics of batch-norm layers as they are, while they still normalise by their batch."""
    layers = list(batch_norms(network)) if when else []
    momenta = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = 0.0
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
