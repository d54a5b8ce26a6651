import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsiseg.network.known_tissue import Features, KnownTissue


def features(seed: int, count: int, channels: int, shift: float = 0.0) -> Features:
    """Features that vary much along a few directions, and along each channel by another amount."""
    fixed = np.random.default_rng(1)
    mixing = fixed.normal(size=(4, channels)) * fixed.uniform(0.1, 5, channels)
    random = np.random.default_rng(seed)
    found: Features = (
        random.normal(size=(count, 4)) @ mixing + random.normal(size=(count, channels)) * 0.3 + 7 + shift
    ).astype(np.float32)
    return found


def known_of(*slides: Features, others: tuple[Features, ...] = ()) -> KnownTissue | None:
    return KnownTissue.of("layer", [("colon", one) for one in slides], [("colon", one) for one in others])


def measured(**more: float) -> KnownTissue:
    found = known_of(*(features(seed, 100, 24, **more) for seed in range(5)))
    assert found is not None
    return found


def test_distance_is_the_mahalanobis_distance_of_the_shrunk_covariance() -> None:
    known = measured()
    axes, variances, rest = known.axes[0], known.variances[0], known.rest[0]
    covariance = (axes.T * variances) @ axes + rest * (np.eye(24) - axes.T @ axes)
    tiles = features(9, 50, 24, shift=3)
    centred = (tiles - known.mean[0]) * known.scale[0]  # standardised features
    expected = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(covariance), centred)
    np.testing.assert_allclose(known.distances(tiles), expected, rtol=1e-3)


def test_98_percent_of_training_tiles_are_within_the_limit_and_others_beyond() -> None:
    known = measured()
    at_home = np.concatenate([known.distances(features(seed, 100, 24)) for seed in range(5)])
    assert np.mean(at_home > 1) == pytest.approx(0.02, abs=0.002)
    assert np.mean(known.distances(features(50, 100, 24, shift=4)) > 1) > 0.95


def test_98_percent_of_tissue_of_others_is_within_the_limit() -> None:
    others = features(60, 200, 24, shift=2), np.zeros((0, 24), np.float32), features(61, 300, 24, shift=1)
    known = known_of(*(features(seed, 100, 24) for seed in range(5)), others=others)
    assert known is not None
    assert np.mean(known.distances(np.concatenate(others)) > 1) == pytest.approx(0.02, abs=0.002)


def test_tissue_is_known_that_is_like_that_of_any_site() -> None:
    """A site with few tiles has no Gaussian of its own: it counts with others like it."""
    sites = {"lung": 0.0, "colon": 40.0, "skin": 90.0, "node": 90.0}
    slides = [
        (site, features(seed, 40 if shift == 90 else 70, 24, shift)) for seed, (site, shift) in enumerate(sites.items())
    ]
    known = KnownTissue.of("layer", slides)
    assert known is not None
    assert (known.sites, known.tiles, known.slides) == (("lung", "colon", ""), 220, 4)
    for _, tiles in slides:
        assert np.mean(known.distances(tiles) > 1) < 0.05
    assert known.distances(features(9, 50, 24, shift=20)).min() > 1
    validation = [("colon", features(8, 10, 24, shift=40.3)), ("eye", features(7, 10, 24, shift=300))]
    wider = KnownTissue.of("layer", slides, validation)
    assert wider is not None
    assert np.median(wider.distances(slides[1][1])) < 0.5 * np.median(known.distances(slides[1][1]))


def test_too_few_tiles_tell_nothing() -> None:
    assert KnownTissue.of("layer", []) is None
    assert known_of(features(0, 20, 24), features(1, 20, 24)) is None
    assert known_of(np.ones((100, 24), np.float32)) is None


@settings(max_examples=25)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(64, 120),
    channels=st.integers(1, 80),
    dead=st.floats(0, 0.9),
    unit=st.floats(1e-3, 1e3),
)
def test_distances_are_finite_and_do_not_depend_on_units(
    seed: int, count: int, channels: int, dead: float, unit: float
) -> None:
    tiles = features(seed, count, channels)
    tiles[:, 1:][:, np.random.default_rng(seed).random(channels - 1) < dead] = 0
    known, scaled = known_of(tiles), known_of(tiles * np.float32(unit))
    assert known is not None
    assert scaled is not None
    new = features(seed + 1, 10, channels)
    found = known.distances(new)
    assert np.isfinite(found).all()
    assert (found >= -1e-3).all()
    if not (tiles == 0).all(0).any():
        np.testing.assert_allclose(scaled.distances(new * np.float32(unit)), found, rtol=0.05, atol=0.02)
