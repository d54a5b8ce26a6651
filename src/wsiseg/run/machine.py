"""What this process may use of the machine: cores and memory, within the quota of the container that it runs in.

Linux keeps quotas in control groups: files in a folder for each group, below those of the groups that it is part of.
Version 2 has one tree, at /sys/fs/cgroup, version 1 one below it for each kind of quota, and a process may be in both
(https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1).
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

CORES = "WSISEG_CORES"
"""The environment variable that says how many cores may be used, where they are fewer than the system says."""

_SHARE = 16  # so that several such holdings leave most of a small memory to the work
_ROOT = Path("/")  # where the system's files lie
CPU_FACTS = Path("/proc/cpuinfo")
"""What Linux says of the CPU."""


def cores(root: Path = _ROOT) -> int:
    """Return the number of cores that this process may use, a part of one counted as one, or `WSISEG_CORES` if set."""
    if os.environ.get(CORES, "").isdigit():
        return max(1, int(os.environ[CORES]))
    # sched_getaffinity respects taskset and cpusets, and does not exist everywhere.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([usable, *(math.ceil(quota) for group in _groups(root) for quota in _cpu_quotas(group))]))


def cpu_has(instructions: frozenset[str], facts: Path = CPU_FACTS) -> bool | None:
    """Return whether this CPU, as Linux describes it, has any of some instructions; None where that cannot be told."""
    words = _text(facts).split()
    return not instructions.isdisjoint(words) if words else None


def memory_bytes(root: Path = _ROOT) -> int | None:
    """Return the memory that this process may use; None where the system does not say."""
    limits = [
        int(text)
        for group in _groups(root)
        for name in ("memory.max", "memory.limit_in_bytes")
        if (text := _text(group / name)).isdigit()
    ]
    with suppress(AttributeError, ValueError, OSError):  # not every system has sysconf, or these names
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(limits, default=None)


def within_memory(most: int, root: Path = _ROOT) -> int:
    """Return so many bytes for what is held to be quick, or a sixteenth of the memory there is where that is less."""
    return min(most, (memory_bytes(root) or _SHARE * most) // _SHARE)


def _cpu_quotas(group: Path) -> Iterator[float]:
    """Yield how many cores a group may keep busy, where it is limited."""
    legacy = (_text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us"))
    for quota, period in (_text(group / "cpu.max").split() or ("", ""), legacy):
        if quota.isdigit() and period.isdigit() and int(period):  # `max` and -1 are no limit
            yield int(quota) / int(period)


def _groups(root: Path) -> Iterator[Path]:
    """Yield the folders of the groups that this process is in, and of those around them."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        kinds, _, path = line.partition(":")[2].partition(":")
        parts = PurePosixPath(path).parts[1:]
        # A container may be told its path on the host, of which it sees its own group at the most.
        depths = 0 if ".." in parts else len(parts)
        for tree in {kinds, *kinds.split(",")}:
            folder = root / "sys/fs/cgroup" / tree
            yield from (folder.joinpath(*parts[:depth]) for depth in range(depths + 1))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
