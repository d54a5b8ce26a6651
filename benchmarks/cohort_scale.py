"""What predict itself costs a slide that is up to date, in cohorts of growing size, and how large the page gets.

python benchmarks/cohort_scale.py 100 1000 10000

One small made slide is mapped with a colour filter as the model; slides of a cohort and their results are links to it.
So predict first finds all slides as recorded but draws their page, and then leaves that as it is too.
"""

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from making.models import write_color_filter_model
from making.slides import write_slide
from wsiseg.config.predict import PredictConfig
from wsiseg.prediction.places import Places
from wsiseg.prediction.predict import opened_models, predict_slides
from wsiseg.prediction.unchanged import Setting, marks_of
from wsiseg.run.proof import sealed
from wsiseg.run.record import Progress
from wsiseg.slides.cohort import Cohort


def link_cohort(folder: Path, count: int) -> PredictConfig:
    """Make a cohort of so many slides, all up to date."""
    slide = write_slide(folder / "0" / "slide.tiff", size=(600, 400))
    model = write_color_filter_model(folder / "m.onnx")
    lines, out = ["slide,path"], folder / "out"
    (folder / "cohort.csv").write_text("slide,path\ns0,0/slide.tiff\n")
    config = PredictConfig.checked(inputs=(str(folder / "cohort.csv"),), model=(str(model),), out=out)
    predict_slides(config)
    made = [path for path in out.iterdir() if path.name.startswith("s0.")]
    run = json.loads((out / "run.json").read_text())
    (record,) = run["slides"]
    records = []
    for number in range(count):
        name = f"s{number}"
        lines.append(f"{name},{number}/slide.tiff")
        renamed = json.loads(json.dumps(record).replace("s0.", f"{name}."))
        records.append({**renamed, "slide": name, "path": str(folder / str(number) / "slide.tiff")})
        if number:
            (folder / str(number)).mkdir()
            os.link(slide, folder / str(number) / "slide.tiff")
            for path in made:
                place = out / path.name.replace("s0.", f"{name}.", 1)
                if path.is_dir():
                    shutil.copytree(path, place, copy_function=os.link)
                else:
                    os.link(path, place)
            os.link(out / ".thumbnails" / "s0.jpg", out / ".thumbnails" / f"{name}.jpg")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n")
    states = _states(config)
    records = [{**one, "state": states[one["slide"]]} for one in records]
    (out / "run.json").write_text(json.dumps(sealed({**run, "slides": records, "written": {}})))
    return config


def _states(config: PredictConfig) -> dict[str, str]:
    """Return what predict would have recorded of slides and results as they are."""
    rows, places = Cohort.read(Path(config.inputs[0])).slides, Places.of("auto", None, None, ())
    with opened_models(config) as models:
        setting = Setting(places, models, config, Progress())
        return {row.slide: setting.state(row, marks_of(row)) for row in rows}


def main() -> None:
    """Print two lines for each number of slides."""
    for count in map(int, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as name:
            config = link_cohort(Path(name), count)
            for way in ("as recorded, page drawn", "as recorded"):
                began, computed = time.perf_counter(), time.process_time()
                run = predict_slides(config)
                spent = time.perf_counter() - began, time.process_time() - computed
                took, computing = (1000 * seconds / count for seconds in spent)
                assert run.totals == {"ok": 0, "failed": 0, "up_to_date": count}, run.totals  # noqa: S101  a benchmark
                told = f"{took:6.2f} ms a slide, {computing:.2f} of them computing"
                print(f"{count:6} slides {way}: {told}, page {config.report.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
