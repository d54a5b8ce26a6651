"""The files that a study begins with."""

import re
import tomllib
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from making.slides import write_slide
from wsiseg.config.doctor import InitConfig
from wsiseg.config.evaluate import EvaluateConfig
from wsiseg.config.predict import PredictConfig
from wsiseg.config.settings import Config
from wsiseg.config.tile import TileConfig
from wsiseg.config.train import TrainConfig
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.init import init


def test_the_table_lists_the_slides_there_and_is_read_with_labels_in_words(tmp_path: Path) -> None:
    for name in ("b", "a"):
        write_slide(tmp_path / "slides" / f"{name}.tiff")
    (tmp_path / "notes.txt").write_text("no slide")
    begun = init(InitConfig(folder=tmp_path))
    table = tmp_path / "cohort.csv"
    assert begun.written[0] == table
    assert [one.slide for one in Cohort.read(table).slides] == ["a", "b"]
    text = table.read_text().replace("a.tiff,a,,", "a.tiff,a,Yes,").replace("b.tiff,b,,", "b.tiff,b,normal,")
    table.write_text(text)
    assert [one.label for one in Cohort.read(table).slides] == [1, 0]
    assert init(InitConfig(folder=tmp_path)).written == ()
    assert table.read_text() == text, "it is never replaced"
    table.unlink()
    assert init(InitConfig(folder=tmp_path)).written == (table,)


def test_a_folder_without_slides_gets_a_table_to_fill_in(tmp_path: Path) -> None:
    init(InitConfig(folder=tmp_path / "new"))
    table = tmp_path / "new" / "cohort.csv"
    assert table.read_text().splitlines()[-1] == "slide,path,case,label,split,site,mpp"
    table.write_text(table.read_text() + "x,x.svs,,no,,,\n")
    assert Cohort.read(table).slides[0].label == 0


@pytest.mark.parametrize("settings", [TileConfig, TrainConfig, PredictConfig, EvaluateConfig])
def test_the_settings_set_nothing_and_name_every_default(settings: type[Config]) -> None:
    text = settings.commented()
    assert tomllib.loads(text) == {}
    assert len(re.findall(r"^#[a-z]", text, re.MULTILINE)) == sum(
        not field.is_required() for field in settings.model_fields.values()
    )
    told = tomllib.loads("\n".join(re.findall(r"^#([a-z0-9-]+ = .+)$", text, re.MULTILINE)))
    for name, value in told.items():
        field = settings.model_fields[name.replace("-", "_")]
        assert TypeAdapter(field.annotation).validate_python(value) == field.get_default(), name
