"""`wsiseg predict`, and `wsiseg view` and `wsiseg convert`, which take what it wrote."""

from wsiseg.cli.shell import StoppedError, app, command
from wsiseg.cli.streams import Streams
from wsiseg.config.predict import ConvertConfig, PredictConfig, ViewConfig
from wsiseg.run.memory import give_back_large_arrays, loading


@command(app, PredictConfig)
def predict(streams: Streams, config: PredictConfig) -> int:
    """Map tumour on slides.

    For every slide, writes OUT/SLIDE.ome.zarr (heatmap), OUT/SLIDE.geojson (outlines for QuPath) and OUT/SLIDE.png
    (picture). For the run, writes OUT/report.html (start here), OUT/slides.csv (one row per slide) and OUT/run.json
    (status of every slide). Prints the path of the report and one line per slide.

    Run the same command again to do only what is missing.

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
    """Show slides and their maps in a browser, on this machine only.

    Prints the address to open. Stop it with Ctrl-C. Requests without the token in the address are refused.

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
    """Convert maps for other programs: DICOM, OME-TIFF, OME-NGFF 0.5, SpatialData or CSV.

    Writes for every slide, depending on --to: OUT/SLIDE.segmentation.dcm and OUT/SLIDE.probability.dcm (dicom-seg),
    OUT/SLIDE.map.dcm (dicom-map), OUT/SLIDE.map.ome.tiff (ome-tiff), OUT/SLIDE.ngff.zarr (ngff-0.5),
    OUT/SLIDE.spatialdata.zarr (spatialdata) or OUT/SLIDE.csv (csv). Also writes OUT/run.convert.json.

    Examples:
        wsiseg convert maps --to dicom-seg --to dicom-map
        wsiseg convert maps --to dicom-seg --dicomize --out dicom
        wsiseg convert maps --to csv --slide CMU-1
    """
    from wsiseg.heatmap.convert import convert as convert_maps  # noqa: PLC0415  loads numerical libraries

    return streams.run(convert_maps(config, streams))
