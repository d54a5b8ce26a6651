import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsiseg.run.errors import UsageError
from wsiseg.slides import barcode

NAME = "TCGA-BH-A0B7-11A-03-TSC.f0571ac2-0655-42b9-895e-e7b4ddc6d16e.svs"


def test_a_file_name_tells_case_sample_and_section() -> None:
    assert barcode.part(NAME, "case") == "TCGA-BH-A0B7"
    assert barcode.part(NAME, "sample") == "TCGA-BH-A0B7-11A"
    assert barcode.part(NAME, "slide") == "TCGA-BH-A0B7-11A-03-TSC"
    assert barcode.part(NAME, "code") == "11"
    assert barcode.label(NAME) == 0


@pytest.mark.parametrize("section", ["TS1", "BSA", "MS1", "BS01", "DX1"])
def test_every_kind_of_section_is_known(section: str) -> None:
    name = f"TCGA-22-0940-01A-01-{section}"
    assert barcode.part(f"{name}.svs", "slide") == name


@given(st.integers(0, 99))
def test_only_01_to_09_are_tumor_and_only_10_to_14_are_normal(code: int) -> None:
    name = f"TCGA-BH-A0B7-{code:02}A-03-TSC.svs"
    if 1 <= code <= 14:
        assert barcode.label(name) == (1 if code < 10 else 0)
    else:
        with pytest.raises(UsageError, match=f"sample type {code:02} "):
            barcode.label(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "slide.svs",
        "TCGA-BH-A0B7",
        "TCGA-BH-A0B7-11A-03-XX1",
        "x/TCGA-BH-A0B7-11A-03-TSC.svs",
        "TCGA-BH-A0B7-11A-03-TSC-2.svs",
        "TCGA-BH-A0B7-\u0661\u0661A-03-TSC.svs",
    ],
)
def test_what_is_no_slide_barcode_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="barcode"):
        barcode.part(name, "case")
