"""The bytes of an ONNX file, read without the onnx package and without running anything.

An ONNX file is a protobuf message (onnx/onnx.proto in the ONNX specification). Only what decides whether a file is
safe to hand to ONNX Runtime is looked at: operator sets, subgraphs, functions, external data, and the metadata.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wsiseg.run.errors import ModelFileError, UsageError

OLDEST_OPSET, NEWEST_OPSET = 13, 21
"""Versions of the ONNX operator set that every supported ONNX Runtime knows."""

MOST_BYTES = 2**31 - 1
"""Protobuf cannot hold more, so larger models need external data, which is refused."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10

# By message and field of onnx.proto: a message that is looked into, or what must not be there.
_INSIDE = {
    ("model", 7): "graph",
    ("model", 8): "opset",
    ("graph", 1): "node",
    ("graph", 5): "tensor",
    ("node", 5): "attribute",
    ("attribute", 5): "tensor",
    ("attribute", 10): "tensor",
}
_METADATA, _VERSION, _LOCATION = ("model", 14), ("opset", 2), ("tensor", 14)
_ONCE = (("model", 7), ("model", 8), _VERSION)
_DOMAINS = (("node", 7), ("opset", 1))
_EXTERNAL = "it keeps data in other files"
_REFUSED = {
    ("model", 20): "it carries functions of its own",
    ("model", 25): "it carries functions of its own",
    ("graph", 15): "it holds sparse tensors",
    ("attribute", 6): "it holds loops or branches",
    ("attribute", 11): "it holds loops or branches",
    ("attribute", 22): "it holds sparse tensors",
    ("attribute", 23): "it holds sparse tensors",
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
    """Check that a whole ONNX file stands alone and is made of standard operators, and find its metadata, by its keys.

    Raises:
        ValueError: The file is cut, not an ONNX file, refers to other files, carries functions, subgraphs, operators of
            other domains or an operator set out of `OLDEST_OPSET` to `NEWEST_OPSET`, or names a metadata key twice.
    """
    spans: dict[str, Span] = {}
    found: Counter[tuple[str, int]] = Counter()
    for place, field in _walk(data, "model", Span(0, len(data))):
        found[place] += 1
        if place in _REFUSED or (place == _LOCATION and field.value):
            raise ValueError(_REFUSED.get(place, _EXTERNAL))
        if place in _DOMAINS and (domain := _text(data, field.content())) not in {"", "ai.onnx"}:
            raise ValueError(f"it uses operators of {domain!r}, which are not standard ones")
        if place == _VERSION and not OLDEST_OPSET <= field.value <= NEWEST_OPSET:
            raise ValueError(f"it needs operator set {field.value}, known are {OLDEST_OPSET} to {NEWEST_OPSET}")
        if place == _METADATA:
            key, span = _pair(data, field.content())
            if key in spans:
                raise ValueError(f"the metadata key {key!r} stands in it twice")
            spans[key] = span
    if any(found[place] != 1 for place in _ONCE):
        raise ValueError("it is not an ONNX model: one graph and one operator set are needed")
    return spans


def _walk(data: bytes, message: str, span: Span) -> Iterator[tuple[tuple[str, int], _Field]]:
    """Walk the fields of a message and of those inside it that are looked into."""
    for field in _fields(data, span):
        place = message, field.number
        yield place, field
        if place in _INSIDE:
            yield from _walk(data, _INSIDE[place], field.content())


def _fields(data: bytes, span: Span) -> Iterator[_Field]:
    """Walk the fields of one protobuf message."""
    place = span.start
    while place < span.stop:
        tag, place = _varint(data, place, span.stop)
        number, kind = tag >> 3, tag & 7
        value, content = 0, None
        if kind == _VARINT:
            value, place = _varint(data, place, span.stop)
        elif kind in _FIXED:
            place += _FIXED[kind]
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
    """Read a number of variable length; return it and the place after it."""
    value = 0
    for index, byte in enumerate(data[place : min(stop, place + _LONGEST_VARINT)]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:  # noqa: PLR2004  the top bit says whether more follows
            return value, place + index + 1
    if stop - place < _LONGEST_VARINT:
        raise ValueError("it is cut or damaged")
    raise ValueError("it is not an ONNX model: its bytes make no sense")


def _text(data: bytes, span: Span) -> str:
    # UnicodeDecodeError is a ValueError.
    return data[span.start : span.stop].decode("utf-8")


def _pair(data: bytes, span: Span) -> tuple[str, Span]:
    """Read a StringStringEntryProto."""
    found = {field.number: field.content() for field in _fields(data, span)}
    empty = Span(span.stop, span.stop)
    return _text(data, found.get(1, empty)), found.get(2, empty)


def bytes_of(path: Path) -> bytes:
    """Read a model file.

    Raises:
        UsageError: There is none.
        ModelFileError: It cannot be read, or is larger than any may be.
    """
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
