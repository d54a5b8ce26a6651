"""Training shared out to a Dask cluster: features by the slide, and a grid by the configuration."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

from wsiseg.config.train import TrainConfig
from wsiseg.network.network import TileClassifier
from wsiseg.run.cluster import READING, on_cluster
from wsiseg.run.memory import keep_freed_memory
from wsiseg.run.record import Progress
from wsiseg.training.bags import TileSource, source_of
from wsiseg.training.beforehand import beforehand, check_teachers, slides_of
from wsiseg.training.colors import cohort_colors
from wsiseg.training.configurations import settings_of_grid
from wsiseg.training.processes import Processes, device_of, precision_on
from wsiseg.training.slides import LabelledSlide
from wsiseg.training.task import computed_bank, started

_PACKAGES = (*READING, "torch", "torchvision", "timm")


def shared_out(
    config: TrainConfig,
    address: str,
    progress: Progress,
    train_some: Callable[..., list[Path]],
) -> TrainConfig:
    """Let workers compute features and train the configurations of a grid; return what to do then: it finds them.

    Args:
        config: What to do.
        address: That of the cluster.
        progress: Who watches.
        train_some: Trains those configurations of the grid of a `config` whose folders are given, and returns these.
    """
    config = config.model_copy(update={"dask": None})
    slides = beforehand(config, Processes(), Progress()).slides
    check_teachers(config, slides)
    if config.freeze and config.features is None:
        names = [slide.slide for slide in slides]
        for count, _ in enumerate(on_cluster(address, partial(_features, config=config), names, _PACKAGES), 1):
            progress.detail(f"features of {count} of {len(names)} slides")
    if config.grid:
        outs = [one.out for one in settings_of_grid(config)]
        for out in on_cluster(address, partial(train_some, config=config), outs, _PACKAGES):
            progress.note(f"{out.name}: trained")
    return config.model_copy(update={"overwrite": False})


def _features(names: Sequence[str], config: TrainConfig) -> Sequence[str]:
    """Compute the features of slides on a worker."""
    keep_freed_memory()
    config, slides, source, classifier = _frozen(config)
    computed_bank(config, classifier, [one for one in slides if one.slide in names], source, Progress())
    return names


@lru_cache(maxsize=1)
def _frozen(config: TrainConfig) -> tuple[TrainConfig, tuple[LabelledSlide, ...], TileSource, TileClassifier]:
    """Return what features are computed with; in a worker it stays from slide to slide."""
    slides, device, note = slides_of(config, None, Progress().note), device_of(config.device), Progress().note
    config = config.model_copy(update={"precision": precision_on(device, config.precision)})
    source = source_of(config, device, None)
    colors = cohort_colors(config, slides, source, Processes(), note)
    return config, slides, source, started(config, slides[0].tile_px, colors, device, note)
