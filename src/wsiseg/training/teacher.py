"""What larger models or their maps say of tiles, which a small network learns in place of the labels of slides.

Their probabilities are targets of the cross-entropy as they are (Hinton et al., Distilling the knowledge in a neural
network, arXiv:1503.02531, at temperature 1). Slides that are known to hold no tumour keep that as their target.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.classes import Classes
from wsiseg.heatmap.opening import open_prediction, prediction_files
from wsiseg.mathematics.grid import share_of_cells
from wsiseg.mathematics.mil import LEFT_OUT
from wsiseg.model_file.model_file import MAP_MULTIPLE_PX, ModelFile, model_path
from wsiseg.run.errors import UsageError
from wsiseg.run.outputs import written_whole
from wsiseg.run.pace import Pace
from wsiseg.run.record import Progress
from wsiseg.training.bags import ahead
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, in_parts

Targets = NDArray[np.float32]
_TILES_READ = 64
_LEAST_JUDGED = 0.5  # of a tile
_UNSTATED = {"", "unknown", "not stated"}


class Teacher(Protocol):
    """Who knows how probable tumour is in tiles."""

    @property
    def fingerprint(self) -> str:
        """Stands for what it says."""

    @property
    def licences(self) -> Iterable[str]:
        """The terms of using that, as far as they are stated."""

    @property
    def classes(self) -> Collection[str]:
        """What it knows."""

    def said(self, slide: LabelledSlide) -> Targets:
        """Return a probability for each tile that is used of a slide, float32[tiles]; `LEFT_OUT` where it has none."""


@dataclass(frozen=True)
class AskedModel:
    """A model file that is open for asking."""

    model: ModelFile

    @property
    def fingerprint(self) -> str:
        """The hash of the file."""
        return self.model.sha256

    @property
    def licences(self) -> tuple[str, ...]:
        """Terms of the file and of the weights that it began with."""
        return self.model.card.licence, str(self.model.card.trained_on.get("weights_licence", ""))

    @property
    def classes(self) -> Collection[str]:
        """The classes that the file gives."""
        return self.model.card.given

    def said(self, slide: LabelledSlide) -> Targets:
        """Ask about all tiles; a UsageError says that the model takes tiles of another size."""
        _check(self.model, slide)
        tasks = [partial(slide.read, part) for part in in_parts(np.arange(slide.tiles), _TILES_READ)]
        with closing(ahead(tasks, 3 * _TILES_READ * slide.tile_px**2)) as reading:
            return np.concatenate([self.model.answer(tiles).probabilities for tiles in reading]).astype(np.float32)


@dataclass(frozen=True)
class Maps:
    """Tumour maps, of any model and with cells of any size, by the names of their slides."""

    paths: Mapping[str, Path]
    fingerprint: str
    licences: frozenset[str]
    classes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Find the maps of a folder; a UsageError says that there are none."""
        paths, digest, licences, classes = prediction_files(folder), hashlib.sha256(), set(), set[str]()
        for name, path in paths.items():
            heatmap = open_prediction(path)
            classes |= set(heatmap.classes)
            digest.update(f"{name} {heatmap.slide.fingerprint}".encode())
            for part in (heatmap.probabilities, heatmap.judged):
                digest.update(part.tobytes())
            models = heatmap.model.get("models", [heatmap.model])
            licences |= {str(model.get("licence", "")) for model in models}
        return cls(paths, digest.hexdigest(), frozenset(licences), frozenset(classes))

    def said(self, slide: LabelledSlide) -> Targets:
        """Average the judged cells over each tile; a UsageError says that there is no map, or that of another slide."""
        path = self.paths.get(slide.slide)
        if path is None:
            raise UsageError(f"{slide.slide}: has no map to learn from", "map it, or leave it out of the cohort")
        heatmap = open_prediction(path)
        with slide.open() as store:
            tiles, used = store.tiles, slide.places
        if heatmap.slide.fingerprint not in ("", tiles.slide.fingerprint):
            raise UsageError(f"{path}: {tiles.slide.difference(heatmap.slide)}", "map it again")
        values = np.where(heatmap.judged, heatmap.probabilities, np.float32(0))
        shares = [share_of_cells(one, heatmap.cell_level0, tiles.grid) for one in (values, heatmap.judged)]
        rows, columns = tiles.grid.cells(tiles.corners[used]).T
        total, judged = (share[rows, columns] for share in shares)
        return np.where(judged >= _LEAST_JUDGED, total / np.maximum(judged, _LEAST_JUDGED), np.float32(LEFT_OUT))


class Teachers:
    """Teachers whose answers are averaged."""

    def __init__(self, every: Sequence[Teacher]) -> None:
        self.every = every

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that stand for them."""
        return hashlib.sha256(" ".join(sorted(one.fingerprint for one in self.every)).encode()).hexdigest()[:16]

    @property
    def licence(self) -> str:
        """Terms of the files and of the weights that they began with, as far as they are stated."""
        return "; ".join(sorted({text for one in self.every for text in one.licences} - _UNSTATED))

    def targets(
        self, slides: Sequence[LabelledSlide], folder: Path, processes: Processes, progress: Progress
    ) -> dict[str, Targets]:
        """Ask about all tiles of slides, each process its share, unless the answers lie in a folder; float32[tiles].

        Slides for testing are nothing to learn from or choose by, and left out.

        Raises:
            UsageError: A teacher takes tiles of another size, or has no map of a slide.
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
        """Average what all say; what one of them leaves out is left out."""
        said = np.stack([one.said(slide) for one in self.every])
        return np.where((said == LEFT_OUT).any(0), LEFT_OUT, said.mean(0)).astype(np.float32)


@contextmanager
def opened(names: Sequence[str], device: str, of: str = "tumor") -> Iterator[Teachers | None]:
    """Open the teachers of a class, model files or folders of heatmaps; None where there are none.

    Raises:
        UsageError: There is no such file or folder, a folder without heatmaps, or it gives something else.
        ModelFileError: A file is invalid.
    """
    with ExitStack() as stack:

        def teacher(name: str) -> Teacher:
            if Path(name).is_dir():
                found: Teacher = Maps.of(Path(name))
            else:
                found = AskedModel(stack.enter_context(ModelFile.open(model_path(name), device)))
            if any(Classes.of(one) != Classes.of(of) for one in found.classes):
                text = f"{name}: gives {' and '.join(sorted(found.classes))}, and not {of} alone"
                raise UsageError(text, "a teacher is of the one class that is learned")
            return found

        yield Teachers([teacher(name) for name in names]) if names else None


def _check(model: ModelFile, slide: LabelledSlide) -> None:
    card, side, mpp = model.card, slide.tile_px, slide.mpp
    takes_any = card.output_stride is not None and card.window_px is None and side % MAP_MULTIPLE_PX == 0
    if not math.isclose(card.mpp, mpp, rel_tol=0.01) or not (card.tile_px == side or takes_any):
        text = f"{model.path}: takes tiles of {card.tile_px} px of {card.mpp:g} um, not of {side} px of {mpp:g} um"
        raise UsageError(text, f"run wsiseg tile with --tile {card.tile_px} --mpp {card.mpp:g}")
