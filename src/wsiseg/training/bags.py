"""Bags: the tiles drawn from one slide, and the order in which slides are visited."""

from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsiseg.config.train import TrainConfig
from wsiseg.mathematics.mil import neighbourhood
from wsiseg.run.machine import cores, within_memory
from wsiseg.run.reader_processes import ReaderProcesses
from wsiseg.tiles.store import TileStore, fill_tiles
from wsiseg.training.augment import augmented
from wsiseg.training.slides import Indices, LabelledSlide, TileLabels

T = TypeVar("T")
CPU = torch.device("cpu")
_BYTES_AHEAD = 2**29
_SLIDES_KNOWN = 1024
_FEWEST_AT_ONCE, _BYTES_AT_ONCE = 16, 20_000_000  # 128 tiles of 224 pixels


class Source(Protocol):
    """Where a slide's tiles come from: as pixels, or as features computed before."""

    def draw(self, slide: LabelledSlide, indices: Indices, random: np.random.Generator) -> Tensor:
        """Return tiles as training sees them, changed at random: [n, ...]."""

    def read(self, slide: LabelledSlide, indices: Indices) -> Tensor:
        """Return tiles as they are: [n, ...]."""

    def bytes_of(self, slide: LabelledSlide) -> int:
        """Return the size of a tile."""


@dataclass(frozen=True)
class TileSource:
    """Tiles as pixels, uint8[n, side, side, 3] on `device`; or crops around them whose side is `context_px`.

    `stain` and `size` are the largest random changes of the amounts of stains and of the side of tiles. `readers` read,
    where there are any. If `is_whole`, crops are only drawn; what is read is the tile.
    """

    device: torch.device = CPU
    stain: float = 0.0
    context_px: int | None = None
    readers: ReaderProcesses | None = None
    size: float = 0.0
    is_whole: bool = False

    def draw(self, slide: LabelledSlide, indices: Indices, random: np.random.Generator) -> Tensor:
        """Read tiles and change each at random."""
        return self._read(
            slide, indices, self.context_px, lambda tiles: augmented(tiles, random, self.stain, self.size)
        )

    def read(self, slide: LabelledSlide, indices: Indices) -> Tensor:
        """Read tiles."""
        return self._read(slide, indices, None if self.is_whole else self.context_px, lambda tiles: tiles)

    def _read(
        self, slide: LabelledSlide, indices: Indices, side: int | None, change: Callable[[Tensor], Tensor]
    ) -> Tensor:
        if self.readers is None:
            return self._changed(slide.read(indices, side), change)
        shape, task = slide.task(indices, side)
        return self.readers.read(shape, lambda tiles: self._changed(tiles, change), fill_tiles, *task)

    def _changed(self, tiles: NDArray[np.uint8], change: Callable[[Tensor], Tensor]) -> Tensor:
        """Move tiles to the device and change them there, while it computes something else."""
        if self.device.type != "cuda":
            return change(torch.from_numpy(tiles).to(self.device, copy=self.readers is not None))
        stream = self._stream
        with torch.cuda.stream(stream):
            changed = change(torch.from_numpy(tiles).pin_memory().to(self.device, non_blocking=True))
        stream.synchronize()
        changed.record_stream(torch.cuda.default_stream(self.device))  # which uses them beyond this one's ken
        return changed

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)

    def bytes_of(self, slide: LabelledSlide) -> int:
        """Return the size of a tile."""
        return 3 * (self.context_px or slide.tile_px) ** 2


