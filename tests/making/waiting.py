"""Waiting for what must come, however busy the machine is."""

import subprocess
import time
from collections.abc import Callable
from typing import Any

LONGEST_S = 120.0
"""So long may take what takes a moment on a machine that does nothing else."""


def wait_until(is_so: Callable[[], object], process: "subprocess.Popen[Any] | None" = None) -> None:
    """Wait until something is so; fail where it never comes to that, or the process ends that should bring it about."""
    until = time.monotonic() + LONGEST_S
    while not is_so():
        assert process is None or process.poll() is None, f"the process ended with exit code {process.returncode}"
        assert time.monotonic() < until, "it did not come to that"
        time.sleep(0.005)
