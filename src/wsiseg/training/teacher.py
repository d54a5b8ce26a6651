"""What larger models say of tiles, which a small network learns in place of the labels of slides.

Their probabilities are targets of the cross-entropy as they are (Hinton et al., Distilling the knowledge in a neural
network, arXiv:1503.02531, at temperature 1). Slides that are known to hold no tumour keep that as their target.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wsiseg.model_file.model_file import MAP_MULTIPLE_PX, ModelFile, model_path
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import written_whole
from wsiseg.run.record import Pace, Progress
from wsiseg.training.bags import ahead
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, in_parts

Targets = NDArray[np.float32]
_TILES_READ = 64
_UNSTATED = {"", "unknown", "not stated"}


class Teachers:
    """Model files that are open for asking, whose answers are averaged."""

    def __init__(self, models: Sequence[ModelFile]) -> None:
        self.models = models

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for the files."""
        return hashlib.sha256(" ".join(sorted(model.sha256 for model in self.models)).encode()).hexdigest()[:16]

    @property
    def licence(self) -> str:
        """Terms of the files and of the weights that they began with, as far as they are stated."""
        cards = [model.card for model in self.models]
        said = [str(text) for card in cards for text in (card.licence, card.trained_on.get("weights_licence", ""))]
        return "; ".join(sorted(set(said) - _UNSTATED))

    def targets(
        self, slides: Sequence[LabelledSlide], folder: Path, processes: Processes, progress: Progress
    ) -> dict[str, Targets]:
        """Ask about all tiles of slides, each process its share, unless the answers lie in a folder; float32[tiles].

        Slides for testing are nothing to learn from or choose by, and left out.

        Raises:
            UsageError: A teacher takes tiles of another size.
        """
        slides = [slide for slide in slides if slide.split != "test"]
        pace = Pace(sum(slide.tiles for slide in slides))
        paths = {slide: folder / self.fingerprint / f"{slide.slide}.{slide.fingerprint}.npy" for slide in slides}
        for slide in processes.share(slides):
            if slide.label != 0 and not paths[slide].exists():
                with written_whole(paths[slide]) as unfinished, unfinished.open("wb") as file:
                    np.save(file, self._asked(slide), allow_pickle=False)
            pace.advance(slide.tiles)
            if pace.is_due():
                progress.note(f"teacher: {pace.done:.0f} of {pace.total} tiles, {pace.left()}")
        processes.wait()
        zeros = {slide.slide: np.zeros(slide.tiles, np.float32) for slide in slides if slide.label == 0}
        return zeros | {slide.slide: np.load(path) for slide, path in paths.items() if slide.label != 0}

    def _asked(self, slide: LabelledSlide) -> Targets:
        for model in self.models:
            _check(model, slide)
        tasks = [partial(slide.read, part) for part in in_parts(np.arange(slide.tiles), _TILES_READ)]
        with closing(ahead(tasks, 3 * _TILES_READ * slide.tile_px**2)) as reading:
            parts = [np.mean([model.answer(tiles).probabilities for model in self.models], 0) for tiles in reading]
        return np.concatenate(parts).astype(np.float32)


@contextmanager
def opened(names: Sequence[str], device: str) -> Iterator[Teachers | None]:
    """Open the model files of teachers; None where there are none.

    Raises:
        UsageError: There is no such file.
        ModelFileError: A file is invalid.
    """
    with ExitStack() as stack:
        models = [stack.enter_context(ModelFile.open(model_path(name), device)) for name in names]
        yield Teachers(models) if models else None


def _check(model: ModelFile, slide: LabelledSlide) -> None:
    card, side, mpp = model.card, slide.tile_px, slide.mpp
    takes_any = card.output_stride is not None and card.window_px is None and side % MAP_MULTIPLE_PX == 0
    if not math.isclose(card.mpp, mpp, rel_tol=0.01) or not (card.tile_px == side or takes_any):
        text = f"{model.path}: takes tiles of {card.tile_px} px of {card.mpp:g} um, not of {side} px of {mpp:g} um"
        raise UsageError(text, f"run wsiseg tile with --tile {card.tile_px} --mpp {card.mpp:g}")
