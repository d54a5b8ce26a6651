"""What larger models or their maps say of tiles, which a small network learns in place of the labels of slides.

Their probabilities are targets of the cross-entropy as they are (Hinton et al., Distilling the knowledge in a neural
network, arXiv:1503.02531, at temperature 1). Slides that are known to hold no tumour keep that as their target.
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wsiseg.annotations.classes import Classes
from wsiseg.heatmap.opening import open_prediction, prediction_files
from wsiseg.mathematics.grid import share_of_cells
from wsiseg.mathematics.mil import LEFT_OUT
from wsiseg.model_file.model_file import MAP_MULTIPLE_PX, ModelFile, model_path
from wsiseg.run.errors import UsageError, shortened
from wsiseg.run.outputs import written_whole
from wsiseg.run.pace import Pace
from wsiseg.run.record import Progress
from wsiseg.slides.slide import SlideFacts
from wsiseg.slides.table import TUMOR
from wsiseg.training.bags import ahead
from wsiseg.training.processes import Processes
from wsiseg.training.slides import LabelledSlide, in_parts

Targets = NDArray[np.float32]
_TILES_READ, _SHOWN = 64, 10
_LEAST_JUDGED = 0.5  # of a tile
_SAME_MPP = 0.01
_UNSTATED = {"", "unknown", "not stated"}


class Teacher(Protocol):
    """Who knows how probable tumour is in tiles."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def fingerprint(self) -> str:
        """Stands for what it says."""

    @property
    def licences(self) -> Iterable[str]:
        """The terms of using that, as far as they are stated."""

    @property
    def classes(self) -> Collection[str]:
        """What it knows."""

    def check(self, slides: Sequence[LabelledSlide]) -> None:
        """Refuse slides of which it can say nothing, by a UsageError, without looking at their tiles."""

    def said(self, slide: LabelledSlide) -> Targets:
        """Return a probability for each tile that is used of a slide, float32[tiles]; `LEFT_OUT` where it has none."""


@dataclass(frozen=True)
class AskedModel:
    """A model file that is open for asking."""

    model: ModelFile

    @property
    def name(self) -> str:
        """The place of the file."""
        return str(self.model.path)

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

    def check(self, slides: Sequence[LabelledSlide]) -> None:
        """Refuse tiles of another size than the model takes."""
        card, side, mpp = self.model.card, slides[0].tile_px, slides[0].mpp  # alike in all
        takes_any = card.output_stride is not None and card.window_px is None and side % MAP_MULTIPLE_PX == 0
        if not math.isclose(card.mpp, mpp, rel_tol=_SAME_MPP) or not (card.tile_px == side or takes_any):
            takes = f"takes tiles of {card.tile_px} px of {card.mpp:g} um, not of {side} px of {mpp:g} um"
            raise UsageError(f"{self.name}: {takes}", f"run wsiseg tile with --tile {card.tile_px} --mpp {card.mpp:g}")

    def said(self, slide: LabelledSlide) -> Targets:
        """Ask about all tiles."""
        tasks = [partial(slide.read, part) for part in in_parts(np.arange(slide.tiles), _TILES_READ)]
        with closing(ahead(tasks, 3 * _TILES_READ * slide.tile_px**2)) as reading:
            return np.concatenate([self.model.answer(tiles).probabilities for tiles in reading]).astype(np.float32)