def at_once(device: torch.device, tile_bytes: int) -> int:
    """Return how many tiles pass through a network together where no gradients are held."""
    return _FEWEST_AT_ONCE if device.type == "cpu" else max(_FEWEST_AT_ONCE, _BYTES_AT_ONCE // tile_bytes)


@dataclass(frozen=True)
class Visit:
    """A slide's turn in an epoch."""

    slide: LabelledSlide  # which slide
    seed: tuple[int, ...]  # all that is random in its bag follows from it
    weight: float = 1.0  # what its risk counts in its step; 0 for one that only keeps processes in step
    ends_step: bool = True  # the weights move after it


@dataclass(frozen=True)
class Bag:
    """The tiles [n, ...] drawn from one slide; what is to be learned of each where that is known, as `TileLabels`.

    `weight` is what its risk counts in its step, `near` float[n, n] the neighbourhood of each tile where the slide is
    ranked by it.
    """

    slide: LabelledSlide
    tiles: Tensor
    weight: float = 1.0
    labels: Tensor | None = None
    near: Tensor | None = None


def drawn(visit: Visit, source: Source, bag: int, labels: Mapping[str, TileLabels] | None = None) -> Bag:
    """Draw the bag of a visit: `bag` tiles without repeats, all where there are fewer."""
    random = np.random.default_rng(visit.seed)
    slide = visit.slide
    indices = np.sort(random.choice(slide.tiles, min(bag, slide.tiles), replace=False))
    known = None if labels is None else torch.from_numpy(labels[slide.slide][indices])
    near = _near(slide, indices) if known is None else None
    return Bag(slide, source.draw(slide, indices, random), visit.weight, known, near)


def _near(slide: LabelledSlide, indices: Indices) -> Tensor | None:
    """Return the neighbourhood of tiles, where their slide's share draws them; see `mil.share_target`."""
    if all(one.target is None for one in slide.by_class):
        return None
    return neighbourhood(torch.from_numpy(_cells(slide)[indices]).float())


@lru_cache(_SLIDES_KNOWN)
def _cells(slide: LabelledSlide) -> NDArray[np.floating]:
    """Return row and column of the tiles that are used of a slide, in tiles; its store is slow to open."""
    tiles = TileStore(slide.store).tiles
    cells: NDArray[np.floating] = tiles.grid.cells(tiles.corners[slide.places]) * (tiles.stride_px / tiles.tile_px)
    return cells


def epoch_of(slides: Sequence[LabelledSlide], config: TrainConfig, epoch: int) -> list[LabelledSlide]:
    """Return the visits of an epoch as settings ask for them; see `order_of`."""
    has_labels = config.supervised or config.teacher  # of tiles
    bag = config.bag if has_labels else None
    return order_of(slides, (config.seed, epoch), pairs=config.pairs, bag=bag)


def order_of(
    slides: Sequence[LabelledSlide], seed: tuple[int, ...], *, pairs: bool = False, bag: int | None = None
) -> list[LabelledSlide]:
    """Shuffle slides for an epoch, each once.

    Where every tile has a label of its own, an epoch has as many tiles as the slides: give the size of a `bag`, and a
    slide comes once for each that it fills.

    Of `pairs`, each is a slide with tumour and one without of the same site, so that a step sees both alike often and
    no site is taken for one of them; the rarer ones come again. Of several classes the first decides.
    """
    random = np.random.default_rng(seed)
    if bag is not None:
        slides = [slide for slide in slides for _ in range(-(-slide.tiles // bag))]
    if not pairs:
        return [slides[k] for k in random.permutation(len(slides))]
    kinds: dict[str, dict[bool, list[LabelledSlide]]] = {}
    for slide in slides:
        kinds.setdefault(slide.site, {}).setdefault(slide.label == 0, []).append(slide)
    found: list[tuple[LabelledSlide, ...]] = []
    for by_label in kinds.values():
        most = max(map(len, by_label.values()))
        drawn_by_label = [[some[k] for k in _repeated(len(some), most, random)] for some in by_label.values()]
        found += zip(*drawn_by_label, strict=True)
    return [slide for k in random.permutation(len(found)) for slide in found[k]]


def _repeated(count: int, most: int, random: np.random.Generator) -> Indices:
    """Shuffle so many things again and again until there are `most`."""
    return np.concatenate([random.permutation(count) for _ in range(-(-most // count))])[:most]


def visits_of(
    order: Sequence[LabelledSlide], seed: tuple[int, ...], accumulate: int = 1, rank: int = 0, processes: int = 1
) -> list[Visit]:
    """Share the slides of an epoch out to processes, in steps that are the same for any number of them.

    A step averages the risk of `accumulate` x `processes` slides, the last one of those that are left. Gradients are
    averaged over processes, so that a slide's weight is the number of processes over the number of slides in its step.

    Returns:
        The visits of process `rank`, equally many for each, with seeds that begin with `seed`.
    """
    visits = []
    size = accumulate * processes
    for begin in range(0, len(order), size):
        step = list(range(begin, min(begin + size, len(order))))
        rounds = -(-len(step) // processes)
        for number in range(rounds):
            place = number * processes + rank
            is_real = place < len(step)
            at = step[place] if is_real else step[0]
            weight = processes / len(step) if is_real else 0.0
            visits.append(Visit(order[at], (*seed, at), weight, ends_step=number == rounds - 1))
    return visits


def place_among(place: int, before: int, slides: int, accumulate: int = 1, processes: int = 1) -> int:
    """Return after how many visits of each process an epoch goes on that other processes began; see `visits_of`.

    No slide that they saw is missed; those of a step that is not complete are seen again.

    Args:
        place: How many visits each of them had done, at the end of a step.
        before: How many processes they were.
        slides: How many slides the epoch has.
        accumulate: As for `visits_of`.
        processes: How many go on.
    """
    seen = min(place * before, slides)
    steps, rest = divmod(seen, accumulate * processes)
    return steps * accumulate + (-(-rest // processes) if seen == slides else 0)


def ahead(tasks: Sequence[Callable[[], T]], bytes_each: int = 0) -> Generator[T]:
    """Do tasks in the background, as many at a time as there are cores, ahead of whoever takes the results in order.

    So many results of `bytes_each` wait as fit into some memory, but two at least. An error is raised where its result
    would have been taken.
    """
    waiting = max(2, min(cores() + 1, within_memory(_BYTES_AHEAD) // max(1, bytes_each)))
    torch.get_num_threads()  # fixes the number for the thread that asks, before the others set theirs
    with ThreadPoolExecutor(min(waiting, cores()), "reader", partial(torch.set_num_threads, 1)) as pool:
        futures = [pool.submit(task) for task in tasks[:waiting]]
        try:
            for place in range(len(tasks)):
                result = futures.pop(0).result()
                if place + waiting < len(tasks):
                    futures.append(pool.submit(tasks[place + waiting]))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def source_of(config: TrainConfig, device: torch.device, readers: ReaderProcesses | None) -> TileSource:
    """Return the source of tiles that settings ask for."""
    crops = config.stain_jitter, config.context
    return TileSource(device, *crops, readers, config.size_jitter, is_whole=config.views > 1)
