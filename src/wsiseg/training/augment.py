"""Random changes of tiles that leave their labels as they are: of many tiles at once, on any device."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Floats = NDArray[np.float64]

# Brightness, contrast, saturation and hue (in turns), as the paper's.
JITTER = (0.1, 0.1, 0.1, 0.01)
# ITU-R BT.601 luma, and the chroma axes of YIQ, whose plane hue turns.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_RGB = np.linalg.inv(_YIQ)
# Optical densities of red, green and blue per amount of hematoxylin, eosin and DAB (Ruifrok and Johnston 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_AMOUNTS = np.linalg.inv(_STAINS)
_FIRST_FLIPPED = 4
# Tiles changed at once: on a CPU as many as its cache holds.
_BYTES_AT_ONCE = {"cpu": 2**18}
_MANY_BYTES = 2**25


@dataclass(frozen=True)
class Changes:
    """What becomes of each of n tiles."""

    turns: NDArray[np.int64]  # int64[n], 0..7: quarter turns, and from 4 on a flip after them
    factors: Floats | None  # float64[n, 3], of the amounts of the stains; None leaves them
    offsets: Floats  # float64[n, 3], added to them, in optical density
    colors: Floats  # float64[n, 4], factors of brightness, contrast and saturation, and the turn of the hue in radians

    @classmethod
    def drawn(
        cls,
        count: int,
        random: np.random.Generator,
        stain: float = 0.0,
        jitter: tuple[float, float, float, float] = JITTER,
    ) -> Self:
        """Draw the changes of so many tiles, each alike likely within its limits.

        Factors of stains lie within 1 +- stain, their offsets within a tenth of that. `jitter` is the largest change of
        brightness, contrast and saturation, and of the hue in turns.
        """
        turns = random.integers(8, size=count)
        factors = 1 + random.uniform(-stain, stain, (count, 3)) if stain > 0 else None
        offsets = random.uniform(-stain, stain, (count, 3)) / 10
        colors = random.uniform(-1, 1, (count, 4)) * jitter
        return cls(turns, factors, offsets, colors * (1, 1, 1, 2 * np.pi) + (1, 1, 1, 0))

    def applied(self, tiles: Tensor) -> Tensor:
        """Return changed tiles, uint8[n, side, side, 3] as they are, on the same device."""
        stains = None if self.factors is None else self._stains(self.factors).to(tiles.device)
        matrices, shares = (part.to(tiles.device) for part in self._colors())
        at_once = max(1, _BYTES_AT_ONCE.get(tiles.device.type, _MANY_BYTES) // max(1, tiles[:1].numel()))
        changed = torch.empty_like(tiles)
        for begin in range(0, len(tiles), at_once):
            some = slice(begin, begin + at_once)
            # As planes, which CPUs multiply with a matrix in an eighth of the time that whole pixels take.
            planes = tiles[some].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            colors = planes.flatten(2)
            if stains is not None:
                colors = _restained(colors, stains[some])
            gray = _mean(colors, tiles.shape[2]) * shares[some]
            # Half a step more, as what follows cuts the fraction off.
            colors = (matrices[some] @ colors).add_(gray.sum(1)[:, None, None] + 0.5)
            # By way of int16, for which CPUs have instructions; half as many bytes to bring within limits.
            colors = colors.to(torch.int16).clamp_(0, 255).to(torch.uint8)
            turn = _turn_each if colors.device.type == "cpu" else _turn_together
            turn(colors.view(planes.shape), self.turns[some], changed[some])
        return changed

    def _stains(self, factors: Floats) -> Tensor:
        """Return what densities are multiplied with and, in the last column, what is added, float32[n, 3, 4]."""
        matrices = (_AMOUNTS * factors[:, None]) @ _STAINS
        both = np.concatenate([matrices, self.offsets[:, None] @ _STAINS], 1)
        return torch.from_numpy(both.transpose(0, 2, 1)).float().contiguous()

    def _colors(self) -> tuple[Tensor, Tensor]:
        """Return what colours are multiplied with, and by what share of a tile's mean colour they are moved.

        All four changes are linear in colour, so that they make up one matrix and one offset.

        Returns:
            float32[n, 3, 3] and float32[n, 3].
        """
        brightness, contrast, saturation, hue = self.colors.T
        turn = np.zeros((len(hue), 3, 3))
        turn[:, 0, 0] = 1
        turn[:, 1, 1] = turn[:, 2, 2] = saturation * np.cos(hue)
        turn[:, 2, 1] = saturation * np.sin(hue)
        turn[:, 1, 2] = -turn[:, 2, 1]
        matrices = (brightness * contrast)[:, None, None] * (_RGB @ turn @ _YIQ)
        shares = (brightness * (1 - contrast))[:, None] * _YIQ[0]
        return torch.from_numpy(matrices).float(), torch.from_numpy(shares).float()


def augmented(tiles: Tensor, random: np.random.Generator, stain: float = 0.0, size: float = 0.0) -> Tensor:
    """Turn, flip and recolour tiles, uint8[n, side, side, 3], each in its own way; `stain` 0 leaves their stains.

    All are then shown larger or smaller by the same factor within 1 +- `size`.
    """
    changed = Changes.drawn(len(tiles), random, stain).applied(tiles)
    return resized(changed, 1 + random.uniform(-size, size)) if size else changed


def resized(tiles: Tensor, factor: float) -> Tensor:
    """Show tiles, uint8[n, side, side, 3], so many times as large."""
    side = round(factor * tiles.shape[1])
    shown = functional.interpolate(tiles.permute(0, 3, 1, 2), (side, side), mode="bilinear", antialias=True)
    return shown.permute(0, 2, 3, 1).contiguous()


def _restained(colors: Tensor, stains: Tensor) -> Tensor:
    """Change the amount of each stain in colours [n, 3, pixels] by a factor and an offset, in optical density.

    Source: Tellez et al., Whole-slide mitosis detection in H&E breast histology, IEEE TMI 2018.
    """
    logs = colors.add_(1).div_(256).log_()  # densities are the negatives of these
    return (stains[..., :3] @ logs).sub_(stains[..., 3:]).exp_().mul_(256).sub_(1).clamp_(0, 255)


def _mean(colors: Tensor, width: int) -> Tensor:
    """Return the mean colours [n, 3] of tiles [n, 3, pixels]; by rows first, which is many times as fast."""
    rows = colors.view(len(colors), 3, -1, width).sum(2)
    return rows.transpose(1, 2).contiguous().sum(1) / colors.shape[2]


def _turn_each(planes: Tensor, turns: NDArray[np.int64], out: Tensor) -> None:
    """Write turned and flipped tiles [n, 3, side, side] to `out`, [n, side, side, 3], one by one on a CPU."""
    for plane, turn, tile in zip(planes.numpy(), turns.tolist(), out.numpy(), strict=True):
        turned = np.rot90(plane, turn % 4, (1, 2))  # a view, which torch has not of what is turned
        turned = turned[:, :, ::-1] if turn >= _FIRST_FLIPPED else turned
        for channel in range(3):  # copies three planes in less time than a whole tile
            tile[..., channel] = turned[channel]


def _turn_together(planes: Tensor, turns: NDArray[np.int64], out: Tensor) -> None:
    """Do the same on any device with all tiles that are turned alike."""
    for turn in np.unique(turns):
        which = torch.from_numpy(np.flatnonzero(turns == turn)).to(planes.device)
        turned = planes[which].rot90(int(turn) % 4, (2, 3))
        out[which] = (turned.flip(3) if turn >= _FIRST_FLIPPED else turned).permute(0, 2, 3, 1)