@dataclass(frozen=True)
class Maps:
    """The tumour maps of a folder, of any model and with cells of any size."""

    folder: Path
    paths: Mapping[str, Path]  # by the names of slides

    @property
    def name(self) -> str:
        """The place of the folder."""
        return str(self.folder)

    @property
    def fingerprint(self) -> str:
        """The hash of what they say."""
        return self._facts[0]

    @property
    def licences(self) -> frozenset[str]:
        """Terms of the models that made them."""
        return self._facts[1]

    @property
    def classes(self) -> frozenset[str]:
        """The classes that they give."""
        return self._facts[2]

    @cached_property
    def _facts(self) -> tuple[str, frozenset[str], frozenset[str], Mapping[str, SlideFacts]]:
        """Read all of them, and return what `fingerprint` and the others say, and of which slides they are."""
        digest, licences, classes, slides = hashlib.sha256(), set(), set[str](), {}
        for name, path in self.paths.items():
            heatmap = open_prediction(path)
            slides[name] = heatmap.slide
            classes |= set(heatmap.classes)
            digest.update(f"{name} {heatmap.slide.fingerprint}".encode())
            for part in (heatmap.probabilities, heatmap.judged):
                digest.update(part.tobytes())
            models = heatmap.model.get("models", [heatmap.model])
            licences |= {str(model.get("licence", "")) for model in models}
        return digest.hexdigest(), frozenset(licences), frozenset(classes), slides

    def check(self, slides: Sequence[LabelledSlide]) -> None:
        """Refuse a slide without a map, and then the map of another slide or of another pixel size."""
        missing = [slide.slide for slide in slides if slide.slide not in self.paths]
        if missing:
            advice = "map them, or leave them out of the cohort"
            raise UsageError(f"{self.folder}: holds no map of {', '.join(shortened(missing, _SHOWN))}", advice)
        for slide in slides:
            with slide.open() as store:
                known, own = self._facts[3][slide.slide], store.tiles.slide
            is_same = known.fingerprint == own.fingerprint and np.allclose(known.mpp, own.mpp, rtol=_SAME_MPP)
            if known.fingerprint and not is_same:
                raise UsageError(f"{self.paths[slide.slide]}: {own.difference(known)}", "map it again")

    def said(self, slide: LabelledSlide) -> Targets:
        """Average the judged cells over each tile."""
        heatmap = open_prediction(self.paths[slide.slide])
        with slide.open() as store:
            tiles, used = store.tiles, slide.places
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

    def check(self, slides: Sequence[LabelledSlide], of: str = TUMOR) -> None:
        """Refuse what would stop the answers about slides, before any is asked for.

        Raises:
            UsageError: A teacher takes tiles of another size, has no map of a slide or one of another pixel size, or
                gives another class than `of`.
        """
        asked = list(filter(_is_asked, slides))
        for one in self.every:
            if asked:
                one.check(asked)
            if any(Classes.of(name) != Classes.of(of) for name in one.classes):
                text = f"{one.name}: gives {' and '.join(sorted(one.classes))}, and not {of} alone"
                raise UsageError(text, "a teacher is of the one class that is learned")

    def targets(
        self, slides: Sequence[LabelledSlide], folder: Path, processes: Processes, progress: Progress
    ) -> dict[str, Targets]:
        """Ask about all tiles of slides, each process its share, unless the answers lie in a folder; float32[tiles].

        Slides for testing are nothing to learn from or choose by, and left out.

        Raises:
            UsageError: Nothing is said of any training tile.
        """
        slides = [slide for slide in slides if slide.split != "test"]
        pace = Pace(sum(slide.tiles for slide in slides))
        paths = {slide: folder / self.fingerprint / f"{slide.slide}.{slide.fingerprint}.npy" for slide in slides}
        for slide in processes.share(slides):
            if _is_asked(slide) and not paths[slide].exists():
                with written_whole(paths[slide]) as unfinished, unfinished.open("wb") as file:
                    np.save(file, self._asked(slide), allow_pickle=False)
            pace.advance(slide.tiles)
            if pace.is_due():
                progress.note(f"teacher: {pace.done:.0f} of {pace.total} tiles, {pace.left()}")
        processes.wait()
        said = {slide.slide: np.load(path) for slide, path in paths.items() if _is_asked(slide)}
        _tell_silence(slides, said, progress)
        return said | {slide.slide: np.zeros(slide.tiles, np.float32) for slide in slides if not _is_asked(slide)}

    def _asked(self, slide: LabelledSlide) -> Targets:
        """Average what all say; what one of them leaves out is left out."""
        said = np.stack([one.said(slide) for one in self.every])
        return np.where((said == LEFT_OUT).any(0), LEFT_OUT, said.mean(0)).astype(np.float32)


@contextmanager
def opened(names: Sequence[str], device: str) -> Iterator[Teachers | None]:
    """Open teachers, model files or folders of heatmaps; None where there are none.

    Raises:
        UsageError: There is no such file or folder, or a folder without heatmaps.
        ModelFileError: A file is invalid.
    """
    with ExitStack() as stack:

        def teacher(name: str) -> Teacher:
            if Path(name).is_dir():
                return Maps(Path(name), prediction_files(Path(name)))
            return AskedModel(stack.enter_context(ModelFile.open(model_path(name), device)))

        yield Teachers([teacher(name) for name in names]) if names else None


def _is_asked(slide: LabelledSlide) -> bool:
    """Tell whether teachers are asked about a slide, which is neither for testing nor known to hold no tumour."""
    return slide.split != "test" and slide.label != 0


def _tell_silence(slides: Sequence[LabelledSlide], said: Mapping[str, Targets], progress: Progress) -> None:
    """Tell of slides of whose tiles no teacher says anything; refuse to train where these are all."""
    silent = [name for name, targets in said.items() if (targets == LEFT_OUT).all()]
    heard = [slide for slide in slides if slide.split == "train" and slide.slide not in silent]
    if not heard:
        raise UsageError("the teachers say nothing of any training tile", "are their maps of these slides and tiles?")
    if silent:
        progress.note(f"the teachers say nothing of any tile of {', '.join(shortened(silent, _SHOWN))}")
