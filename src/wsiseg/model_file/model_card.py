"""What a model file says of itself, and the checksum that ties it to the file.

The card is JSON under the metadata key `wsiseg` of the ONNX file. It begins with its schema and a SHA-256 over the
whole file in which the 64 digits of that SHA-256 itself are zeros, so that any other change of the file is noticed.
"""

import hashlib
import re
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, JsonValue, ValidationError, model_validator

from wsiseg.config.settings import Described
from wsiseg.model_file.onnx_bytes import Span, metadata_spans
from wsiseg.model_file.self_test import Probability, SelfTest

METADATA_KEY = "wsiseg"
UNSIGNED = "0" * 64

_MOST_METADATA_BYTES = 4 * 2**20
_HEAD = re.compile(rb'\{"schema":"wsiseg\.model/(\d{1,6})","sha256":"([0-9a-f]{64})"')
_FORBIDDEN = {"commercial use": r"\bnc\b|non-?commercial", "models derived from it": r"\bnd\b|no-?deriv"}
_Text = Annotated[str, Field(max_length=100_000)]
_Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Part(Described):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Parity(_Part):
    """How closely a graph follows another on the same tiles."""

    graph: _Name
    """What was compared, as `int8`."""
    reference: _Name
    """What it was compared with, as `fp32`."""
    tiles: int = Field(ge=0)
    """Number of tiles."""
    source: _Text
    """Where the tiles came from."""
    max_difference: float = Field(ge=0, le=1)
    """Largest absolute difference in probability, of tiles and of cells."""
    mean_difference: float = Field(ge=0, le=1)
    """Mean absolute difference in probability of tiles."""
    map_mean_difference: float | None = Field(default=None, ge=0, le=1)
    """Mean absolute difference over the cells of the maps, where there are any."""
    auc: Probability | None = None
    """AUC of the graph over the labels of the tiles, where they have labels of both kinds."""
    auc_reference: Probability | None = None
    """AUC of the reference over the same labels."""
    passed: bool
    """True if the bars for it hold."""


class KnownTissueFacts(_Part):
    """What tissue the model knows; the outputs `distance` and `distance_map` measure how far other tissue is."""

    limit: float = Field(gt=0)
    """A cell or tile with a larger distance is unknown. Files without a `distance_map` beside their `probability_map`,
    which version 0.1 wrote, hold a limit for the median of a slide here and cannot tell unknown cells."""
    tiles: int = Field(ge=0)
    """Number of training tiles that distances are measured from."""
    slides: int = Field(ge=0)
    """Number of slides that these tiles came from."""
    sites: tuple[_Text, ...] = Field(default=(), max_length=1000)
    """Sites that distances are measured from, the least of which counts; those with few tiles are one, named ""."""


class FeatureFacts(_Part):
    """The features of a tile that the head of a model makes a probability of."""

    channels: int = Field(ge=1, le=2**16)
    """How many there are."""
    encoder: _Text = ""
    """What makes them; features that say another encoder are refused."""


class CalibrationFacts(_Part):
    """How the logits of the network were turned into probabilities that fit its validation slides."""

    temperature: float = Field(gt=0)
    """They were divided by it."""
    offset: float
    """Then it was added."""


