"""The files that the tumour map of one slide is written to, what they depend on, and the locks of processes that share.

A lock is a file that holds host, process and start time of who has it. That of a dead process of this machine is taken
over at once. Its owner touches it now and then, so that of a process of another machine is taken over when nothing
touched it for two minutes. Should its owner live all the same, a slide is mapped twice, and outputs stay whole.
"""

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.config.predict import PredictConfig
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.ngff import NgffVersion
from wsiseg.heatmap.opening import kept_picture
from wsiseg.heatmap.qupath import cells_text, collection_text
from wsiseg.pages import pictures as report
from wsiseg.prediction.inference import Sums
from wsiseg.prediction.page import predict_page
from wsiseg.prediction.viewer import Results, slide_jpeg
from wsiseg.run.errors import WsisegError, percent
from wsiseg.run.outputs import (
    csv_text,
    load_arrays,
    locked,
    packed_name,
    save_arrays,
    write_packed,
    write_text,
    written_whole,
)
from wsiseg.run.proof import Written, written
from wsiseg.run.record import Run, RunFile, SlideRecord, in_words, slides_of
from wsiseg.slides.slide import ASSUMED, Slide

OTHER_THRESHOLD = "the threshold changed"
"""Why a map is written again where the model need not be asked again."""

_NAMES = {"min_tissue": "min-tissue", "models": "the model file", "provider": "what computes"}
_NAMES |= {"limits": "from where on tissue is unknown"}
_FORMER = {"stride": None, "combine": "mean"}  # settings of earlier versions, and what everything is made with now
_KNOWN = ("slide", "path", "label", "split", "site", "status", "tissue_mm2")
_COLUMNS = (
    *("unknown_mm2", "unknown_share", "largest_focus_mm2", "foci", "mean_probability", "max_probability", "model"),
)
"""Of `slides.csv`: fields of a record; between them stand the area and the share of each class."""


@dataclass(frozen=True)
class MapFiles:
    """Where the results of one slide lie in the folder of a run."""

    folder: Path
    slide: str
    with_csv: bool = False
    with_features: bool = False
    with_cells: bool = False
    ngff: NgffVersion = "0.4"

    @classmethod
    def of(cls, config: PredictConfig, slide: str) -> Self:
        """Return the files of a slide as settings ask for them."""
        return cls(config.out, slide, config.csv, config.write_features, config.cells, config.ngff)

    @property
    def outputs(self) -> dict[str, Path]:
        """The results by kind; large outlines are packed."""
        suffixes = {"zarr": ".ome.zarr", "geojson": ".geojson", "png": ".png"}
        if self.with_csv:
            suffixes["csv"] = ".csv"
        if self.with_features:
            suffixes["features"] = ".h5"
        if self.with_cells:
            suffixes["cells"] = ".cells.geojson.gz"
        found = {kind: self.folder / f"{self.slide}{suffix}" for kind, suffix in suffixes.items()}
        packed = packed_name(found["geojson"])
        if packed.is_file() and not found["geojson"].is_file():
            found["geojson"] = packed
        return found

    @property
    def lock(self) -> Path:
        """Stands while a process works on the slide."""
        return self.folder / f".{self.slide}.lock"

    def _unfinished(self, key: str) -> Path:
        """What is known of a slide that is not done."""
        return self.folder / f".{self.slide}.unfinished-{key[:12]}.npz"

    @property
    def _begun(self) -> Path:
        """Stands while results are replaced: should that be interrupted, some are of one map and some of another."""
        return self.folder / f".{self.slide}.begun"

    @property
    def picture(self) -> Path:
        """The small picture of the slide that is kept for the page of the run."""
        return kept_picture(self.folder, self.slide)

    @property
    def are_there(self) -> bool:
        """True if every result is there, and all of them are of the same map."""
        return not self._begun.exists() and all(path.exists() for path in self.outputs.values())

    def written(self) -> dict[str, Written]:
        """Return what the results are now, by their names in the folder."""
        return written(self.folder, [*self.outputs.values(), self.picture])

    def open(self) -> Heatmap | None:
        """Return the heatmap that is there, if it can be read."""
        path = self.outputs["zarr"]
        try:
            return Heatmap.open(path) if path.is_dir() else None
        except WsisegError:
            return None

    def write(
        self, heatmap: Heatmap, thumbnail: NDArray[np.uint8], notes: Sequence[str], warnings: Sequence[str] = ()
    ) -> None:
        """Write all results, the heatmap last: where it stands, the others do.

        `thumbnail` is the whole slide, uint8[rows, columns, 3]; `warnings` go above the picture and `notes` below it.
        """
        write_text(self._begun, "")
        write_packed(self.folder / f"{self.slide}.geojson", collection_text(heatmap))
        table, cells = (self.folder / f"{self.slide}{suffix}" for suffix in (".csv", ".cells.geojson"))
        if self.with_csv:
            from wsiseg.heatmap.convert import write_csv  # noqa: PLC0415  loads what archives need

            write_csv(table, heatmap)
        else:
            table.unlink(missing_ok=True)  # that of an earlier map
        if self.with_cells:
            write_packed(cells, cells_text(heatmap), most_bytes=0)
        else:
            packed_name(cells).unlink(missing_ok=True)
        shown = {one.positive_class: (one.probabilities, one.threshold) for one in heatmap.by_class}
        report.heatmap_picture(
            self.outputs["png"],
            thumbnail,
            {in_words(name): values for name, values in shown.items()},
            heatmap.unknown,
            (heatmap.slide.size_px[0] / heatmap.cell_level0[0], heatmap.slide.size_px[1] / heatmap.cell_level0[1]),
            title=f"{heatmap.slide.file}   {_summary(heatmap)}",
            warnings=warnings,
            notes=notes,
            cell_um=None if heatmap.slide.mpp_source == ASSUMED else heatmap.cell_um,
        )
        with written_whole(self.picture) as partial:
            partial.write_bytes(slide_jpeg(thumbnail, heatmap.slide))
        heatmap.save(self.outputs["zarr"], self.ngff)
        for unfinished in self.folder.glob(f".{glob.escape(self.slide)}.unfinished-*.npz"):
            unfinished.unlink(missing_ok=True)
        self._begun.unlink(missing_ok=True)

    def save_unfinished(self, sums: Sums, key: str) -> None:
        """Keep what is known so far, to go on from it with the same key."""
        save_arrays(self._unfinished(key), key, total=sums.total, weight=sums.weight, done=sums.done)

    def load_unfinished(self, key: str) -> Sums | None:
        """Return what an interrupted run with the same key knew."""
        stored = load_arrays(self._unfinished(key), key)
        return None if stored is None else Sums(stored["total"], stored["weight"], int(stored["done"]))


