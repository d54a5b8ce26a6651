import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from wsiseg.evaluation.plots import write_paper_tables
from wsiseg.run.errors import UsageError

HEAD = "alpha,beta,split,site,auc,auc_background,precision,recall,f1,slide_auc,threshold"


def grid_csv(folder: Path) -> Path:
    """Write the grid of the paper: 15 configurations and the supervised one; lung is trained on, ovary is not."""
    rows = [HEAD]
    pairs = [(a, b) for a in range(2, 11, 2) for b in range(0, 11 - a, 2)]
    for alpha, beta in [*((f"{a / 10:g}", f"{b / 10:g}") for a, b in pairs), ("", "")]:
        quality = 0.5 + 0.3 * float(alpha or 1) - 0.2 * float(beta or 0)
        for split, site in (("val", "all"), ("val", "lung"), ("test", "all"), ("test", "lung"), ("test", "ovary")):
            auc = quality + {"all": 0, "lung": 0.1, "ovary": -0.1}[site]
            rows.append(f"{alpha},{beta},{split},{site},{auc:.3f},{auc / 2:.3f},{quality:.3f},,0.4,0.9,0.5")
    folder.mkdir(exist_ok=True)
    (folder / "grid.csv").write_text("\n".join(rows) + "\n")
    return folder


def test_the_table_holds_organs_without_and_with_background_and_the_means_of_both_kinds(tmp_path: Path) -> None:
    write_paper_tables(grid_csv(tmp_path / "grid"), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "table1.csv").read_text().splitlines()))
    assert len(rows) == 16
    assert list(rows[0]) == ["alpha", "beta", "lung", "lung_background", "ovary", "ovary_background", "in_distribution",
                             "in_distribution_background", "out_of_location", "out_of_location_background", "all",
                             "all_background"]  # fmt: skip
    first = rows[0]
    assert (first["alpha"], first["beta"], first["lung"], first["in_distribution"]) == ("0.2", "0", "0.66", "0.66")
    assert (first["ovary"], first["out_of_location_background"], first["all"]) == ("0.46", "0.23", "0.56")
    assert (rows[-1]["alpha"], rows[-1]["all"]) == ("", "0.8")


def test_the_figure_is_a_matrix_for_every_measure(tmp_path: Path) -> None:
    paths = write_paper_tables(grid_csv(tmp_path / "grid"), tmp_path / "out")
    drawn = [f"{name}.{end}" for name in ("table1", "figure2", "figure2_out_of_location") for end in ("svg", "png")]
    assert [path.name for path in paths] == ["table1.csv", "figure2.csv", *drawn]
    assert all(path.stat().st_size for path in paths)
    svg = (tmp_path / "out" / "figure2.svg").read_text()
    assert ">0.660<" in svg
    assert ">true labels of tiles: 0.900<" in svg
    assert "script" not in svg
    with Image.open(tmp_path / "out" / "figure2.png") as picture:
        assert picture.width > 1500
    rows = list(csv.DictReader((tmp_path / "out" / "figure2.csv").read_text().splitlines()))
    assert (len(rows), rows[3]["auc"], rows[3]["recall"]) == (32, "0.54", "")


def test_the_figure_does_not_pool_organs_that_were_trained_on_with_others(tmp_path: Path) -> None:
    write_paper_tables(grid_csv(tmp_path / "grid"), tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "figure2.csv").read_text().splitlines()))
    first = {row["location"]: row["auc"] for row in rows if (row["alpha"], row["beta"]) == ("0.2", "0")}
    assert first == {"in_distribution": "0.66", "out_of_location": "0.46"}
    figure, other = ((tmp_path / "out" / f"{name}.svg").read_text() for name in ("figure2", "figure2_out_of_location"))
    assert "pixel AUC, in-distribution test split" in figure
    assert ">0.660<" in figure
    assert ">0.460<" in other
    assert ">0.460<" not in figure


def test_a_grid_without_organs_is_one_figure_over_all(tmp_path: Path) -> None:
    folder = grid_csv(tmp_path / "grid")
    lines = (folder / "grid.csv").read_text().splitlines()
    (folder / "grid.csv").write_text(
        "\n".join(line for line in lines if ",lung," not in line and ",ovary," not in line)
    )
    paths = write_paper_tables(folder, tmp_path / "out")
    assert len(paths) == 6
    rows = list(csv.DictReader((tmp_path / "out" / "figure2.csv").read_text().splitlines()))
    assert (len(rows), rows[0]["location"], rows[0]["auc"]) == (16, "all", "0.56")


def test_a_folder_without_a_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read as a grid"):
        write_paper_tables(tmp_path, tmp_path / "out")
    (tmp_path / "grid.csv").write_text(f"{HEAD}\n0.2,0,val,all,0.5,0.5,,,,,\n")
    with pytest.raises(UsageError, match="has no row of the test split"):
        write_paper_tables(tmp_path, tmp_path / "out")
    (tmp_path / "grid.csv").write_text(f"{HEAD}\n0.2,0,test,all,high,0.5,,,,,\n")
    with pytest.raises(UsageError, match="cannot be read as a grid"):
        write_paper_tables(tmp_path, tmp_path / "out")


def test_the_command_prints_where_they_are(tmp_path: Path) -> None:
    folder = grid_csv(tmp_path / "grid")
    command = [
        sys.executable,
        "-m",
        "wsiseg",
        "evaluate",
        "--grid",
        str(folder),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
    assert len(json.loads(done.stdout)["outputs"]) == 8
