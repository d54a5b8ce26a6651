"""Cores and memory are those of the container's quota, whichever version of control groups limits them."""

import gc
import os
from contextlib import suppress
from pathlib import Path

import pytest

from making.machines import with_memory
from wsiseg.run.machine import cores, memory_bytes, within_memory
from wsiseg.run.memory import loading

GB = 2**30
NONE = str(2**63 - 4096)


@pytest.fixture(autouse=True)
def _eight_cores_and_64_gb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(8)), raising=False)
    with_memory(monkeypatch, 64 * GB)


def system(root: Path, groups: str, files: dict[str, str]) -> Path:
    """Write what Linux says of a process: its groups, and what stands in them."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_without_groups_all_that_is_there_may_be_used(tmp_path: Path) -> None:
    assert (cores(tmp_path), memory_bytes(tmp_path)) == (8, 64 * GB)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("max 100000", 8), ("3200000 100000", 8), ("", 8)],
)
def test_a_quota_of_version_2_limits_cores(tmp_path: Path, quota: str, expected: int) -> None:
    root = system(tmp_path, "0::/", {"sys/fs/cgroup/cpu.max": quota})
    assert cores(root) == expected


@pytest.mark.parametrize(("limit", "expected"), [(str(3 * GB), 3 * GB), ("max", 64 * GB), (str(90 * GB), 64 * GB)])
def test_a_limit_of_version_2_limits_memory(tmp_path: Path, limit: str, expected: int) -> None:
    root = system(tmp_path, "0::/", {"sys/fs/cgroup/memory.max": limit})
    assert memory_bytes(root) == expected


@pytest.mark.parametrize("outer", [True, False])
def test_the_smallest_quota_of_nested_groups_counts(tmp_path: Path, outer: bool) -> None:  # noqa: FBT001  a case
    few, many = ("200000 100000", str(GB)), ("600000 100000", str(9 * GB))
    pod, own = (few, many) if outer else (many, few)
    files = {
        "sys/fs/cgroup/pods/a/cpu.max": pod[0],
        "sys/fs/cgroup/pods/a/memory.max": pod[1],
        "sys/fs/cgroup/pods/a/own/cpu.max": own[0],
        "sys/fs/cgroup/pods/a/own/memory.max": own[1],
        "sys/fs/cgroup/pods/b/cpu.max": "100000 100000",
        "sys/fs/cgroup/pods/b/memory.max": "4096",
    }
    root = system(tmp_path, "0::/pods/a/own", files)
    assert (cores(root), memory_bytes(root)) == (2, GB)


@pytest.mark.parametrize("path", ["/", "/docker/abc", "/../other"])
def test_a_container_may_see_its_group_under_any_path(tmp_path: Path, path: str) -> None:
    """With a name space of its own it is /, without one that of the host, which it may see or not."""
    files = {"sys/fs/cgroup/cpu.max": "300000 100000", "sys/fs/cgroup/memory.max": str(2 * GB)}
    root = system(tmp_path, f"0::{path}", files)
    assert (cores(root), memory_bytes(root)) == (3, 2 * GB)


@pytest.mark.parametrize(
    ("quota", "limit", "expected"), [("400000", str(5 * GB), (4, 5 * GB)), ("-1", NONE, (8, 64 * GB))]
)
def test_quotas_of_version_1_limit_both(tmp_path: Path, quota: str, limit: str, expected: tuple[int, int]) -> None:
    files = {
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": quota,
        "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
        "sys/fs/cgroup/memory/task/memory.limit_in_bytes": limit,
        "sys/fs/cgroup/memory/job/memory.limit_in_bytes": "4096",
    }
    groups = "5:memory:/task\n4:cpu,cpuacct:/job\n1:name=systemd:/x\n0::/y"
    root = system(tmp_path, groups, files)
    assert (cores(root), memory_bytes(root)) == expected


def test_what_cannot_be_read_limits_nothing(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/\nnonsense\n", {"sys/fs/cgroup/cpu.max": "many 0"})
    (root / "sys/fs/cgroup/memory.max").write_bytes(b"\xff\xfe")
    assert (cores(root), memory_bytes(root)) == (8, 64 * GB)


@pytest.mark.parametrize(("limit", "expected"), [("max", 600), ("16000", 600), ("8000", 500)])
def test_what_is_held_to_be_quick_follows_the_limit_of_memory(tmp_path: Path, limit: str, expected: int) -> None:
    root = system(tmp_path, "0::/", {"sys/fs/cgroup/memory.max": limit})
    assert within_memory(600, root) == expected


@pytest.mark.parametrize("is_looking", [True, False])
def test_python_looks_for_no_garbage_while_libraries_are_loaded_and_then_as_before(*, is_looking: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if is_looking else gc.disable)()
        with suppress(ImportError), loading():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() == is_looking
    finally:
        (gc.enable if was else gc.disable)()
