import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wsiseg.run.errors import UsageError
from wsiseg.run.proof import Written
from wsiseg.run.record import Run, SlideRecord
from wsiseg.slides.cohort import Cohort
from wsiseg.slides.discovery import find

MakeSlide = Callable[..., Path]


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "case", "label", "doubt"),
    [
        ("TCGA-BH-A0B7-11A-03-TSC.f0571ac2-0a1b.svs", "TCGA-BH-A0B7", 0, ""),
        ("TCGA-BH-A0B7-01A-03-BS1.svs", "TCGA-BH-A0B7", 1, ""),
        ("TCGA-BH-A0B7-01Z-00-DX1.svs", "TCGA-BH-A0B7", 1, ""),
        ("TCGA-BH-A0B7-20A-03-TS1.svs", "TCGA-BH-A0B7", None, "TCGA-BH-A0B7-20A-03-TS1: sample type 20"),
        ("tumor/TCGA-BH-A0B7-11A-03-TS1.svs", "TCGA-BH-A0B7", None, "contradict"),
        ("tumor/a.svs", "", 1, ""),
        ("Tumour/deeper/a.svs", "", 1, ""),
        ("normal/a.svs", "", 0, ""),
        ("non_tumor/a.svs", "", 0, ""),
        ("tumor/normal/a.svs", "", 0, ""),
        ("1/a.svs", "", 1, ""),
        ("0/a.svs", "", 0, ""),
        ("other/a.svs", "", None, ""),
        ("a.svs", "", None, ""),
    ],
)
def test_names_and_folders_tell_case_and_label(
    tmp_path: Path, name: str, case: str, label: int | None, doubt: str
) -> None:
    touch(tmp_path / name)
    (found,) = find(str(tmp_path))
    assert (found.case, found.label) == (case, label)
    assert doubt in " ".join(found.doubts)
    assert bool(doubt) == bool(found.doubts)


def test_folders_tell_the_split(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "tumor" / "a.svs", tmp_path / "validation" / "normal" / "b.svs", tmp_path / "c.svs")
    assert {found.slide: found.split for found in find(str(tmp_path))} == {"a": "train", "b": "val", "c": None}


def test_a_case_in_two_split_folders_is_refused(tmp_path: Path) -> None:
    touch(tmp_path / "train" / "TCGA-BH-A0B7-01A-03-BS1.svs", tmp_path / "test" / "TCGA-BH-A0B7-01A-03-TS1.svs")
    with pytest.raises(UsageError, match="case 'TCGA-BH-A0B7' stands in test and train"):
        Cohort.from_inputs([str(tmp_path)])


def test_what_belongs_to_a_slide_or_was_written_by_us_is_left_out(tmp_path: Path) -> None:
    touch(
        tmp_path / "a.mrxs",
        tmp_path / "a" / "Slidedat.ini",
        tmp_path / "a" / "Data0000.dat",
        tmp_path / ".hidden" / "b.svs",
        tmp_path / ".c.svs",
        tmp_path / "stores" / "d.tiles.zarr" / "pixels" / "c" / "0",
        tmp_path / "v" / "e.jpg",
        tmp_path / "v" / "f.jpg",
        tmp_path / "out" / "cohort.csv",
        tmp_path / "out" / "a.png",
        tmp_path / "out" / "slides.csv",
        tmp_path / "out" / "mine.png",
    )
    (tmp_path / "v" / "e.vms").write_text("[Virtual Microscope Specimen]\nImageFile=e.jpg\nMapFile= f.jpg\n")
    slide = SlideRecord(slide="a", path="a.mrxs", status="ok", outputs={"picture": "somewhere/out/a.png"})
    table = {"slides.csv": Written(sha256="", bytes=0)}
    run = Run(
        command="predict",
        started="",
        written=table,
        slides=(slide, SlideRecord(slide="b", path="b.svs", status="failed")),
    )
    (tmp_path / "out" / "run.json").write_text(run.model_dump_json(by_alias=True))
    (tmp_path / "run.json").write_text('{"schema": "another"}')
    names = [str(found.path.relative_to(tmp_path)) for found in find(str(tmp_path))]
    assert names == ["a.mrxs", "out/mine.png", "run.json", "v/e.vms"]
    for pattern, left in (("out/*", ["mine.png"]), ("out/*.png", ["mine.png"]), ("v/*", ["e.vms"])):
        assert [found.path.name for found in find(str(tmp_path / pattern))] == left


@pytest.mark.parametrize("record", ["[]", "{}", '{"schema": "wsiseg.run/1", "slides": 3}', "no json", "\xff"])
def test_a_record_that_is_none_hides_nothing(tmp_path: Path, record: str) -> None:
    touch(tmp_path / "a.png")
    (tmp_path / "run.json").write_text(record, encoding="latin-1")
    assert "a" in [found.slide for found in find(str(tmp_path))]


def test_links_are_followed_but_never_round_and_round(make_slide: MakeSlide, tmp_path: Path) -> None:
    make_slide("far/a.tiff")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "near").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "broken.svs").symlink_to(tmp_path / "gone.svs")
    assert sorted(found.slide for found in find(str(tmp_path / "in"))) == ["a", "broken"]


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may list every folder")
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UsageError, match="closed: cannot be listed"):
        find(str(tmp_path))


def test_names_keep_what_is_no_suffix(tmp_path: Path) -> None:
    touch(tmp_path / "a.b.svs", tmp_path / "c.ome.tif", tmp_path / "notes.txt", tmp_path / "scan")
    assert [found.slide for found in find(str(tmp_path))] == ["a.b", "c", "notes.txt", "scan"]
