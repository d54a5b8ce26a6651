"""One lock a slide, so that processes on the same folder, also of several machines, share its slides.

A lock is a file that holds host, process and start time of who has it. That of a dead process of this machine is taken
over at once. Its owner touches it now and then, so that of a process of another machine is taken over when nothing
touched it for two minutes. Should its owner live all the same, a slide is mapped twice, and outputs stay whole.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wsiseg.run.outputs import cannot_be_written

if TYPE_CHECKING:
    from filelock import SoftFileLease

_UNTOUCHED_S = 120.0


class SlideLocks:
    """The locks that this process waits for."""

    def __init__(self) -> None:
        self._waiting: dict[Path, SoftFileLease] = {}
        self._told: set[Path] = set()

    def take(self, path: Path) -> "SoftFileLease | None":
        """Take a lock, or give None while another process has it.

        Raises:
            OutputError: The folder cannot be written.
        """
        from filelock import SoftFileLease, Timeout  # noqa: PLC0415  only where files are written

        # The same object must look again, as it remembers for how long nothing touched the file.
        lock = self._waiting.pop(path, None) or SoftFileLease(
            path, timeout=0, lease_duration=_UNTOUCHED_S, thread_local=False
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
        """Say once of each lock who is waited for."""
        for path in self._waiting:
            if path not in self._told:
                note(f"waiting for {_holder(path)}; if it is gone, delete {path}")
        self._told |= set(self._waiting)


def _holder(path: Path) -> str:
    """Name the process that has a lock."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:  # it was released meanwhile
        text = ""
    facts = dict(re.findall(r"^(pid|host)=(.+)$", text, re.MULTILINE))
    return f"process {facts['pid']} on {facts['host']}" if len(facts) == 2 else "another process"  # noqa: PLR2004  both
