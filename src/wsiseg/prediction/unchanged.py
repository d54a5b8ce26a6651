"""Slides that need not be opened, as all that their results depend on is what an earlier run recorded.

A file counts as unchanged while its size and its time of change are the same, as for make and rsync. Where anything
differs, a slide is looked at as if nothing were recorded. `wsiseg doctor` proves files by their hashes.
"""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wsiseg.config.predict import PredictConfig
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction.map_files import MapFiles, key_of
from wsiseg.prediction.mapping import settings_of, threshold_of
from wsiseg.prediction.places import Places
from wsiseg.run.errors import WsisegError
from wsiseg.run.record import Progress, SlideRecord
from wsiseg.run.version import __version__
from wsiseg.slides.address import bare
from wsiseg.slides.cohort import CohortSlide
from wsiseg.slides.formats import SLIDE_SUFFIXES

Marks = list[tuple[str, int, int]]
"""Of each file: its path, its size in bytes, and when it changed, in ns; of one elsewhere its address with its ETag."""

_OF_MANY_FILES = frozenset([".vms", ".vmu", ".dcm", ".dicom"])  # nobody knows which without opening them


def marks_of(row: CohortSlide) -> Marks:
    """Return the marks of all files of a slide; nothing where they cannot be told without opening it."""
    slide = row.path
    if row.address:
        from wsiseg.slides.remote import asked  # noqa: PLC0415  loads the HTTP client

        size, version = asked(row)
        return [(f"{bare(row.address)} {version}", size, 0)] if version else []
    suffix = slide.suffix.lower()
    try:
        if slide.is_dir() or suffix in SLIDE_SUFFIXES - _OF_MANY_FILES:
            return _marks([slide, slide.with_suffix("")] if suffix == ".mrxs" else [slide])
    except OSError:
        pass  # opening it says what is wrong with it
    return []


def _marks(paths: Iterable[Path]) -> Marks:
    found: Marks = []
    for path in paths:
        seen = os.stat(path)  # noqa: PTH116  for thousands of files
        if stat.S_ISDIR(seen.st_mode):
            found += _marks(sorted(path.iterdir()))
        else:
            found.append((str(path), seen.st_size, seen.st_mtime_ns))
    return found


@dataclass(frozen=True)
class Setting:
    """What all slides of a run share."""

    places: Places
    models: list[ModelFile]
    config: PredictConfig
    progress: Progress
    earlier: dict[str, SlideRecord] = field(default_factory=dict)  # what earlier runs recorded of slides

    def files(self, row: CohortSlide) -> MapFiles:
        """Return where the results of a slide lie."""
        return MapFiles.of(self.config, row.slide)

    def state(self, row: CohortSlide, marks: Marks) -> str:
        """Return a text that changes when a slide, its results, its row or settings do; empty where nobody can tell.

        `marks` are those of the slide before it was read.
        """
        files = self.files(row)
        if not marks or not files.are_there:
            return ""
        chosen = self.config.model_dump(mode="json", include={"slide_mpp", "max_bad_tiles", "ngff"})
        return key_of(
            {
                **chosen,
                **settings_of(self.models, self.config, self.places.settings(row.slide)),
                "threshold": threshold_of(self.models, self.config),
                "version": __version__,
                "row": [row.slide, row.mpp, row.known, row.doubts],
                "slide": marks,
                "results": _marks([*files.outputs.values(), files.picture]),
            }
        )

    def unchanged(self, row: CohortSlide) -> SlideRecord | None:
        """Return what is recorded of a slide where it is up to date for sure, and need not be opened."""
        was = self.earlier.get(row.slide)
        if was is None or not was.state or self.config.overwrite:
            return None
        try:
            is_same = was.state == self.state(row, marks_of(row))
        except (WsisegError, OSError):  # opening it says what is wrong
            return None
        return was.model_copy(update={"status": "up_to_date", "seconds": 0.0}) if is_same else None
