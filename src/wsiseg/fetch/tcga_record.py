"""What `fetch tcga` leaves beside the slides: the cohort, the manifest, and the manifest of what is missing."""

from collections.abc import Sequence
from pathlib import Path

from wsiseg.fetch.manifest import Entry, read_manifest, write_manifest
from wsiseg.fetch.tcga_slides import TcgaSlide
from wsiseg.slides.cohort import Cohort, CohortSlide
from wsiseg.slides.split import by_case

COHORT, MANIFEST, MISSING = "cohort.csv", "manifest.tsv", "missing.tsv"


class Record:
    """The files that describe a folder of slides; what an earlier run wrote there is kept and added to.

    Args:
        folder: The folder of the slides.
        seed: Of the split.

    Raises:
        UsageError: What stands there cannot be read.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.cohort, self.manifest, self.missing = (folder / name for name in (COHORT, MANIFEST, MISSING))
        self._folder, self._seed = folder, seed
        self._rows = Cohort.read(self.cohort).slides if self.cohort.exists() else ()
        self._entries = read_manifest(self.manifest) if self.manifest.exists() else []

    def splits(self, slides: Sequence[TcgaSlide]) -> list[str]:
        """Assign slides to train, val or test by case; cases of earlier runs stay where they are."""
        known = {row.case: row.split for row in self._rows if row.split}
        strata = [slide.stratum for slide in slides]
        return by_case([slide.case for slide in slides], strata, self._seed, known=known)

    def write(self, slides: Sequence[TcgaSlide], missing: Sequence[Entry]) -> dict[str, str]:
        """Write what there is after a run.

        Args:
            slides: All that were wanted.
            missing: The files among them that are not there.

        Returns:
            The paths by what they hold.
        """
        gone = {entry.name for entry in missing}
        rows = {row.slide: row for row in self._rows if row.path.exists()}
        for slide, split in zip(slides, self.splits(slides), strict=True):
            if slide.entry.name not in gone:
                rows.setdefault(slide.name, self._row(slide, split))
        entries = {entry.name: entry for entry in [*self._entries, *(slide.entry for slide in slides)]}
        write_manifest(self.manifest, entries.values())
        outputs = {"manifest": str(self.manifest)}
        if rows:
            Cohort(tuple(rows.values())).write(self.cohort)
            outputs["cohort"] = str(self.cohort)
        self.missing.unlink(missing_ok=True)
        if missing:
            write_manifest(self.missing, missing)
            outputs["missing"] = str(self.missing)
        return outputs

    def _row(self, slide: TcgaSlide, split: str) -> CohortSlide:
        extra = {"project": slide.gdc.project, **slide.gdc.measures} if slide.gdc else {}
        path = self._folder / slide.entry.name
        return CohortSlide(slide.name, path, slide.case, slide.label, split, slide.site, extra=extra)