def write_overviews(file: RunFile, folder: Path, run_file: str, report: Path) -> None:
    """Write the page of a run, of all slides that its file names, and the table of all runs in the folder.

    A page that shows the same results already stays. What they are is added to the file of the run.

    Raises:
        OutputError: They cannot be written.
    """
    run = Run.read(folder / run_file)
    if file.before is None or not _is_page_of(file.before, run, folder, report):
        write_text(report, predict_page(run, folder.resolve().name, partial(_results, folder)))
    with locked(folder / ".slides.csv.lock"):  # whoever is last has read what all others wrote
        write_text(folder / "slides.csv", _slides_csv(slides_of(folder)))
        file.update(written=written(folder, [report, folder / "slides.csv"]))


def _is_page_of(before: Run, run: Run, folder: Path, report: Path) -> bool:
    """Tell whether the page is what an earlier run wrote, of the very results that there are now."""
    earlier, states = ({record.slide: record.state for record in one.slides} for one in (before, run))
    is_same = earlier == states and all(states.values())
    return is_same and before.written.get(report.name) == written(folder, [report]).get(report.name, "gone")


def _slides_csv(records: Sequence[SlideRecord]) -> str:
    """Return one row a slide; areas are in mm2, shares those of the tissue."""
    names = list(dict.fromkeys(name for record in records for name in record.by_class)) or ["tumor"]

    def row(record: SlideRecord) -> Iterator[Any]:
        yield from (getattr(record, name, None) for name in _KNOWN)
        yield from (record.by_class.get(name, {}).get(kind) for name in names for kind in ("mm2", "share"))
        yield from (getattr(record, name, None) for name in _COLUMNS)
        yield "; ".join(record.warnings)
        yield "" if record.error is None else record.error.message

    heads = (f"{name}_{kind}" for name in names for kind in ("mm2", "share"))
    return csv_text([[*_KNOWN, *heads, *_COLUMNS, "warnings", "error"], *map(row, records)])


def _results(folder: Path, slide: str) -> Results | None:
    files = MapFiles(folder, slide)
    heatmap = files.open() if Path(slide).name == slide else None  # a changed run file must not lead elsewhere
    return (
        None if heatmap is None else Results(heatmap, files.picture.read_bytes() if files.picture.is_file() else None)
    )


def key_of(settings: dict[str, Any]) -> str:
    """Return a short text that changes whenever any of the settings does."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _summary(heatmap: Heatmap) -> str:
    tissue = int(heatmap.tissue.sum())
    if not tissue:
        return "no tissue"
    classes = {in_words(name): cells for name, cells in heatmap.called.items()}
    states = {**classes, "normal": heatmap.labels == 1, "unknown": heatmap.unknown}
    shares = ", ".join(f"{percent(mask.sum() / tissue)} {state}" for state, mask in states.items() if mask.any())
    return f"{tissue * heatmap.cell_mm2:.2f} mm2 of tissue: {shares}"


def what_changed(known: Heatmap, slide: Slide, wanted: dict[str, Any], threshold: float) -> str | None:
    """Name what a heatmap was made with that differs from what is asked for now; None where nothing does."""
    if known.slide != slide.facts:
        return slide.facts.difference(known.slide)
    changed = [_NAMES.get(name, name) for name, value in wanted.items() if known.run.get(name) != value]
    changed += [name for name, value in _FORMER.items() if known.run.get(name, value) != value]
    if changed:
        return f"{', '.join(changed)} changed"
    return None if known.threshold == threshold else OTHER_THRESHOLD
