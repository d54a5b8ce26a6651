"""`wsiseg predict`."""

from wsiseg.cli.shell import app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.predict import PredictConfig
from wsiseg.run.memory import give_back_large_arrays


@command(app, PredictConfig)
def predict(streams: Streams, config: PredictConfig) -> int:
    """Map tumour on slides.

    Writes for every slide OUT/SLIDE.ome.zarr (probabilities), OUT/SLIDE.geojson (outlines for QuPath) and
    OUT/SLIDE.png, and OUT/run.json with what became of each and OUT/report.html to look at.

    Examples:
        wsiseg predict slide.svs
        wsiseg predict slides/ --model mine.onnx --out maps --csv
        ls *.svs | wsiseg predict - --json
    """
    give_back_large_arrays()
    from wsiseg.prediction.predict import predict_slides  # noqa: PLC0415  loads numerical libraries

    return streams.run(predict_slides(config, streams))
