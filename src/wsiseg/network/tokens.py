"""Transformers of timm, whose features are tokens, as backbones with a map of features."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from wsiseg.network.weights import Note
from wsiseg.run.errors import UsageError


class TokenMap(nn.Module):
    """The patch tokens of a transformer of timm as a map of features, for images of one size."""

    def __init__(self, network: nn.Module, tile_px: int, cells: int) -> None:
        super().__init__()
        self.network, self.tile_px, self.cells = network, tile_px, cells
        self.prefix = int(getattr(network, "num_prefix_tokens", 0))  # class and register tokens

    def forward(self, images: Tensor) -> Tensor:
        """Return features [n, channels, cells, cells] of images [n, 3, tile_px, tile_px]."""
        tokens = self.network(images)
        tokens = tokens if tokens.dim() == 3 else tokens.flatten(1, 2)  # noqa: PLR2004  windowed ones keep rows and columns
        features: Tensor = tokens[:, self.prefix :].transpose(1, 2).unflatten(2, (self.cells, self.cells))
        return features


def of_tokens(network: Any, arch: str, tile_px: int, note: Note) -> TokenMap:  # noqa: ANN401  a transformer of timm
    """Fit a transformer to tiles of a side, its position embeddings resampled where they are of another size.

    Raises:
        UsageError: The tiles are no whole number of patches wide, or the network takes no other size than its own.
    """
    patch_px, own = network.patch_embed.patch_size[0], network.patch_embed.img_size[0]
    if tile_px % patch_px:
        nearest = max(1, round(tile_px / patch_px)) * patch_px
        wrong = f"{arch}: cuts tiles into patches of {patch_px} px, and tiles of {tile_px} px are no multiple of that"
        raise UsageError(wrong, f"run wsiseg tile with --tile {nearest}, or with {own}, which it was made for")
    if tile_px != own:
        try:
            network.set_input_size(img_size=(tile_px, tile_px))
        except (AssertionError, ValueError, RuntimeError) as error:
            raise UsageError(f"{arch}: takes no tiles of {tile_px} px", f"run wsiseg tile with --tile {own}") from error
        note(f"{arch}: was made for tiles of {own} px; its position embeddings are resampled for {tile_px} px")
    return TokenMap(network, tile_px, _side_of_map(network, tile_px))


@torch.no_grad()
def _side_of_map(network: nn.Module, tile_px: int) -> int:
    """Count the rows of patch tokens that a transformer ends with, which may be fewer than it begins with."""
    tokens = network.eval()(torch.zeros(1, 3, tile_px, tile_px))
    return math.isqrt(tokens[0].numel() // tokens.shape[-1] - int(getattr(network, "num_prefix_tokens", 0)))
