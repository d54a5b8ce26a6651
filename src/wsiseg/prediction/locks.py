"""The locks of slides: what one process has taken others leave alone, until it is done or gives no sign of life."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg.run.outputs import UNTOUCHED_S, cannot_be_written

if TYPE_CHECKING:
    from filelock import SoftFileLease


class SlideLocks:
    """The locks that this process waits for."""

    def __init__(self) -> None:
        self._waiting: dict[Path, SoftFileLease] = {}
        self._told: set[Path] = set()

    def take(self, *paths: Path) -> "list[SoftFileLease] | None":
        """Take locks, or return None while another process has one of them.

        Raises:
            OutputError: The folder cannot be written.
        """
        taken: list[SoftFileLease] = []
        for path in paths:
            lock = self._take(path)
            if lock is None:
                for one in taken:
                    one.release()
                return None
            taken.append(lock)
        return taken

    def _take(self, path: Path) -> "SoftFileLease | None":
        from filelock import SoftFileLease, Timeout  # noqa: PLC0415  only where files are written

        # The same object must look again, as it remembers for how long nothing touched the file.
        lock = self._waiting.pop(path, None) or SoftFileLease(
            path, timeout=0, lease_duration=UNTOUCHED_S, thread_local=False
        )
        try:
            lock.acquire()
        except Timeout:
            self._waiting[path] = lock
            return None
        except OSError as error:
            raise cannot_be_written(path, error) from error
        return lock

    def tell(self, note: Callable[[str], None]) -> None:
        """Say once for each lock who is waited for."""
        for path in self._waiting.keys() - self._told:
            note(f"waiting for {_holder(path)}; if it is gone, delete {path}")
        self._told |= set(self._waiting)


def _holder(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:  # it was released meanwhile
        text = ""
    facts = dict(re.findall(r"^(pid|host)=(.+)$", text, re.MULTILINE))
    return f"process {facts['pid']} on {facts['host']}" if len(facts) == 2 else "another process"  # noqa: PLR2004  both
