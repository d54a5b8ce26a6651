"""Tiling, features and grids shared with the workers of Dask give what one process gives."""

import resource
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from making.predictions import digest
from making.tiled import TILE_PX, training, write_tiled_cohort
from wsiseg.config.tile import TileConfig
from wsiseg.network.checkpoint import Checkpoint
from wsiseg.run.cluster import on_cluster
from wsiseg.run.errors import UsageError
from wsiseg.tiles.tile import tile
from wsiseg.training.train import train

LocalCluster = pytest.importorskip("distributed", reason="needs the extra dask").LocalCluster


def halves(numbers: Sequence[int]) -> Iterator[float]:
    for number in numbers:
        yield number / 2


def times(numbers: Sequence[int]) -> Iterator[tuple[int, float, float]]:
    """Give how many items came together, and from when to when each took."""
    for _ in numbers:
        began = time.monotonic()
        time.sleep(0.05)
        yield len(numbers), began, time.monotonic()


@pytest.mark.slow
def test_items_are_all_done_and_other_versions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sorted(on_cluster("local:1", halves, range(5), ("numpy", "no_such_package"))) == [0, 0.5, 1, 1.5, 2]
    monkeypatch.setattr("wsiseg.run.cluster.version", lambda _: "0")
    with pytest.raises(UsageError, match=rf"has numpy {np.__version__} instead of 0"):
        next(on_cluster("local:1", halves, range(5), ("numpy",)))


@pytest.mark.slow
def test_a_process_has_one_task_at_a_time_and_few_items_come_together_where_there_are_few() -> None:
    settings: dict[str, Any] = {
        "n_workers": 1,
        "threads_per_worker": 3,
        "dashboard_address": None,
    }  # as a user may start it
    settings |= {"scheduler_kwargs": {"dashboard_address": "127.0.0.1:0"}}
    with LocalCluster(**settings) as cluster:
        found = list(on_cluster(cluster.scheduler_address, times, range(8), ("numpy",), together=4))
        assert {together for together, _, _ in found} == {2}  # so that there are four tasks
        spans = sorted(span for _, *span in found)
        assert all(end <= begin for (_, end), (begin, _) in pairwise(spans))
        few = list(on_cluster(cluster.scheduler_address, times, range(3), ("numpy",), together=4))
        assert [together for together, _, _ in few] == [1, 1, 1]


def fresh_pages(counts: Sequence[int]) -> Iterator[int]:
    """Give how many pages the kernel hands out while so many arrays of 1 MB are used one after the other."""
    for count in counts:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(count):
            np.ones(2**20, np.uint8)
        yield resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no other system's C library is told what to keep")
def test_arrays_of_a_worker_lie_where_the_last_ones_lay() -> None:
    """Dask has its workers take every array from the kernel, which fills each of its pages with zeros."""
    pages_each = 2**20 // resource.getpagesize()
    (pages,) = on_cluster("local:1", fresh_pages, [100], ("numpy",))
    assert pages < 20 * pages_each


@pytest.mark.slow
def test_stores_are_the_same(tmp_path: Path) -> None:
    cohort = write_tiled_cohort(tmp_path)
    before = digest(cohort.parent)
    cohort.parent.rename(tmp_path / "alone")
    inputs = (str(tmp_path / "cohort" / "cohort.csv"),)
    run = tile(TileConfig(inputs=inputs, out=cohort.parent, tile=TILE_PX, pixels=True, dask="local:2"))
    assert set(run.totals) - {"failed"} == {"ok"}
    assert digest(cohort.parent) == before


def left(folder: Path) -> dict[str, Any]:
    """Return features, tables and weights that a grid left, without the times that checkpoints hold."""
    kept = [path for path in sorted(folder.rglob("*")) if path.name == "grid.csv" or path.suffix == ".npy"]
    found: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in kept}
    for path in sorted(folder.glob("*/best.pt")):
        checkpoint = Checkpoint.load(path)
        weights = {name: tensor.numpy().tobytes() for name, tensor in checkpoint.state_dict.items()}
        found[str(path.relative_to(folder))] = weights, checkpoint.classes, checkpoint.figures["splits"]
    return found


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Compute with one thread, as Dask's workers do: weights are the same for the same number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_grid_on_frozen_features_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = write_tiled_cohort(tmp_path)
    settings = training(cohort, tmp_path / "run", grid=True, freeze=True, epochs=1, views=2)
    train(settings)
    before = left(tmp_path / "run")
    assert len([name for name in before if name.endswith("best.pt")]) == 15
    (tmp_path / "run").rename(tmp_path / "alone")
    monkeypatch.setattr("wsiseg.training.train.fit", None)  # nothing is left to do for the process that asks
    trained = train(settings.model_copy(update={"dask": "local:2"}))
    assert len(trained.configurations) == 15
    assert left(tmp_path / "run") == before
    assert (tmp_path / "run" / "report.html").exists()
