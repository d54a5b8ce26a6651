"""Finding slides in files, folders and globs, and what their names say of them: case, label and split."""

import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from wsiseg.run.errors import UsageError
from wsiseg.run.record import Run
from wsiseg.slides import barcode
from wsiseg.slides.address import is_address, place_of
from wsiseg.slides.cohort_slide import LABELS, SPLITS, CohortSlide, plain
from wsiseg.slides.dicom import DicomFile, by_series, dicom_file
from wsiseg.slides.formats import SLIDE_SUFFIXES

_DICOM_SUFFIXES = frozenset(["", ".dcm", ".dicom"])
_MOST_RUN_BYTES = 2**28


def find(text: str) -> list[CohortSlide]:
    """Find the files that a path, a folder (searched in depth), a glob or an address names; also what does not exist.

    Left out are what MRXS and VMS slides keep beside them and what wsiseg itself wrote, and of folders hidden files.

    Raises:
        UsageError: A folder cannot be listed.
    """
    if is_address(text):
        return [replace(_of(place_of(text), Path()), address=text, is_named=True)]
    path = Path(text)
    if path.is_dir():
        return [_of(file, path) for file in _files(path)]
    if path.exists() or not glob.has_magic(text):
        return [replace(_of(path, path.parent), is_named=True)]
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207  any root
    left_out = _no_slides([match for match in matches if match.is_file()])
    return [
        found
        for match in matches
        if match not in left_out
        for found in ([_of(match, match.parent)] if match.is_file() else find(str(match)))
    ]


def parts_of_series(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the files that belong to the DICOM slide of a file named with them, and a sentence that says so for each.

    Thumbnails, labels and the like are among them where a slide lies in their folder.
    """
    seen = [file for path in paths if (file := _dicom(path)) is not None]
    found, folders = {}, set()
    for series in by_series(seen):
        folders.add(series[0].path.parent)
        for part in series[1:]:
            found[part.path] = f"{part.path.name}: belongs to the DICOM slide of {series[0].path.name}"
    beside = {file.path: file.refusal().message for file in seen if file.kind and file.path.parent in folders}
    return found | beside


def _files(folder: Path) -> list[Path]:
    files = [path for path in _walk(folder, set()) if path.is_file() or path.suffix.lower() in SLIDE_SUFFIXES]
    left_out = _no_slides(files)
    return sorted(path for path in files if path not in left_out)


def _walk(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield what is in a folder and below, but not in hidden folders, zarr stores and those of MRXS slides."""
    seen.add(folder.resolve())
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be listed: {error.strerror}", "check its permissions") from error
    of_mrxs = {path.with_suffix("") for path in entries if path.suffix.lower() == ".mrxs"}
    for path in entries:
        if path.name.startswith("."):
            continue
        if not path.is_dir():
            yield path
        elif path.suffix != ".zarr" and path not in of_mrxs and path.resolve() not in seen:
            yield from _walk(path, seen)


def _no_slides(files: Sequence[Path]) -> set[Path]:
    """Return the paths beside files that are parts of slides among them, or results."""
    return _beside_slides(files) | _written_by_wsiseg(files)


def _beside_slides(files: Iterable[Path]) -> set[Path]:
    """Return the images that the key files of Hamamatsu VMS and VMU slides name: they are parts of those slides."""
    parts: set[Path] = set()
    for path in files:
        if path.suffix.lower() in {".vms", ".vmu"}:
            text = path.read_text(encoding="utf-8", errors="replace")
            parts.update(path.parent / value.strip() for value in re.findall(r"=(.+)", text))
    return parts


def _written_by_wsiseg(files: Iterable[Path]) -> set[Path]:
    """Return the files that earlier runs wrote, so that results beside slides are not taken for slides."""
    records = [path for folder in {file.parent for file in files} for path in folder.glob("run.*")]
    small = [path for path in records if path.suffix == ".json" and path.stat().st_size < _MOST_RUN_BYTES]
    return {path.with_name(name) for path in small for name in _outputs(path)}


def _outputs(path: Path) -> list[str]:
    try:
        run = Run.read(path)
    except (OSError, ValueError):  # it is not the record of a run
        return []
    outputs = (output for slide in run.slides for output in slide.outputs.values())
    names = {Path(output).name for output in (*run.written, *outputs)} - {""}
    return [path.name, "cohort.csv", "report.html", *names]


def _of(path: Path, root: Path) -> CohortSlide:
    """Say what the name of a file, and the folders between it and `root`, tell."""
    suffix = path.suffix.lower()
    name = (path.stem if suffix in SLIDE_SUFFIXES else path.name).removesuffix(".ome") or path.name
    folders = [plain(folder) for folder in reversed(path.relative_to(root).parts[:-1])]
    label = next((LABELS[folder] for folder in folders if folder in LABELS), None)
    split = next((SPLITS[folder] for folder in folders if folder in SPLITS), None)
    return _with_barcode(CohortSlide(name, path, label=label, split=split))


def _with_barcode(found: CohortSlide) -> CohortSlide:
    """Add what a TCGA barcode tells; a sample that is neither tumour nor normal gets no label."""
    try:
        found = replace(found, case=barcode.part(found.slide, "case"))
    except UsageError:
        return found
    try:
        label = barcode.label(found.slide)
    except UsageError as error:
        return replace(found, label=None, doubts=(f"no label: {error.message}",))
    if found.label not in {label, None}:
        return replace(found, label=None, doubts=("no label: its folder and its barcode contradict each other",))
    return replace(found, label=label)


def _dicom(path: Path) -> DicomFile | None:
    return dicom_file(path) if path.suffix.lower() in _DICOM_SUFFIXES and path.is_file() else None
