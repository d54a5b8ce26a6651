"""The self-describing ONNX file: checked when it is opened, then asked for probabilities."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from wsiseg.model_file.model_card import ModelCard, read_card
from wsiseg.model_file.onnx_bytes import MOST_BYTES
from wsiseg.model_file.onnx_session import CPU, RuntimeFailure, Started, run, start
from wsiseg.model_file.self_test import Answers, largest_difference
from wsiseg.run.errors import ModelFileError, UsageError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MAP_MULTIPLE_PX = 32
"""Images for dense maps have sides that are multiples of this."""

_DAMAGED = "export it again or get a fresh copy"


class _Output(NamedTuple):
    name: str
    type: str
    rank: int


class ModelFile:
    """A model file, open for asking; use it in a `with` block. Thread-safe.

    Made by `ModelFile.open`.

    Attributes:
        path: The file.
        card: What it says of itself.
        sha256: SHA-256 of the file as it lies on the disk, as `sha256sum` prints it.
        provider: What ONNX Runtime really computes with, as `CPUExecutionProvider`.
        warnings: What a person should know about how it was opened.
    """

    def __init__(self, path: Path, card: ModelCard, sha256: str, started: Started) -> None:
        self.path, self.card, self.sha256 = path, card, sha256
        self.provider: str = started.session.get_providers()[0]
        self.warnings = started.warnings
        self._session: InferenceSession | None = started.session

    @classmethod
    def open(cls, path: Path | str, device: str = "cpu", threads: int | None = None) -> Self:
        """Open a model file: check that it is whole, what it says of itself, and that it passes its self-test.

        Args:
            path: The file.
            device: `cpu`, `cuda`, `coreml`, `directml`, `openvino`, or `auto` for the first that works.
            threads: Threads that compute; all cores where it is not given.

        Raises:
            UsageError: There is no such file, or no such device.
            ModelFileError: The file is not a model file, was changed, or fails its self-test.
            DeviceError: The device is not available.
        """
        path = Path(path)
        data = _read(path)
        try:
            card = read_card(data)
        except ValueError as error:
            raise ModelFileError(f"{path}: not a model file that can be used: {error}", _DAMAGED) from error
        try:
            started = start(data, device, threads)
        except RuntimeFailure as error:
            raise ModelFileError(f"{path}: ONNX Runtime cannot load it: {error}", _DAMAGED) from error
        model = cls(path, card, hashlib.sha256(data).hexdigest(), started)
        model._check_signature(started.session)
        model._check_answers()
        return model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory."""
        self._session = None

    @property
    def provenance(self) -> dict[str, Any]:
        """What a result says of the model that it came from."""
        names = {"name", "version", "mpp", "tile_px", "output_stride", "precision", "licence", "intended_use"}
        return {**self.card.model_dump(mode="json", include=names), "file": self.path.name, "sha256": self.sha256}

    def probabilities(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probability of the positive class for every tile.

        Args:
            tiles: uint8[n, height, width, 3], RGB at `card.mpp`; of `card.tile_px` unless the model is dense.

        Returns:
            float32[n] in 0..1.

        Raises:
            UsageError: The tiles have another shape or type.
            ModelFileError: The model cannot compute them.
        """
        _check_images(tiles)
        if not len(tiles):
            return np.zeros(0, np.float32)
        return self._run(["probability"], tiles)[0]

    def probability_map(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the probability for every cell of images: of its pixels, or of the tile around it (`card.map_cells`).

        Args:
            image: uint8[n, height, width, 3], RGB at `card.mpp`; sides are multiples of 32 pixels.

        Returns:
            float32[n, height / output_stride, width / output_stride] in 0..1.

        Raises:
            UsageError: The model has no map, or the images have another shape or type.
            ModelFileError: The model cannot compute them.
        """
        _check_images(image)
        stride = self.card.output_stride
        if stride is None:
            raise UsageError(f"{self.path}: this model gives one value per tile and no map", "use --map tile")
        count, height, width, _ = image.shape
        if height % MAP_MULTIPLE_PX or width % MAP_MULTIPLE_PX or 0 in {height, width}:
            raise UsageError(f"a dense map needs sides that are multiples of 32 pixels, not {width}x{height}")
        if not count:
            return np.zeros((0, height // stride, width // stride), np.float32)
        return self._run(["probability_map"], image)[0]

    def distances(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return how far tiles lie from the tissue of training; beyond `card.known_tissue.limit` it is unknown.

        Args:
            tiles: uint8[n, tile_px, tile_px, 3], RGB at `card.mpp`.

        Returns:
            float32[n]: the squared Mahalanobis distance of the tiles' features per feature, about 1 for training tiles.

        Raises:
            UsageError: The model cannot tell, or the tiles have another shape or type.
            ModelFileError: The model cannot compute them.
        """
        _check_images(tiles)
        if self.card.known_tissue is None:
            raise UsageError(f"{self.path}: this model does not know what tissue it was trained on")
        if not len(tiles):
            return np.zeros(0, np.float32)
        return self._run(["distance"], tiles)[0]

    def _run(self, outputs: list[str], images: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        session = self._session  # once: another thread may close the model meanwhile
        if session is None:
            raise UsageError(f"{self.path}: the model is closed")
        try:
            return run(session, outputs, {"image": np.ascontiguousarray(images)})
        except RuntimeFailure as error:
            shape = "x".join(str(size) for size in images.shape)
            raise ModelFileError(f"{self.path}: cannot compute images of {shape}: {error}", _DAMAGED) from error

    def _check_signature(self, session: "InferenceSession") -> None:
        """Check names, types and dimensions of the inputs and outputs; numbers of images and sides of maps are free."""
        expected = [_Output("image", "tensor(uint8)", 4), _Output("probability", "tensor(float)", 1)]
        if self.card.output_stride is not None:
            expected.append(_Output("probability_map", "tensor(float)", 3))
        if self.card.known_tissue is not None:
            expected.append(_Output("distance", "tensor(float)", 1))
        ports = [*session.get_inputs(), *session.get_outputs()]
        found = [_Output(port.name, port.type, len(port.shape)) for port in ports]
        if found != expected or len(session.get_inputs()) != 1 or session.get_inputs()[0].shape[3] != 3:  # noqa: PLR2004  RGB
            shown = ", ".join(f"{port.name} {port.type}[{port.rank}]" for port in found)
            raise ModelFileError(
                f"{self.path}: its inputs and outputs are not those of a model file: {shown}", _DAMAGED
            )
        free = [port.shape[0] for port in ports]
        free += session.get_inputs()[0].shape[1:3] if self.card.output_stride is not None else []
        if any(isinstance(size, int) for size in free):
            raise ModelFileError(f"{self.path}: takes images of one number or size only", _DAMAGED)

    def _check_answers(self) -> None:
        has = {
            "probability": True,
            "probability_map": self.card.output_stride is not None,
            "distance": self.card.known_tissue is not None,
        }

        def answer(image: NDArray[np.uint8]) -> Answers:
            names = [name for name, is_there in has.items() if is_there]
            found = dict(zip(names, self._run(names, image), strict=True))
            return found["probability"], found.get("probability_map"), found.get("distance")

        test = self.card.self_test
        difference = largest_difference(test, answer)
        if not difference <= test.tolerance:
            raise ModelFileError(
                f"{self.path}: fails its self-test: off by {difference:.3g}, allowed is {test.tolerance:g}",
                self._advice(),
            )

    def _advice(self) -> str:
        if self.provider != CPU:
            return "try --device cpu"
        return (
            "this CPU computes 8-bit products otherwise: use the fp32 model"
            if self.card.precision == "int8"
            else _DAMAGED
        )


def default_model_path() -> Path:
    """Return the place of the model that comes with wsiseg."""
    return Path(__file__).with_name("default.onnx")


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"{path}: no such model file", "name an .onnx file that wsiseg export wrote")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ModelFileError(f"{path}: larger than 2 GB, which no model file may be")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(
            f"{path}: cannot be read: {error.strerror}", "check the file and its permissions"
        ) from error


def _check_images(images: NDArray[np.uint8]) -> None:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:  # noqa: PLR2004  n, height, width, RGB
        raise UsageError(f"images must be uint8[n, height, width, 3], not {images.dtype}{list(images.shape)}")
