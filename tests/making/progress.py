"""Somebody who watches a command, and remembers what it said."""

from wsiseg.run.record import Progress


class Heard(Progress):
    """Remembers what a person would have read."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.details: list[str] = []

    def note(self, text: str) -> None:
        """Remember it."""
        self.notes.append(text)

    def detail(self, text: str) -> None:
        """Remember it."""
        self.details.append(text)
