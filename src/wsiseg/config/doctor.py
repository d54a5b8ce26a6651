"""The settings of `wsiseg doctor`."""

from pathlib import Path
from typing import Annotated

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config


class DoctorConfig(Config):
    """Settings of `wsiseg doctor`."""

    slide: Annotated[Path | None, ARGUMENT] = None
    """The slide to examine."""
    model: str | None = None
    """The model file to examine; `default` and `node` come with wsiseg."""
    slide_mpp: float | None = None
    """Micrometers per level-0 pixel, in place of what the file says."""
    deep: bool = False
    """Read every tile of the slide."""
    threads: Annotated[int, IN_FILE] = 2
    """How many read at the same time."""
