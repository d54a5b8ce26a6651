"""Heatmaps: tumour probabilities on a grid of cells, in memory and as OME-NGFF on disk.

In memory a cell that was not looked at is NaN. On disk it is 0 with label 0, as the NGFF viewers need it.

A cell that was looked at is tumour (or another class), normal or unknown. It is unknown where its tissue is unlike what
the model was trained on: its probability is kept as computed, but means nothing, and no threshold changes that.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wsiseg.heatmap.ngff import UNKNOWN, NgffVersion, label_of, open_levels, write_levels
from wsiseg.heatmap.qupath import collection_text
from wsiseg.mathematics.grid import Grid, block_means, connected_parts, sizes_of_parts
from wsiseg.pages.page import picture_address
from wsiseg.pages.pictures import colored, hatch
from wsiseg.run.errors import DAMAGED, WsisegError, percent
from wsiseg.run.outputs import written_whole
from wsiseg.run.record import in_words
from wsiseg.slides.slide import ASSUMED, SlideFacts

SUSPECT_FROM = 0.25
"""The share of unknown tissue from which a map is suspect; a few percent are no wonder in tissue that is known."""

_ALL_EQUAL, _HALF = 0.995, 0.5
_NOTEBOOK_PX = 400
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Heatmap:
    """Tumour probabilities of one slide on square cells; the first cell starts at the corner of level 0."""

    probabilities: NDArray[np.float32]  #: float32[rows, columns] in 0..1, NaN where not looked at
    cell_um: float  #: side of a cell in micrometers
    slide: SlideFacts  #: the slide it belongs to
    threshold: float = 0.5  #: a cell at or above it is tumour
    model: dict[str, Any] = field(default_factory=dict)  #: the model that made it, with name, sha256, mpp and more
    run: dict[str, Any] = field(default_factory=dict)  #: the settings that it was made with
    version: str = ""  #: the version of wsiseg that made it
    #: float32[rows, columns], the standard deviation of several models' probabilities, NaN where not looked at.
    disagreement: NDArray[np.float32] | None = None
    #: bool[rows, columns], the cells whose tissue is unlike what a model was trained on.
    unknown: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((), np.bool_))
    positive_class: str = "tumor"  #: the class whose probabilities these are; of several, the first
    others: tuple["Heatmap", ...] = ()  #: the same cells for each further class of the model

    def __post_init__(self) -> None:
        object.__setattr__(self, "unknown", self.tissue & self.unknown)

    @property
    def by_class(self) -> tuple["Heatmap", ...]:
        """The heatmap of each class alone, in the order of the classes."""
        return (replace(self, others=()), *self.others) if self.others else (self,)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return (self.positive_class, *(one.positive_class for one in self.others))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.probabilities.shape
        return rows, columns

    @property
    def tissue(self) -> NDArray[np.bool_]:
        """bool[rows, columns]: the cells that were looked at."""
        return ~np.isnan(self.probabilities)

    @property
    def judged(self) -> NDArray[np.bool_]:
        """bool[rows, columns]: the cells that were looked at and are known."""
        return self.tissue & ~self.unknown

    @property
    def tumor(self) -> NDArray[np.bool_]:
        """bool[rows, columns]: the judged cells at or above the threshold."""
        return self.judged & (self.probabilities >= self.threshold)

    @property
    def called(self) -> dict[str, NDArray[np.bool_]]:
        """For each class its cells, bool[rows, columns]; a cell above several thresholds is of the likeliest one."""
        every = self.by_class
        highest = np.argmax([np.where(one.tumor, one.probabilities, -1) for one in every], 0)
        return {one.positive_class: one.tumor & (highest == place) for place, one in enumerate(every)}

    @property
    def labels(self) -> NDArray[np.uint8]:
        """uint8[rows, columns]: 0 background, 1 normal tissue, 2 tumour, 3 unknown, from 4 on further classes."""
        labels = self.tissue.astype(np.uint8)
        for place, cells in enumerate(self.called.values()):
            labels[cells] = label_of(place)
        labels[self.unknown] = UNKNOWN
        return labels

    @property
    def unknown_share(self) -> float | None:
        """The share of the tissue that is unknown; None where there is no tissue."""
        tissue = int(self.tissue.sum())
        return int(self.unknown.sum()) / tissue if tissue else None

    @cached_property
    def warnings(self) -> tuple[str, ...]:
        """What makes the map suspect; empty unless much tissue is unknown, or it has one value almost everywhere."""
        found, share = [], self.unknown_share or 0.0
        if share >= SUSPECT_FROM:
            found.append(
                f"{percent(share)} of the tissue could not be judged: it is unlike what the model was trained on"
            )
        for one in self.by_class:
            values = one.probabilities[self.judged]
            _, counts = np.unique(values.round(6), return_counts=True)
            if values.size > 1 and counts.max() > _ALL_EQUAL * values.size:  # one cell is always equal to itself
                what = f"one value of {one.positive_class}" if self.others else "one value"
                equal = counts.max() / values.size
                found.append(f"{what}, {float(np.median(values)):.4f}, over {equal:.1%} of the tissue")
        return tuple(found)

    @property
    def cell_level0(self) -> tuple[float, float]:
        """Width and height of a cell in level-0 pixels."""
        return self.cell_um / self.slide.mpp[0], self.cell_um / self.slide.mpp[1]

    @property
    def cell_mm2(self) -> float:
        """Area of a cell in mm2."""
        return (self.cell_um / 1000) ** 2

    @property
    def grid(self) -> Grid:
        """The grid of the cells, one tile per cell."""
        return Grid(self.slide.size_px, self.slide.mpp, 1, 1, self.cell_um)

    @property
    def foci_mm2(self) -> NDArray[np.float64]:
        """float64[n]: areas of the connected parts of the tumour; cells that touch only at a corner are apart."""
        return sizes_of_parts(*connected_parts(self.called[self.positive_class]))[1:] * np.float64(self.cell_mm2)

    def edges(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the level-0 x of the columns' edges [columns + 1] and the y of the rows' edges [rows + 1].

        The outermost edges are those of the slide, so cells that reach beyond it are cut.
        """
        rows, columns = self.shape
        x = np.minimum(np.arange(columns + 1) * self.cell_level0[0], self.slide.size_px[0])
        y = np.minimum(np.arange(rows + 1) * self.cell_level0[1], self.slide.size_px[1])
        return x, y

    def with_others(self, thresholds: Mapping[str, float], probabilities: Sequence[NDArray[np.float32]]) -> Self:
        """Return the heatmap with further classes: their thresholds by name, and float32[rows, columns] of each."""
        others = (
            replace(self, probabilities=values, threshold=threshold, positive_class=name, disagreement=None)
            for (name, threshold), values in zip(thresholds.items(), probabilities, strict=True)
        )
        return replace(self, others=tuple(others))

    def at(self, x: float, y: float) -> float:
        """Return the probability at a level-0 point; NaN where not looked at or outside the slide."""
        row, column = self.grid.cell_at(x, y)
        inside = 0 <= row < self.shape[0] and 0 <= column < self.shape[1]
        return float(self.probabilities[row, column]) if inside else math.nan

    def shown(self, most: int) -> tuple[NDArray[np.float32], NDArray[np.bool_], Box]:
        """Return what is shown of the map, averaged by a whole number of cells until no side is longer than `most`.

        Returns:
            The mean of the judged cells, float32[rows, columns], NaN where there is none; where half of the tissue or
            more is unknown, bool[rows, columns]; and left, top, width and height of these cells as shares of the width
            and height of `slide.shown_px`. The last cells may reach beyond.
        """
        x, y, width, height = self.slide.shown_px
        across, down = self.cell_level0
        left, top = int(x / across), int(y / down)
        part = np.s_[top : math.ceil((y + height) / down), left : math.ceil((x + width) / across)]
        cells = max(1, math.ceil(max(self.probabilities[part].shape) / most))
        values = block_means(self.probabilities[part], self.judged[part], cells)
        unknown = np.nan_to_num(block_means(self.unknown[part], self.tissue[part], cells)) >= _HALF
        sides = values.shape[1] * cells * across / width, values.shape[0] * cells * down / height
        return values, unknown, ((left * across - x) / width, (top * down - y) / height, *sides)

    def resample(self, cell_um: float) -> Self:
        """Return the heatmap on cells of another size; each takes the value and the state at its centre."""
        grid = replace(self.grid, tile_mpp=cell_um)
        places = (((np.arange(count) + 0.5) * cell_um / self.cell_um).astype(int) for count in grid.shape)
        chosen = np.ix_(*(np.minimum(place, count - 1) for place, count in zip(places, self.shape, strict=True)))
        return replace(
            self,
            probabilities=self.probabilities[chosen],
            disagreement=None if self.disagreement is None else self.disagreement[chosen],
            unknown=self.unknown[chosen],
            others=tuple(one.resample(cell_um) for one in self.others),
            cell_um=cell_um,
        )

    def to_geojson(self, threshold: float | None = None, *, crop_to_bounds: bool = True) -> dict[str, Any]:
        """Return outlines of tumour, unknown tissue and all tissue as a GeoJSON FeatureCollection for QuPath.

        It has one feature per tumour focus at the `threshold`, or the heatmap's own, and one MultiPolygon each for
        unknown and for all tissue. Coordinates are level-0 pixels. With `crop_to_bounds` they start at the corner of
        the scan if the slide states its bounds, as in QuPath by default; otherwise at the corner of level 0.
        """
        chosen = self if threshold is None else replace(self, threshold=threshold)
        found: dict[str, Any] = json.loads("".join(collection_text(chosen, crop_to_bounds=crop_to_bounds)))
        return found

    def _repr_html_(self) -> str:
        """Return the map as a picture, as notebooks show it."""
        values, unknown, _ = self.shown(_NOTEBOOK_PX)
        copies = max(1, _NOTEBOOK_PX // max(values.shape))
        judged = ~np.isnan(values) & ~unknown
        pixels = np.full((*values.shape, 3), 255, np.uint8)
        pixels[judged] = colored(values[judged], self.threshold)
        pixels = pixels.repeat(copies, 0).repeat(copies, 1)
        hatch(pixels, unknown.repeat(copies, 0).repeat(copies, 1), 1)
        Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
        share = f"{percent(self.tumor.sum() / max(1, self.tissue.sum()))} of the tissue from {self.threshold:.2f} on"
        word = escape(in_words(self.positive_class))
        said = f"<p>{escape(self.slide.file)}: {word} {share}, {percent(self.unknown_share or 0)} unknown</p>"
        said += "".join(one._repr_html_() for one in self.others)
        return f'<img src="{picture_address("png", buffer.getvalue())}" alt="{word} map">{said}'

    def save(self, path: Path | str, ngff: NgffVersion = "0.4") -> None:
        """Write the heatmap as OME-NGFF, whole or not at all.

        Args:
            path: The folder to write, named `<slide>.ome.zarr`.
            ngff: 0.4 (zarr 2; what QuPath and napari open) or 0.5 (zarr 3).

        Raises:
            OutputError: The folder cannot be written.
        """
        channels = [*(one.probabilities for one in self.by_class), self.disagreement]
        own = {
            "schema": "wsiseg.heatmap/1",
            "version": self.version,
            "cell_um": self.cell_um,
            "threshold": self.threshold,
            "classes": [{"name": one.positive_class, "threshold": one.threshold} for one in self.by_class],
            "unknown_mm2": round(int(self.unknown.sum()) * self.cell_mm2, 6),
            "unknown_share": self.unknown_share,
            "warnings": list(self.warnings),
            "slide": asdict(self.slide),
            "model": self.model,
            "run": self.run,
        }
        with written_whole(Path(path)) as partial:
            write_levels(
                partial,
                np.nan_to_num(np.stack([one for one in channels if one is not None]), nan=0.0),
                self.labels,
                classes=self.classes,
                cell_um=self.cell_um,
                mpp=self.slide.mpp,
                name=f"{self.slide.file} {' and '.join(map(in_words, self.classes))} probability",
                own=own,
                ngff=ngff,
                is_scaled=self.slide.mpp_source != ASSUMED,
            )

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Read a heatmap that `save` wrote.

        Raises:
            WsisegError: There is no heatmap of wsiseg at `path`.
        """
        try:
            values, labels, own = open_levels(Path(path))
            channels = np.where(labels > 0, values, np.nan).astype(np.float32)
            # Earlier versions mapped nothing but tumour.
            listed = own.get("classes", [{"name": "tumor", "threshold": own["threshold"]}])
            (name, threshold), *others = ((str(one["name"]), float(one["threshold"])) for one in listed)
            heatmap = cls(
                probabilities=channels[0],
                disagreement=channels[len(listed)] if len(channels) > len(listed) else None,
                unknown=labels == UNKNOWN,
                cell_um=float(own["cell_um"]),
                slide=SlideFacts.from_json(own["slide"]),
                threshold=threshold,
                model=own["model"],
                run=own["run"],
                version=own["version"],
                positive_class=name,
            )
            return heatmap.with_others(dict(others), [*channels[1 : len(listed)]])
        except DAMAGED as error:
            raise WsisegError(f"{path}: not a heatmap of wsiseg: {error}", "name what predict wrote") from error
