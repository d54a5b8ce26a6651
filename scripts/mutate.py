#!/usr/bin/env python3
"""Plant the faults of faults.toml, one at a time, and say which of them the tests find; fail below 90 %.

Usage: python scripts/mutate.py [PART OF A MODULE'S PATH...]
"""

import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FAULTS = ROOT / "scripts" / "faults.toml"
LEAST_SHARE = 0.9
LONGEST_S = 600
AT_ONCE = 2
PASSED, FAILED, BROKEN = 0, 1, 2  # exit codes of pytest; broken tests are those that cannot even be collected


@dataclass(frozen=True)
class Fault:
    """A fault, and the tests that should find it; `file` counts from src/wsiseg."""

    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.before}  ->  {self.after}"


def faults(words: list[str]) -> list[Fault]:
    """Read the faults of the modules whose path holds one of some words; of all where there are none."""
    modules = tomllib.loads(FAULTS.read_text(encoding="utf-8"))["module"]
    return [
        Fault(module["file"], before, after, tuple(module["tests"]))
        for module in modules
        for before, after in module["faults"]
        if not words or any(word in module["file"] for word in words)
    ]


def tested(source: Path, tests: tuple[str, ...]) -> int:
    """Run tests on a copy of the source; return pytest's exit code. Tests that never end have found something."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(source), str(ROOT / "tests")]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": str(source / ".hypothesis"),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=planted",
        *tests,
    ]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        return FAILED
    return done.returncode


def survives(fault: Fault) -> bool:
    """Plant a fault in a copy of the source; tell whether the tests still pass."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        path = source / "wsiseg" / fault.file
        path.write_text(path.read_text(encoding="utf-8").replace(fault.before, fault.after), encoding="utf-8")
        compile(path.read_text(encoding="utf-8"), path, "exec")
        code = tested(source, fault.tests)
    if code not in {PASSED, FAILED, BROKEN}:
        raise SystemExit(f"{fault}: pytest ended with {code}; check the names of its tests")
    return code == PASSED


def main() -> None:
    """Check that the faults fit the source and that its tests pass, then plant each."""
    wanted = faults(sys.argv[1:])
    for fault in wanted:
        if (ROOT / "src" / "wsiseg" / fault.file).read_text(encoding="utf-8").count(fault.before) != 1:
            raise SystemExit(f"{fault.file}: does not hold this text once: {fault.before}")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        tests = sorted({fault.tests for fault in wanted})
        for names, code in zip(tests, pool.map(partial(tested, ROOT / "src"), tests), strict=True):
            if code:
                raise SystemExit(f"{' '.join(names)}: fails without any fault")
        survivors = 0
        for fault, is_alive in zip(wanted, pool.map(survives, wanted), strict=True):
            survivors += is_alive
            print(f"{'SURVIVED' if is_alive else 'killed  '} {fault}", flush=True)
    share = 1 - survivors / max(1, len(wanted))
    print(f"{len(wanted) - survivors} of {len(wanted)} faults killed ({share:.0%})")
    sys.exit(share < LEAST_SHARE)


if __name__ == "__main__":
    main()
