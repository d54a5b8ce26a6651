"""Tables of the pages."""

import re

import pytest

from wsiseg.pages.page import NAME, TEXT, cell, sortable_table, table


def kinds(html: str, tag: str) -> list[str]:
    return re.findall(rf'<{tag}(?: class="(\w*)")?', html.replace("<thead", ""))


@pytest.mark.parametrize("is_sortable", [True, False])
def test_heads_stand_as_their_columns_do(*, is_sortable: bool) -> None:
    texts = [["1.", "lymph node", "0.5 (0.1 to 0.9)", "-", "<b>no</b>"], ["2.", "", "", "+0.1", "3 of 4"]]
    if is_sortable:
        row = "".join([cell("1."), cell("lymph node", NAME), cell("0.5"), cell("-"), cell("no", TEXT)])
        html = sortable_table("abcde", [row], "slides.csv")
        assert kinds(html, "td") == ["", "name", "", "", "text"]
    else:
        html = table("abcde", texts)
        assert kinds(html, "td") == ["", "name", "", "", "name"] * 2
    assert kinds(html, "th") == kinds(html, "td")[:5]


def test_a_table_of_no_rows_has_its_heads() -> None:
    assert kinds(table("ab", []), "th") == ["", ""]
    assert kinds(sortable_table("ab", [], "slides.csv"), "th") == ["", ""]


def test_rows_that_would_make_a_page_too_large_are_counted() -> None:
    html = sortable_table("ab", [cell(500_000 * "x")] * 10, "slides.csv")
    assert 4e6 < len(html) < 4.6e6
    assert html.endswith("<p>2 further slides are in slides.csv only.</p>")
    assert "further" not in sortable_table("ab", [cell(500_000 * "x")] * 8, "slides.csv")
