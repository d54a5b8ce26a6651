#!/usr/bin/env python3
"""Plant the faults of faults.toml, one at a time, and say which of them the tests find; fail below 90 %.

Usage: python scripts/mutate.py [PART OF A MODULE'S PATH...]

Tests that fail without any fault are named, and their faults are not planted. The others are told of as they come.
"""

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "scripts" / "faults.toml"
LEAST_SHARE = 0.9
AT_ONCE = 2
LONGEST_S, LOOK_AGAIN_S = 400, 0.1
PASSED, WRONG_NAMES, NO_TESTS = 0, 4, 5
"""Exit codes of pytest."""


@dataclass(frozen=True)
class Fault:
    """A fault, and the tests that should find it; `file` counts from src/wsiseg."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.before}  ->  {self.after}"


@dataclass(frozen=True)
class Outcome:
    """The exit code of tests, None where they did not end; the seconds that they computed, and their last words."""

    code: int | None
    cpu_s: float
    said: str


def faults(words: list[str]) -> list[Fault]:
    """Read the faults of the modules whose path holds one of some words; of all where there are none."""
    modules = tomllib.loads(FAULTS.read_text(encoding="utf-8"))["module"]
    return [
        Fault(module["file"], before, after, tuple(module["tests"]))
        for module in modules
        for before, after in module["faults"]
        if not words or any(word in module["file"] for word in words)
    ]


def tested(source: Path, tests: tuple[str, ...], most_cpu_s: float) -> Outcome:
    """Run tests on a copy of the source, and end them where they compute or wait for too long."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=planted"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(source), str(ROOT / "tests")]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(folder) / "hypothesis"),
            "PYTEST_DEBUG_TEMPROOT": folder,
        }
        said = Path(folder) / "said"  # no pipe, which a process that a test left behind would hold open
        with said.open("wb") as out:
            command = [sys.executable, "-m", "pytest", *options, *tests]
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=out)
        if hasattr(resource, "prlimit"):  # however busy the machine is
            resource.prlimit(process.pid, resource.RLIMIT_CPU, (int(most_cpu_s), int(most_cpu_s) + 5))
        code, cpu_s = _ended(process)
        return Outcome(code, cpu_s, said.read_text(encoding="utf-8", errors="replace")[-1500:])


def _ended(process: "subprocess.Popen[bytes]") -> tuple[int | None, float]:
    """Wait for a process, and end it after a while; return its exit code and the seconds of CPU that it took."""
    for _ in range(int(LONGEST_S / LOOK_AGAIN_S)):  # no clock, which goes on where this program is stopped
        number, status, used = os.wait4(process.pid, os.WNOHANG)
        if number:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, used.ru_utime + used.ru_stime
        time.sleep(LOOK_AGAIN_S)
    process.kill()
    process.wait()
    return None, LONGEST_S


def planted(fault: Fault, most_cpu_s: float) -> Outcome:
    """Plant a fault in a copy of the source, and run its tests."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "wsiseg" / fault.file
        path.write_text(path.read_text(encoding="utf-8").replace(fault.before, fault.after), encoding="utf-8")
        compile(path.read_text(encoding="utf-8"), path, "exec")
        return tested(source, fault.tests, most_cpu_s)


def tally(tests: tuple[str, ...], mine: list[Fault]) -> Counter[str]:
    """Plant faults that some tests should find, and say of each whether they do; count what became of them."""
    alone = tested(ROOT / "src", tests, LONGEST_S)
    if alone.code != PASSED:  # a busy machine may be the cause
        alone = tested(ROOT / "src", tests, LONGEST_S)
    if alone.code != PASSED:
        print(f"{alone.said}\n{' '.join(tests)}: fails without any fault", flush=True)
        return Counter({"not planted": len(mine)})
    count = Counter[str]()
    for fault in mine:
        outcome = planted(fault, min(LONGEST_S, 30 + 5 * alone.cpu_s))
        kind = "SURVIVED" if outcome.code in {PASSED, WRONG_NAMES, NO_TESTS} else "killed"
        print(f"{kind:8} {fault}", flush=True)
        count[kind] += 1
    return count


def main() -> None:
    """Check that the faults fit the source, then plant them: those of the same tests one after the other."""
    wanted: dict[tuple[str, ...], list[Fault]] = {}
    for fault in faults(sys.argv[1:]):
        if (ROOT / "src" / "wsiseg" / fault.file).read_text(encoding="utf-8").count(fault.before) != 1:
            raise SystemExit(f"{fault.file}: does not hold this text once: {fault.before}")
        wanted.setdefault(fault.tests, []).append(fault)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        count = sum(pool.map(tally, wanted, wanted.values()), Counter[str]())
    planted_ones = count["killed"] + count["SURVIVED"]
    share = count["killed"] / max(1, planted_ones)
    print(f"{count['killed']} of {planted_ones} faults killed ({share:.0%}), {count['not planted']} not planted")
    sys.exit(count["not planted"] > 0 or share < LEAST_SHARE)


if __name__ == "__main__":
    main()
