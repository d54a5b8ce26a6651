"""`wsiseg convert`, a verb that lives with its noun: maps that predict wrote become files of other programs."""

import csv
import hashlib
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_OID, uuid5

import numpy as np

from wsiseg.annotations.classes import Classes
from wsiseg.config.predict import ConvertConfig, Form
from wsiseg.heatmap import dicom
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.heatmap.ngff import halved, labels_of
from wsiseg.run.connection import USUAL, Client, Patience
from wsiseg.run.errors import DownloadError, SlideError, UsageError, WsisegError
from wsiseg.run.outputs import written_whole
from wsiseg.run.record import Progress, Run, RunFile, SlideRecord, now, slides_of
from wsiseg.run.version import __version__
from wsiseg.slides import dicomweb
from wsiseg.slides.dicom import dicom_file
from wsiseg.slides.slide import ASSUMED

if TYPE_CHECKING:
    from pydicom import Dataset

_TILE_PX = 256


def convert(config: ConvertConfig, progress: Progress | None = None, patience: Patience = USUAL) -> Run:
    """Write the maps of a folder in other forms, and store DICOM objects in an archive where that is asked for.

    Returns:
        What became of every slide. One that fails does not stop the others.

    Raises:
        UsageError: There are no maps in the folder, or none of a slide that was named.
        WsisegError: A package of the extra is missing.
        DownloadError: The archive does not answer, or does not take an object.
        OutputError: Nothing can be written.
    """
    progress, out = progress or Progress(), config.out or config.folder
    records = _chosen(config)
    _check_extra(config.to)
    settings = config.model_dump(mode="json", exclude={"folder", "out"})
    run = Run(command="convert", version=__version__, started=now(), settings=settings)
    with ExitStack() as stack:
        archive = None if config.store is None else stack.enter_context(dicomweb.open_archive(config.store, patience))
        if archive and config.store:
            dicomweb.check(archive, config.store)
        progress.begin(len(records))
        file = stack.enter_context(RunFile(out / "run.convert.json", run))
        for record in records:
            done = _converted(record, config, out, archive)
            file.add(done)
            progress.done(done)
        return file.finish()


def _converted(record: SlideRecord, config: ConvertConfig, out: Path, archive: Client | None) -> SlideRecord:
    """Write and store what one map becomes, and say what became of it.

    Raises:
        DownloadError: The archive does not take it, which it would not do of the next either.
    """
    began = time.monotonic()
    try:
        outputs = _write(record, config, out)
        slide = sorted((out / f"{record.slide}.dicom").glob("*.dcm")) if config.dicomize else []
        if archive and config.store:
            for path in (path for path in [*slide, *outputs] if path.suffix == ".dcm"):
                dicomweb.store(archive, config.store, path)
    except DownloadError:
        raise
    except (WsisegError, OSError, MemoryError) as error:
        return SlideRecord.of_error(record.slide, Path(record.path), error, must_be_slide=True)
    return SlideRecord(
        slide=record.slide,
        path=record.path,
        status="ok",
        outputs={path.name.removeprefix(record.slide)[1:]: str(path) for path in outputs},
        seconds=round(time.monotonic() - began, 3),
    )


def _chosen(config: ConvertConfig) -> list[SlideRecord]:
    try:
        # A changed run file must not lead elsewhere.
        found = [one for one in slides_of(config.folder) if Path(one.slide).name == one.slide]
    except (OSError, ValueError) as error:
        raise UsageError(f"{config.folder}: its run files cannot be read: {error}") from error
    there = {one.slide: one for one in found if _map_of(config, one.slide).is_dir()}
    if not there:
        raise UsageError(f"{config.folder}: no maps there", "give a folder that wsiseg predict wrote")
    if missing := [name for name in config.slide if name not in there]:
        raise UsageError(f"{config.folder}: no map of {', '.join(missing)}", "see the first column of slides.csv")
    return [one for name, one in there.items() if not config.slide or name in config.slide]


def _map_of(config: ConvertConfig, slide: str) -> Path:
    return config.folder / f"{slide}.ome.zarr"


