"""The figures on the cards of the bundled model are those of the file itself, at its threshold."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.evaluation.evaluate import evaluate
from wsiseg.model_file.card_page import front_matter
from wsiseg.model_file.model_file import BUNDLED, ModelFile, model_path
from wsiseg.prediction.predict import predict_slides

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def test_the_cards_threshold_is_that_of_its_figures() -> None:
    with ModelFile.open(model_path(BUNDLED)) as model:
        evaluation: Any = model.card.figures["evaluation"]
        assert evaluation["split"] == "test"
        assert evaluation["threshold"]["value"] == model.card.threshold


def test_the_page_beside_the_model_begins_with_what_hubs_read() -> None:
    path = model_path(BUNDLED)
    with ModelFile.open(path) as model:
        head = front_matter(model.card)
        other = front_matter(model.card.model_copy(update={"licence": 'for friends: "only"'}))
    assert path.with_suffix(".md").read_text(encoding="utf-8").startswith(head + "# ")
    first, *lines, last, _ = head.splitlines()
    assert (first, last) == ("---", "---")
    told = {key: json.loads(value) for key, _, value in (line.partition(": ") for line in lines)}
    assert told["license"] == "cc-by-4.0"
    assert told["model-index"][0]["results"][0]["metrics"][0]["type"] == "auc"
    assert 'license: "other"\nlicense_name: "for friends: \\"only\\""\n' in other


@pytest.mark.slow
def test_the_cards_figures_are_had_again_from_the_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    cohorts, recipe = (runpy.run_path(str(SCRIPTS / f"{name}.py")) for name in ("open_cohort", "make_model"))
    made = cohorts["open_slides"](data, tuple(cohorts["ORGANS"]), ["test"], recipe["SLIDES"][2:], 0)
    cohorts["write_cohort"]((one for one in made if one.split), tmp_path)
    predict_slides(PredictConfig(inputs=(str(tmp_path / "cohort.csv"),), out=tmp_path / "maps"))
    with ModelFile.open(model_path(BUNDLED)) as model:
        threshold = model.card.threshold
        said: Any = model.card.figures["evaluation"]
    report = evaluate(
        EvaluateConfig(
            predictions=(tmp_path / "maps",), truth=tmp_path / "truth", cohort=tmp_path / "cohort.csv",
            split="test", threshold=threshold,
        )
    )  # fmt: skip
    for measure in ("auc", "precision", "recall", "f1"):
        found, expected = (figures["without_background"][measure] for figures in (vars(report), said))
        assert number(found) == pytest.approx(number(expected), abs=0.005), measure


def number(figure: Any) -> float:
    """Take its value."""
    value = getattr(figure, "value", figure)
    return float(value["value"] if isinstance(value, dict) else value)
