"""Which weights move, and how fast."""

import math
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import swa_utils

from wsiseg.config.train import TrainConfig
from wsiseg.network.network import TileClassifier


def blocks(backbone: nn.Module) -> list[nn.Module]:
    """List the parts of a backbone that have weights, from input to output; stages count as the blocks they hold."""
    found: list[nn.Module] = []
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
    for block in held_blocks(classifier, train_last):
        block.requires_grad_(requires_grad=False)


def set_training(network: nn.Module, classifier: TileClassifier, config: TrainConfig) -> None:
    """Put a network into training mode, but what is held and, where asked for, batch-norm layers into eval mode."""
    network.train()
    for block in held_blocks(classifier, config.train_last):
        block.eval()
    for layer in batch_norms(network) if config.batch_norm == "frozen" else ():
        layer.eval()


def batch_norms(network: nn.Module) -> Iterator[_BatchNorm]:
    """Give the batch-norm layers of a network."""
    return (module for module in network.modules() if isinstance(module, _BatchNorm))


def optimizer_of(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Make the optimiser of the weights that may move; Adam has torch's default momenta."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    if config.optimizer == "sgd":
        return torch.optim.SGD(weights, lr=config.lr, weight_decay=config.weight_decay)
    # Without decay AdamW is Adam; with it the decay stays apart from the gradients' moments.
    return torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, done: float) -> None:
    """Set the learning rate for the moment when a share `done` (0..1) of all steps is done."""
    factor = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1.0
    for group in optimizer.param_groups:
        group["lr"] = config.lr * factor


def moving_average(network: nn.Module, decay: float) -> swa_utils.AveragedModel:
    """Make an exponential moving average of all weights and buffers of a network."""
    return swa_utils.AveragedModel(network, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay), use_buffers=True)