def _check_extra(forms: tuple[Form, ...]) -> None:
    """Refuse forms whose packages are missing before anything is written."""
    import importlib  # noqa: PLC0415  only here

    needed = {"dicom-seg": "highdicom", "dicom-map": "highdicom", "ome-tiff": "tifffile", "spatialdata": "spatialdata"}
    for form in forms:
        try:
            importlib.import_module(needed.get(form, "csv"))
        except ModuleNotFoundError as error:
            extra = "spatialdata" if form == "spatialdata" else "dicom"
            text = f"{form} needs {error.name}, which is not installed"
            raise WsisegError(text, f"pip install 'wsiseg[{extra}]'") from error


def _write(record: SlideRecord, config: ConvertConfig, out: Path) -> list[Path]:
    """Write all forms of one map."""
    heatmap, paths = Heatmap.open(_map_of(config, record.slide)), list[Path]()
    if _OBJECTS.keys() & config.to and [*map(Classes.of, heatmap.classes)] != [Classes()]:
        text = f"{record.slide}: its map is of {', '.join(heatmap.classes)}, and DICOM objects are of tumour"
        raise WsisegError(text, "convert it to ome-tiff, ngff-0.5 or csv")
    images = dicom.source_images(_source(record, config, out)) if _OBJECTS.keys() & config.to else []
    for form in config.to:
        for suffix, make in _OBJECTS.get(form, {}).items():
            paths.append(out / f"{record.slide}{suffix}")
            with written_whole(paths[-1]) as partial_file, dicom.discreetly(record.slide):
                make(heatmap, images).save_as(partial_file)
        if form in _FILES:
            suffix, write = _FILES[form]
            paths.append(out / f"{record.slide}{suffix}")
            write(paths[-1], heatmap)
    return paths


def _source(record: SlideRecord, config: ConvertConfig, out: Path) -> Path:
    """Return a file of the DICOM slide that a map belongs to, made of another slide where that is asked for."""
    path = Path(record.path) if config.slides is None else config.slides / Path(record.path).name
    if not path.is_file():
        raise SlideError(f"{path.name}: is not where predict read it", "name its folder with --slides")
    if not config.dicomize or dicom_file(path) is not None:
        return path
    made = out / f"{record.slide}.dicom"
    if not made.is_dir():
        with written_whole(made) as partial:
            dicom.dicomize(path, partial)
    return min(made.iterdir())


def write_csv(path: Path, heatmap: Heatmap) -> None:
    """Write the cells that were looked at as x, y, width, height in level-0 pixels, probability and state.

    Of several classes each has a column with its probability.
    """
    x, y = (edges.round().astype(int) for edges in heatmap.edges())
    labels, names = heatmap.labels, labels_of(heatmap.classes)
    heads = [f"probability {name}" for name in heatmap.classes] if heatmap.others else ["probability"]
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["x", "y", "width", "height", *heads, "state"])
        for row, column in np.argwhere(heatmap.tissue):
            told = (f"{one.probabilities[row, column]:.6f}" for one in heatmap.by_class)
            sides = x[column + 1] - x[column], y[row + 1] - y[row]
            writer.writerow([x[column], y[row], *sides, *told, names[labels[row, column]]])


def write_ome_tiff(path: Path, heatmap: Heatmap) -> None:
    """Write a pyramid of float32 cells as OME-TIFF, 0 where nobody looked; a channel a class, and the unknown cells."""
    import tifffile  # noqa: PLC0415  only where one is written

    classes = [np.nan_to_num(one.probabilities) for one in heatmap.by_class]
    layers = np.stack([*classes, heatmap.unknown.astype(np.float32)])
    levels, cell = halved(layers), heatmap.cell_um
    scaled = {} if heatmap.slide.mpp_source == ASSUMED else {"PhysicalSizeX": cell, "PhysicalSizeY": cell}
    # By default the file would be named after the network card of this machine, and the time.
    mark = uuid5(NAMESPACE_OID, hashlib.sha256(layers.tobytes()).hexdigest())
    names = [*(f"p({name})" for name in heatmap.classes), "unknown"]
    metadata = {"axes": "CYX", "Channel": {"Name": names}, "UUID": str(mark), **scaled}
    kinds: dict[str, Any] = {"tile": (_TILE_PX, _TILE_PX), "compression": "zlib", "photometric": "minisblack"}
    with written_whole(path) as partial, tifffile.TiffWriter(partial, ome=True) as tiff:
        tiff.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **kinds)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, metadata=None, **kinds)


