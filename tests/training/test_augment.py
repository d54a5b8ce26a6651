"""The law by which tiles are changed, against its literal equations, and what is drawn for them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from wsiseg.training import augment
from wsiseg.training.augment import JITTER, Changes, augmented

Floats = NDArray[np.float64]
STAINS = {"hematoxylin": (0.65, 0.70, 0.29), "eosin": (0.07, 0.99, 0.11), "dab": (0.27, 0.57, 0.78)}
YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
LIMITS = st.integers(0, 2**32)
NONE = (0.0, 0.0, 0.0, 0.0)


def made(side: int = 12, count: int = 1) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def literal(tile: Floats, changes: Changes) -> Floats:
    """Change one tile by the first of some changes, one after the other."""
    if changes.factors is not None:
        stains = np.array([np.array(one) / np.linalg.norm(one) for one in STAINS.values()])
        amounts = -np.log((tile + 1) / 256) @ np.linalg.inv(stains)
        tile = (256 * np.exp(-((amounts * changes.factors[0] + changes.offsets[0]) @ stains)) - 1).clip(0, 255)
    brightness, contrast, saturation, hue = changes.colors[0]
    gray = (tile @ YIQ[0]).mean()
    luma, i, q = np.moveaxis(tile @ YIQ.T, 2, 0)
    turned = saturation * (i + 1j * q) * np.exp(1j * hue)
    tile = np.stack([luma, turned.real, turned.imag], 2) @ np.linalg.inv(YIQ).T
    tile = (brightness * (contrast * tile + (1 - contrast) * gray)).clip(0, 255)
    tile = np.rot90(tile, changes.turns[0] % 4)
    return tile[:, ::-1] if changes.turns[0] >= 4 else tile


@settings(max_examples=40)
@given(LIMITS, st.sampled_from([0.0, 0.1, 0.6]), st.sampled_from([JITTER, (0.5, 0.5, 0.8, 0.3), NONE]))
def test_tiles_are_changed_by_the_literal_equations(
    seed: int, stain: float, jitter: tuple[float, float, float, float]
) -> None:
    changes = Changes.drawn(1, np.random.default_rng(seed), stain, jitter)
    changed = changes.applied(torch.from_numpy(made()))[0].numpy()
    assert np.abs(changed - literal(made()[0].astype(float), changes)).max() < 0.51


def test_all_turns_and_amounts_up_to_the_limits_are_drawn() -> None:
    changes = Changes.drawn(2000, np.random.default_rng(0), 0.3)
    assert np.bincount(changes.turns).min() > 200
    assert len(np.bincount(changes.turns)) == 8
    assert changes.factors is not None
    limits = np.array([*JITTER[:3], 2 * np.pi * JITTER[3]])
    for amounts, most in ((changes.factors - 1, 0.3), (changes.offsets, 0.03), (changes.colors - (1, 1, 1, 0), limits)):
        assert (np.abs(amounts) <= most).all()
        assert (amounts.max(0) > 0.98 * most).all()
        assert (amounts.min(0) < -0.98 * most).all()
        assert np.abs(np.corrcoef(amounts.T) - np.eye(amounts.shape[1])).max() < 0.1


def test_without_jitter_tiles_are_only_turned_in_eight_ways() -> None:
    tiles = torch.from_numpy(np.repeat(made(), 100, 0))
    changed = Changes.drawn(100, np.random.default_rng(0), 0.0, NONE).applied(tiles).numpy()
    turns = [np.rot90(turned, k) for turned in (made()[0], made()[0][:, ::-1]) for k in range(4)]
    assert {tile.tobytes() for tile in changed} == {turn.tobytes() for turn in turns}


def test_accelerators_turn_tiles_as_processors_do() -> None:
    planes, turns = torch.from_numpy(made(9, 20)).permute(0, 3, 1, 2).contiguous(), np.arange(20) % 8
    each, together = torch.empty(20, 9, 9, 3, dtype=torch.uint8), torch.empty(20, 9, 9, 3, dtype=torch.uint8)
    augment._turn_each(planes, turns, each)
    augment._turn_together(planes, turns, together)
    assert each.equal(together)


@pytest.mark.parametrize("side", [7, 64, 400])
def test_a_tile_is_changed_alike_alone_and_among_others(side: int) -> None:
    tiles = torch.from_numpy(made(side, 5))
    changes = Changes.drawn(5, np.random.default_rng(1), 0.2)
    assert changes.factors is not None
    for k, together in enumerate(changes.applied(tiles)):
        turns, one_of = changes.turns[k : k + 1], slice(k, k + 1)
        one = Changes(turns, changes.factors[one_of], changes.offsets[one_of], changes.colors[one_of])
        assert one.applied(tiles[k : k + 1])[0].equal(together)


def test_the_same_seed_changes_tiles_in_the_same_way_and_leaves_them() -> None:
    tiles = torch.from_numpy(made(16, 9))
    first, again, other = (augmented(tiles, np.random.default_rng(seed), 0.1) for seed in (0, 0, 1))
    assert first.equal(again)
    assert not first.equal(other)
    assert tiles.equal(torch.from_numpy(made(16, 9)))


def test_gray_stays_gray_under_saturation_and_hue() -> None:
    gray = torch.full((3, 4, 4, 3), 120, dtype=torch.uint8)
    assert Changes.drawn(3, np.random.default_rng(3), 0.0, (0, 0, 0.5, 0.2)).applied(gray).equal(gray)
