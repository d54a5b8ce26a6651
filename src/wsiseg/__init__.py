"""Segment tumour in whole-slide histology images, learned from one yes/no label per slide. Research use only."""

from wsiseg.evaluation.evaluate import evaluate
from wsiseg.heatmap.heatmap import Heatmap
from wsiseg.mathematics.grid import Grid
from wsiseg.model_file.model_file import ModelFile
from wsiseg.prediction.predict import predict
from wsiseg.run.errors import WsisegError
from wsiseg.run.version import __version__
from wsiseg.slides.slide import Slide

__all__ = ["Grid", "Heatmap", "ModelFile", "Slide", "WsisegError", "__version__", "evaluate", "predict"]