def write_spatialdata(path: Path, heatmap: Heatmap) -> None:
    """Write probabilities, states of cells, what the states mean, and outlines as SpatialData.

    The coordinate system `global` is that of level-0 pixels, `micrometers` is there where their size is known; cell
    (0, 0) begins at the origin of both. Source: https://spatialdata.scverse.org/en/stable/design_doc.html
    """
    import spatialdata as sd  # noqa: PLC0415  only where one is written: it loads for seconds
    from anndata import AnnData  # noqa: PLC0415  the same

    images = np.stack([np.nan_to_num(one.probabilities) for one in heatmap.by_class])
    cells, pixels = _placed(heatmap, heatmap.cell_level0), _placed(heatmap, (1.0, 1.0))
    names, outlines = labels_of(heatmap.classes), _outlines(heatmap)
    states = AnnData(obs={"region": ["state"] * len(names), "label": [*names], "state": [*names.values()]})
    states.obs["region"] = states.obs["region"].astype("category")
    elements = {
        "probability": sd.models.Image2DModel.parse(images, ("c", "y", "x"), [*heatmap.classes], cells),
        "state": sd.models.Labels2DModel.parse(heatmap.labels, ("y", "x"), transformations=cells),
        "states": sd.models.TableModel.parse(states, "state", "region", "label"),
        **({"outlines": sd.models.ShapesModel.parse(outlines, transformations=pixels)} if len(outlines) else {}),
    }
    stated = {"version": heatmap.version, "model": heatmap.model, "run": heatmap.run, "warnings": [*heatmap.warnings]}
    stated["thresholds"] = {one.positive_class: one.threshold for one in heatmap.by_class}
    with written_whole(path) as partial, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "zarr v3 autosharding")  # anndata tells its callers of plans
        sd.SpatialData.init_from_elements(elements, attrs={"wsiseg": stated}).write(partial)


def _placed(heatmap: Heatmap, step: tuple[float, float]) -> dict[str, Any]:
    """Return how what counts in steps of so many level-0 pixels lies in the systems of coordinates."""
    from spatialdata.transformations import Scale  # noqa: PLC0415  only where one is written

    systems = (
        {"global": (1.0, 1.0)}
        if heatmap.slide.mpp_source == ASSUMED
        else {"global": (1.0, 1.0), "micrometers": heatmap.slide.mpp}
    )
    return {name: Scale(np.multiply(unit, step), ("x", "y")) for name, unit in systems.items()}


def _outlines(heatmap: Heatmap) -> Any:  # noqa: ANN401  geopandas is not typed
    """Return a table of the outlines that QuPath gets, in level-0 pixels."""
    from geopandas import GeoDataFrame  # noqa: PLC0415  only where one is written
    from shapely.geometry import shape  # noqa: PLC0415  the same

    features = heatmap.to_geojson(crop_to_bounds=False)["features"]
    stated = [one["properties"] for one in features]
    rows = [{"name": one["name"], "class": one["classification"]["name"], **one["measurements"]} for one in stated]
    return GeoDataFrame(rows, geometry=[shape(one["geometry"]) for one in features])


_OBJECTS: dict[Form, dict[str, Callable[[Heatmap, "Sequence[Dataset]"], "Dataset"]]] = {
    "dicom-seg": {".segmentation.dcm": dicom.segmentation, ".probability.dcm": dicom.probability},
    "dicom-map": {".map.dcm": dicom.parametric_map},
}
_FILES: dict[Form, tuple[str, Callable[[Path, Heatmap], None]]] = {
    "ome-tiff": (".map.ome.tiff", write_ome_tiff),
    "ngff-0.5": (".ngff.zarr", lambda path, heatmap: heatmap.save(path, "0.5")),
    "spatialdata": (".spatialdata.zarr", write_spatialdata),
    "csv": (".csv", write_csv),
}
