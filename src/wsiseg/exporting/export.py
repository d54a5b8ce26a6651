"""Write a model file: a trained network as a checked ONNX file that explains itself."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx import helper

from wsiseg.config.export import CardFacts, ExportConfig
from wsiseg.exporting.from_others import from_state_dict
from wsiseg.exporting.from_run import from_run
from wsiseg.exporting.from_wsinfer import from_wsinfer
from wsiseg.exporting.head import HeadGraph, exported_head
from wsiseg.exporting.onnx_graph import DenseGraph, TileGraph, to_onnx
from wsiseg.exporting.origin import Origin, limited, with_limit
from wsiseg.exporting.parity import OnnxGraph, compared
from wsiseg.exporting.precision import to_float16, to_int8
from wsiseg.exporting.sample_tiles import Samples, from_cohort, from_folder, textures
from wsiseg.exporting.self_test_images import chosen_test, self_test_side, unseen_layers
from wsiseg.model_file.card_page import front_matter, parity_line, written_page
from wsiseg.model_file.model_card import METADATA_KEY, ModelCard, Parity, signed
from wsiseg.model_file.model_file import ModelFile
from wsiseg.model_file.onnx_session import has_fast_int8, runtime
from wsiseg.run.errors import GateError, ModelFileError, UsageError
from wsiseg.run.outputs import write_text, written_whole
from wsiseg.run.record import Progress
from wsiseg.run.version import __version__

_COHORT, _THRESHOLD = "cohort.csv", 0.5
_CALIBRATION_TILES, _HELD_OUT_TILES = 128, 400
_TORCH_TILES, _TEXTURES = 64, 32
_TOLERANCE = {"fp32": 0.001, "fp16": 0.02, "int8": 0.05}
_PLACES: Any = dict.fromkeys(("out", "overwrite", "run", "from_torch", "from_wsinfer", "calibration"), True)
_PLACES |= {"card": {"figures"}}
_FIGURES = {"split", "unit", "per_class", "without_background", "with_background", "per_site", "slide_auc", "threshold",
            "reliability"}  # fmt: skip


@dataclass(frozen=True)
class Exported:
    """What an export wrote: the model file, its card, and the page of that beside it.

    `status` is `ok`, or `up_to_date` if the same was there already.
    """

    path: Path
    page: Path
    status: str
    sha256: str
    card: ModelCard

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "schema": "wsiseg.export/1",
            "status": self.status,
            "outputs": {"model": str(self.path), "card": str(self.page)},
            "sha256": self.sha256,
            "model": self.card.model_dump(mode="json", by_alias=True, exclude={"self_test"}),
        }


def export(config: ExportConfig, progress: Progress | None = None) -> Exported:
    """Write a model file and its card; of several precisions a folder of them, told by the first.

    Raises:
        UsageError: The run or network cannot be exported.
        GateError: The file would not follow the network closely enough; nothing was written.
        WsisegError: A checkpoint or tile store cannot be read.
    """
    progress = progress or Progress()
    precisions = config.precision.split(",")
    if len(precisions) > 1:
        config.out.mkdir(parents=True, exist_ok=True)
        ways = [{"precision": one, "out": config.out / f"{one}.onnx"} for one in precisions]
        files = [export(config.model_copy(update=way), progress) for way in ways]
        is_new = any(file.status == "ok" for file in files)
        return replace(files[0], path=config.out, status="ok" if is_new else "up_to_date")
    origin = _origin(config)
    mark = _mark(config, origin)
    earlier = _earlier(config, mark, progress)
    if earlier is not None:
        return earlier
    origin, graph, parity = _compared(config, origin, progress)
    card = _card(config, limited(origin, config.known_limit), graph, parity, mark)
    _check_self_test(config, graph, card)
    page = config.out.with_suffix(".md")
    with written_whole(config.out) as partial:
        helper.set_model_props(graph.model, {METADATA_KEY: card.to_json()})
        partial.write_bytes(signed(graph.model.SerializeToString()))
        with ModelFile.open(partial) as model:
            sha256, card = model.sha256, model.card
    for warning in card.warnings:
        progress.note(f"warning: {warning}")
    write_text(page, front_matter(card) + written_page(card, config.out.name, sha256))
    return Exported(config.out, page, "ok", sha256, card)


def _compared(config: ExportConfig, origin: Origin, progress: Progress) -> tuple[Origin, OnnxGraph, tuple[Parity, ...]]:
    """Make the ONNX graph, with fewer bits where that is asked for, and compare it at every step."""
    if isinstance(origin.graph, HeadGraph):
        if config.precision != "fp32":
            raise UsageError(f"{config.source}: a head alone is small as it is", "leave out --precision")
        graph, parity = exported_head(origin.graph)
        _judge(config, parity, progress)
        return origin, graph, parity
    samples = _samples(config, origin, progress)
    graph, parity = _graph(config, origin, origin.graph, samples, progress)
    if config.precision != "fp32":
        whole = graph
        graph, row = _reduced(config, whole, samples, progress)
        parity = (*parity, row)
        if samples.held_out.is_real:
            origin = with_limit(origin, *(one.answers(samples.held_out.tiles).distances for one in (whole, graph)))
    return origin, graph, parity


def _origin(config: ExportConfig) -> Origin:
    """Read what is exported, and choose the kind of map.

    Which kind is better can be measured with outlines alone, which an export does not have.
    """
    if config.run is not None:
        origin = from_run(config.run, config.output_stride, head=config.head)
    elif config.from_wsinfer is not None:
        origin = from_wsinfer(config.from_wsinfer, config.positive_class, config.output_stride)
    else:
        size = (config.tile or 224, config.mpp or 0.5)
        origin = from_state_dict(config.source, config.arch or "", config.positive_class, size, config.output_stride)
    is_dense = origin.facts["output_stride"] is not None
    if config.map == "dense" and not is_dense:
        raise UsageError(f"{config.source}: has one value per tile and no dense map", "leave out --map")
    return replace(origin, facts={**origin.facts, "map": config.map or ("dense" if is_dense else "tile")})


def _samples(config: ExportConfig, origin: Origin, progress: Progress) -> Samples:
    """Find tiles to calibrate with and to compare on."""
    counts = _CALIBRATION_TILES, _HELD_OUT_TILES
    source, tile_px, mpp = config.calibration or origin.cohort, origin.tile_px, origin.facts["mpp"]
    if source is not None and (source / _COHORT).is_file():
        source /= _COHORT  # the pictures beside the tile stores are not tiles
    if source is not None and source.is_dir():
        return from_folder(source, tile_px, counts)
    samples = from_cohort(source, tile_px, mpp, counts) if source is not None else None
    if samples is not None:
        return samples
    if config.calibration is not None:
        raise UsageError(f"{config.calibration}: there are no tile stores beside it", "run wsiseg tile")
    if config.precision == "int8" and not config.allow_loss:
        raise UsageError(
            f"{config.source}: no real tiles to choose the ranges of int8 with",
            "give --calibration with a folder of images or a cohort; or --allow-loss to use made-up textures",
        )
    progress.note("warning: no real tiles at hand; compared on made-up textures only: give --calibration")
    return textures(tile_px, _TEXTURES)


def _graph(
    config: ExportConfig, origin: Origin, network: DenseGraph | TileGraph, samples: Samples, progress: Progress
) -> tuple[OnnxGraph, tuple[Parity, ...]]:
    """Make the ONNX graph and compare it at every step."""
    few = samples.held_out.first(_TORCH_TILES)
    reference = origin.answers(few.tiles)
    rows = []
    if not origin.is_as_trained:
        trained = origin.probabilities(few.tiles)
        names = f"output stride {config.output_stride}", "as trained"
        rows.append(compared(names, reference, trained, few))
    graph = OnnxGraph(to_onnx(network, origin.tile_px, config.out.parent))
    rows.append(compared(("fp32", "torch"), graph.answers(few.tiles), reference, few, is_same=True))
    _judge(config, rows, progress)
    return graph, tuple(rows)


def _reduced(config: ExportConfig, graph: OnnxGraph, samples: Samples, progress: Progress) -> tuple[OnnxGraph, Parity]:
    """Return the graph with fewer bits, and how closely it follows."""
    if config.precision == "fp16":
        reduced = to_float16(graph, samples.held_out)
    else:
        reduced = to_int8(graph, samples, progress.note, any_loss=config.allow_loss)
        if reduced.kept:
            progress.note(f"{reduced.kept:.0%} of the layers stay in float32")
        if has_fast_int8() is False:
            progress.note("this CPU has no instructions for 8-bit products (VNNI): int8 is hardly faster on it")
    _judge(config, [reduced.parity], progress)
    before, after = (one.tiles_per_s(samples.held_out.tiles.shape[1]) for one in (graph, reduced.graph))
    progress.note(f"{config.precision}: {after:.1f} tiles/s here, fp32: {before:.1f}")
    return reduced.graph, reduced.parity


def _judge(config: ExportConfig, rows: Sequence[Parity], progress: Progress) -> None:
    """Report how comparisons came out.

    Raises:
        GateError: One failed and no loss is allowed.
    """
    for row in rows:
        progress.note(parity_line(row))
    sentences = "; ".join(parity_line(row) for row in rows if not row.passed)
    if sentences and not config.allow_loss:
        raise GateError(
            f"{config.source}: the exported file differs too much from the network: {sentences}",
            "--allow-loss writes it anyway",
        )


def _card(config: ExportConfig, origin: Origin, graph: OnnxGraph, parity: tuple[Parity, ...], mark: str) -> ModelCard:
    """Fill the model card with what the origin knows, what was asked for and what a person says."""
    said, facts = config.card or CardFacts(), dict(origin.facts)
    facts |= {name: value for name in ("name", "intended_use") if (value := getattr(said, name)) is not None}
    if config.threshold is not None:
        if facts.get("thresholds"):
            raise UsageError(f"{config.source}: has a threshold for each class", "leave out threshold")
        facts["threshold"] = config.threshold
    if said.data is not None:
        facts["trained_on"] = {"data": said.data, **facts.get("trained_on", {})}
    if said.figures is not None:
        evaluation = _figures(said.figures, facts.get("threshold", _THRESHOLD))
        facts["figures"] = {**facts.get("figures", {}), "evaluation": evaluation}
    channels = facts["features"]["channels"] if facts.get("input") == "features" else None
    stride = None if facts.get("window_px") else facts["output_stride"]
    side = self_test_side(origin.tile_px, stride) if channels is None else max(16, math.ceil(math.sqrt(channels / 3)))
    return ModelCard.model_validate(
        {
            **facts,
            "limits": (*facts.get("limits", ()), *said.limits),
            **said.model_dump(include={"version", "licence", "citation"}),
            "precision": config.precision,
            "parity": parity,
            "made_with": {
                "wsiseg": __version__,
                **{name: version(name) for name in ("torch", "onnx")},
                "onnxruntime": runtime().__version__,  # also where its package is onnxruntime-gpu
            },
            "made_from": mark,
            "self_test": chosen_test(graph, side, _TOLERANCE[config.precision], channels),
        }
    )


def _check_self_test(config: ExportConfig, graph: OnnxGraph, card: ModelCard) -> None:
    unseen = unseen_layers(graph.model, card.self_test) if card.input == "image" else []
    if unseen and not config.allow_loss:
        raise GateError(
            f"{config.source}: its self-test does not see layer {unseen[0]}, nor {len(unseen) - 1} others: a file with "
            "that changed would pass it",
            "train further if layers have no effect yet; --allow-loss writes it anyway",
        )


def _figures(path: Path, threshold: float) -> dict[str, Any]:
    """Read what an evaluation found, without its slides.

    Raises:
        UsageError: It cannot be read, or was measured at another threshold than the file's.
    """
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read as metrics.json: {error}") from error
    if not isinstance(figures, dict) or not str(figures.get("schema", "")).startswith("wsiseg.metrics/"):
        raise UsageError(f"{path}: not the metrics.json of wsiseg evaluate")
    measured = (figures.get("threshold") or {}).get("value")
    if measured is not None and not math.isclose(measured, threshold, abs_tol=1e-6):
        advice = f"evaluate the maps with --threshold {threshold:g}, or set threshold in the --config file"
        raise UsageError(f"{path}: was measured at the threshold {measured:g}; the model's is {threshold:g}", advice)
    return {name: value for name, value in figures.items() if name in _FIGURES and value is not None}


def _mark(config: ExportConfig, origin: Origin) -> str:
    """Return a digest of weights and settings, which is the same wherever they lie and however long training took."""
    settings = config.model_dump_json(exclude=_PLACES)
    facts = json.dumps([settings, origin.facts, __version__], sort_keys=True, default=str)
    digest = hashlib.sha256(facts.encode())
    for array in origin.arrays():
        digest.update(array.tobytes())
    for file in (config.calibration, config.card.figures if config.card else None):
        if file is not None and file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _earlier(config: ExportConfig, mark: str, progress: Progress) -> Exported | None:
    """Return what is there already, if it was made of the same."""
    page = config.out.with_suffix(".md")
    if config.overwrite or not config.out.exists():
        return None
    try:
        with ModelFile.open(config.out) as model:
            if model.card.made_from == mark and page.is_file():
                return Exported(config.out, page, "up_to_date", model.sha256, model.card)
    except ModelFileError as error:
        raise UsageError(f"{config.out}: exists already and is not a valid model file", "give --overwrite") from error
    progress.note(f"{config.out}: exported again, as the weights or settings changed")
    return None
