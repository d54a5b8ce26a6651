"""Memory that is taken ahead or kept: by the C library of Linux, and by the thread of zarr.

By default the library hands memory out in ways that waste time in training and room in prediction: it takes large
blocks from the kernel, gives them back one by one, and raises the bound of what is large by itself.
"""

import atexit
import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_ZARR = threading.Lock()
_NEW_OBJECTS = 10_000  # after which Python looks for garbage among them
# Names of <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def give_back_large_arrays() -> None:
    """Let memory of arrays of 8 MB and more return to the system when they are freed.

    The C library would raise that bound by itself, to 32 MB, once a large array was freed, and then keep the holes
    between small ones: of a slide of 65536 x 65536 pixels some 170 MB that nobody uses.
    """
    _set({_M_MMAP_THRESHOLD: 8 * 2**20})


def keep_what_is_used_again() -> None:
    """Set the bounds that the C library arrives at by itself once large arrays were freed.

    It does not where one of them was set from outside. Dask sets one for its workers, to 64 KB, so that every array
    of 128 KB comes from the kernel anew: its zeros cost a fifth of all time.
    """
    _set({_M_MMAP_THRESHOLD: 2**25, _M_TRIM_THRESHOLD: 2**26})


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors for the next ones.

    By default every block above 32 MB returns to the kernel, which fills the pages of the next one with zeros: on a
    processor that takes more time than the convolutions (measured: 19 against 61 tiles a second for 64 tiles at a
    time, EfficientNet-Lite0).
    """
    _set({_M_MMAP_THRESHOLD: 2**30, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**28})


@contextmanager
def loading() -> Iterator[None]:
    """Let Python look for no garbage while libraries are loaded.

    They are a few hundred thousand objects, none of which is garbage: looking through them again and again takes a
    quarter of the time of a command that loads them and does little else.
    """
    is_looking = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if is_looking:
            gc.enable()


def look_for_garbage_seldom() -> None:
    """Let Python look for garbage less often, never again at what is there now, and not at all as it ends."""
    gc.freeze()
    atexit.register(gc.freeze)
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])


def start_zarr() -> None:
    """Let zarr start its thread now: where a later call finds no memory for it, all who ask after that wait for ever.

    Raises:
        RuntimeError: There is no memory for it now.
    """
    with _ZARR:  # two threads that load it at once would see it half loaded
        with loading():
            import zarr  # noqa: PLC0415  heavy: only where arrays are read or written
            from zarr.core import sync  # noqa: PLC0415  the same

        try:
            zarr.create_group({})
        except RuntimeError:
            sync.reset_resources_after_fork()  # else it waits at the end for a thread that never began
            raise


def _set(parameters: dict[int, int]) -> None:
    """Set parameters of the C library's allocator; not every system and C library has them."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        for parameter, value in parameters.items():
            library.mallopt(parameter, value)
