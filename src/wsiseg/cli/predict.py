"""`wsiseg predict`, and `wsiseg view` and `wsiseg convert`, which take what it wrote."""

from wsiseg.cli.shell import StoppedError, app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.predict import ConvertConfig, PredictConfig, ViewConfig
from wsiseg.run.memory import give_back_large_arrays, loading


@command(app, PredictConfig)
def predict(streams: Streams, config: PredictConfig) -> int:
    """Map tumour on slides.

    Writes for every slide OUT/SLIDE.ome.zarr (probabilities), OUT/SLIDE.geojson (outlines for QuPath) and
    OUT/SLIDE.png, and OUT/run.json with what became of each, OUT/slides.csv with a row for each, and OUT/report.html
    to look at. Prints where the page is and what became of each slide.

    Examples:
        wsiseg predict slide.svs
        wsiseg predict slides/ --dry-run
        wsiseg predict slides/ --model mine.onnx --out maps --csv
        ls *.svs | wsiseg predict - --json
    """
    give_back_large_arrays()
    with loading():
        from wsiseg.prediction.predict import predict_slides  # noqa: PLC0415  loads numerical libraries

    run = predict_slides(config, streams)
    return streams.run(run, [] if config.dry_run else [config.report])


@command(app, ViewConfig)
def view(streams: Streams, config: ViewConfig) -> int:
    """Look at slides with their maps in a browser, on this machine alone.

    Prints the address of the page, and answers until it is interrupted (Ctrl-C). Who does not know the token in the
    address is refused.

    Examples:
        wsiseg view
        wsiseg view maps --truth outlines
        wsiseg view maps --slides /mnt/slides --port 8000
    """
    from wsiseg.heatmap.view import viewing  # noqa: PLC0415  loads numerical libraries

    with viewing(config) as server:
        streams.result({"address": server.address}, [server.address])
        streams.note("open this address in a browser; Ctrl-C ends it")
        try:
            server.serve_forever()
        except StoppedError as stopped:  # so it ends, and there is nothing to go on with
            return 128 + int(stopped.args[0])
    return 0


@command(app, ConvertConfig)
def convert(streams: Streams, config: ConvertConfig) -> int:
    """Write maps in the forms of other programs: DICOM objects that lie on their DICOM slides, OME-TIFF, CSV.

    Writes for every slide OUT/SLIDE.segmentation.dcm and OUT/SLIDE.probability.dcm, OUT/SLIDE.map.dcm,
    OUT/SLIDE.map.ome.tiff, OUT/SLIDE.ngff.zarr, OUT/SLIDE.spatialdata.zarr or OUT/SLIDE.csv, as --to says, and
    OUT/run.convert.json.

    Examples:
        wsiseg convert maps --to dicom-seg --to dicom-map
        wsiseg convert maps --to dicom-seg --dicomize --out dicom
        wsiseg convert maps --to csv --slide CMU-1
    """
    from wsiseg.heatmap.convert import convert as convert_maps  # noqa: PLC0415  loads numerical libraries

    return streams.run(convert_maps(config, streams))
