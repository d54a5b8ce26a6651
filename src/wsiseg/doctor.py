"""Examine the installation, a slide or a model file."""

import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata, util
from pathlib import Path
from typing import Any

from wsiseg.config.doctor import DoctorConfig
from wsiseg.model_file.card_page import written_page
from wsiseg.model_file.model_file import BUNDLED, ModelFile, model_path
from wsiseg.model_file.onnx_session import GET_CUDA, PROVIDERS, available_providers, has_fast_int8, runtime
from wsiseg.run.errors import DeviceError, ModelFileError, PixelSizeError, SlideError, UsageError, shortened
from wsiseg.run.machine import cores, memory_bytes
from wsiseg.run.proof import Findings, signer
from wsiseg.run.record import Progress
from wsiseg.run.version import __version__
from wsiseg.slides.slide import Slide

_PACKAGES = ("numpy", "openslide-python", "openslide-bin", "pillow", "scipy", "shapely", "zarr")
_TRAINING = ("torch", "torchvision", "timm", "onnx", "onnxscript")
_NVIDIA = Path("/dev/nvidiactl")  # also where the GPU that a container may use is not the first
_ANY_MPP = 1e-3  # stands in for a pixel size that is not known; nothing that depends on it is shown
_TILE_PX = 256  # where a slide does not tell the size of its own
_MOST_NAMED = 20

_Tile = tuple[int, int, int, int, int]  # level, left, upper edge, width, height in pixels of the level


def doctor(config: DoctorConfig, progress: Progress | None = None) -> Findings:
    """Examine the slide and the model that are named, or the installation where none is.

    Raises:
        SlideError: The slide cannot be opened.
        ModelFileError: The model file is invalid.
        UsageError: There is no such model file, or nothing that can be signed.
    """
    facts: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    page, card = "", dict[str, Any]()
    if config.signed_by is not None and config.model is None:
        raise UsageError("signed-by is for runs and for model files", "name one, or leave it out")
    if config.slide is None and config.model is None:
        facts["installation"] = dict(_installation())
    if config.model is not None:
        with ModelFile.open(model_path(config.model), "auto") as model:
            facts["model"], page = dict(_model(model)), written_page(model.card, model.path.name, model.sha256)
            # Its own sha256 is the one with the digits zeroed.
            if config.signed_by is not None:
                try:
                    facts["model"]["signed by"] = signer(model.path, config.signed_by)
                except ValueError as error:
                    problems.append(str(error))
            card = model.card.model_dump(mode="json", exclude={"self_test", "sha256"})
    if config.slide is not None:
        slide, complaint = _opened(config.slide, config.slide_mpp)
        problems += [complaint] if complaint else []
        with slide:
            facts["slide"] = dict(_slide(slide, has_pixel_size=not complaint))
            if config.deep:
                bad = list(_unreadable(slide, config.threads, progress or Progress()))
                facts["slide"]["unreadable tiles"] = len(bad)
                problems += shortened(bad, _MOST_NAMED, " tiles")
    return Findings(facts, tuple(problems), page, card)


def _installation() -> Iterator[tuple[str, Any]]:
    import openslide  # noqa: PLC0415  heavy: only where it is examined

    yield "wsiseg", __version__
    yield "Python", f"{platform.python_version()} at {sys.executable}"
    yield "system", platform.platform()
    yield "OpenSlide library", openslide.__library_version__
    yield from ((name, metadata.version(name)) for name in _PACKAGES)
    yield "ONNX Runtime", runtime().__version__
    yield "ONNX Runtime providers", ", ".join(available_providers())
    yield "NVIDIA GPU", _gpu()
    yield "cores", f"{cores()} of {os.cpu_count()}"
    yield "8-bit products", _int8()
    memory = memory_bytes()
    yield "memory", f"{memory / 2**30:.1f} GiB" if memory else "unknown"
    model = model_path(BUNDLED)
    yield "bundled model", str(model) if model.exists() else "none: give --model to predict"
    missing = [name for name in _TRAINING if util.find_spec(name) is None]
    yield "training", f"needs {', '.join(missing)}: pip install 'wsiseg[train]'" if missing else "ready"


