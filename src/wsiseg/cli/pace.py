"""How fast a run goes and how long the rest will take."""

import time

from wsiseg.run.record import SlideRecord, spoken

_LINE_EVERY_S = 60.0
_NO_WORK = ("up_to_date", "skipped")


class Pace:
    """Counts slides and tiles of a run from now on.

    Attributes:
        slides: How many slides there are.
        slides_done: How many are done.
        tiles: Tiles that are done.

    Args:
        slides: How many slides there are.
    """

    def __init__(self, slides: int) -> None:
        self.slides = slides
        self.slides_done = self.tiles = self._worked = 0
        self._waited_s = 0.0
        self._planned: dict[str, int] = {}
        self._begun: dict[str, int] = {}
        self._began = self._spoke = time.monotonic()

    def slide(self, slide: str, tiles: int) -> None:
        """Begin a slide of so many tiles."""
        self._planned[slide], self._begun[slide] = tiles, 0

    def advance(self, slide: str, tiles: int, waited_s: float) -> None:
        """Count tiles that are done, and the time that was waited for them to be read."""
        self.tiles += tiles
        self._waited_s += waited_s
        if slide in self._begun:
            self._begun[slide] += tiles

    def done(self, record: SlideRecord) -> None:
        """Count a slide that is done; that alone is worth a line."""
        self.slides_done += 1
        self._worked += record.status not in _NO_WORK
        self._planned.pop(record.slide, None)
        self._begun.pop(record.slide, None)
        self._spoke = time.monotonic()

    @property
    def is_due(self) -> bool:
        """True if nothing was said for a minute."""
        return time.monotonic() - self._spoke >= _LINE_EVERY_S

    def line(self) -> str:
        """Say how far the run is."""
        self._spoke = time.monotonic()
        return f"{self.slides_done}/{self.slides} slides, {self.tiles} tiles, {self.speed()}"

    def speed(self) -> str:
        """Say how fast it goes, how much of the time is spent waiting for slides to be read, and how long it will."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        said = [f"{self.tiles / seconds:.1f} tiles/s"]
        if self._waited_s:
            said.append(f"{self._waited_s / seconds:.0%} waiting for reading")
        parts = sum(done / max(1, self._planned[slide]) for slide, done in self._begun.items())
        if self._worked + parts:
            left = seconds / (self._worked + parts) * (self.slides - self.slides_done - parts)
            said.append(f"about {spoken(max(0.0, left))} left")
        return ", ".join(said)
