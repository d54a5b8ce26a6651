"""The settings of `wsiseg doctor` and of `wsiseg init`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config, Shown


class DoctorConfig(Config):
    """Settings of `wsiseg doctor`."""

    slide: Annotated[Path | None, Shown("argument", "SLIDE|RUN|MAP")] = None
    """A slide to examine; or, to verify a run, the folder that predict or train wrote, or one of its heatmaps."""
    model: str | None = None
    """Model file to examine; when verifying a run, where its model file is now. `default` comes with wsiseg."""
    slides: Path | None = None
    """Folder of the slides, if they are no longer where predict read them."""
    sample: int = Field(default=0, ge=0)
    """When verifying a run, run the model again on about this many tiles of each slide and compare."""
    signed_by: Path | None = None
    """Require a signature of `run.json`, or of the model file, by someone in this file (OpenSSH's allowed_signers
    format)."""
    slide_mpp: float | None = None
    """Micrometers per level-0 pixel of the slide; overrides what the file says."""
    deep: bool = False
    """Read every tile of the slide and report those that cannot be read."""
    threads: Annotated[int, IN_FILE] = 2
    """Number of threads that read the slide."""


class InitConfig(Config):
    """Settings of `wsiseg init`."""

    folder: Annotated[Path, ARGUMENT] = Path()
    """Where to write; slides in this folder are listed in the table."""