def _gpu() -> str:
    """Say whether models can compute on a GPU of NVIDIA, and where they cannot, why, and what to do."""
    if not (_NVIDIA.exists() or shutil.which("nvidia-smi")):
        return "none"
    if PROVIDERS["cuda"] not in available_providers():
        installed = {one.name for one in metadata.distributions()}
        said = "the package onnxruntime is for CPUs alone"
        if {"onnxruntime", "onnxruntime-gpu"} <= installed:
            said = "onnxruntime was installed over onnxruntime-gpu"
        return f"not used: {said}; {GET_CUDA}"
    try:
        ModelFile.open(model_path(BUNDLED), "cuda").close()
    except (DeviceError, ModelFileError) as error:
        return f"not used: {error}"
    return "ready"


def _int8() -> str:
    slow = "no instructions for them (VNNI): int8 models are hardly faster than fp32"
    return {None: "unknown", True: "fast", False: slow}[has_fast_int8()]


def _model(model: ModelFile) -> Iterator[tuple[str, Any]]:
    yield "file", str(model.path)
    yield "sha256", model.sha256
    yield "self-test", "passed"
    yield "provider", model.provider
    if model.card.input != "features":  # a head takes no time
        yield "tiles per second", dict(model.speeds) or {model.device: round(model.tiles_per_s(), 1)}
    if model.card.precision == "int8":
        yield "8-bit products", _int8()


def _opened(path: Path, mpp: float | None) -> tuple[Slide, str]:
    """Open a slide, also one whose pixel size is not known, with what is wrong with that."""
    try:
        return Slide(path, mpp=mpp), ""
    except PixelSizeError as error:
        return Slide(path, mpp=_ANY_MPP), str(error)


def _slide(slide: Slide, *, has_pixel_size: bool) -> Iterator[tuple[str, Any]]:
    facts = slide.facts
    size = f"{facts.size_px[0]} x {facts.size_px[1]} px"
    millimeters = " x ".join(f"{px * um / 1000:.1f}" for px, um in zip(facts.size_px, facts.mpp, strict=True))
    yield "file", str(slide.path)
    yield "vendor", facts.vendor
    yield "size", f"{size}, {millimeters} mm" if has_pixel_size else size
    yield "levels", [f"{w} x {h} (1:{slide.size_px[0] / w:.5g})" for w, h in slide.level_sizes_px]
    yield "pixel size", f"{facts.mpp[0]:.6g} x {facts.mpp[1]:.6g} um" if has_pixel_size else "none that can be used"
    if has_pixel_size:
        yield "pixel size from", facts.mpp_source
    yield "said of it", facts.mpp_raw
    yield "bounds", facts.bounds_px
    yield "colour profile", "in the file, not applied" if facts.icc_present else "none"
    yield "fingerprint", facts.fingerprint
    yield "warnings", list(slide.warnings) if has_pixel_size else []


def _unreadable(slide: Slide, threads: int, progress: Progress) -> Iterator[str]:
    """Read every tile of every level and say which cannot be read."""
    tiles = [tile for number in range(len(slide.levels)) for tile in _tiles(slide, number)]
    progress.begin(1)
    progress.slide(slide.path.name, len(tiles))

    def problem(tile: _Tile) -> str:
        try:
            slide.read_level(tile[0], tile[1:3], tile[3:])
        except SlideError as error:
            return error.message
        return ""

    with ThreadPoolExecutor(threads, "reader") as pool:
        for said in pool.map(problem, tiles):
            progress.advance(slide.path.name, 1)
            if said:
                yield said


def _tiles(slide: Slide, number: int) -> Iterator[_Tile]:
    """Return the tiles of a level as the file holds them; very small ones several at a time."""
    width, height = slide.level_sizes_px[number]
    sides = [int(slide.properties.get(f"openslide.level[{number}].tile-{axis}", 0)) for axis in ("width", "height")]
    step_x, step_y = (side * math.ceil(_TILE_PX / side) if side else _TILE_PX for side in sides)
    for top in range(0, height, step_y):
        for left in range(0, width, step_x):
            yield number, left, top, min(step_x, width - left), min(step_y, height - top)
