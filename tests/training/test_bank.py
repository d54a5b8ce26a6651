"""Features that are kept, and what else their computing tells of tiles."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from making.tiled import SMALL, training
from wsiseg.network.network import build
from wsiseg.run.record import Progress
from wsiseg.training.bags import TileSource, source_of
from wsiseg.training.features import FeatureBank
from wsiseg.training.known_tissue import known_tissue
from wsiseg.training.processes import Processes
from wsiseg.training.slides import Indices, LabelledSlide, labelled_slides
from wsiseg.training.task import filled_bank


@dataclass(frozen=True)
class Counted(TileSource):
    """Tiles, and the sides of all that were read."""

    sides: list[int] = field(default_factory=list)

    def read(self, slide: LabelledSlide, indices: Indices) -> Tensor:
        tiles = super().read(slide, indices)
        self.sides.extend([tiles.shape[1]] * len(tiles))
        return tiles


def test_tiles_that_gave_features_are_not_asked_again_of_what_tissue_they_show(cohort: Path, tmp_path: Path) -> None:
    slides = labelled_slides(cohort, most_tiles=12)
    config = training(cohort, tmp_path, freeze=True, max_tiles=12)
    classifier = build(SMALL, "none").eval()
    bank = filled_bank(config, classifier, slides, TileSource(), Processes(), Progress())
    alone, kept = Counted(), Counted()
    one = known_tissue(classifier, slides, alone, Processes())
    two = known_tissue(classifier, slides, kept, Processes(), bank)
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(two.mean, one.mean, rtol=1e-4, atol=1e-5)
    assert two.rest == pytest.approx(one.rest, rel=1e-2)
    tile_px = slides[0].tile_px
    assert tile_px in alone.sides
    assert set(kept.sides) == {tile_px + 64}
    # A bank of an earlier version has the features alone.
    again = known_tissue(classifier, slides, Counted(), Processes(), replace(bank, folder=tmp_path / "other"))
    assert again is not None
    np.testing.assert_array_equal(again.mean, one.mean)


@pytest.mark.parametrize("values", [{}, {"views": 2, "freeze": True}, {"views": 2, "freeze": True, "context": 128}])
def test_known_tissue_is_seen_amid_what_lies_around_it_however_tiles_are_shown(
    cohort: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    """With several views what is read for anything else is the tile, and not the crop around it."""
    slides = labelled_slides(cohort, most_tiles=12)
    classifier = build(SMALL, "none").eval()
    found = [
        known_tissue(classifier, slides, source, Processes())
        for source in (TileSource(), source_of(training(cohort, tmp_path, **values), torch.device("cpu"), None))
    ]
    assert found[0] is not None
    assert found[1] is not None
    for name in ("mean", "scale", "axes", "variances", "rest"):
        np.testing.assert_array_equal(getattr(found[1], name), getattr(found[0], name))


@pytest.mark.parametrize("values", [{"context": 96}, {"precision": "bfloat16"}])
def test_features_of_larger_crops_or_fewer_bits_tell_nothing_of_known_tissue(
    cohort: Path, tmp_path: Path, values: dict[str, object]
) -> None:
    slides = labelled_slides(cohort, most_tiles=4)[:1]
    config = training(cohort, tmp_path, freeze=True, max_tiles=4, **values)
    source = TileSource(context_px=config.context)
    bank: FeatureBank = filled_bank(config, build(SMALL, "none").eval(), slides, source, Processes(), Progress())
    assert bank.path(slides[0]).exists()
    assert bank.stage(slides[0]) is None
