"""Segment tumour in whole-slide histology images, learned from one yes/no label per slide. Research use only."""

from importlib import import_module
from typing import TYPE_CHECKING

from wsiseg.run.version import __version__

if TYPE_CHECKING:
    from wsiseg.evaluation.evaluate import evaluate
    from wsiseg.heatmap.heatmap import Heatmap
    from wsiseg.mathematics.grid import Grid
    from wsiseg.model_file.model_file import ModelFile
    from wsiseg.prediction.predict import predict
    from wsiseg.run.errors import WsisegError
    from wsiseg.slides.slide import Slide

__all__ = ["Grid", "Heatmap", "ModelFile", "Slide", "WsisegError", "__version__", "evaluate", "predict"]

_HOMES = {
    "Grid": "mathematics.grid",
    "Heatmap": "heatmap.heatmap",
    "ModelFile": "model_file.model_file",
    "Slide": "slides.slide",
    "WsisegError": "run.errors",
    "evaluate": "evaluation.evaluate",
    "predict": "prediction.predict",
}


def __getattr__(name: str) -> object:
    """Load what is asked for when it is: a command need not load what the others are made of."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"wsiseg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
