"""What the probabilities of a map depend on besides its slide, and the thresholds that go with them."""

from pathlib import Path
from typing import Any

import numpy as np

from wsiseg.config.predict import PredictConfig
from wsiseg.model_file.model_file import ModelFile

_MAJORITY = 0.5


def kind(model: ModelFile, config: PredictConfig) -> str:
    """Tell whether a model maps densely or by tiles."""
    return model.card.map if config.map == "auto" else config.map


def settings_of(models: list[ModelFile], config: PredictConfig, places: dict[str, str | None]) -> dict[str, Any]:
    """Give what the probabilities depend on besides the slide; `places` is what the cells looked at depend on."""
    chosen = config.model_dump(mode="json", include={"min_tissue", "map", "stride", "views"})
    several = {} if len(models) == 1 else {"combine": config.combine}
    made_by = {"provider": models[0].provider, "models": [model.sha256 for model in models]}
    return {**chosen, **several, **places, **made_by}


def threshold_of(models: list[ModelFile], config: PredictConfig) -> float:
    """Give the probability from which a cell is tumour.

    It is the user's, or the mean of the models' own; for a vote it is that of half of the models.
    """
    if config.threshold is not None:
        return config.threshold
    if len(models) > 1 and config.combine == "vote":
        return _MAJORITY
    return float(np.mean([model.card.threshold for model in models]))


def threshold_of_member(model: ModelFile, config: PredictConfig) -> float:
    """Give the threshold of one of several models' own map: the user's unless that counts votes, or the model's."""
    if config.threshold is None or config.combine == "vote":
        return model.card.threshold
    return config.threshold


def member_names(config: PredictConfig) -> tuple[str, ...]:
    """Name the models whose own maps are kept: by their files, numbered where these are called alike."""
    if not config.keep_members or len(config.model) == 1:
        return ()
    stems = [Path(name).stem for name in config.model]
    return tuple(
        stem if stems.count(stem) == 1 else f"{stem}-{stems[: number + 1].count(stem)}"
        for number, stem in enumerate(stems)
    )
