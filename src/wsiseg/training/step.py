"""One step of training: which weights move and how fast, the risk of a bag, and its gradients."""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import swa_utils

from wsiseg.config.train import TrainConfig
from wsiseg.mathematics import mil
from wsiseg.network.network import TileClassifier
from wsiseg.network.tokens import TokenMap
from wsiseg.run.memory import loading
from wsiseg.training.bags import Bag
from wsiseg.training.slides import LabelledSlide


@dataclass(frozen=True)
class Stepper:
    """How the risk of a bag and its gradients are found on a device; see `mil.risk`."""

    config: TrainConfig
    device: torch.device

    def risk(
        self,
        logits: Tensor,
        slide: LabelledSlide,
        labels: Tensor | None = None,
        of: Sequence[int] | None = None,
        ranked: int | None = None,
        near: Tensor | None = None,
    ) -> Tensor:
        """Return the risk of a bag or of a part of it, the mean of its risks for each class; see `mil.risk`.

        Args:
            logits: float[n, classes].
            slide: Where the tiles come from.
            labels: [n, classes], as `TileLabels`; proxy labels where they are not given.
            of: How many tiles of the bag have a label of each class, where these tiles are only a part of it.
            ranked: How many tiles it has, where its ranks gave these labels.
            near: As `mil.neighbourhood` returns it, where tiles are to be ranked by it.
        """
        if labels is None:
            labels, ranked = self._proxy_labels(logits, slide, near), len(logits)
        labels = labels.to(logits.device, non_blocking=True)
        counts: Sequence[int | None] = of or [None] * len(slide.by_class)
        seen = zip(logits.unbind(1), labels.unbind(1), slide.by_class, counts, strict=True)
        return torch.stack([self._of_class(*one, ranked) for one in seen]).mean()

    def _of_class(
        self, logits: Tensor, labels: Tensor, slide: LabelledSlide, of: int | None, ranked: int | None
    ) -> Tensor:
        weight = self.config.c0 if slide.label == 0 else self.config.c1
        risk = mil.risk(logits, labels, weight=weight, of=of)
        if ranked is None or slide.target is None:
            return risk
        return risk + mil.share_risk(logits, slide.target, weight=mil.SHARE_WEIGHT * weight, of=ranked)

    def _proxy_labels(self, logits: Tensor, slide: LabelledSlide, near: Tensor | None) -> Tensor:
        """Label tiles by their ranks; where their slide's share draws them, by those of the means over neighbours."""
        logits = logits.detach()
        means = logits if near is None else near.to(logits) @ logits
        shares = [one.shares(self.config.alpha, self.config.beta) for one in slide.by_class]
        seen = zip(logits.unbind(1), means.unbind(1), slide.by_class, shares, strict=True)
        return torch.stack(
            [mil.proxy_labels(own if one.target is None else mean, *share) for own, mean, one, share in seen], 1
        )

    def backward(self, network: nn.Module, bag: Bag, *, is_last: bool = True) -> Tensor:
        """Add the gradients of a bag's risk, times the bag's weight, to those of `network`; return the risk.

        Without a micro-batch one pass ranks and trains. With it the tiles are ranked without gradients, a micro-batch
        at a time, then those with a label are trained, in random order so that each micro-batch mixes both classes.
        Batch-norm statistics move with the first pass alone: it sees all tiles, as prediction will.

        Args:
            network: In training mode, perhaps joined with those of other processes.
            bag: The tiles of a slide.
            is_last: No further bag belongs to this step, so that processes exchange gradients.
        """
        size = self.config.micro_batch or len(bag.tiles)
        if size >= len(bag.tiles):
            with _exchange(network, when=is_last):
                return self._add(network, bag, bag.tiles, bag.labels)
        labels, is_ranked = self._ranked(network, bag, size)
        is_labelled = labels != mil.LEFT_OUT
        is_drawn = is_ranked and any(one.target is not None for one in bag.slide.by_class)
        kept, counts = torch.nonzero(is_labelled.any(1) | is_drawn).flatten(), is_labelled.sum(0).tolist()
        parts = kept[torch.randperm(len(kept))].split(size)
        total = torch.zeros((), device=self.device)
        with _statistics_held(network, when=is_ranked):
            for part in parts:
                with _exchange(network, when=is_last and part is parts[-1]):
                    total += self._add(
                        network, bag, bag.tiles[part], labels[part], counts, len(bag.tiles) if is_ranked else None
                    )
        return total

    def _add(
        self,
        network: nn.Module,
        bag: Bag,
        tiles: Tensor,
        labels: Tensor | None,
        of: Sequence[int] | None = None,
        ranked: int | None = None,
    ) -> Tensor:
        risk = self.risk(self._logits(network, tiles), bag.slide, labels, of, ranked, bag.near)
        (bag.weight * risk).backward()
        return risk.detach()  # as a number it would hold up the device

    def _logits(self, network: nn.Module, tiles: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            logits: Tensor = network(tiles.to(self.device, non_blocking=True))
        return logits.float()

    @torch.no_grad()
    def _ranked(self, network: nn.Module, bag: Bag, size: int) -> tuple[Tensor, bool]:
        """Label a bag's tiles, by a pass without gradients only where their ranks count; tell whether it was made."""
        if bag.labels is not None:
            return bag.labels, False
        known = bag.slide.by_class
        if all(one.label == mil.NORMAL for one in known):
            return torch.full((len(bag.tiles), len(known)), mil.NORMAL, dtype=torch.int8), False
        logits = torch.cat([self._logits(network, part).cpu() for part in bag.tiles.split(size)])
        return self._proxy_labels(logits, bag.slide, bag.near), True


def _exchange(network: nn.Module, *, when: bool) -> AbstractContextManager[None]:
    """Let processes exchange gradients in this pass, or put it off to a later one."""
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


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """List the parts of a backbone that have weights, from input to output; stages count as the blocks they hold."""
    found: list[nn.Module] = []
    backbone = backbone.network if isinstance(backbone, TokenMap) else backbone
    for child in backbone.children():
        if isinstance(child, nn.Sequential | nn.ModuleList) and type(child) in {nn.Sequential, nn.ModuleList}:
            found += blocks(child)
        elif any(True for _ in child.parameters()):
            found.append(child)
    return found


def held_blocks(classifier: TileClassifier, train_last: int | None) -> list[nn.Module]:
    """List the blocks that stay as they are when the last `train_last` are trained; none where it is None."""
    if train_last is None:
        return []
    every = blocks(classifier.backbone)
    return every[: max(0, len(every) - train_last)]


def hold(classifier: TileClassifier, train_last: int | None) -> None:
    """Keep all weights but those of the head and the last blocks from changing."""
    held = held_blocks(classifier, train_last)
    if held:
        moving = {weight for block in blocks(classifier.backbone)[len(held) :] for weight in block.parameters()}
        for weight in set(classifier.backbone.parameters()) - moving:  # some are of no block, as class tokens
            weight.requires_grad = False


def set_training(network: nn.Module, classifier: TileClassifier, config: TrainConfig) -> None:
    """Put a network into training mode, but what is held and, where asked for, batch-norm layers into eval mode."""
    network.train()
    for block in held_blocks(classifier, config.train_last):
        block.eval()
    for layer in batch_norms(network) if config.batch_norm == "frozen" else ():
        layer.eval()


def batch_norms(network: nn.Module) -> Iterator[_BatchNorm]:
    """Yield the batch-norm layers of a network."""
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


def optimizer_of(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimiser of the weights that may move: Adam with torch's default momenta."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    # Without decay AdamW is Adam; with it the decay stays apart from the gradients' moments.
    how: dict[str, Any] = {"weight_decay": config.weight_decay, "fused": weights[0].is_cuda or None}
    with loading():  # the first optimiser lets torch load its compiler
        return torch.optim.AdamW(weights, lr=config.lr, **how)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, done: float) -> None:
    """Set the learning rate for the moment when a share `done` (0..1) of all steps is done."""
    factor = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0
    if done < config.warm_up:
        factor *= done / config.warm_up
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


def moving_average(network: nn.Module, decay: float) -> swa_utils.AveragedModel:
    """Make an exponential moving average of all weights and buffers of a network."""
    return swa_utils.AveragedModel(network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True)
