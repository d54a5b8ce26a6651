"""The files of PatchCamelyon: names, sizes, checksums, and how they are read.

Source: https://zenodo.org/records/2546921 (CC0). Sizes and SHA-256 are those that TensorFlow Datasets pins for these
addresses.
"""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wsiseg.run.errors import UsageError, WsisegError
from wsiseg.run.outputs import written_whole

Split = Literal["train", "valid", "test"]
BASE = "https://zenodo.org/records/2546921/files/"
PATCHES: dict[Split, int] = {"train": 262144, "valid": 32768, "test": 32768}
"""How many patches a split has."""
SIDE_PX, MPP = 96, 0.972
"""Side of a patch, and micrometers per pixel."""
_MOST_BYTES = max(PATCHES.values()) * SIDE_PX**2 * 3 + 2**26  # of a file that is unpacked


@dataclass(frozen=True)
class PcamFile:
    """A file as it is published, gzipped."""

    name: str  # its name, which ends in `.h5.gz`
    size: int  # in bytes
    sha256: str


def name(split: Split, part: Literal["x", "y"]) -> str:
    """Return the name of the images (x) or labels (y) of a split, without `.gz`."""
    return f"camelyonpatch_level_2_split_{split}_{part}.h5"


_PUBLISHED = """
train x 6421353462 d619e741468a7ab35c7e4a75e6821b7e7e6c9411705d45708f2a0efc8960656c
train y 21378 b74126d2c01b20d3661f9b46765d29cf4e4fba6faba29c8e0d09d406331ab75a
valid x 805965320 f82ee1670d027b4ec388048d9eabc2186b77c009655dae76d624c0ecb053ccb2
valid y 3038 ce1ae30f08feb468447971cfd0472e7becd0ad96d877c64120c72571439ae48c
test x 800875929 79174c2201ad521602a5888be8f36ee10875f37403dd3f2086caf2182ef87245
test y 3040 0a522005fccc8bbd04c5a117bfaf81d8da2676f03a29d7499f71d0a0bd6068ef
"""  # split, part, bytes, SHA-256
FILES = tuple(
    PcamFile(f"camelyonpatch_level_2_split_{split}_{part}.h5.gz", int(size), sha256)
    for split, part, size, sha256 in map(str.split, _PUBLISHED.split("\n")[1:-1])
)


@contextmanager
def opened(folder: Path, split: Split, part: Literal["x", "y"]) -> Iterator[Any]:
    """Yield h5py's data set of the images (x) or labels (y) of a split, published or unpacked; links out are refused.

    Raises:
        UsageError: h5py is not installed, or there is no such file.
        WsisegError: The file cannot be read.
    """
    try:
        import h5py  # noqa: PLC0415  an extra, and heavy
    except ImportError as error:
        raise UsageError("reading PatchCamelyon needs h5py", "pip install 'wsiseg[pcam]'") from error
    path = _unpacked(folder / name(split, part))
    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get(part, getlink=True), h5py.HardLink):
                raise WsisegError(f"{path.name}: holds no data set {part}", "get the file again")
            found = file[part]
            if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
                raise WsisegError(f"{path.name}: {part} lies in other files", "get the file again")
            yield found
    except OSError as error:
        raise WsisegError(f"{path.name}: cannot be read as HDF5: {error}", "get the file again") from error


def _unpacked(path: Path) -> Path:
    """Unpack a published file beside itself, if only the packed one is there."""
    packed = path.with_name(path.name + ".gz")
    if path.exists():
        return path
    if not packed.exists():
        raise UsageError(f"{path}: no such file", "wsiseg fetch pcam gets it")
    with written_whole(path) as partial, gzip.open(packed) as source, partial.open("wb") as target:
        try:
            while target.tell() <= _MOST_BYTES and (block := source.read(2**20)):
                target.write(block)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise WsisegError(f"{packed.name}: cannot be unpacked: {error}", "get the file again") from error
        if target.tell() > _MOST_BYTES:
            raise WsisegError(f"{packed.name}: unpacks to more than PatchCamelyon holds", "get the file again")
    return path
