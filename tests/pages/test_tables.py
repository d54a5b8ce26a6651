"""Tables of the pages."""

import re

import pytest

from wsiseg.pages.page import cell, sortable_table, table


def kinds(html: str, tag: str) -> list[str]:
    return re.findall(rf'<{tag}(?: class="(\w*)")?', html.replace("<thead", ""))


@pytest.mark.parametrize("is_sortable", [True, False])
def test_heads_stand_as_their_columns_do(*, is_sortable: bool) -> None:
    texts = [["1.", "lymph node", "0.5 (0.1 to 0.9)", "-", "<b>no</b>"], ["2.", "", "", "+0.1", "3 of 4"]]
    if is_sortable:
        row = "".join(
            [cell("1."), cell("lymph node", "lymph node"), cell("0.5", 0.5), cell("-"), cell("no", is_text=True)]
        )
        html = sortable_table("abcde", [row])
        assert kinds(html, "td") == ["", "name", "", "", "text"]
    else:
        html = table("abcde", texts)
        assert kinds(html, "td") == ["", "name", "", "", "name"] * 2
    assert kinds(html, "th") == kinds(html, "td")[:5]


def test_a_table_of_no_rows_has_its_heads() -> None:
    assert kinds(table("ab", []), "th") == ["", ""]
    assert kinds(sortable_table("ab", []), "th") == ["", ""]
