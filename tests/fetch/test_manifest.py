from pathlib import Path

import pytest

from making.servers import made_file
from wsiseg.fetch.manifest import Entry, read_manifest, write_manifest
from wsiseg.run.errors import UsageError

ENTRIES = [Entry(one.id, one.name, one.md5, len(one.content)) for one in map(made_file, range(3))]
HEADER = "id\tfilename\tmd5\tsize\tstate"
ROWS = [f"{one.id}\t{one.name}\t{one.md5}\t{one.size}\treleased" for one in ENTRIES]


def written(folder: Path, *lines: str, encoding: str = "utf-8", end: str = "\n") -> Path:
    path = folder / "manifest.txt"
    path.write_bytes(end.join([*lines, ""]).encode(encoding))
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_manifest(tmp_path / "m.tsv", ENTRIES)
    assert read_manifest(tmp_path / "m.tsv") == ENTRIES


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends_do_no_harm(tmp_path: Path, encoding: str, end: str) -> None:
    assert read_manifest(written(tmp_path, HEADER, *ROWS, encoding=encoding, end=end)) == ENTRIES


def test_blank_rows_do_no_harm(tmp_path: Path) -> None:
    assert read_manifest(written(tmp_path, "", HEADER, ROWS[0], "", "\t\t\t\t", *ROWS[1:], "  ")) == ENTRIES


def test_quotes_of_other_programs_do_no_harm(tmp_path: Path) -> None:
    quoted = ["\t".join(f'"{cell}"' for cell in line.split("\t")) for line in [HEADER, *ROWS]]
    assert read_manifest(written(tmp_path, *quoted)) == ENTRIES


def test_a_quote_without_its_partner_swallows_no_rows(tmp_path: Path) -> None:
    rows = [f'{ROWS[0]}\t"', ROWS[1], f'{ROWS[2]}\t"']
    assert read_manifest(written(tmp_path, f"{HEADER}\tnote", *rows)) == ENTRIES


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([HEADER.replace("md5", "sum"), *ROWS], "the column md5 is missing"),
        ([f"{HEADER}\tmd5", *(f"{row}\t{'0' * 32}" for row in ROWS)], "the column md5 occurs twice"),
        ([HEADER.replace("\t", ","), *(row.replace("\t", ",") for row in ROWS)], "the column id is missing"),
        ([HEADER], "a manifest without slides"),
        ([], "the column id is missing"),
        ([HEADER, *ROWS, ROWS[1]], "stands in 2 rows"),
        ([HEADER, ROWS[0], "", f"{ROWS[1]}\tx\ty"], "line 4: 7 cells under 5 columns"),
        ([HEADER, ROWS[0].replace(ENTRIES[0].md5, "NA")], "line 2: 'NA' is not a file's md5"),
        (
            [HEADER, ROWS[0].replace(f"\t{ENTRIES[0].size}\t", "\t2.0E+04\t")],
            r"line 2: '2.0E\+04' is not a file's size",
        ),
        ([HEADER, "\t".join(ROWS[0].split("\t")[:2])], "line 2: '' is not a file's md5"),
        ([HEADER, ROWS[0].replace(".svs", ".bam")], r"line 2: .*\.bam is not an SVS slide"),
    ],
)
def test_others_are_refused_with_the_row(tmp_path: Path, lines: list[str], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        read_manifest(written(tmp_path, *lines))


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read as a manifest: .*; give a manifest .* UTF-8"):
        read_manifest(written(tmp_path, HEADER, *ROWS, encoding="utf-16"))
