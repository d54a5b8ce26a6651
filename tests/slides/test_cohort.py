import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.run.errors import NotASlideError, UsageError
from wsiseg.slides.cohort import Cohort, CohortSlide

MakeSlide = Callable[..., Path]
NAMES = st.text(string.ascii_letters + string.digits + " .-_é日🔬", min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and text not in {".", ".."}
)


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    names = draw(st.lists(NAMES, min_size=1, max_size=12, unique=True))
    split_of: dict[str, str | None] = {}
    slides = []
    for name in names:
        case = draw(st.sampled_from(["p1", "p2", name]))
        split = split_of.setdefault(case, draw(st.sampled_from(["train", "val", "test"])))
        slides.append(
            CohortSlide(
                name,
                Path("/slides") / f"{name}.svs",
                case,
                draw(st.sampled_from([0, 1, None])),
                split,
                draw(st.sampled_from(["", "colon", "breast"])),
                draw(st.none() | st.floats(0.05, 10)),
                {"scanner": draw(st.sampled_from(["", "a,b", 'with "quotes"']))},
            )
        )
    return Cohort(tuple(slides))


@given(cohorts())
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, cohort: Cohort) -> None:
    path = tmp_path_factory.mktemp("cohort") / "cohort.csv"
    cohort.write(path)
    assert [CohortSlide(**{**one.__dict__, "path": one.path.resolve()}) for one in Cohort.read(path).slides] == list(
        cohort.slides
    )


@given(cohorts())
def test_no_case_crosses_splits_and_a_split_stays_when_slides_are_added(cohort: Cohort) -> None:
    bare = Cohort(tuple(CohortSlide(one.slide, one.path, one.case, one.label) for one in cohort.slides))
    first = Cohort(bare.slides[: len(bare.slides) // 2]).with_splits({})
    known = {one.case: one.split for one in first.slides if one.split}
    later = bare.with_splits(known)
    split_of: dict[str, set[str]] = {}
    for one in later.slides:
        if one.split:
            split_of.setdefault(one.case, set()).add(one.split)
        assert (one.split is None) == (one.label is None)
    assert all(len(splits) == 1 for splits in split_of.values())
    assert all(split_of[case] == {split} for case, split in known.items())


def test_splits_are_65_15_20_of_each_label() -> None:
    slides = [CohortSlide(f"s{n}", Path(f"s{n}.svs"), f"case{n}", n % 2) for n in range(200)]
    split = Cohort(tuple(slides)).with_splits({}).slides
    for label in (0, 1):
        names = [one.split for one in split if one.label == label]
        assert [names.count(name) for name in ("train", "val", "test")] == pytest.approx([65, 15, 20], abs=1)


def test_given_splits_are_left_alone() -> None:
    slides = (CohortSlide("a", Path("a"), "a", 1, "test"), CohortSlide("b", Path("b"), "b", 0))
    assert Cohort(slides).with_splits({}).slides == slides


def test_every_bad_row_gets_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cohort.csv"
    rows = [
        "slide,path,case,label,split,mpp",
        "good,a.svs,p1,1,train,0.5",
        ",b.svs,,,,",
        "c,c.svs,,maybe,,",
        "d,d.svs,,,training,",
        "e,e.svs,,,,-1",
        "../f,f.svs,,,,",
        "good,g.svs,,,,",
        "h,h.svs,p1,1,test,",
        "i,i.svs,,,,,too,many",
        "j,j.svs,p3,1.0,,",
    ]
    path.write_text("\n".join(rows))
    with pytest.raises(UsageError) as caught:
        Cohort.read(path)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("cohort.csv: not a valid cohort:")
    assert [line.split(":")[0].strip() for line in lines[1:7]] == [f"line {n}" for n in (3, 4, 5, 6, 7, 10)]
    assert "slide 'good' occurs 2 times" in lines[7]
    assert "case 'p1' stands in test and train" in lines[8]
    assert len(lines) == 9


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a;b\n1;2\n", "column slide and path is missing.*commas"),
        (b"", "column slide and path"),
        (b"slide,path\n", "no slides"),
        (b"slide,path\n\xff\xfe,a\n", "cannot be read as a cohort"),
        (b"slide,path\n" + b"a" * 200_000 + b",b\n", "field larger"),
    ],
)
def test_what_is_no_cohort_is_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    (tmp_path / "cohort.csv").write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        Cohort.read(tmp_path / "cohort.csv")
    with pytest.raises(UsageError, match="cannot be read"):
        Cohort.read(tmp_path / "missing.csv")


