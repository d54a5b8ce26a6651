"""How long a run will take, as far as its first slide tells."""

import time
from collections.abc import Sequence

import numpy as np

from wsiseg.config.predict import PredictConfig
from wsiseg.model_file.model_file import MAP_MULTIPLE_PX, ModelFile
from wsiseg.prediction.inference import BATCH, Plan
from wsiseg.prediction.mapping import Job
from wsiseg.prediction.views import Asked, viewed
from wsiseg.run.pace import spoken

_LONGEST_S = 0.1


def forecast(job: Job, models: Sequence[ModelFile], config: PredictConfig, slides: int) -> str:
    """Say how many tiles a slide has and how long it and others like it will take.

    Args:
        job: The first slide that models are asked about.
        models: What will be asked.
        config: How.
        slides: How many slides there are to do, with this one.
    """
    seconds = sum(
        plan.tiles() / speed(plan, viewed(model, config.views)) for plan, model in zip(job.plans, models, strict=True)
    )
    rate = job.tiles / seconds
    said = f"{job.row.slide} has {job.tiles} tiles; at {rate:.3g} tiles/s, as measured on made ones, "
    if slides == 1:
        return f"{said}it takes about {spoken(seconds)}"
    return f"{said}{slides} slides like it take about {spoken(slides * seconds)}"


def speed(plan: Plan, model: Asked) -> float:
    """Measure how many made tiles a model computes in a second, in some 0.15 s unless one tile takes longer."""
    side = -(-plan.side_px // MAP_MULTIPLE_PX) * MAP_MULTIPLE_PX if plan.is_dense else plan.side_px
    tiles = np.random.default_rng(0).integers(0, 256, (BATCH, side, side, 3), np.uint8)

    def seconds(count: int) -> float:
        began = time.perf_counter()
        _ = model.probability_map(tiles[:count]) if plan.is_dense else model.probabilities(tiles[:count])
        return max(time.perf_counter() - began, 1e-9)

    count = max(1, min(BATCH, int(_LONGEST_S / seconds(1))))
    return count / seconds(count)
