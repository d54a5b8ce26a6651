"""How fast long work goes, said once a minute."""

import time
from collections.abc import Callable

_EVERY_S = 60.0


class Pace:
    """Counts what is done of some work and says once a minute how much is left.

    Args:
        what: What the work is called.
        total: How much there is to do.
        note: Is told a sentence.
    """

    def __init__(self, what: str, total: int, note: Callable[[str], None]) -> None:
        self._what, self._total, self._note = what, total, note
        self._done = 0
        self._began = self._spoke = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the work began."""
        return time.monotonic() - self._began

    def advance(self, count: int, more: str = "") -> None:
        """Count further work that is done; `more` is said with it."""
        self._done += count
        if time.monotonic() - self._spoke >= _EVERY_S:
            self._spoke = time.monotonic()
            self._note(f"{self._what}: {self._done}/{self._total}{more}, {self.left()} left")

    def left(self) -> str:
        """Say how long the rest will take."""
        minutes = self.seconds / max(1, self._done) * max(0, self._total - self._done) / 60
        return f"{minutes / 60:.1f} h" if minutes >= 100 else f"{minutes:.1f} min"  # noqa: PLR2004  nobody reads more

    def finish(self, unit: str) -> None:
        """Say how fast it all went."""
        rate = self._done / max(self.seconds, 1e-9)
        self._note(f"{self._what}: {self._done} {unit} in {self.seconds:.0f} s, {rate:.1f} {unit}/s")
