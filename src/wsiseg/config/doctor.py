"""The settings of `wsiseg doctor` and of `wsiseg init`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from wsiseg.config.settings import ARGUMENT, IN_FILE, Config, Shown


class DoctorConfig(Config):
    """Settings of `wsiseg doctor`."""

    slide: Annotated[Path | None, Shown("argument", "SLIDE|RUN|MAP")] = None
    """The slide to examine; or to verify, the folder of a run of predict or train, or one heatmap of it."""
    model: str | None = None
    """The model file to examine; or, where a run is verified, its model where it lies now. `default` and `node` come
    with wsiseg."""
    slides: Path | None = None
    """Folder that the slides of a run lie in now, where they are not where predict read them."""
    sample: int = Field(default=0, ge=0)
    """About how many tiles of each slide of a run to ask its model about again."""
    signed_by: Path | None = None
    """File of those who may sign, as OpenSSH's allowed_signers; run.json or the model file must bear the signature of
    one of them."""
    slide_mpp: float | None = None
    """Micrometers per level-0 pixel, in place of what the file says."""
    deep: bool = False
    """Read every tile of the slide."""
    threads: Annotated[int, IN_FILE] = 2
    """How many read at the same time."""


class InitConfig(Config):
    """Settings of `wsiseg init`."""

    folder: Annotated[Path, ARGUMENT] = Path()
    """Where to write; its slides are listed in the table."""
