"""How fast long work goes, what is left of it, and how a person says times and sizes."""

import time

LINE_EVERY_S = 60.0


class Pace:
    """Counts how much is `done` from now on of a `total`, in any unit; a part of a unit counts as that part."""

    def __init__(self, total: float) -> None:
        self.total, self.done = total, 0.0
        self._began = self._spoke = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return max(time.monotonic() - self._began, 1e-9)

    def advance(self, count: float) -> None:
        """Count further work that is done."""
        self.done += count

    def is_due(self) -> bool:
        """Return True once a minute: when it is time to say how far the work is."""
        is_due = time.monotonic() - self._spoke >= LINE_EVERY_S
        if is_due:
            self.spoke()
        return is_due

    def spoke(self) -> None:
        """Begin the minute anew, as something was said."""
        self._spoke = time.monotonic()

    def left(self) -> str:
        """Return how long the rest will take at the pace so far, or an empty text where nobody can know."""
        if self.done <= 0 or self.total <= 0:
            return ""
        return f"about {spoken(self.seconds / self.done * max(0.0, self.total - self.done))} left"


def spoken(seconds: float) -> str:
    """Return a length of time as a person would say it, as `40 s`, `12 min`, `3.5 h` or `2.1 days`."""
    if seconds < 100:  # noqa: PLR2004  nobody reads more digits
        return f"{seconds:.0f} s"
    if seconds < 6000:  # noqa: PLR2004  the same
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"  # noqa: PLR2004  the same


def spoken_size(size: float) -> str:
    """Return a number of bytes as a person would say it, as `1.5 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:  # noqa: PLR2004  the next unit
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.2f} TB"
