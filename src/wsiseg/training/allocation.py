"""How the C library hands out memory to large tensors."""

import ctypes
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGE, _PAD = 2**30, 2**28


def keep_freed_memory() -> None:
    """Let glibc keep the memory of freed tensors for the next ones; elsewhere do nothing.

    By default it returns every block above 32 MB to the kernel and asks for a new one, whose pages the kernel fills
    with zeros: on a processor that takes more time than the convolutions (measured: 19 against 61 tiles a second for
    64 tiles at a time, EfficientNet-Lite0).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    library = ctypes.CDLL(None)
    for parameter, value in ((_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, 2 * _LARGE - 1), (_TOP_PAD, _PAD)):
        library.mallopt(parameter, value)
