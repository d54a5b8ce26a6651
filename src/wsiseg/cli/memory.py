"""The memory of this process."""

import ctypes
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of <malloc.h>
_LARGE_BYTES = 8 * 2**20


def give_back_large_arrays() -> None:
    """Let memory of arrays of 8 MB and more return to the system when they are freed.

    The C library of Linux would raise that bound by itself, to 32 MB, once a large array was freed, and then keep the
    holes between small ones: of a slide of 65536 x 65536 pixels some 170 MB that nobody uses.
    """
    if sys.platform == "linux":
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt"):  # not every C library has it
            library.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