def test_a_hundred_bad_rows_are_cut_short(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("slide,path\n" + ",x\n" * 100)
    with pytest.raises(UsageError, match="and 80 more"):
        Cohort.read(tmp_path / "cohort.csv")


def test_a_table_from_windows_is_read(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_bytes("﻿slide,path,label\r\nä,sub/ä.svs,1.0\r\n".encode())
    (slide,) = Cohort.read(tmp_path / "cohort.csv").slides
    assert (slide.slide, slide.path, slide.case, slide.label) == ("ä", tmp_path / "sub/ä.svs", "ä", 1)


def test_slides_of_one_name_get_names_of_their_own(make_slide: MakeSlide, tmp_path: Path) -> None:
    paths = [make_slide(name) for name in ("x/a.tiff", "y/a.tiff", "y/b.tiff")]
    slides = Cohort.from_inputs([str(tmp_path)]).slides
    assert {one.path for one in slides} == set(paths)
    names = [one.slide for one in slides]
    assert len(set(names)) == 3
    assert names[2] == "b"
    assert all(name.startswith("a-") and len(name) == 10 for name in names[:2])
    again = Cohort.from_inputs([str(tmp_path / "y"), str(tmp_path / "x" / "a.tiff")]).slides
    assert {one.slide for one in again} == set(names)


def test_inputs_are_files_folders_globs_tables_and_lines(make_slide: MakeSlide, tmp_path: Path) -> None:
    for name in ("one.tiff", "sub/two.tiff", "sub/deeper/three.tiff", "four [1].tiff"):
        make_slide(name)
    (tmp_path / "table.csv").write_text("slide,path,mpp\nmine,sub/two.tiff,0.3\n")

    def names(*inputs: str, piped: tuple[str, ...] = ()) -> list[str]:
        return [one.slide for one in Cohort.from_inputs([str(tmp_path / text) for text in inputs], piped).slides]

    assert names("one.tiff") == ["one"]
    assert names("sub") == ["three", "two"]
    assert names("*.tiff") == ["four [1]", "one"]
    assert names("four [1].tiff") == ["four [1]"]
    assert names("**/*o.tiff") == ["two"]
    assert names("table.csv", "sub") == ["mine", "three"]
    assert names("one.tiff", "one.tiff") == ["one"]
    assert names("missing.tiff") == ["missing"]
    piped = [str(tmp_path / "one.tiff") + "\n", "\n", str(tmp_path / "sub") + "\n"]
    assert [one.slide for one in Cohort.from_inputs(["-"], piped).slides] == ["one", "three", "two"]
    for nothing in ("nothing/*.svs", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="no slides in"):
            names(nothing)


def test_the_table_of_a_linked_folder_finds_its_slides(make_slide: MakeSlide, tmp_path: Path) -> None:
    slide = make_slide("slides/a.tiff")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "near").symlink_to(tmp_path / "far" / "away")
    Cohort((CohortSlide("a", slide),)).write(tmp_path / "near" / "cohort.csv")
    (row,) = Cohort.read(tmp_path / "near" / "cohort.csv").slides
    assert row.path.resolve() == slide.resolve()


def test_a_row_opens_its_slide_with_its_own_pixel_size(make_slide: MakeSlide) -> None:
    path = make_slide("a.tiff")
    with CohortSlide("a", path, mpp=0.3).open(0.7) as slide:
        assert slide.mpp == (0.3, 0.3)
    with CohortSlide("a", path).open(0.7) as slide:
        assert slide.mpp == (0.7, 0.7)
    with pytest.raises(NotASlideError, match="because"):
        CohortSlide("a", path, skipped="because").open()
