import io
import os
import string
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.run.errors import NotASlideError, UsageError
from wsiseg.slides.cohort import Cohort, CohortSlide
from wsiseg.slides.cohort_slide import name_problem
from wsiseg.slides.table import same_name

MakeSlide = Callable[..., Path]
NAMES = st.text(string.ascii_letters + string.digits + " .-_é日🔬", min_size=1, max_size=20).filter(
    lambda text: text.strip() == text and not name_problem(text)
)


STATED = [(None, None, None), (10.0, None, None), (5.0, 12.5, 30.0), (None, 40.0, None), (None, None, 99.0)]


@st.composite
def cohorts(draw: st.DrawFn) -> Cohort:
    names = draw(st.lists(NAMES, min_size=1, max_size=12, unique_by=same_name))
    split_of: dict[str, str | None] = {}
    slides = []
    for name in names:
        case, label = draw(st.sampled_from(["case 1", "case 2", name])), draw(st.sampled_from([0, 1, None]))
        split = split_of.setdefault(case, draw(st.sampled_from(["train", "val", "test"])))
        slides.append(
            CohortSlide(
                name,
                Path("/slides") / f"{name}.svs",
                case,
                label,
                split,
                draw(st.sampled_from(["", "colon", "breast"])),
                draw(st.none() | st.floats(0.05, 10)),
                {"scanner": draw(st.sampled_from(["", "a,b", 'with "quotes"']))},
                *(draw(st.sampled_from(STATED)) if label else STATED[0]),
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
        "d,d.svs,,,held-out,",
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
    ("label", "percentages", "expected"),
    [
        ("", "30,,", (1, 0.3, None)),
        ("", ",0,", (0, 0.0, 0.05)),
        ("", ",3 %,", (1, 0.0, 0.08)),
        ("", ",,0", (0, None, 0.0)),
        ("", ",,20", (None, None, 0.2)),
        ("0", "0,,20", (0, 0.0, 0.2)),
        ("yes", "10,NA,30.5", (1, 0.1, 0.305)),
        ("1", "45,50,", (1, 0.45, 0.55)),
        ("1", ",98,", (1, 0.93, 1.0)),
    ],
)
def test_percentages_state_shares_and_give_a_label(
    tmp_path: Path, label: str, percentages: str, expected: tuple[object, ...]
) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text(f"slide,path,label,Tumor_Min,tumor_percent,tumor_max\na,a.svs,{label},{percentages}\n")
    (slide,) = Cohort.read(path).slides
    assert (slide.label, *slide.stated(5)) == expected
    assert slide.extra == {}


@pytest.mark.parametrize(
    ("label", "percentages", "sentence"),
    [
        ("0", "10,,", "line 2: label 0 contradicts tumor_min 10"),
        ("0", ",5,", "label 0 contradicts tumor_percent 5"),
        ("1", ",,0", "label 1 contradicts tumor_max 0"),
        ("1", "0,0,10", "label 1 contradicts tumor_min 0 and tumor_percent 0 and tumor_max 10"),
        ("1", "40,,30", "tumor_min 40 is above tumor_max 30"),
        ("1", ",50,30", "tumor_percent 50 is above tumor_max 30"),
        ("1", "120,,", "tumor_min '120' is not 0, nor a percentage from 1 to 100"),
        ("1", "-1,,", "tumor_min '-1' is not 0"),
        ("1", ",0.3,", "tumor_percent '0.3' is not 0, nor a percentage from 1 to 100, as 30 for three tenths"),
        ("1", ",some,", "tumor_percent 'some' is not"),
        ("1", ",%,", "tumor_percent '%' is not"),
    ],
)
def test_percentages_that_contradict_a_label_or_each_other_are_refused(
    tmp_path: Path, label: str, percentages: str, sentence: str
) -> None:
    path = tmp_path / "cohort.csv"
    path.write_text(f"slide,path,label,tumor_min,tumor_percent,tumor_max\na,a.svs,{label},{percentages}\n")
    with pytest.raises(UsageError, match=sentence):
        Cohort.read(path)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a;b\n1;2\n", "column slide and path is missing.*commas"),
        (b"", "an empty table"),
        (b"slide,path\n", "no slides"),
        (b"slide,path\n\xff\xfe,a\n", "line 2: not a text in UTF-8"),
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
    ended = ["".join(f"{tmp_path / name}\0" for name in ("one.tiff", "line\nbreak.tiff", " \ufeff.tiff"))]
    lines = io.StringIO(ended[0]).readlines()
    assert [one.path.name for one in Cohort.from_inputs(["-"], lines).slides] == [
        "one.tiff",
        "line\nbreak.tiff",
        " \ufeff.tiff",
    ]
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


TABLES = {
    "Excel's UTF-16": ("slide\tpath\tlabel\r\nä\tä.svs\t1\r\n".encode("utf-16"), ("ä", "ä.svs", 1)),
    "big-endian UTF-16": ("\ufeffslide,path,label\nä,ä.svs,1\n".encode("utf-16-be"), ("ä", "ä.svs", 1)),
    "semicolons": (b"slide;path;label;mpp\na;a.svs;1,0;0,25\n", ("a", "a.svs", 1)),
    "a line that names the separator": (b"sep=;\r\nslide;path;label\r\na;a.svs;1\r\n", ("a", "a.svs", 1)),
    "bars": (b"slide|path|label\na|a.svs|1\n", ("a", "a.svs", 1)),
    "old line ends": (b"slide,path,label\ra,a.svs,1\r", ("a", "a.svs", 1)),
    "capitals and blanks": (b" Slide , PATH,Label \n a , a.svs , 1 \n", ("a", "a.svs", 1)),
    "blank rows and columns": (b"slide,path,label,,\na,a.svs,1,,\n,,,,\n\n , ,,,\n", ("a", "a.svs", 1)),
    "more commas in rows than in the header": (b"slide,path,label\na,a.svs,1,,,\n", ("a", "a.svs", 1)),
    "comments": (b"# my cohort, of 2026\nslide,path,label\n# first\na,a.svs,1\n", ("a", "a.svs", 1)),
    "a comment for a header": (b"#slide,path,label\na,a.svs,1\n", ("a", "a.svs", 1)),
    "row numbers of pandas": (b",slide,path,label\n0,a,a.svs,1\n", ("a", "a.svs", 1)),
    "kept zeros": (b'slide,path,label\n"=""007""",a.svs,1\n', ("007", "a.svs", 1)),
    "backslashes": (b"slide,path,label\na,sub\\a.svs,1\n", ("a", "sub/a.svs", 1)),
    "blanks that nobody sees": ("slide,path,label\n\u200ba\xa0,\ufeffa.svs,1\n".encode(), ("a", "a.svs", 1)),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_read_as_people_save_it(tmp_path: Path, name: str) -> None:
    content, (slide, path, label) = TABLES[name]
    (tmp_path / "cohort.csv").write_bytes(content)
    (row,) = Cohort.read(tmp_path / "cohort.csv").slides
    assert (row.slide, row.path, row.label, row.case, row.extra) == (slide, tmp_path / path, label, slide, {})


REFUSED = {
    "latin-1": ("slide,path\na,a.svs\nü,ü.svs\n".encode("latin-1"), "line 3: not a text in UTF-8.*CSV UTF-8"),
    "UTF-16 without a mark": ("slide,path\na,a.svs\n".encode("utf-16-le"), "line 1: holds NUL"),
    "a column twice": (b"slide,path,Path\na,a.svs,b.svs\n", "column 'path' occurs twice"),
    "another column twice": (b"slide,path,x,x\na,a.svs,1,2\n", "column 'x' occurs twice"),
    "a value without a column": (b"slide,path,\na,a.svs,1\n", "line 2: a value in column 3, which has no name"),
    "a row that is commented out": (b"slide,path\n#a,a.svs\nb,b.svs\n", "line 2: begins with #"),
    "a quotation mark alone": (
        b'slide,path,note\na,a.svs,"x\nb,b.svs,y\nc,c.svs,z"\n',
        "line 2: note runs over 3 lines",
    ),
    "one that never ends": (b'slide,path\n"a,a.svs\nb,b.svs\n', "line 2: .*without its partner"),
    "patients under another name": (b"slide,path,patient\na,a.svs,p1\n", "call 'patient' case"),
    "labels": (b"slide,path,labels\na,a.svs,1\n", "call 'labels' label"),
    "a column called nearly so": (b"slide,path,mpp_x\na,a.svs,1\n", "call 'mpp_x' mpp"),
    "a number of Python's": (b"slide,path,mpp\na,a.svs,0_25\n", "line 2: mpp '0_25' is not a positive number"),
    "a case that Excel shortened": (
        b"slide,path,case\na,a.svs,2.02403E+11\n",
        "line 2: case 2.02403E\\+11 is a number",
    ),
    "a slide that pandas shortened": (b"slide,path\n2.5e+15,a.svs\n", "line 2: slide 2.5e\\+15 is a number"),
    "an error of Excel": (b"slide,path,case\na,a.svs,#REF!\n", "line 2: case is #REF!"),
    "another label": (b"slide,path,label\na,a.svs,2\n", "line 2: label '2' is not 1, 0 or empty"),
    "no id": (b"slide,path\nNA,a.svs\n", "line 2: slide and path are needed"),
    "no path": (b"slide,path\na,N/A\n", "line 2: slide and path are needed"),
    "ids that differ in capitals": (b"slide,path\na,a.svs\nA,b.svs\n", "'A' and 'a' would be|A and a would be"),
    "ids that differ in accents": ("slide,path\n\u00e4,a.svs\na\u0308,b.svs\n".encode(), "line 2 and line 3"),
    "cases that differ in capitals": (b"slide,path,case\na,a.svs,p1\nb,b.svs,P1\n", "P1 and p1 differ in upper"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_mean_two_things_is_refused_by_its_line(tmp_path: Path, name: str) -> None:
    content, sentence = REFUSED[name]
    (tmp_path / "cohort.csv").write_bytes(content)
    with pytest.raises(UsageError, match=rf"(?s)cohort\.csv.*({sentence})"):
        Cohort.read(tmp_path / "cohort.csv")


@pytest.mark.parametrize(
    "word",
    ["", " ", "NA", "N/A", "#N/A", "NaN", "nan", "None", "NULL", "null", "-", "?", "<NA>", "n/a", "missing", "."],
)
def test_a_word_for_nothing_is_no_patient_label_split_site_or_size(tmp_path: Path, word: str) -> None:
    rows = [f"{name},{name}.svs,{word},{word},{word},{word},{word}\n" for name in "ab"]
    (tmp_path / "cohort.csv").write_text("slide,path,case,label,split,site,mpp\n" + "".join(rows))
    for name, row in zip("ab", Cohort.read(tmp_path / "cohort.csv").slides, strict=True):
        assert (row.case, row.label, row.split, row.site, row.mpp) == (name, None, None, "", None)


@pytest.mark.parametrize(
    ("label", "words"),
    [
        (1, ["1", "1.0", "1,0", "yes", "Y", "TRUE", "true", "T", "tumour", "Tumor", "cancer", "malignant", "positive"]),
        (
            0,
            [
                "0",
                "0.0",
                "0,0",
                "no",
                "N",
                "FALSE",
                "false",
                "F",
                "normal",
                "Benign",
                "negative",
                "non tumor",
                "no_tumor",
            ],
        ),
    ],
)
def test_labels_are_figures_or_words(tmp_path: Path, label: int, words: list[str]) -> None:
    rows = [f'{number},{number}.svs,"{word}"\n' for number, word in enumerate(words)]
    (tmp_path / "cohort.csv").write_text("slide,path,label\n" + "".join(rows))
    assert {row.label for row in Cohort.read(tmp_path / "cohort.csv").slides} == {label}


def test_splits_are_the_words_that_folders_have_for_them(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text("slide,path,split\na,a.svs,Training\nb,b.svs,validation\nc,c.svs,TEST\n")
    assert [row.split for row in Cohort.read(tmp_path / "cohort.csv").slides] == ["train", "val", "test"]


@pytest.mark.parametrize("name", ["-rf", ".hidden", "..", "a/b", "a\\b", "con", "NUL.x", "LPT1", "a\x7f", "x" * 300])
def test_an_id_that_cannot_name_files_is_refused_by_its_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "cohort.csv").write_text(f"slide,path\nfine,a.svs\n{name},b.svs\n")
    with pytest.raises(UsageError, match=r"line 3: slide .*give it an id that can name a file"):
        Cohort.read(tmp_path / "cohort.csv")


def test_files_whose_names_cannot_be_ids_get_others_that_can(make_slide: MakeSlide, tmp_path: Path) -> None:
    for name in ("-rf.tiff", "nan.tiff", "a\\b.tiff", "con.tiff", "X.tiff", "x.tiff", "fine.tiff"):
        make_slide(f"in/{name}")
    (tmp_path / "in" / os.fsdecode(b"odd\xff.tiff")).write_bytes(b"")
    cohort = Cohort.from_inputs([str(tmp_path / "in")])
    names = {slide.slide.lower() for slide in cohort.slides}
    assert len(names) == len(cohort.slides) == 8
    assert "fine" in names
    cohort.write(tmp_path / "cohort.csv")
    again = Cohort.read(tmp_path / "cohort.csv").slides
    assert [(row.slide, row.path.resolve()) for row in again] == [(row.slide, row.path) for row in cohort.slides]


def test_a_path_is_found_whatever_the_form_of_its_accents(make_slide: MakeSlide, tmp_path: Path) -> None:
    slide = make_slide("\u00fc.tiff")
    (tmp_path / "cohort.csv").write_text("slide,path\na,u\u0308.tiff\n")
    (row,) = Cohort.read(tmp_path / "cohort.csv").slides
    assert row.path == slide


def test_two_rows_of_one_file_both_stay_and_share_their_patient(make_slide: MakeSlide, tmp_path: Path) -> None:
    slide = make_slide("a.tiff")
    (tmp_path / "link.tiff").symlink_to(slide)
    (tmp_path / "cohort.csv").write_text("slide,path,label\none,a.tiff,1\ntwo,a.tiff,0\nthree,link.tiff,0\n")
    rows = Cohort.from_inputs([str(tmp_path / "cohort.csv"), str(slide)]).slides
    assert [(row.slide, row.label, row.case) for row in rows] == [
        ("one", 1, "one"),
        ("two", 0, "one"),
        ("three", 0, "one"),
    ]
    assert all("the other label" in " ".join(row.doubts) for row in rows)
    assert len({row.split for row in Cohort(rows).with_splits({}).slides}) == 1


def test_one_file_of_two_patients_is_refused(make_slide: MakeSlide, tmp_path: Path) -> None:
    make_slide("a.tiff")
    (tmp_path / "cohort.csv").write_text("slide,path,case\none,a.tiff,p1\ntwo,a.tiff,p2\n")
    with pytest.raises(UsageError, match=r"cases p1 and p2 are of one file, a\.tiff \(line 2 and line 3\)"):
        Cohort.read(tmp_path / "cohort.csv")


def test_a_row_counts_more_than_its_file_found_before_it(make_slide: MakeSlide, tmp_path: Path) -> None:
    make_slide("in/a.tiff")
    (tmp_path / "cohort.csv").write_text("slide,path,label\nmine,in/a.tiff,1\n")
    (row,) = Cohort.from_inputs([str(tmp_path / "in"), str(tmp_path / "cohort.csv")]).slides
    assert (row.slide, row.label) == ("mine", 1)


def test_two_tables_that_contradict_each_other_are_refused(make_slide: MakeSlide, tmp_path: Path) -> None:
    make_slide("a.tiff")
    for name, label in (("one", 1), ("two", 0), ("three", 1)):
        (tmp_path / f"{name}.csv").write_text(f"slide,path,label\na,a.tiff,{label}\n")
    assert len(Cohort.from_inputs([str(tmp_path / "one.csv"), str(tmp_path / "three.csv")]).slides) == 1
    with pytest.raises(UsageError, match="slide 'a' stands in two tables that say different things"):
        Cohort.from_inputs([str(tmp_path / "one.csv"), str(tmp_path / "two.csv")])


def test_what_is_not_a_slide_has_failed_where_it_was_named_and_is_skipped_where_it_was_found(tmp_path: Path) -> None:
    (tmp_path / "a.isyntax").write_bytes(b"anything")
    (tmp_path / "cohort.csv").write_text("slide,path\na,a.isyntax\n")
    for text in ("a.isyntax", "cohort.csv", ".", "*"):
        rows = [row for row in Cohort.from_inputs([str(tmp_path / text)]).slides if row.path.suffix == ".isyntax"]
        with pytest.raises(NotASlideError, match="iSyntax files cannot be read"):
            rows[0].open()
        assert rows[0].must_be_slide == (text not in {".", "*"})
