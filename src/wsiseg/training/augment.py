"""Random changes of a tile that leave its label as it is."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Tile = NDArray[np.uint8]
Floats = NDArray[np.float32]

# Brightness, contrast, saturation and hue (in turns), as the paper's.
JITTER = (0.1, 0.1, 0.1, 0.01)
# ITU-R BT.601 luma, and the chroma axes of YIQ, whose plane hue turns.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_RGB = np.linalg.inv(_YIQ)
# Optical densities of red, green and blue per amount of hematoxylin, eosin and DAB (Ruifrok and Johnston 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)
_AMOUNTS = np.linalg.inv(_STAINS)


def augmented(tile: Tile, random: np.random.Generator, stain: float = 0.0) -> Tile:
    """Turn a tile by a multiple of 90 degrees, flip it or not, and change its colours.

    Args:
        tile: uint8[side, side, 3].
        random: Gives the amounts.
        stain: Largest change of the amounts of its stains; 0 leaves them.
    """
    turned = np.rot90(tile, int(random.integers(4)))
    if random.integers(2):
        turned = turned[:, ::-1]
    if stain > 0:
        turned = restained(turned, random, stain)
    return jittered(turned, random, JITTER)


def restained(tile: Tile, random: np.random.Generator, strength: float) -> Tile:
    """Change the amount of each stain in a tile by a factor and an offset, in the space of optical density.

    Source: Tellez et al., Whole-slide mitosis detection in H&E breast histology, IEEE TMI 2018.

    Args:
        tile: uint8[h, w, 3].
        random: Gives the amounts.
        strength: Factors lie within 1 +- strength; offsets are a tenth of that, in optical density.
    """
    factors = random.uniform(1 - strength, 1 + strength, 3)
    offsets = random.uniform(-strength, strength, 3) / 10
    matrix = (_AMOUNTS * factors) @ _STAINS
    density = -np.log((tile.reshape(-1, 3).astype(np.float32) + 1) / 256)
    changed = density @ matrix.astype(np.float32) + (offsets @ _STAINS).astype(np.float32)
    restain: Tile = np.rint((np.exp(-changed) * 256 - 1).clip(0, 255)).astype(np.uint8).reshape(tile.shape)
    return restain


def jittered(tile: Tile, random: np.random.Generator, strength: tuple[float, float, float, float]) -> Tile:
    """Change brightness, contrast, saturation and hue of a tile (uint8[h, w, 3]) at random.

    All four are linear in colour, so that they make up one matrix and one offset; the result is cut to 0..255 once.

    Args:
        tile: The tile.
        random: Gives the amounts.
        strength: Largest change of each: factors within 1 +- strength, hue within +- strength turns.
    """
    brightness, contrast, saturation = (float(random.uniform(1 - s, 1 + s)) for s in strength[:3])
    hue = 2 * np.pi * float(random.uniform(-strength[3], strength[3]))
    image = Image.fromarray(np.ascontiguousarray(tile))
    gray = float(np.asarray(image.convert("L")).mean())
    turn = np.array([[1, 0, 0], [0, np.cos(hue), -np.sin(hue)], [0, np.sin(hue), np.cos(hue)]])
    turn[1:] *= saturation
    matrix = brightness * contrast * (_RGB @ turn @ _YIQ)
    offset = brightness * (1 - contrast) * gray
    # Pillow computes, rounds and cuts in one pass, many times as fast as arrays would.
    rows = np.column_stack([matrix, np.full(3, offset)]).ravel().tolist()
    return np.asarray(image.convert("RGB", tuple(rows)))
