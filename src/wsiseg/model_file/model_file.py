"""The self-describing ONNX file: checked when it is opened, then asked for probabilities."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.model_file.answer import Answer
from wsiseg.model_file.model_card import ModelCard, read_card
from wsiseg.model_file.onnx_bytes import bytes_of
from wsiseg.model_file.onnx_session import CPU, RuntimeFailure, Started, ports, run, speed, start
from wsiseg.model_file.self_test import Outputs, as_features, largest_difference
from wsiseg.run.errors import MORE_MEMORY, DeviceError, ModelFileError, UsageError, WsisegError, is_out_of_memory

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MAP_MULTIPLE_PX = 32
"""Images for dense maps have sides that are multiples of this."""

BUNDLED = "default"
"""The name of the model that comes with wsiseg."""

_MUST_LEAD = 1.25  # so that the same file is taken again where two are nearly equal
_DAMAGED, _ON_CPU = "export it again or get a fresh copy", "try --device cpu"
_OTHER_PRODUCTS = "this CPU computes 8-bit products differently: use the fp32 model"
_CANNOT_TELL = "{}: cannot recognise unknown tissue"
_ANEW = "; if it was made by wsiseg train, export it again"


class ModelFile(AbstractContextManager["ModelFile"]):
    """An open model file; open it with `ModelFile.open`, in a `with` block. Thread-safe.

    Attributes:
        card: The model card.
        sha256: SHA-256 of the file, as `sha256sum` prints it.
        provider: What ONNX Runtime really computes with, for example `CPUExecutionProvider`.
        device: Its name on the command line, for example `cpu`.
        reason: Why this device is used.
        speeds: Tiles per second of each device, if several were tried.
        limit: The distance beyond which tissue is unknown; None if the file cannot recognise unknown tissue.
        warnings: What a person should know about the file and how it was opened.
    """

    def __init__(self, path: Path, card: ModelCard, sha256: str, started: Started) -> None:
        self.path, self.card, self.sha256 = path, card, sha256
        self.provider: str = started.session.get_providers()[0]
        self.device, self.reason, self.speeds = started.device, started.reason, started.speeds
        self._session: InferenceSession | None = started.session
        self._inputs, outputs = ports(started.session)
        self._outputs = {name: (name, kind, shape) for name, kind, shape in outputs}
        needed = "distance" if card.output_stride is None else "distance_map"
        can_tell = card.known_tissue is not None and needed in self._outputs
        self._classes = (len(card.given),) if card.thresholds else ()  # the last axis of probabilities
        self.limit = card.known_tissue.limit if card.known_tissue is not None and can_tell else None
        # Files of transformers, which take windows of one size, never can.
        advice = _ANEW if card.window_px is None else ""
        unknown = () if self.limit is not None else (_CANNOT_TELL.format(path.name) + advice,)
        self.warnings = (*started.warnings, *unknown, *(f"{path.name}: {text}" for text in card.warnings))

    @classmethod
    def open(cls, path: Path | str, device: str = "cpu", threads: int | None = None) -> Self:
        """Open a model file: check that it is whole, what it says of itself, and that it passes its self-test.

        Args:
            path: The file, or a folder of files of one model in several precisions: the fastest here is opened.
            device: `cpu`, `cuda`, `coreml`, `directml`, `openvino`, with a number as `cuda:1` where there are several,
                or `auto` for the fastest with this file.
            threads: Threads that compute; all cores where it is not given.

        Raises:
            UsageError: There is no such file, or no such device.
            ModelFileError: The file is not a model file, was changed, or fails its self-test.
            DeviceError: The device is not available.
        """
        path = Path(path)
        if path.is_dir():
            return cls._fastest(path, device, threads)
        data = bytes_of(path)
        try:
            card = read_card(data)
        except ValueError as error:
            raise ModelFileError(f"{path}: not a model file that can be used: {error}", _DAMAGED) from error
        try:
            side = card.tile_px if card.input == "image" else None
            started = start(data, device, threads, side, is_dense=_is_dense(card))
            model = cls(path, card, hashlib.sha256(data).hexdigest(), started)
        except RuntimeFailure as error:
            raise ModelFileError(f"{path}: ONNX Runtime cannot load it: {error}", _DAMAGED) from error
        model._check_signature()
        try:
            model._check_answers()
        except (ModelFileError, DeviceError, MemoryError) as error:
            if device == "auto" and model.provider != CPU:
                here, why = cls.open(path, "cpu", threads), f"{model.device} is not used: {error.args[0]}"
                here.reason, here.warnings = why, (why, *model.warnings)
                return here
            if isinstance(error, MemoryError):
                raise WsisegError(f"{path}: its self-test needs more memory than there is", MORE_MEMORY) from error
            raise
        return model

    @classmethod
    def _fastest(cls, folder: Path, device: str, threads: int | None) -> Self:
        """Open the first of the files in a folder, unless another is markedly faster on the device."""
        files = sorted(folder.glob("*.onnx"))
        if not files:
            raise UsageError(f"{folder}: holds no model file", "name a file, or a folder that wsiseg export wrote")
        models = [cls.open(file, device, threads) for file in files]
        if len({(card.name, card.version, card.mpp, card.tile_px) for card in (one.card for one in models)}) > 1:
            raise UsageError(f"{folder}: its files are of different models", "name one of the files")
        speeds = [one.speeds.get(one.device) or one.tiles_per_s() for one in models]
        fastest = max(speeds)
        chosen = next(one for one, speed in zip(models, speeds, strict=True) if speed * _MUST_LEAD >= fastest)
        said = ", ".join(f"{one.path.name} {speed:.1f}" for one, speed in zip(models, speeds, strict=True))
        chosen.reason += f"; of the files in the folder, in tiles/s: {said}"
        for one in models:
            if one is not chosen:
                one.close()
        return chosen

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory."""
        self._session = None

    def tiles_per_s(self) -> float:
        """Measure how many made tiles it computes in a second, in about a second.

        Raises:
            ModelFileError: It cannot compute them; DeviceError where an accelerator cannot.
        """
        try:
            return speed(self._open_session(), self.card.tile_px, is_dense=_is_dense(self.card))
        except RuntimeFailure as error:
            raise self._failure(f"{self.path}: cannot compute made tiles: {error}") from error

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result says of the model that it came from."""
        names = {"name", "version", "mpp", "tile_px", "output_stride", "precision", "licence", "intended_use"}
        said = {**self.card.model_dump(mode="json", include=names), "classes": list(self.card.given)}
        return {**said, "file": self.path.name, "sha256": self.sha256}

    def answer(self, tiles: NDArray[np.uint8]) -> Answer:
        """Return the probability of the positive class for every tile, and how far it lies from known tissue.

        Args:
            tiles: uint8[n, height, width, 3], RGB at `card.mpp`; of `card.tile_px` unless the model is dense.

        Raises:
            UsageError: The tiles have another shape or type, or the model takes features.
            ModelFileError: The model cannot compute them; DeviceError where an accelerator cannot.
        """
        self._check_images(tiles)
        return self._answer(tiles, ("probability", "distance"), (len(tiles),))

    def answer_with_features(self, tiles: NDArray[np.uint8]) -> Answer:
        """Return the same with the features of every tile.

        Raises:
            UsageError: The file gives no features, or the tiles have another shape or type.
            ModelFileError: The model cannot compute them; DeviceError where an accelerator cannot.
        """
        self._check_images(tiles)
        if "features" not in self._outputs:
            raise UsageError(f"{self.path}: gives no features", "export it anew, or choose a model that can be dense")
        names = [name for name in ("probability", "distance") if name in self._outputs]
        *answers, features = self._run([*names, "features"], tiles)
        return Answer(*answers)._replace(features=features)

    def answer_features(self, features: NDArray[np.float32]) -> Answer:
        """Return the probabilities of tiles by their features, float32[n, channels].

        Raises:
            UsageError: The model takes images.
            ModelFileError: The model cannot compute them; DeviceError where an accelerator cannot.
        """
        if self.card.input != "features":
            raise UsageError(f"{self.path}: takes images and no features", "wsiseg export --head writes a head alone")
        return Answer(*self._run(["probability"], np.asarray(features, np.float32)))

    def answer_map(self, images: NDArray[np.uint8]) -> Answer:
        """Return the same for every cell of images: of its pixels, or of the tile around it (`card.map_cells`).

        Args:
            images: uint8[n, height, width, 3], RGB at `card.mpp`; sides are multiples of 32 pixels, or the model's
                `card.window_px` where it has one.

        Returns:
            Of shape [n, height / output_stride, width / output_stride].

        Raises:
            UsageError: The model has no map, or the images have another shape or type.
            ModelFileError: The model cannot compute them; DeviceError where an accelerator cannot.
        """
        self._check_images(images)
        stride = self.card.output_stride
        if stride is None:
            raise UsageError(f"{self.path}: this model gives one value per tile and no map", "use --map tile")
        count, height, width, _ = images.shape
        window = self.card.window_px
        if window is not None and (height, width) != (window, window):
            raise UsageError(f"{self.path}: maps nothing but images of {window}x{window}, not {width}x{height}")
        if window is None and (height % MAP_MULTIPLE_PX or width % MAP_MULTIPLE_PX or 0 in {height, width}):
            raise UsageError(f"a dense map needs sides that are multiples of 32 pixels, not {width}x{height}")
        return self._answer(images, ("probability_map", "distance_map"), (count, height // stride, width // stride))

    def _answer(self, images: NDArray[np.uint8], names: tuple[str, str], shape: tuple[int, ...]) -> Answer:
        asked = names if self.limit is not None else names[:1]
        if len(images):
            return Answer(*self._run(asked, images))
        return Answer(*(np.zeros(full, np.float32) for full in ((*shape, *self._classes), shape)[: len(asked)]))

    def _run(self, outputs: Sequence[str], images: NDArray[np.generic]) -> list[NDArray[np.float32]]:
        try:
            return run(self._open_session(), list(outputs), {self.card.input: np.ascontiguousarray(images)})
        except RuntimeFailure as error:
            shape = "x".join(str(size) for size in images.shape)
            text = f"{self.path}: cannot compute images of {shape}: {error}"
            if is_out_of_memory(error):
                raise MemoryError(text) from error
            raise self._failure(text) from error

    def _failure(self, text: str) -> WsisegError:
        """Return the error of a session that cannot compute: the file or the device is to blame."""
        return ModelFileError(text, _DAMAGED) if self.provider == CPU else DeviceError(text, _ON_CPU)

    def _check_images(self, images: NDArray[np.uint8]) -> None:
        if self.card.input != "image":
            raise UsageError(f"{self.path}: takes stored features and no pixels", "give their folder with --features")
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:  # noqa: PLR2004  n, height, width, RGB
            raise UsageError(f"images must be uint8[n, height, width, 3], not {images.dtype}{list(images.shape)}")

    def _open_session(self) -> "InferenceSession":
        session = self._session  # once: another thread may close the model meanwhile
        if session is None:
            raise UsageError(f"{self.path}: the model is closed")
        return session

    def _check_signature(self) -> None:
        """Check names, types and dimensions of the inputs and outputs; numbers of images and sides of maps are free."""
        known, has_map = self.card.known_tissue is not None, self.card.output_stride is not None
        is_there = {"probability": True, "probability_map": has_map, "distance": known}
        is_there["distance_map"] = known and has_map and self.limit is not None
        names = [name for name, there in is_there.items() if there]
        is_head = self.card.input == "features"
        expected = [("features", "tensor(float)", 2) if is_head else ("image", "tensor(uint8)", 4)]
        axes = {name: 3 if name.endswith("_map") else 1 for name in names}
        axes |= {name: axes[name] + len(self._classes) for name in names if name.startswith("probability")}
        expected += [(name, "tensor(float)", count) for name, count in axes.items()]
        expected += [("features", "tensor(float)", 2)] if self.card.features is not None and not is_head else []
        ports = [*self._inputs, *self._outputs.values()]
        found = [(name, kind, len(shape)) for name, kind, shape in ports]
        sides = self._inputs[0][2] if self._inputs else []
        features = self.card.features
        last = features.channels if is_head and features is not None else 3  # RGB
        widths = {shape[-1] for name, _, shape in ports if name.startswith("probability") and self._classes}
        if found != expected or len(self._inputs) != 1 or sides[-1] != last or not widths <= set(self._classes):
            shown = ", ".join(f"{name} {kind}[{rank}]" for name, kind, rank in found)
            raise ModelFileError(
                f"{self.path}: its inputs and outputs are not those of a model file: {shown}", _DAMAGED
            )
        free = [shape[0] for _, _, shape in ports] + (sides[1:3] if has_map and not self.card.window_px else [])
        if any(isinstance(size, int) for size in free):
            raise ModelFileError(f"{self.path}: takes images of one number or size only", _DAMAGED)

    def _check_answers(self) -> None:
        def answer(image: NDArray[np.uint8]) -> Outputs:
            features = self.card.features if self.card.input == "features" else None
            shown = image if features is None else as_features(image, features.channels)
            return dict(zip(self._outputs, self._run(list(self._outputs), shown), strict=True))

        test = self.card.self_test
        difference = largest_difference(test, answer)
        if difference <= test.tolerance:
            return
        advice = _OTHER_PRODUCTS if self.card.precision == "int8" else _DAMAGED
        raise ModelFileError(
            f"{self.path}: fails its self-test: off by {difference:.3g}, allowed is {test.tolerance:g}",
            advice if self.provider == CPU else _ON_CPU,
        )


def _is_dense(card: ModelCard) -> bool:
    """Tell whether a model maps windows of many sizes unless it is asked otherwise."""
    return card.map == "dense" and card.window_px is None


def model_path(name: str | Path) -> Path:
    """Return the place of a model file: of that which comes with wsiseg by its name, any other as it is."""
    return Path(__file__).with_name(f"{BUNDLED}.onnx") if str(name) == BUNDLED else Path(name)
