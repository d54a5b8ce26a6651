"""The bytes of an ONNX file, read without the onnx package and without running anything.

An ONNX file is a protobuf message (onnx/onnx.proto in the ONNX specification). Only what decides whether a file is
safe to hand to ONNX Runtime is looked at: operator sets, subgraphs, functions, external data, and the metadata.
"""

from collections.abc import Iterator
from typing import NamedTuple

OLDEST_OPSET, NEWEST_OPSET = 13, 21
"""Versions of the ONNX operator set that every supported ONNX Runtime knows."""

MOST_BYTES = 2**31 - 1
"""Protobuf cannot hold more, so larger models need external data, which is refused."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_STANDARD_DOMAINS = ("", "ai.onnx")
_LONGEST_VARINT = 10

# Field numbers of onnx.proto.
_MODEL_GRAPH, _MODEL_OPSET, _MODEL_METADATA, _MODEL_TRAINING, _MODEL_FUNCTION = 7, 8, 14, 20, 25
_NODE_DOMAIN, _TENSOR_LOCATION = ("node", 7), ("tensor", 14)
_PAIR_KEY, _PAIR_VALUE = 1, 2
# What lies inside a graph by message and field: a message that is looked into, or what must not be there.
_INSIDE = {
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 10): "tensor",
}
_SPARSE, _BRANCHES, _EXTERNAL = "it holds sparse tensors", "it holds loops or branches", "it keeps data in other files"
_REFUSED = {
    ("graph", 15): _SPARSE,
    ("attribute", 6): _BRANCHES,
    ("attribute", 11): _BRANCHES,
    ("attribute", 22): _SPARSE,
    ("attribute", 23): _SPARSE,
    ("tensor", 13): _EXTERNAL,
}


class Span(NamedTuple):
    """Bytes `start` to `stop` of a file."""

    start: int
    stop: int


class _Field(NamedTuple):
    """One field of a protobuf message: `value` of numbers, `span` of what has a length."""

    number: int
    value: int
    span: Span | None

    def content(self) -> Span:
        """Return the bytes of a field that must have a length."""
        if self.span is None:
            raise ValueError(f"field {self.number} is not of its type")
        return self.span


def metadata_spans(data: bytes) -> dict[str, Span]:
    """Check that an ONNX file stands alone and is made of standard operators, and find its metadata.

    Args:
        data: The whole file.

    Returns:
        Where the value of each metadata key lies in `data`.

    Raises:
        ValueError: The file is cut, not an ONNX file, refers to other files, carries functions, subgraphs, operators of
            other domains or an operator set out of `OLDEST_OPSET` to `NEWEST_OPSET`, or names a metadata key twice.
    """
    spans: dict[str, Span] = {}
    opsets: list[int] = []
    graphs = 0
    for field in _fields(data, Span(0, len(data))):
        if field.number == _MODEL_GRAPH:
            graphs += 1
            _check(data, "graph", field.content())
        elif field.number == _MODEL_OPSET:
            opsets.append(_opset(data, field.content()))
        elif field.number == _MODEL_METADATA:
            key, span = _pair(data, field.content())
            if key in spans:
                raise ValueError(f"the metadata key {key!r} stands in it twice")
            spans[key] = span
        elif field.number in {_MODEL_TRAINING, _MODEL_FUNCTION}:
            raise ValueError("it carries functions of its own")
    if graphs != 1 or len(opsets) != 1:
        raise ValueError("it is not an ONNX model: one graph and one operator set are needed")
    return spans


def _fields(data: bytes, span: Span) -> Iterator[_Field]:
    """Walk the fields of one protobuf message."""
    place = span.start
    while place < span.stop:
        tag, place = _varint(data, place, span.stop)
        number, kind = tag >> 3, tag & 7
        value, content = 0, None
        if kind == _VARINT:
            value, place = _varint(data, place, span.stop)
        elif kind in {_FIXED64, _FIXED32}:
            place += 8 if kind == _FIXED64 else 4
        elif kind == _BYTES:
            length, begin = _varint(data, place, span.stop)
            place = begin + length
            content = Span(begin, place)
        else:
            raise ValueError("it is not an ONNX model: its bytes make no sense")
        if place > span.stop or number == 0:
            raise ValueError("it is cut or damaged")
        yield _Field(number, value, content)


def _varint(data: bytes, place: int, stop: int) -> tuple[int, int]:
    """Read a number of variable length; gives it and the place after it."""
    value = 0
    for index in range(_LONGEST_VARINT):
        if place >= stop:
            raise ValueError("it is cut or damaged")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004  the top bit says whether more follows
            return value, place
    raise ValueError("it is not an ONNX model: its bytes make no sense")


def _text(data: bytes, span: Span) -> str:
    # UnicodeDecodeError is a ValueError.
    return data[span.start : span.stop].decode("utf-8")


def _pair(data: bytes, span: Span) -> tuple[str, Span]:
    """Read a StringStringEntryProto."""
    found = {field.number: field.content() for field in _fields(data, span)}
    key = _text(data, found[_PAIR_KEY]) if _PAIR_KEY in found else ""
    return key, found.get(_PAIR_VALUE, Span(span.stop, span.stop))


def _opset(data: bytes, span: Span) -> int:
    """Read an OperatorSetIdProto and check that it is known."""
    domain, version = "", 0
    for field in _fields(data, span):
        if field.number == 1:
            domain = _text(data, field.content())
        else:
            version = field.value
    _check_domain(domain)
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise ValueError(f"it needs operator set {version}, known are {OLDEST_OPSET} to {NEWEST_OPSET}")
    return version


def _check_domain(domain: str) -> None:
    if domain not in _STANDARD_DOMAINS:
        raise ValueError(f"it uses operators of {domain!r}, which are not standard ones")


def _check(data: bytes, message: str, span: Span) -> None:
    """Check a part of a graph, and all that lies inside it."""
    for field in _fields(data, span):
        place = (message, field.number)
        if place in _INSIDE:
            _check(data, _INSIDE[place], field.content())
        elif place in _REFUSED:
            raise ValueError(_REFUSED[place])
        elif place == _NODE_DOMAIN:
            _check_domain(_text(data, field.content()))
        elif place == _TENSOR_LOCATION and field.value:
            raise ValueError(_EXTERNAL)
