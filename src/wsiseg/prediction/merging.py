"""Join the records of runs that shared the slides of a cohort, as shards of job arrays, into one."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from wsiseg.config.predict import PredictConfig
from wsiseg.prediction.map_files import write_overviews
from wsiseg.run.errors import UsageError, counted
from wsiseg.run.outputs import written_whole
from wsiseg.run.record import Progress, Run, RunFile, SlideRecord, now, run_files
from wsiseg.run.version import __version__


def merge(config: PredictConfig, progress: Progress) -> Run:
    """Write one record, page and table of all runs in some folders, and bring their files to `config.out`.

    Files that lie in another folder are linked where the disk can, else copied. What was done last of a slide counts.

    Raises:
        UsageError: A folder holds no run of predict.
        OutputError: Nothing can be written to `config.out`.
    """
    found = [(folder, run) for folder in map(Path, config.inputs) for run in _runs(folder)]
    found.sort(key=lambda one: one[1].started)
    latest = {record.slide: (folder, record) for folder, run in found for record in run.slides}
    for name in ("model", "settings"):
        if len({str(_shared(run, name)) for _, run in found}) > 1:
            progress.note(f"warning: these runs differ in {name}; that of the last one is recorded")
    last = found[-1][1]
    run = Run(
        command="predict",
        version=__version__,
        started=now(),
        model=last.model,
        device=last.device,
        settings=last.settings | {"shard": None},
    )
    with RunFile(config.out / config.run_name, run) as file:
        for slide in sorted(latest):
            file.add(_brought(*latest[slide], config.out))
        joined = file.finish()
        write_overviews(file, config.out, config.run_name, config.report)
    progress.note(f"{counted(len(found), 'run')} of {counted(len(latest), 'slide')} joined")
    return joined


def _runs(folder: Path) -> Iterator[Run]:
    """Yield the runs of predict in a folder."""
    try:
        runs = [run for run in map(Run.read, run_files(folder)) if run.command == "predict"]
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder}: the record of a run cannot be read: {error}") from error
    if not runs:
        raise UsageError(f"{folder}: holds no run of predict", "name the folders that predict --shard wrote")
    yield from runs


def _shared(run: Run, name: str) -> object:
    """Return the model of a run, or its settings but for the shard, as they are compared."""
    return run.model if name == "model" else {**run.settings, "shard": None}


def _brought(folder: Path, record: SlideRecord, out: Path) -> SlideRecord:
    """Bring the files of a slide to another folder, and return its record as it is there."""
    if folder.resolve() == out.resolve():
        return record
    thumbnail = Path(".thumbnails") / f"{Path(record.slide).name}.jpg"
    outputs = {kind: Path(path).name for kind, path in record.outputs.items()}
    for name in (thumbnail, *map(Path, outputs.values())):
        if (folder / name).exists():
            with written_whole(out / name) as partial:
                _link(folder / name, partial)
    return record.model_copy(update={"outputs": {kind: str(out / name) for kind, name in outputs.items()}})


def _link(path: Path, place: Path) -> None:
    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:
            shutil.copy2(one, other)

    if path.is_dir():
        shutil.copytree(path, place, copy_function=link)
    else:
        link(str(path), str(place))
