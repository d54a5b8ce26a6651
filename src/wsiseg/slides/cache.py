"""A folder of slides that were fetched, each in a folder of its own, that stays within bounds.

Those that were asked for longest ago leave it first, but none that a run has in use, of this machine or another.
"""

import shutil
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg.run.errors import DownloadError
from wsiseg.run.outputs import UNTOUCHED_S, cannot_be_written, locked, write_text

if TYPE_CHECKING:
    from filelock import SoftFileLease

_LOOK_AGAIN_S = 1.0
_STATE = ".fetched"  # says what is in the folder beside it, and by its time when that was asked for


class Cache(ExitStack):
    """The folder, and what of it one user has in use until it is closed.

    Args:
        folder: Where it is; it is made when it is needed.
        most_bytes: How much all slides may hold.
    """

    def __init__(self, folder: Path, most_bytes: float) -> None:
        super().__init__()
        self.folder, self.most_bytes = folder, most_bytes

    def keep(self, folder: Path, longest_s: float = 0.0) -> None:
        """Keep the folder of a slide until this is closed: nobody else changes or removes it.

        Where somebody has it in use, wait up to so many seconds.

        Raises:
            DownloadError: Another run has it in use.
            OutputError: It cannot be written.
        """
        until = time.monotonic() + longest_s
        while (lease := _taken(folder)) is None:
            if time.monotonic() >= until:
                text = f"{folder}: another run has this slide in use"
                raise DownloadError(text, "wait for its end, or set another cache")
            time.sleep(_LOOK_AGAIN_S)
        self.callback(lease.release)

    def begin(self, folder: Path, state: str | None) -> None:
        """Remove what the folder of a slide holds of another state of it than this; None is like no other.

        Raises:
            OutputError: It cannot be written.
        """
        known = folder / _STATE
        if known.is_file() and known.read_text("utf-8") != state:
            shutil.rmtree(folder)
        write_text(known, state or "")

    def make_room(self, further: Path, coming: int = 0, longest_s: float = 0.0) -> None:
        """Remove slides that nobody uses until what is there, and the bytes that come into `further`, fit.

        Where what is in use leaves no room, wait up to so many seconds for it to be free.

        Raises:
            DownloadError: There is no room.
        """
        until = time.monotonic() + longest_s
        while (taken := self.trimmed(further, coming)) > self.most_bytes:
            if coming > self.most_bytes or time.monotonic() >= until:
                text = f"{self.folder}: the slides in use take {taken / 1e9:.3g} GB, more than the cache may hold"
                raise DownloadError(text, "set a higher cache-gb, or name fewer slides at once")
            time.sleep(_LOOK_AGAIN_S)

    def trimmed(self, further: Path, coming: int = 0) -> int:
        """Remove slides as `make_room` does, as far as that goes; return the bytes that are there, or come."""
        with locked(self.folder / ".lock"):
            # Nothing else that may lie there is counted, let alone removed.
            folders = sorted((one.parent for one in self.folder.glob(f"*/{_STATE}")), key=_asked_for)
            sizes = {folder: sum(file.stat().st_size for file in folder.iterdir()) for folder in folders}
            for folder in folders:
                if sum(sizes.values()) + coming > self.most_bytes and folder != further and _removed(folder):
                    del sizes[folder]
        return sum(sizes.values()) + coming


def lock_of(folder: Path) -> Path:
    """Return the lock of the folder of a slide: whoever has it has the slide in use."""
    return folder.with_name(f".{folder.name}.lock")


def _asked_for(folder: Path) -> float:
    return (folder / _STATE).stat().st_mtime


def _removed(folder: Path) -> bool:
    """Remove the folder of a slide unless it is in use."""
    lease = _taken(folder)
    if lease is None:
        return False
    try:
        shutil.rmtree(folder)
    finally:
        lease.release()
    return True


def _taken(folder: Path) -> "SoftFileLease | None":
    """Take the folder of a slide, for any thread to release; None while another has it."""
    from filelock import SoftFileLease, Timeout  # noqa: PLC0415  only where something is written

    lease = SoftFileLease(lock_of(folder), timeout=0, lease_duration=UNTOUCHED_S, thread_local=False)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lease.acquire()
    except Timeout:
        return None
    except OSError as error:
        raise cannot_be_written(folder, error) from error
    return lease
