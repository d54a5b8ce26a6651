"""A cohort that does not fit the disk: a part is fetched, tiled and deleted before the next is fetched."""

from pathlib import Path

import pytest

from making.servers import Server, made_file
from making.slides import write_slide
from wsiseg.config.fetch import FetchTcgaConfig
from wsiseg.config.tile import TileConfig
from wsiseg.fetch.tcga import fetch_tcga
from wsiseg.run.record import Run
from wsiseg.slides.cohort import Cohort
from wsiseg.tiles.store import TileStore
from wsiseg.tiles.tile import tile

SLIDES, PARTS = 16, 3


@pytest.fixture
def served(server: Server, tmp_path: Path) -> Server:
    """Return a server of slides, two of each case."""
    for number in range(SLIDES):
        picture = write_slide(tmp_path / "made" / f"{number}.tiff", size=(600 + 20 * number, 500))
        server.add(made_file(number, content=picture.read_bytes()))
    return server


def part(server: Server, folder: Path, shard: str | None) -> Run:
    """Fetch and tile a part as the how-to says, and delete its slides."""
    slides, tiles = folder / "tcga", folder / "tiles"
    fetched = fetch_tcga(FetchTcgaConfig(out=slides, mirror=server.url, shard=shard))
    assert fetched.exit_code == 0
    held = list(slides.glob("*.svs"))
    assert len(held) == fetched.slides
    inputs = (str(slides / "cohort.csv"),)
    run = tile(TileConfig(inputs=inputs, out=tiles, tile=64, pixels=True, shard=shard, slide_mpp=0.5))
    assert {record.slide for record in run.slides} == {path.name.removesuffix(".svs") for path in held}
    if shard is not None:
        for path in held:
            path.unlink()
    return run


def table(folder: Path) -> dict[str, tuple[str, int | None, str | None]]:
    rows = Cohort.read(folder / "tiles" / "cohort.csv").slides
    return {row.slide: (row.case, row.label, row.split) for row in rows}


def test_a_cohort_is_fetched_tiled_and_deleted_part_by_part(served: Server, tmp_path: Path) -> None:
    part(served, tmp_path / "whole", None)
    parts = tmp_path / "parts"
    counts = [len(part(served, parts, f"{number}/{PARTS}").slides) for number in range(1, PARTS + 1)]
    assert sum(counts) == SLIDES
    assert max(counts) < SLIDES
    assert list((parts / "tcga").glob("*.svs")) == []
    assert table(parts) == table(tmp_path / "whole")
    assert len(Cohort.read(parts / "tcga" / "cohort.csv").slides) == SLIDES
    for name in table(parts):
        with TileStore(parts / "tiles" / f"{name}.tiles.zarr") as store:
            assert len(store.read(range(2))) == 2


def test_a_part_that_is_done_again_and_one_that_is_fetched_later_change_no_split(
    served: Server, tmp_path: Path
) -> None:
    part(served, tmp_path, f"2/{PARTS}")
    before = table(tmp_path)
    run = part(served, tmp_path, f"2/{PARTS}")
    assert {record.status for record in run.slides} == {"up_to_date"}
    part(served, tmp_path, f"1/{PARTS}")
    after = table(tmp_path)
    assert before.items() < after.items()
    of_case: dict[str, set[str | None]] = {}
    for case, _, split in after.values():
        of_case.setdefault(case, set()).add(split)
    assert all(len(splits) == 1 for splits in of_case.values())
