"""Segment tumour in whole-slide histology images, learned from one yes/no label per slide. Research use only."""

from wsiseg.errors import WsisegError
from wsiseg.evaluate import evaluate
from wsiseg.grid import Grid
from wsiseg.heatmap import Heatmap
from wsiseg.model_file import ModelFile
from wsiseg.predict import predict
from wsiseg.slide import Slide

__version__ = "0.1.0"

__all__ = ["Grid", "Heatmap", "ModelFile", "Slide", "WsisegError", "__version__", "evaluate", "predict"]
