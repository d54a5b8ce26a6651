"""The settings of the `wsiseg fetch` commands."""

from pathlib import Path

from wsiseg.config import Config


class FetchConfig(Config):
    """What all sources share."""

    out: Path = Path()
    """Folder for what is fetched."""
    mirror: str | None = None
    """Address of a mirror, in place of the source's own."""


class FetchDemoConfig(FetchConfig):
    """Settings of `wsiseg fetch demo`."""
