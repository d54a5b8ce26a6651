"""Finding slides in files, folders and globs, and what their names say of them: case, label and split."""

import glob
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from wsiseg.run.errors import UsageError
from wsiseg.slides import barcode
from wsiseg.slides.dicom import DicomFile, by_series, dicom_file
from wsiseg.slides.formats import SLIDE_SUFFIXES

_LABELS = {
    **dict.fromkeys(["1", "tumor", "tumour", "cancer", "malignant", "positive", "pos"], 1),
    **dict.fromkeys(["0", "normal", "benign", "negative", "neg", "non-tumor", "non-tumour", "no-tumor"], 0),
}
_WORDS = {**_LABELS, **dict.fromkeys(["yes", "y", "true", "t", "+1"], 1), **dict.fromkeys(["no", "n", "false", "f"], 0)}
_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_DICOM_SUFFIXES = frozenset(["", ".dcm", ".dicom"])
_MOST_RUN_BYTES = 2**28


@dataclass(frozen=True)
class Found:
    """A file that was named, or that lies in a folder that was named.

    Attributes:
        path: Where it lies.
        name: What to call the slide; not yet unique.
        case: The patient as its name tells, or empty.
        label: 1 for tumour, 0 for normal, None where its name and folders tell nothing.
        split: train, val or test, where a folder is called so.
        doubts: What its name says that cannot be used.
        is_named: The user named the file itself, not only a folder or a glob that holds it.
    """

    path: Path
    name: str
    case: str = ""
    label: int | None = None
    split: str | None = None
    doubts: tuple[str, ...] = ()
    is_named: bool = False


def label_of(text: str) -> int | None:
    """Return the label that a table says in figures or words, as 1, 1.0, yes, tumour or true; None where it is empty.

    Raises:
        ValueError: It says something else.
    """
    word = re.sub(r"^([01])[.,]0+$", r"\1", _plain(text))
    if word and word not in _WORDS:
        raise ValueError(f"label {text!r} is not 1, 0 or empty, nor a word for one of them as yes, tumor, no or normal")
    return _WORDS.get(word)


def split_of(text: str) -> str | None:
    """Return the split that a table says, in the words that folders have for it; None where it is empty.

    Raises:
        ValueError: It says something else.
    """
    if text and _plain(text) not in _SPLITS:
        raise ValueError(f"split {text!r} is not train, val, test or empty")
    return _SPLITS.get(_plain(text))


def _plain(text: str) -> str:
    return re.sub(r"[\s_-]+", "-", text.casefold())


def find(text: str) -> list[Found]:
    """Find the files that a path, a folder (searched in depth) or a glob names; one that does not exist is found too.

    Left out of folders are hidden files, what MRXS and VMS slides keep beside them, and what wsiseg itself wrote.

    Raises:
        UsageError: A folder cannot be listed.
    """
    path = Path(text)
    if path.is_dir():
        return [_of(file, path) for file in _files(path)]
    if path.exists() or not glob.has_magic(text):
        return [replace(_of(path, path.parent), is_named=True)]
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True))]  # noqa: PTH207  any root
    return [
        found for match in matches for found in ([_of(match, match.parent)] if match.is_file() else find(str(match)))
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
    """List the files of a folder that may be slides."""
    files = [path for path in _walk(folder, set()) if path.is_file() or path.suffix.lower() in SLIDE_SUFFIXES]
    left_out = _beside_slides(files) | _written_by_wsiseg(files)
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
    written: set[Path] = set()
    for path in files:
        if path.name.startswith("run.") and path.suffix == ".json" and path.stat().st_size < _MOST_RUN_BYTES:
            for name in _outputs(path):
                written.add(path.parent / name)
    return written


def _outputs(path: Path) -> Iterator[str]:
    """Yield the names of a run's outputs; none if the file is not the record of a run."""
    try:
        run = json.loads(path.read_bytes())
        if not str(run["schema"]).startswith("wsiseg.run/"):
            return
        yield from (path.name, "cohort.csv", "report.html")
        for slide in run["slides"]:
            yield from (Path(output).name for output in slide["outputs"].values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return


def _of(path: Path, root: Path) -> Found:
    """Say what the name of a file, and the folders between it and `root`, tell."""
    suffix = path.suffix.lower()
    name = (path.stem if suffix in SLIDE_SUFFIXES else path.name).removesuffix(".ome") or path.name
    folders = [_plain(folder) for folder in reversed(path.relative_to(root).parts[:-1])]
    label = next((_LABELS[folder] for folder in folders if folder in _LABELS), None)
    split = next((_SPLITS[folder] for folder in folders if folder in _SPLITS), None)
    return _with_barcode(Found(path, name, label=label, split=split))


def _with_barcode(found: Found) -> Found:
    """Add what a TCGA barcode tells; a sample that is neither tumour nor normal gets no label."""
    try:
        found = replace(found, case=barcode.case(found.name))
    except UsageError:
        return found
    try:
        label = barcode.label(found.name)
    except UsageError as error:
        return replace(found, label=None, doubts=(f"no label: {error.message}",))
    if found.label not in {label, None}:
        return replace(found, label=None, doubts=("no label: its folder and its barcode contradict each other",))
    return replace(found, label=label)


def _dicom(path: Path) -> DicomFile | None:
    return dicom_file(path) if path.suffix.lower() in _DICOM_SUFFIXES and path.is_file() else None