class ModelCard(_Part):
    """What a model file says of itself; fields may be added in later versions, none will change its meaning."""

    schema_: Literal["wsiseg.model/1"] = Field(default="wsiseg.model/1", alias="schema")
    """Version of this form."""
    sha256: str = Field(default=UNSIGNED, pattern="^[0-9a-f]{64}$")
    """SHA-256 of the file with these 64 digits set to zeros."""
    name: _Name
    """Name of the model."""
    version: _Name = "1"
    """Version of the model."""
    classes: tuple[_Name, ...] = Field(default=("normal", "tumor"), min_length=2, max_length=1000)
    """Names of the classes that it was trained on."""
    positive_class: _Name = "tumor"
    """The class whose probability it gives; the first of those, where there are `thresholds`."""
    thresholds: dict[_Name, Probability] = Field(default_factory=dict, max_length=1000)
    """Where its outputs give several classes: the probability from which a cell is of each, in the order of their last
    axis."""
    mpp: float = Field(gt=0, le=100)
    """Micrometers per input pixel."""
    tile_px: int = Field(ge=16, le=4096)
    """Side of a tile in pixels of `mpp`."""
    output_stride: Literal[8, 14, 16, 32] | None = None
    """Input pixels per cell of `probability_map`; none where the model has no such output."""
    window_px: int | None = Field(default=None, ge=16, le=4096)
    """Side of the only images that a dense model takes, a tile's; none where it takes all sides that are multiples of
    32."""
    input: Literal["image", "features"] = "image"
    """What the file takes: images, or features of tiles, float32 [n, channels], as `features`."""
    features: FeatureFacts | None = None
    """What it takes in place of images; of a dense model, what its output `features` gives of every image."""
    map_cells: Literal["pixels", "tiles"] = "pixels"
    """What a cell of `probability_map` stands for: its own pixels, or the tile around it. Tiles overlap far: `predict`
    gives each cell the mean of the tiles over it."""
    map: Literal["dense", "tile"] = "tile"
    """The kind of tumour map that is made unless another is asked for: one value per cell, or one per tile."""
    threshold: Probability = 0.5
    """Probability from which a cell is tumour."""
    alpha: Probability | None = None
    """Least share of tumour that was assumed in the tissue of a tumour slide, where it was trained so."""
    beta: Probability | None = None
    """Least share of normal tissue that was assumed in the tissue of a tumour slide."""
    architecture: _Name
    """The network."""
    calibration: CalibrationFacts | None = None
    """How its probabilities were calibrated; it is part of the graph already."""
    known_tissue: KnownTissueFacts | None = None
    """How far tissue may lie from that of training, where the file can tell."""
    precision: Literal["fp32", "fp16", "int8"] = "fp32"
    """Numbers that it computes with."""
    trained_on: dict[str, JsonValue] = Field(default_factory=dict)
    """The data that it was trained and validated on."""
    figures: dict[str, JsonValue] = Field(default_factory=dict)
    """What was measured with it."""
    parity: tuple[Parity, ...] = Field(default=(), max_length=20)
    """How closely the file follows the network that it was made of."""
    licence: _Text = "unknown"
    """Terms under which it may be used."""
    intended_use: _Text = "Research only; not for diagnosis."
    """What it is for."""
    limits: tuple[_Text, ...] = Field(default=(), max_length=100)
    """What is known that it cannot do."""
    citation: _Text = ""
    """How to cite it."""
    made_with: dict[str, _Text] = Field(default_factory=dict)
    """Versions of the programs that made the file."""
    made_from: _Text = ""
    """Stands for the weights and settings that it was made from: equal where these are."""
    self_test: SelfTest
    """Seeded images with the answers that it must give."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.positive_class not in self.classes:
            raise ValueError(f"positive_class {self.positive_class!r} is not one of its classes")
        if self.thresholds and (next(iter(self.thresholds)) != self.positive_class or len(self.thresholds) == 1):
            raise ValueError("its thresholds are not of several classes, of which positive_class is the first")
        if self.window_px is not None and (self.window_px != self.tile_px or self.tile_px % (self.output_stride or 1)):
            raise ValueError(f"its window_px {self.window_px} is not a tile of whole cells")
        if self.output_stride is not None and self.window_px is None and self.tile_px % 32:
            raise ValueError(f"a dense model needs tiles of a multiple of 32 pixels, not {self.tile_px}")
        if not all(image.fits(self.output_stride) for image in self.self_test.images):
            raise ValueError("the maps of its self-test do not have the cells of its output_stride")
        if self.map == "dense" and self.output_stride is None:
            raise ValueError("it asks for dense maps but has none")
        return self

    @property
    def given(self) -> dict[str, float]:
        """The classes whose probabilities it gives, in their order, with the threshold of each."""
        return self.thresholds or {self.positive_class: self.threshold}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What its licence and that of the weights that it was trained from forbid."""
        said = {"its licence": self.licence, "the licence of its weights": self.trained_on.get("weights_licence", "")}
        return tuple(
            f"{whose} ({text}) forbids {what}"
            for whose, text in said.items()
            for what, words in _FORBIDDEN.items()
            if re.search(words, str(text).lower())
        )

    def to_json(self) -> str:
        """Return the card as it stands in a file: one line that begins with schema and sha256."""
        return self.model_dump_json(by_alias=True)


def signed(file: bytes) -> bytes:
    """Put the checksum into an ONNX file whose card still has zeros in its place.

    Raises:
        ValueError: The file has no card, or is not one that `read_card` would take.
    """
    _, span = _card_and_digits(file)
    return file[: span.start] + _checksum(file, span).encode() + file[span.stop :]


def read_card(file: bytes) -> ModelCard:
    """Read the card of a whole ONNX file and check that the file was not changed since it was written.

    Raises:
        ValueError: It is not an ONNX file that stands alone, has no card, a card that is not valid, or was changed; the
            message is a sentence about `it`.
    """
    span, digits = _card_and_digits(file)
    if file[digits.start : digits.stop] != _checksum(file, digits).encode():
        raise ValueError("it was changed after it was written: its SHA-256 does not match")
    try:
        return ModelCard.model_validate_json(file[span.start : span.stop])
    except ValidationError as error:
        raise ValueError(f"its metadata is not valid: {first_problem(error)}") from error


def first_problem(error: ValidationError) -> str:
    """Return where the first value lies that does not fit, and what is wrong with it."""
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"]))
    what = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {what}" if where else what


def _card_and_digits(file: bytes) -> tuple[Span, Span]:
    """Find the card, and in it the 64 digits of the checksum."""
    spans = metadata_spans(file)
    if METADATA_KEY not in spans:
        raise ValueError("it is an ONNX file without wsiseg's metadata")
    span = spans[METADATA_KEY]
    if span.stop - span.start > _MOST_METADATA_BYTES:
        raise ValueError("its metadata is too long")
    head = _HEAD.match(file, span.start, span.stop)
    if head is None:
        raise ValueError("its metadata is not that of a wsiseg model")
    if head[1] != b"1":
        raise ValueError(f"its metadata has schema {int(head[1])}, which this version of wsiseg does not know")
    return span, Span(head.start(2), head.end(2))


def _checksum(file: bytes, digits: Span) -> str:
    digest = hashlib.sha256(memoryview(file)[: digits.start])
    digest.update(UNSIGNED.encode())
    digest.update(memoryview(file)[digits.stop :])
    return digest.hexdigest()
