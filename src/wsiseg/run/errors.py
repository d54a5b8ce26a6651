"""Everything that wsiseg raises on purpose.

WsisegError                 exit code 1
├── UsageError              2   wrong usage or settings; nothing was started
├── GateError               3   a quality gate was not met
├── DeviceError             4   the requested device is not available
├── ModelFileError          5   the model file is invalid
├── DownloadError           6   the network or a download failed, or offline mode forbids it
│   └── GoneError               the server no longer has the file (fetch)
├── OutputError             1   a result cannot be written
├── StalledError            1   a slide's disk or network does not answer
├── AnnotationError         1   a file of outlines or a mask cannot be used (annotations)
│   └── ZeroedMapError          a published map that was set to zero by hand (annotations)
├── MissingMapError         1   a slide that is to be evaluated has no map (evaluation)
└── SlideError              1   a slide cannot be read
    ├── PixelSizeError          no pixel size, or one that cannot be true
    └── NotASlideError          not a slide: skipped where it was found in a folder, failed where it was named

A class with a package in brackets stands there; all others are below. Raise them with one sentence that names the file
and what is wrong, and a second argument that says what to do next:
`raise PixelSizeError("a.tiff: no pixel size in the file", "give --slide-mpp or the mpp column")`.
"""

import re
import struct
import zlib
from collections.abc import Sequence
from typing import ClassVar
from zipfile import BadZipFile

DAMAGED = (
    *(OSError, KeyError, IndexError, ValueError, TypeError, AttributeError, RuntimeError, OverflowError, MemoryError),
    *(AssertionError, SystemError, EOFError, BadZipFile, struct.error, zlib.error),
)
"""What zarr, NumPy, HDF5 and their codecs raise at files that are damaged, or claim to be larger than memory."""


MORE_MEMORY = "give it more memory, or let it do less at a time (jobs, bag, micro-batch)"
"""What to do where there was too little."""
_NO_MEMORY = re.compile(
    "out of memory|allocate memory|bad.?alloc|start new thread|could not create a primitive"
    "|alloc(ation)?_failed|not enough memory",  # of cuBLAS and cuDNN; of DirectML
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, of whatever library, or what was handled when it arose says that no memory is left."""
    return _without_memory(error) is not None


def no_memory(error: BaseException) -> str:
    """Return the sentence on an error for which `is_out_of_memory` holds, with what is said there of memory."""
    said = " ".join(str(_without_memory(error)).split())[:200]
    return f"out of memory{said and f' ({said})'}; {MORE_MEMORY}"


def _without_memory(error: BaseException | None) -> BaseException | None:
    """Return the last of an error and its causes that says that no memory is left."""
    if error is None or isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return error
    return _without_memory(error.__cause__ or error.__context__)


def shortened(names: Sequence[str], most: int, what: str = "") -> list[str]:
    """Return the first of many names or sentences, and where there are more than `most`, how many more."""
    return [*names[:most], *([f"and {len(names) - most} more{what}"] if len(names) > most else [])]


def counted(count: int, what: str) -> str:
    """Return a number of things in words, as `1 slide` and `1,200 patches`."""
    ending = "es" if what.endswith("ch") else "s"
    return f"{count:,} {what}{'' if count == 1 else ending}"


def percent(share: float) -> str:
    """Return a share in words; `0%` is none and `100%` all, as a person takes them, never a little more or less."""
    for text in (f"{share:.0%}", f"{share:.1%}"):
        if share in (0, 1) or text.rstrip("%") not in ("0", "0.0", "100", "100.0"):
            return text
    return ">99.9%" if round(share) else "<0.1%"


_STANDARD = "1.2.840.10008."  # what identifiers begin with that DICOM itself gives


def without_identifiers(text: str) -> str:
    """Return a text as messages may quote it: without identifiers of DICOM, which lead to a patient.

    Those of the standard itself stay: they name kinds of objects and compression.
    """
    return re.sub(r"\d+(\.\d+){3,}", lambda found: found[0] if found[0].startswith(_STANDARD) else "...", text)


class WsisegError(Exception):
    """Base of all errors that are the user's to mend; `str()` is one sentence for a person."""

    exit_code: ClassVar[int] = 1

    @property
    def message(self) -> str:
        """Which file and what is wrong."""
        return str(self.args[0]) if self.args else type(self).__name__

    @property
    def hint(self) -> str:
        """What to do next; empty where there is nothing to advise."""
        return str(self.args[1]) if len(self.args) > 1 else ""

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(WsisegError):
    """Wrong usage or settings; nothing was started."""

    exit_code = 2


class GateError(WsisegError):
    """A quality gate was not met."""

    exit_code = 3


class DeviceError(WsisegError):
    """The requested device is not available."""

    exit_code = 4


class ModelFileError(WsisegError):
    """The model file is invalid: hash, schema or self-test."""

    exit_code = 5


class DownloadError(WsisegError):
    """The network or a download failed, or offline mode forbids it."""

    exit_code = 6


class OutputError(WsisegError):
    """A result cannot be written."""


class StalledError(WsisegError):
    """A slide's disk or network does not answer; not a `SlideError`, as reading less of it would hang as well."""


class SlideError(WsisegError):
    """A slide cannot be read."""


class PixelSizeError(SlideError):
    """A slide states no pixel size, or one that cannot be true."""


class NotASlideError(SlideError):
    """The file is not a slide: listed as skipped, not as failed, unless it was named."""
